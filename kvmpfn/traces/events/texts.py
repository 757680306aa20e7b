"""What the events' texts look like, written once for both ways to read them: patterns, and bytes.

A text is a template: literal characters and ``{field:kind}``, with the kinds of `KINDS`; the field ``_`` is
read over. The texts are those of the kernel's trace headers (arch/x86/kvm/trace.h and mmu/mmutrace.h,
include/trace/events/kvm.h, arch/arm64/kvm/trace_arm.h) of 4.18 to 6.16 and of trace-cmd's plugin_kvm.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvmpfn.traces.events.exits import exit_name
from kvmpfn.traces.events.records import ABSENT, CODE, EVENT_FIELDS, EVENTS

KINDS = {
    "x": r"(?:0x)?([\da-fA-F]{1,16})(?![\w=])",
    "d": r"(\d{1,20})(?![\w=])",
    "i": r"(-?(?:0x[\da-fA-F]{1,16}|\d{1,20}))(?![\w=])",
    "s": r"(\w[^()]{0,60}?)",
    "w": r"\S*",
    "n": r"\S+",
    "p": r"[^)]*",
}
"""Hexadecimal with or without 0x, decimal, as in C, a name, a word of no
interest that may be empty or not, what parentheses hold."""

RETURN = ("ret={ret:i}", "({_:p}) ret={ret:i}")

TEXTS: dict[str, tuple[str, ...]] = {
    "kvm_page_fault": (
        "vcpu {vcpu:d} rip {rip:x} address {address:x} error_code {error_code:x}",
        "address {address:x} error_code {error_code:x}",
        "vcpu {vcpu:d} address {address:x} error_code {error_code:x}",
    ),
    "fast_page_fault": (
        "vcpu {vcpu:d} gva {address:x} error_code {_:w} sptep {_:w} old {_:x} new {_:x} "
        "spurious {spurious:d} fixed {fixed:d}",
    ),
    "kvm_mmu_spte_requested": ("gfn {gfn:x} pfn {pfn:x} level {level:d}",),
    "kvm_mmu_set_spte": ("gfn {gfn:x} spte {new_spte:x} ({_:p}) level {level:d}",),
    "kvm_tdp_mmu_spte_changed": (
        "as id {_:d} gfn {gfn:x} level {level:d} old_spte {old_spte:x} new_spte {new_spte:x}",
        "gfn {gfn:x} level {level:d} old_spte {old_spte:x} new_spte {new_spte:x}",
    ),
    "mark_mmio_spte": ("sptep:{_:w} gfn {gfn:x} access", "gfn {gfn:x}"),
    "kvm_entry": (
        "vcpu {vcpu:d}, rip {_:n}",
        "vcpu {vcpu:d} rip {_:n}",
        "vcpu {vcpu:d}$",
        "PC: {_:x}",
    ),
    "kvm_unmap_hva_range": ("mmu notifier unmap range: {start:x} -- {end:x}", "{start:x} -- {end:x}"),
    "kvm_age_hva": ("mmu notifier age hva: {start:x} -- {end:x}", "{start:x} -- {end:x}"),
    "kvm_test_age_hva": ("mmu notifier test age hva: {start:x}",),
    "kvm_exit": (
        "vcpu {vcpu:d} reason {reason:s} rip {_:n} info1 {info1:x} info2 {info2:x}",
        "reason {reason:s} rip {_:n} info {info1:x} {info2:x}",
        "vcpu {vcpu:d} reason {reason:s} rip {_:n} info {info1:x} {info2:x}",
        "TRAP: HSR_EC: {info1:x} ({reason:s}), PC: {_:x}",
        "{reason:s}: HSR_EC: {info1:x} ({_:p}), PC: {_:x}",
    ),
    "kvm_guest_fault": ("ipa {ipa:x}, hsr {hsr:x}, hxfar {hxfar:x}, pc {pc:x}",),
    "kvm_mmu_split_huge_page": ("gfn {gfn:x} spte {spte:x} level {level:d} errno {errno:i}",),
    "kvm_inj_virq": ("IRQ {vector:x}", "irq {vector:d}"),
    **{name: RETURN for name, fields in EVENT_FIELDS.items() if fields == ("ret",)},
}
"""The texts of each event, the commonest first. An event without fields has no text that matters."""

RAW: dict[str, str] = {
    "kvm_page_fault": "vcpu_id=vcpu:d guest_rip=rip:i fault_address=address:i error_code=error_code:i",
    "fast_page_fault": "vcpu_id=vcpu:d cr2_or_gpa=address:x error_code=_:i sptep=_:i old_spte=old:i "
    "new_spte=new:x ret=returned:i retry=retry:i",
    "kvm_mmu_spte_requested": "gfn=gfn:x pfn=pfn:x level=level:d",
    "kvm_mmu_set_spte": "gfn=gfn:x spte=new_spte:x sptep=_:x level=level:d",
    "kvm_tdp_mmu_spte_changed": "gfn=gfn:x old_spte=old_spte:x new_spte=new_spte:x level=level:d",
    "mark_mmio_spte": "sptep=_:i gfn=gfn:x access=_:x",
    "kvm_entry": "vcpu_id=vcpu:d rip=_:i",
    "kvm_unmap_hva_range": "start=start:i end=end:i",
    "kvm_age_hva": "start=start:i end=end:i",
    "kvm_test_age_hva": "hva=start:i",
    "kvm_exit": "exit_reason=reason:d guest_rip=_:i isa=isa:d info1=info1:i info2=info2:i intr_info=_:i "
    "error_code=_:i vcpu_id=vcpu:d",
    "kvm_guest_fault": "vcpu_pc=pc:i hsr=hsr:i hxfar=hxfar:i ipa=ipa:i",
    "kvm_mmu_split_huge_page": "gfn=gfn:x spte=spte:x level=level:d errno=errno:i",
    "kvm_inj_virq": "vector=vector:i irq=vector:i",
    **{name: "ret=ret:i arg1=ret:i" for name, fields in EVENT_FIELDS.items() if fields == ("ret",)},
}
"""``trace-cmd report -R``: the names in the kernel's records, in their order, what they mean here, the kind.

