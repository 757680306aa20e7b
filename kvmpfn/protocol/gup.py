"""What all callers share: hva to pfn, and the check for staleness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvmpfn.fault_path import FaultPath
from kvmpfn.protocol.order import Access, Memory, Registers, barrier, calc, full, load, rmw
from kvmpfn.protocol.words import Violation, Words

__all__ = ["Setting", "check", "get_user_page", "put", "snapshot", "touch"]

SEQ, IN_PROGRESS = "mmu_invalidate_seq", "mmu_invalidate_in_progress"
START, END = "mmu_invalidate_range_start", "mmu_invalidate_range_end"

Condition = Callable[[Registers], bool]


@dataclass(frozen=True)
class Setting:
    """What one exploration is about.

    Parameters
    ----------
    path : FaultPath
        The mechanisms.
    words : Words
        The shared words.
    invalidations : int
        How many notifier clients there are.
    caller : str
        Who resolves a pfn.
    memory_model : str
        See `kvmpfn.protocol.order`.
    mutants : frozenset of str
        See `kvmpfn.protocol.mutants`.
    """

    path: FaultPath
    words: Words
    invalidations: int
    caller: str
    memory_model: str
    mutants: frozenset[str]

    @property
    def takes_reference(self) -> bool:
        """Whether GUP takes a reference; not of a page without a count, unless the get does not ask."""
        return self.path.reference != "none" and (self.words.refcounted or "zero_count_get" in self.mutants)


def snapshot(setting: Setting) -> list[Access]:
    """Read the sequence, and let nothing be read before it."""
    read = load(SEQ, "snapshot", "snapshot mmu_invalidate_seq")
    return [read] if "no_smp_rmb" in setting.mutants else [read, barrier("rmb")]


def get_user_page(
    setting: Setting, vcpu: int, given: tuple[str, ...] = (), when: Condition | None = None
) -> list[Access]:
    """hva_to_pfn: GUP-fast, then GUP-slow; sets ``pfn`` (0 not asked, -1 refused) and ``ref``.

    GUP-fast reads the PTE, takes a reference unless the count is zero, and reads the PTE again; without
    references it only reads twice. The slow path is one step: all of it happens under the page-table lock,
    where an absent page is given a frame first; who reads the PTE without that lock cannot tell the order of
    its parts, for a count that is taken before the PTE says so is given back when the PTE is read again.
    A page without a count is reached by the slow path only (hva_to_pfn_remapped).
    """
    words, page = setting.words, setting.words.page_of(vcpu)
    pte = f"pte[{page}]"
    asked = when or (lambda r: True)
    takes, counted = setting.takes_reference, setting.words.refcounted

    def get(memory: Memory, r: Registers) -> None:
        r["got"] = int(words.get_unless_zero(memory, r["first"]))

    def put_back(memory: Memory, r: Registers) -> Violation | None:
        return words.put(memory, r["first"])

    def can_map(memory: Memory) -> bool:
        return memory[words.at(pte)] != 0 or words.take_frame(list(memory)) != 0

    def slow(memory: Memory, r: Registers) -> None:
        entry = memory[words.at(pte)] or words.take_frame(memory)
        memory[words.at(pte)] = entry
        r["slow"] = entry if counted or takes or setting.path.nonrefcounted == "map" else -1
        if takes:
            memory[words.at(f"refcount[{words.frame(entry).number}]")] += 1

    fast: list[Access] = []
    if counted:
        fast = [load(pte, "first", "GUP-fast: read the host PTE", given=given, when=when)]
        holds = "first"
        if takes:
            text = "GUP-fast: get the page unless its count is zero"
            makes = {
                "out": ("got",),
                "uses": ("first",),
                "given": ("first",),
                "when": lambda r: r["first"] != 0,
            }
            fast.append((rmw if "relaxed_get" in setting.mutants else full)(get, text, **makes))
            holds = "got"
        text = "GUP-fast: read the host PTE again"
        fast.append(load(pte, "again", text, given=(holds,), when=lambda r: r[holds] != 0))
        agrees = calc("fast", (holds, "first", "again"), lambda r: r[holds] != 0 and r["first"] == r["again"])
        fast.append(agrees)
        if takes:
            text = "GUP-fast: the PTE changed, put the page back"
            undo = {
                "uses": ("first",),
                "given": ("got", "fast"),
                "when": lambda r: r["got"] and not r["fast"],
            }
            fast.append(full(put_back, text, **undo))
    else:
        fast = [calc("first", (), lambda r: 0), calc("fast", (), lambda r: 0)]
    text = "GUP-slow: resolve the page under the page-table lock"
    return [
        *fast,
        full(
            slow, text, out=("slow",), given=("fast", *given), ready=can_map,
            when=lambda r: not r["fast"] and asked(r),
        ),
        calc("pfn", ("fast", "first", "slow"), lambda r: r["first"] if r["fast"] else r["slow"]),
        calc("ref", ("pfn",), lambda r: r["pfn"] > 0 and takes),
    ]  # fmt: skip


def check(
    name: str,
    page: int,
    given: tuple[str, ...],
    when: Condition,
    *,
    ranges: bool = True,
    bounds: bool = True,
    sequence: bool = True,
    fence: bool = False,
    torn: bool = False,
    locked: bool = False,
    late: Callable[[Memory, Registers], int] | None = None,
) -> list[Access]:
    """mmu_invalidate_retry_gfn and its lock-free kin: sets `name` to 1 if the snapshot is stale.

    Parameters
    ----------
    name : str
        Prefix of the registers, and the verdict's register.
    page : int
        Whose range counts.
    given : tuple of str
        Registers that `when` needs.
    when : callable
        Whether the check is made.
    ranges, bounds, sequence : bool
        What it looks at: invalidations in progress, if so only those of its page, the sequence.
    fence : bool
        Whether a read barrier stands between the two.
    torn : bool
        Whether it reads backwards.
    locked : bool
        Whether it is made under mmu_lock, so that no word of it can change meanwhile.
    late : callable, optional
        What the first read notes, as register ``late``.
    """
    progress, start, end, seq = (f"{name}.{word}" for word in ("in_progress", "start", "end", "seq"))
    within = (progress, start, end) if bounds else (progress,)

    def hit(r: Registers) -> bool:
        return ranges and r[progress] > 0 and (not bounds or r[start] <= page < r[end])

    def in_progress(r: Registers) -> bool:
        return when(r) and r[progress] > 0

    also: dict[str, Any] = {"also": ("late",), "ghost": late, "uses": ("pfn",)} if late else {}
    reads: list[Access] = []
    if ranges:
        reads = [load(IN_PROGRESS, progress, given=given, when=when, alone=locked, **also)]
    if ranges and bounds:
        reads += [
            load(START, start, given=(progress, *given), when=in_progress, alone=locked),
            load(END, end, given=(progress, *given), when=in_progress, alone=locked),
        ]
    if fence:
        reads.append(barrier("rmb"))
    if sequence:
        before, unless = ((*given, *within), lambda r: when(r) and not hit(r)) if ranges else (given, when)
        text = "read mmu_invalidate_seq again"
        reads.append(
            load(SEQ, seq, text, given=before, when=unless, alone=locked, **({} if ranges else also))
        )
    if torn:
        words = [(SEQ, seq), (END, end), (START, start), (IN_PROGRESS, progress)]
        reads = [load(word, register, given=given, when=when) for word, register in words]
    uses = (*(within if ranges else ()), *((seq, "snapshot") if sequence else ()), *given)

    def stale(r: Registers) -> bool:
        return when(r) and (hit(r) or (sequence and r[seq] != r["snapshot"]))

    return [*reads, calc(name, uses, stale)]


def touch(setting: Setting, what: str, given: tuple[str, ...], when: Condition) -> list[Access]:
    """Mark the page accessed or dirty, an atomic that orders nothing; only pages that are counted."""

    def act(memory: Memory, r: Registers) -> Violation | None:
        return setting.words.touch(memory, r["pfn"], what)

    if not setting.words.refcounted:
        return []
    return [rmw(act, what, uses=("pfn",), given=("pfn", *given), when=lambda r: r["pfn"] > 0 and when(r))]


def put(setting: Setting, given: tuple[str, ...] = (), when: Condition | None = None) -> list[Access]:
    """put_page, if a reference is held."""
    asked = when or (lambda r: True)

    def act(memory: Memory, r: Registers) -> Violation | None:
        return setting.words.put(memory, r["pfn"])

    if not setting.takes_reference:
        return []
    once = full(
        act, "put the page", uses=("pfn",), given=("ref", *given), when=lambda r: r["ref"] and asked(r)
    )
    return [once, once] if "double_put" in setting.mutants else [once]
