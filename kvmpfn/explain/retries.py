"""Why an attempt ended in RETRY, and because of whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmpfn.core import layout as L
from kvmpfn.core.names import COUNTERS

if TYPE_CHECKING:
    from kvmpfn.explain.actors import Actors
    from kvmpfn.explain.fault import Fault

__all__ = ["cells", "entry_changed", "follow_entry", "new_retry", "staled_by"]

CELLS = range(L.K_RETRY_PRE_GUP_RANGE, L.K_RETRY_OTHER + 1)


def cells(actors: Actors, vm: int) -> list[int]:
    """Return a VM's retries by cell, as counted so far."""
    w = actors.words
    at = w[L.COUNTERS] + w[vm + L.VM_ID] * L.COUNTER_COUNT
    counts: list[int] = w[at + CELLS.start : at + CELLS.stop].tolist()
    return counts


def new_retry(before: list[int], after: list[int]) -> str:
    """Name the cell in which one more retry was counted; empty if in none."""
    changed = (COUNTERS[cell] for cell, old, new in zip(CELLS, before, after, strict=True) if old != new)
    return next(changed, "")


def follow_entry(actors: Actors, fault: Fault, step: int) -> None:
    """Note by which entry of KVM's tables the fault goes, after a step of its own."""
    w, a = actors.words, fault.a
    following = w[a + L.PC]
    if following == L.PC_LEAF:
        fault.entry, fault.remembered, fault.changed_by = w[a + L.V_LEAF], w[a + L.V_OLD], None
    elif following in (L.PC_LINK, L.PC_FREEZE):
        fault.entry, fault.remembered, fault.changed_by = w[a + L.V_LINK], w[a + L.V_LINK_OLD], None
    elif following != L.PC_SET_LEAF:
        fault.entry = 0
    if step in (L.PC_HANDLE, L.PC_FAST_PAGE_FAULT):
        fault.ended = None  # the snapshot was taken in this step


def entry_changed(actors: Actors, fault: Fault, x: int) -> bool:
    """Whether the fault's entry is another now, or `x` has put a huge leaf in the place of its table."""
    w = actors.words
    if w[fault.entry] != fault.remembered:
        return True
    return w[x + L.PC] == L.PC_UNLINK and 0 <= fault.entry - w[x + L.V_UNLINK] < 512


def staled_by(actors: Actors, fault: Fault, cell: str) -> tuple[int, str]:
    """Say who made the fault's attempt retry, and how; 0 is nobody.

    Of several invalidations that the stale test may have met, the one is named that it found first
    (in progress), or that was the first to end since the snapshot. The others came too late to matter.
    """
    w, vm, gfn = actors.words, fault.vm, fault.attempts[-1].gfn
    why = cell.rpartition(".")[2]
    if why == "range":
        other = w[vm + L.ACTIVE_HEAD]
        while not w[other + L.N_START] <= gfn < w[other + L.N_END]:
            other = w[other + L.N_ACTIVE_NEXT]
        return other, f"invalidates {actors.span(other)}"
    if why == "false_range":
        other = w[vm + L.ACTIVE_HEAD]
        collapsed = f"[{w[vm + L.RANGE_START]}..{w[vm + L.RANGE_END]})"
        return other, f"invalidates {actors.span(other)}, collapsed with others to {collapsed}"
    if why == "seq" and fault.ended:
        return fault.ended
    if why == "frozen":
        return _freezer(actors, fault), "splits the huge page"
    if why in ("leaf", "parent") and fault.changed_by:
        who, doing = fault.changed_by
        return who, f"was faster: {doing}"
    return 0, "the run is over" if why == "other" else ""


def _freezer(actors: Actors, fault: Fault) -> int:
    """Find the vCPU that keeps the entry of the fault's page frozen."""
    w, gfn = actors.words, fault.attempts[-1].gfn
    for a in actors.pointers:
        step = w[a + L.AFTER] if w[a + L.PC] == L.PC_FLUSH else w[a + L.PC]
        if w[a + L.VM] == fault.vm and step in (L.PC_FREEZE_STATS, L.PC_FROZEN):
            if (w[a + L.V_GFN] ^ gfn) >> (9 * (w[a + L.V_LINK_LEVEL] - 1)) == 0:
                return a
    return 0