libtraceevent writes a number as the event's format does, with 0x only where the format has it: an address of
``gfn %llx`` is hexadecimal without a sign of it.
"""

_SLOT = re.compile(r"\{(\w+):(\w)\}")
_RAW_ITEM = re.compile(r"(\w+)=(\w+):(\w)")
_PAIR = re.compile(r"(\w+)=(-?\w+)", re.ASCII)
_ARGUMENT = re.compile(r"(\w+): (-?\w+)", re.ASCII)
_WORD = 1 << 64

Words = tuple[int, int, int, int]
Intern = Callable[[str], int]
"""Gives the code of an exit reason by its name."""


class Unreadable(Exception):
    """An event's text does not have the fields, or has numbers beyond 64 bits."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A template as a regular expression: which word each group fills, and of what kind it is."""

    match: Callable[[str], re.Match[str] | None]
    plan: tuple[tuple[int, str], ...]
    blank: Words


def number(text: str, kind: str) -> int:
    """Read a number of one of the kinds as a 64-bit word."""
    if kind == "x":
        value = int(text, 16)
    elif kind == "i" and "x" in text:
        value = int(text, 16)
    else:
        value = int(text)
    if not -_WORD // 2 <= value < _WORD:
        raise Unreadable
    return value % _WORD


def _literal(text: str) -> str:
    """Write literal characters as an expression: any blanks for a blank, 0x or not."""
    return r"\s+".join(re.escape(part) for part in text.split(" "))


def _pattern(event: str, template: str) -> Pattern:
    fields = EVENT_FIELDS[event]
    pieces = _SLOT.split(template.removesuffix("$"))
    source, plan = _literal(pieces[0]), []
    for name, kind, literal in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        source += re.sub(r"\((?!\?)", "(?:", KINDS[kind]) if name == "_" else KINDS[kind]
        if name != "_":
            plan.append((fields.index(name), kind))
        source += _literal(literal)
    source += r"\s*$" if template.endswith("$") else ""
    return Pattern(
        re.compile(source, re.ASCII).match, tuple(plan), _blank(event, {name for name in pieces[1::3]})
    )


def _blank(event: str, told: set[str]) -> Words:
    """Give the words of an event before its fields are read: ABSENT where the text will not tell one."""
    words = [0, 0, 0, 0]
    for place, name in enumerate(EVENT_FIELDS[event]):
        words[place] = 0 if name in told else ABSENT
    return words[0], words[1], words[2], words[3]


PATTERNS: tuple[tuple[Pattern, ...], ...] = tuple(
    tuple(_pattern(event, template) for template in TEXTS.get(event, ())) for event in EVENTS
)
_RAW_PLAN = {
    CODE[event]: {raw: (name, kind) for raw, name, kind in _RAW_ITEM.findall(text)}
    for event, text in RAW.items()
}


def read_fields(code: int, text: str, intern: Intern) -> Words:
    """Read an event's text into its words.

    Raises
    ------
    Unreadable
        The text is not one of the event's.
    """
    patterns = PATTERNS[code]
    if not patterns:
        return 0, 0, 0, 0
    for pattern in patterns:
        if found := pattern.match(text):
            words = list(pattern.blank)
            for (place, kind), value in zip(pattern.plan, found.groups(), strict=True):
                words[place] = intern(" ".join(value.split())) if kind == "s" else number(value, kind)
            return words[0], words[1], words[2], words[3]
    if "=" in text:
        return _from_pairs(code, dict(reversed(_PAIR.findall(text))), intern)
    raise Unreadable


def read_arguments(code: int, text: str, intern: Intern) -> Words:
    """Read the arguments that ``perf trace`` writes, ``name: value`` in C's notation; it leaves out zeros.

    Raises
    ------
    Unreadable
        The text is not one of the event's.
    """
    pairs = dict(reversed(_ARGUMENT.findall(text)))
    if pairs or not PATTERNS[code]:
        return _from_pairs(code, pairs, intern, zeros=True)
    raise Unreadable


