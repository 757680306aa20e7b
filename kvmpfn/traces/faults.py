"""From events to faults and invalidations: what belongs together, and how each fault ended.

A fault runs from `kvm_page_fault` to `pf_ret` on one thread. The probes between them tell where a fault
that must be tried again was caught:

* `pre_gup`: no `gup`, and `faultin_ret` says RETRY (the check before the page is looked up);
* `post_gup`: `gup`, and `faultin_ret` says RETRY (the check after it, before mmu_lock);
* `locked`: `stale_ret` says stale (the check under mmu_lock);
* `race`: `map_ret` says RETRY (an entry changed or was frozen);
* `unknown`: the recording has no probe that tells.

Without `pf_ret` the outcome is inferred: an entry changed, an MMIO entry made, or neither, which is RETRY.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kvmpfn.traces.counters import PAGE_SHIFT
from kvmpfn.traces.records import ABSENT, CODE, Records

OUTCOMES = {
    "6.1": {0: "CONTINUE", 1: "RETRY", 2: "EMULATE", 3: "INVALID", 4: "FIXED", 5: "SPURIOUS"},
    "6.16": {
        0: "CONTINUE", 1: "RETRY", 2: "EMULATE", 3: "WRITE_PROTECTED", 4: "INVALID",
        5: "FIXED", 6: "SPURIOUS",
    },
}  # fmt: skip
"""The numbers of RET_PF_*: as in 6.1 up to 6.11, as in 6.16 from 6.12 on."""

RETRY = 1
STALE_CHECKS = ("pre_gup", "post_gup", "locked")
Slot = tuple[int, int, int]
"""First gfn, first host virtual page, pages."""


@dataclass(slots=True)
class Fault:
    """One pass through the fault handler; numbers are -1 where no event told them."""

    time_ps: int
    pid: int
    vcpu: int
    gfn: int
    error_code: int
    gup_ps: int = -1
    faultin_ps: int = -1
    stale_ps: int = -1
    map_ps: int = -1
    end_ps: int = -1
    level: int = -1
    outcome: str = "unfinished"
    inferred: bool = False
    where: str = ""
    why: str = ""
    evidence: str = ""


@dataclass(slots=True)
class Invalidation:
    """One notifier start and end; numbers are -1 where no event told them."""

    start_ps: int
    pid: int
    hva_start: int
    hva_end: int
    start_ret_ps: int = -1
    end_ps: int = -1
    seq_ps: int = -1
    end_ret_ps: int = -1
    gfn_start: int = -1
    gfn_end: int = -1


@dataclass
class Assembly:
    """Follows each thread through its fault or invalidation, in the order of the lines."""

    outcomes: dict[int, str]
    slot: Slot | None
    faults: list[Fault] = field(default_factory=list)
    invalidations: list[Invalidation] = field(default_factory=list)
    _faulting: dict[int, Fault] = field(default_factory=dict)
    _invalidating: dict[int, Invalidation] = field(default_factory=dict)
    _in_progress: dict[int, Invalidation] = field(default_factory=dict)
    _vcpus: dict[int, int] = field(default_factory=dict)

    def enter(self, time: int, pid: int, vcpu: int, address: int, error_code: int) -> None:
        """Begin a fault."""
        self.guest_entered(pid)
        if vcpu == ABSENT:
            vcpu = self._vcpus.setdefault(pid, len(self._vcpus))
        fault = Fault(time, pid, vcpu, address >> PAGE_SHIFT, error_code)
        self.faults.append(fault)
        self._faulting[pid] = fault

    def guest_entered(self, pid: int) -> None:
        """End a fault whose return was not recorded: this thread is past it."""
        if fault := self._faulting.pop(pid, None):
            fault.inferred = True
            fault.outcome = fault.evidence or "RETRY"
            self._place(fault)

    def returned(self, time: int, pid: int, ret: int) -> None:
        """End a fault with what its handler returned."""
        if fault := self._faulting.pop(pid, None):
            fault.end_ps = time
            fault.outcome = self.outcomes.get(ret, "ERROR")
            self._place(fault)

    def probe(self, time: int, pid: int, name: str, ret: int) -> None:
        """Note a probe inside a fault, and the check that failed there."""
        fault = self._faulting.get(pid)
        if fault is None:
            return
        if name == "gup":
            fault.gup_ps = time
            return
        if name == "faultin_ret":
            fault.faultin_ps = time
            failed = "" if ret != RETRY else "post_gup" if fault.gup_ps >= 0 else "pre_gup"
        elif name == "stale_ret":
            fault.stale_ps = time
            failed = "locked" if ret else ""
        else:
            fault.map_ps = time
            failed = "race" if ret == RETRY else ""
        if failed:
            fault.where = failed
            fault.why = self._reason(fault.gfn) if failed in STALE_CHECKS else ""

    def entry_changed(self, pid: int, gfn: int, level: int, evidence: str) -> None:
        """Note what was written for the page of this thread's fault."""
        fault = self._faulting.get(pid)
        if fault is not None and (gfn ^ fault.gfn) >> 9 * (level - 1) == 0:
            fault.evidence = evidence

    def requested(self, pid: int, level: int) -> None:
        """Note the level that a fault is about to map."""
        if fault := self._faulting.get(pid):
            fault.level = level

    def invalidate(self, time: int, pid: int, start: int, end: int) -> None:
        """Begin an invalidation."""
        one = Invalidation(time, pid, start, end)
        if self.slot is not None:
            gfn, page, pages = self.slot
            first = max(start >> PAGE_SHIFT, page)
            last = min(-(-end >> PAGE_SHIFT), page + pages)
            if first < last:
                one.gfn_start, one.gfn_end = gfn + first - page, gfn + last - page
        self.invalidations.append(one)
        self._invalidating[pid] = self._in_progress[pid] = one

    def invalidation_step(self, time: int, pid: int, name: str) -> None:
        """Note how far a thread's invalidation is."""
        one = self._invalidating.get(pid)
        if one is None:
            return
        if name == "inv_start_ret":
            one.start_ret_ps = time
        elif name == "inv_end":
            one.end_ps = time
        elif name == "inv_seq":
            one.seq_ps = time
            self._in_progress.pop(pid, None)
        else:
            one.end_ret_ps = time
            self._in_progress.pop(pid, None)
            del self._invalidating[pid]

    def _place(self, fault: Fault) -> None:
        """Settle where a fault was told to try again; only RETRY has a place."""
        if fault.outcome != "RETRY":
            fault.where = fault.why = ""
        elif not fault.where:
            fault.where = "unknown"

    def _reason(self, gfn: int) -> str:
        """Say why a fault on `gfn` is stale now: in an active range, in the gap between two, or neither."""
        if self.slot is None:
            return "unknown"
        ranges = [(one.gfn_start, one.gfn_end) for one in self._in_progress.values() if one.gfn_start >= 0]
        if any(start <= gfn < end for start, end in ranges):
            return "range"
        if ranges and min(start for start, _ in ranges) <= gfn < max(end for _, end in ranges):
            return "false_range"
        return "seq"


