"""The events of an exported recording: fields and text, as the kernel's format files have them.

Tracepoints are KVM's (arch/x86/kvm/trace.h, mmu/mmutrace.h and include/trace/events/kvm.h of 6.1, and of 6.16
where they differ). The others are probes, under the names that our recordings use: entries of functions, and
returns with the value (docs/exporting.md lists which).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["TRACEPOINTS", "Tracepoint", "tracepoint"]

TYPES = {
    "u8": ("unsigned char", "B"), "bool": ("bool", "?"), "s32": ("int", "i"), "u32": ("unsigned int", "I"),
    "u64": ("u64", "Q"),
}  # fmt: skip
"""A field's type in C, and how `struct` packs it."""

REASONS = {1: "EXTERNAL_INTERRUPT", 48: "EPT_VIOLATION", 62: "PML_FULL", 0x60: "interrupt", 0x400: "npf"}
"""Exit reasons of VMX and SVM that the model has."""

PFERR = {1: "P", 2: "W", 4: "U", 8: "RSVD", 16: "F"}
SPURIOUS, FIXED = 6, 5
"""RET_PF_* in the field `ret` of fast_page_fault, whose text tells only whether it was one of these."""


class Tracepoint(NamedTuple):
    """An event.

    Attributes
    ----------
    system : str
        Of the event, in tracefs.
    fields : tuple of (str, str)
        Type, by `TYPES`, and name of each field, in the order of the values.
    text, pattern : str
        C's format of what is printed, and the same for Python, which knows no ``ll``.
    arguments : str
        What it prints, as C expressions of the record `REC`.
    shown : callable, optional
        Makes of the fields' values what the format takes, where that is not the same.
    """

    system: str
    fields: tuple[tuple[str, str], ...]
    text: str
    pattern: str
    arguments: str
    shown: Callable[..., tuple[Any, ...]] | None = None

    def line(self, values: tuple[int, ...]) -> str:
        """Print the event's fields as the kernel does."""
        return self.pattern % (self.shown(*values) if self.shown else values)


def tracepoint(system: str, fields: str, text: str, arguments: str = "", **more: Any) -> Tracepoint:
    """Declare an event; without arguments it prints its fields, in their order."""
    pairs = tuple((kind, name) for kind, name in (field.split() for field in fields.split(", ") if field))
    told = arguments or ", ".join(f"REC->{name}" for _, name in pairs)
    return Tracepoint(system, pairs, text, re.sub("ll([xu])", r"\1", text), told, **more)


def _symbols(values: dict[int, str]) -> str:
    """List values with their names, as __print_symbolic and __print_flags take them."""
    return ", ".join(f'{{ {value}, "{name}" }}' for value, name in values.items())


_RANGE = "u64 start, u64 end"
_RETURN = tracepoint("kvmpfn", "s32 ret", "ret=%d")
_ENTRY = tracepoint("kvmpfn", "", "")
_EXIT = "vcpu %u reason %s rip 0x%lx info1 0x%016llx info2 0x%016llx intr_info 0x%08x error_code 0x%08x"
_EXIT_FIELDS = (
    "u32 vcpu_id, u32 exit_reason, u64 guest_rip, u64 info1, u64 info2, u32 intr_info, u32 error_code, "
    "u32 isa"
)
_EXIT_ARGUMENTS = (
    f"REC->vcpu_id, __print_symbolic(REC->exit_reason, {_symbols(REASONS)}), REC->guest_rip, REC->info1, "
    "REC->info2, REC->intr_info, REC->error_code"
)

TRACEPOINTS: dict[str, Tracepoint] = {
    "kvm_entry": tracepoint("kvm", "u32 vcpu_id, u64 rip", "vcpu %u, rip 0x%lx"),
    "kvm_exit": tracepoint(
        "kvm", _EXIT_FIELDS, _EXIT, _EXIT_ARGUMENTS,
        shown=lambda vcpu, reason, *others: (vcpu, REASONS[reason], *others[:-1]),
    ),
    "kvm_page_fault": tracepoint(
        "kvm", "u32 vcpu_id, u64 guest_rip, u64 fault_address, u64 error_code",
        "vcpu %u rip 0x%lx address 0x%016llx error_code 0x%llx",
    ),
    "fast_page_fault": tracepoint(
        "kvmmmu",
        "s32 vcpu_id, u64 cr2_or_gpa, u32 error_code, u64 sptep, u64 old_spte, u64 new_spte, s32 ret",
        "vcpu %d gva %llx error_code %s sptep 0x%llx old 0x%llx new %llx spurious %d fixed %d",
        f'REC->vcpu_id, REC->cr2_or_gpa, __print_flags(REC->error_code, "|", {_symbols(PFERR)}), REC->sptep, '
        f"REC->old_spte, REC->new_spte, REC->ret == {SPURIOUS}, REC->ret == {FIXED}",
        shown=lambda vcpu, gpa, code, sptep, old, new, ret: (
            vcpu, gpa, "|".join(name for bit, name in PFERR.items() if code & bit), sptep, old, new,
            ret == SPURIOUS, ret == FIXED,
        ),
    ),
    "kvm_mmu_spte_requested": tracepoint(
        "kvmmmu", "u64 gfn, u64 pfn, u8 level", "gfn %llx pfn %llx level %d"
    ),
    "kvm_mmu_set_spte": tracepoint(
        "kvmmmu", "u64 gfn, u64 spte, u64 sptep, u8 level, bool x",
        "gfn %llx spte %llx (r%s%su) level %d at %llx",
        'REC->gfn, REC->spte, REC->spte & 2 ? "w" : "-", REC->x ? "x" : "-", REC->level, REC->sptep',
        shown=lambda gfn, spte, sptep, level, x: (
            gfn, spte, "w" if spte & 2 else "-", "x" if x else "-", level, sptep,
        ),
    ),
    "kvm_tdp_mmu_spte_changed": tracepoint(
        "kvmmmu", "s32 as_id, u64 gfn, s32 level, u64 old_spte, u64 new_spte",
        "as id %d gfn %llx level %d old_spte %llx new_spte %llx",
    ),
    "kvm_unmap_hva_range": tracepoint("kvm", _RANGE, "mmu notifier unmap range: %#016lx -- %#016lx"),
    "kvm_age_hva": tracepoint("kvm", _RANGE, "mmu notifier age hva: %#016lx -- %#016lx"),
    **dict.fromkeys(("pf_ret", "faultin_ret", "stale_ret", "map_ret", "inv_start_ret"), _RETURN),
    **dict.fromkeys(
        ("gup", "inv_begin", "inv_end", "inv_seq", "inv_end_ret", "flush", "rlock_slow", "wlock_slow"), _ENTRY
    ),
}  # fmt: skip
"""All events that are exported, in the forms of 6.1 (those of 6.16 print more of what is zero here)."""