def _from_pairs(code: int, pairs: dict[str, str], intern: Intern, *, zeros: bool = False) -> Words:
    """Read a record written field by field."""
    event, found = EVENTS[code], dict[str, int]()
    for raw, (name, kind) in _RAW_PLAN.get(code, {}).items():
        if raw in pairs:
            text = pairs[raw]
            digits = re.fullmatch(r"(?:0x)?[\da-fA-F]{1,16}|-?\d{1,20}", text)
            if digits is None:
                raise Unreadable
            letters = not text.startswith(("0x", "-")) and not text.isdigit()
            sign = "x" if letters else "i" if zeros or text.startswith(("0x", "-")) else kind
            found[name] = number(text, sign)
    if event == "kvm_exit" and ("reason" in found or zeros):
        found["reason"] = intern(exit_name(found.pop("isa", 0), found.get("reason", 0)))
    if event == "fast_page_fault":
        _fast_page_fault(found)
    words = [0, 0, 0, 0]
    for place, name in enumerate(EVENT_FIELDS[event]):
        if name in found:
            words[place] = found[name]
        elif name in OPTIONAL:
            words[place] = 0 if zeros and ("rip" in found or event == "kvm_entry") else ABSENT
        elif not zeros:
            raise Unreadable
    return words[0], words[1], words[2], words[3]


def _fast_page_fault(found: dict[str, int]) -> None:
    """Tell fixed from spurious by the entry before and after.

    The record holds RET_PF_*, whose 4 and 5 are FIXED and SPURIOUS up to 6.11, INVALID and FIXED from 6.12
    on, where 6 is SPURIOUS; before 5.11 it holds whether the guest shall try again.
    """
    if not {"returned", "retry"} & found.keys() or not {"old", "new"} <= found.keys():
        return
    returned, changed = found.get("returned", 5 * found.get("retry", 0)), found["old"] != found["new"]
    found["fixed"] = int(changed and returned in (4, 5))
    found["spurious"] = int(returned == 6 or (returned == 5 and not changed))


LITERAL, NUMBER, NAME, WORD, PARENTHESES, END_OF_LINE, DONE = range(7)
SLOTS = 6
"""Words that a template can fill: four of the event, the instruction set of a numbered exit, and a bin."""
ISA, BIN = 4, 5
NAMED = -1
"""Stands for the instruction set where an exit is told by name."""

OPTIONAL = ("vcpu", "rip")
"""Fields that older kernels do not record."""


def programs() -> tuple[Any, Any, Any, Any, Any]:
    """Write all templates as steps over bytes.

    Returns
    -------
    first : ndarray of int64, shape (events + 1,)
        Templates of event e are those from first[e] up to first[e + 1].
    begin : ndarray of int64, shape (templates,)
        Where a template's steps begin.
    steps : ndarray of int64, shape (3 * n,)
        What to do, and two operands.
    blank : ndarray of int64, shape (templates * SLOTS,)
        The words before the fields are read.
    letters : ndarray of uint8
        All literals.
    """
    first, begin, letters = [0], list[int](), bytearray()
    steps, blank = list[tuple[int, int, int]](), list[list[int]]()
    for event in EVENTS:
        for template in TEXTS.get(event, ()):
            pieces = _SLOT.split(template.removesuffix("$"))
            begin.append(3 * len(steps))
            for literal, name, kind in zip(
                pieces[::3], [*pieces[1::3], ""], [*pieces[2::3], ""], strict=True
            ):
                if literal:
                    steps.append((LITERAL, len(letters), len(literal)))
                    letters += literal.encode()
                if kind:
                    slot = BIN if name == "_" else EVENT_FIELDS[event].index(name)
                    step = {"s": NAME, "w": WORD, "n": WORD, "p": PARENTHESES}.get(kind, NUMBER)
                    steps.append((step, slot, "xdiwn".find(kind)))
            steps.append((END_OF_LINE if template.endswith("$") else DONE, 0, 0))
            words = [word - _WORD if word >> 63 else word for word in _blank(event, set(pieces[1::3]))]
            blank.append([*words, NAMED, 0])
        first.append(len(begin))
    return (
        np.array(first, "i8"),
        np.array(begin, "i8"),
        np.array(steps, "i8").ravel(),
        np.array(blank, "i8").ravel(),
        np.frombuffer(bytes(letters), "u1"),
    )


def raw_fields() -> dict[str, dict[str, int]]:
    """Give the slot of each field of a raw record, and 16 times the place of its kind in "xdi".

    An event whose record needs more than its fields is left out.
    """
    found = {}
    for event, text in RAW.items():
        slots = {name: place for place, name in enumerate(EVENT_FIELDS[event])} | {"isa": ISA, "_": BIN}
        items = _RAW_ITEM.findall(text)
        if all(name in slots for _, name, _ in items):
            found[event] = {raw: slots[name] + 16 * "xdi".index(kind) for raw, name, kind in items}
    return found