def assemble(lines: Records, kernel: str, slot: Slot | None) -> Assembly:
    """Put the events of a recording together.

    Parameters
    ----------
    lines : Records
        The events.
    kernel : {"6.1", "6.16"}
        Which numbers RET_PF_* have.
    slot : tuple of int, optional
        Where the guest's memory is in the host; without it no invalidation has gfns.
    """
    assembly = Assembly(OUTCOMES[kernel], slot)
    names = {code: name for name, code in CODE.items()}
    probes = {CODE[name] for name in ("gup", "faultin_ret", "stale_ret", "map_ret")}
    steps = {CODE[name] for name in ("inv_start_ret", "inv_end", "inv_seq", "inv_end_ret")}
    columns = (lines.time_ps, lines.pid, lines.event, lines.a, lines.b, lines.c, lines.d)
    for time, pid, event, a, b, c, d in zip(*(column.tolist() for column in columns), strict=True):
        if event in probes:
            assembly.probe(time, pid, names[event], signed(a))
        elif event in steps:
            assembly.invalidation_step(time, pid, names[event])
        elif event == CODE["kvm_tdp_mmu_spte_changed"]:
            if b == 1 or d >> 7 & 1:
                assembly.entry_changed(pid, a, b, "FIXED")
        elif event == CODE["kvm_mmu_spte_requested"]:
            assembly.requested(pid, c)
        elif event == CODE["kvm_page_fault"]:
            assembly.enter(time, pid, a, c, d)
        elif event == CODE["pf_ret"]:
            assembly.returned(time, pid, signed(a))
        elif event == CODE["kvm_unmap_hva_range"]:
            assembly.invalidate(time, pid, a, b)
        elif event == CODE["kvm_entry"]:
            assembly.guest_entered(pid)
        elif event == CODE["kvm_mmu_set_spte"]:
            assembly.entry_changed(pid, a, c, "FIXED")
        elif event == CODE["mark_mmio_spte"]:
            assembly.entry_changed(pid, a, 1, "EMULATE")
        elif event == CODE["fast_page_fault"] and (c or d):
            assembly.entry_changed(pid, b >> PAGE_SHIFT, 1, "SPURIOUS" if c else "FIXED")
    return assembly


def signed(word: int) -> int:
    """Read a 64-bit word as two's complement."""
    return word - (1 << 64) if word >> 63 else word
