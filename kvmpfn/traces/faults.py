"""From events to faults and invalidations: what belongs together, and how each fault ended.

A fault runs from `kvm_page_fault` to `pf_ret` on one thread. The probes between them tell where a fault
that must be tried again was caught:

* `pre_gup`: no `gup`, and `faultin_ret` says RETRY (the check before the page is looked up);
* `post_gup`: `gup`, and `faultin_ret` says RETRY (the check after it, before mmu_lock);
* `locked`: `stale_ret` says stale (the check under mmu_lock);
* `race`: `map_ret` says RETRY (an entry changed or was frozen);
* `unknown`: the recording has no probe that tells.

Without `pf_ret` the outcome is inferred once the thread is past the fault (it enters the guest, exits or
faults again): an entry was written, an MMIO entry made, the fast path said what it did. If none of these, it
was RETRY, and the thread faults on the page again. If it faults on another page next, somebody else had
mapped the page, and whether this one was SPURIOUS or lost a race cannot be told: the outcome is ``unknown``.
So it is where no event of written entries was recorded, and where events of the thread were lost before the
fault's end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kvmpfn.traces.events.records import CODE, COLUMNS, EVENT_FIELDS, Records
from kvmpfn.traces.follow import (
    ALL_CALLS,
    ALL_EVENTS,
    ALL_FAULTS,
    BEGINS,
    CALL_FIELDS,
    COUNTS,
    FAULT_FIELDS,
    GFN,
    LOST,
    PASSED,
    RETURNED,
    ROLES,
    THREAD_FIELDS,
    WHERE,
    WHY,
    follow,
)
from kvmpfn.units import PAGE_SHIFT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvmpfn.traces.memslots import Memslots

    Words = NDArray[np.int64]

__all__ = ["NAMES", "OUTCOMES", "Faults"]

OUTCOMES = {
    "6.1": {0: "CONTINUE", 1: "RETRY", 2: "EMULATE", 3: "INVALID", 4: "FIXED", 5: "SPURIOUS"},
    "6.16": {
        0: "CONTINUE", 1: "RETRY", 2: "EMULATE", 3: "WRITE_PROTECTED", 4: "INVALID",
        5: "FIXED", 6: "SPURIOUS",
    },
}  # fmt: skip
"""The numbers of RET_PF_*: as in 6.1 up to 6.11, as in 6.16 from 6.12 on."""

NAMES = (
    "unfinished", "FIXED", "SPURIOUS", "EMULATE", "RETRY", "CONTINUE", "INVALID", "WRITE_PROTECTED", "ERROR",
    "unknown",
)  # fmt: skip
"""What an outcome can be."""

_ROLE = {
    "kvm_page_fault": ("fault", "vcpu", "address", "error_code"),
    "kvm_guest_fault": ("fault", None, "ipa", "hsr"),
    "pf_ret": ("return", "ret"),
    "gup": ("gup",),
    "faultin_ret": ("faultin", "ret"),
    "stale_ret": ("stale", "ret"),
    "map_ret": ("map", "ret"),
    "kvm_mmu_spte_requested": ("requested", "gfn", "pfn", "level"),
    "kvm_mmu_set_spte": ("set_spte", "gfn", "level"),
    "kvm_tdp_mmu_spte_changed": ("changed", "gfn", "level", "new_spte"),
    "mark_mmio_spte": ("mmio", "gfn"),
    "fast_page_fault": ("fast", "address", "spurious", "fixed"),
    "kvm_entry": ("entry",),
    "kvm_exit": ("exit", "reason"),
    "kvm_unmap_hva_range": ("unmap", "start", "end"),
    "inv_begin": ("begin",),
    "inv_start_ret": ("start_return",),
    "inv_end": ("end",),
    "inv_seq": ("seq",),
    "inv_end_ret": ("end_return",),
}
"""The role of each event, and its fields in the order in which the role has them."""

_WRITES = ("kvm_mmu_set_spte", "kvm_tdp_mmu_spte_changed")
_ENDS = ("inv_end", "inv_seq", "inv_end_ret")
_BLOCK = 1 << 20
MMU_PRESENT = 11
"""Bit of an entry that is there (SPTE_MMU_PRESENT_MASK, arch/x86/kvm/mmu/spte.h)."""

CPUS_LIMIT = 1 << 16
"""More than Linux can be built for (NR_CPUS)."""
VCPUS_LIMIT = 1 << 31
"""The event's field is an unsigned int; of more than this it is no vCPU."""


class Faults:
    """The faults and the invalidations of a recording, put together block by block.

    Memory grows with their number, not with the number of events.

    Parameters
    ----------
    memslots : Memslots, optional
        Where guest memory lies in the host; without it no invalidation has gfns.

    Attributes
    ----------
    first_ps, last_ps : int
        Earliest and latest time of an event.
    empty_entry : int or None
        What the first entry held that was not there before: it tells kernels apart.
    """

    def __init__(self, memslots: Memslots | None) -> None:
        self.memslots = memslots
        self.pids: list[int] = []
        self._threads: dict[int, int] = {}
        self._vcpu_of: dict[int, int] = {}
        self._faults = np.full((0, len(FAULT_FIELDS)), -1, dtype=np.int64)
        self._calls = np.full((0, len(CALL_FIELDS)), -1, dtype=np.int64)
        self._state = np.full((0, THREAD_FIELDS), -1, dtype=np.int64)
        self._cpus = np.full(1, -1, dtype=np.int64)
        self._counts = np.zeros(COUNTS, dtype=np.int64)
        self.first_ps = self.last_ps = 0
        self.empty_entry: int | None = None
        self._seen: set[int] = set()
        self._runs: set[int] = set()

    @classmethod
    def of(cls, records: Records, memslots: Memslots | None) -> Faults:
        """Put together a whole recording."""
        whole = cls(memslots)
        whole.feed_records(records)
        return whole

    def feed_records(self, records: Records) -> None:
        """Go on through the events of a block of the file, or of all of it."""
        columns = {name: np.asarray(getattr(records, name)) for name in COLUMNS}
        losses = records.losses
        for begin in range(0, len(records), _BLOCK):
            block = {name: column[begin : begin + _BLOCK] for name, column in columns.items()}
            here = losses[(losses[:, 0] >= begin) & (losses[:, 0] < begin + _BLOCK)]
            self.feed(block, here - np.array([begin, 0]))

    def feed(self, block: dict[str, Any], losses: Words) -> None:
        """Go on through a block of events, the columns of `Records`.

        Parameters
        ----------
        block : dict of str to ndarray
            ``time_ps``, ``pid``, ``cpu``, ``event`` and ``a`` to ``d``.
        losses : ndarray of int64, shape (losses, 2)
            Event of the block before which events were lost, and the CPU (-1: any).
        """
        event = block["event"]
        if not len(event):
            return
        counts = np.bincount(event, minlength=len(CODE))
        self._seen |= set(np.flatnonzero(counts).tolist())
        words = [np.ascontiguousarray(block[name]).view(np.int64) for name in "abcd"]
        role = np.zeros(len(event), dtype=np.int64)
        fields = [np.full(len(event), -1, dtype=np.int64) for _ in "abcd"]
        for name, (what, *wanted) in _ROLE.items():
            if not counts[CODE[name]]:
                continue
            rows = np.flatnonzero(event == CODE[name])
            role[rows] = ROLES.index(what)
            for target, field in zip(fields, wanted, strict=False):
                if field is not None:
                    target[rows] = words[EVENT_FIELDS[name].index(field)][rows]
            if what == "fault":
                fields[0][rows[fields[0][rows] >= VCPUS_LIMIT]] = -1
                fields[3][rows] = CODE[name]
            if what == "unmap" and self.memslots is not None:
                starts, ends = (fields[place][rows].view(np.uint64) for place in (0, 1))
                fields[2][rows], fields[3][rows] = self.memslots.gfns(starts, ends)
        thread = self._number(block["pid"].astype(np.int64))
        self._note_vcpus(event, thread, words[0])
        runs = np.isin(role, [ROLES.index(name) for name in ("fault", "entry", "exit")])
        self._runs |= set(np.unique(thread[runs]).tolist())
        cpu, losses = _cpus(block["cpu"]), np.column_stack([losses[:, 0], _cpus(losses[:, 1])])
        enter, unmap = (int((role == ROLES.index(name)).sum()) for name in ("fault", "unmap"))
        self._faults = _room(self._faults, int(self._counts[ALL_FAULTS]) + enter)
        self._calls = _room(self._calls, int(self._counts[ALL_CALLS]) + unmap)
        self._state = _room(self._state, len(self.pids))
        highest = max([int(column.max()) for column in (cpu, losses[:, 1]) if len(column)], default=-1)
        self._cpus = _room(self._cpus, highest + 2)
        self._counts[BEGINS] |= self.saw("inv_begin")
        time = block["time_ps"].astype(np.int64)
        earlier, later = (self.first_ps, self.last_ps) if self.events else (int(time[0]), int(time[0]))
        self.first_ps, self.last_ps = min(earlier, int(time.min())), max(later, int(time.max()))
        if self.empty_entry is None:
            old = words[2][event == CODE["kvm_tdp_mmu_spte_changed"]]
            empty = old[(old >> MMU_PRESENT & 1) == 0]
            self.empty_entry = int(empty[0]) if len(empty) else None
        follow(
            role, thread, time, cpu, *fields, losses, self._faults, self._calls, self._state,
            self._cpus, self._counts,
        )  # fmt: skip

    def __len__(self) -> int:
        return int(self._counts[ALL_FAULTS])

    def fault(self, name: str) -> Words:
        """Return a column of `FAULT_FIELDS`."""
        return self._faults[: self._counts[ALL_FAULTS], FAULT_FIELDS.index(name)]

    def call(self, name: str) -> Words:
        """Return a column of `CALL_FIELDS`."""
        return self._calls[: self._counts[ALL_CALLS], CALL_FIELDS.index(name)]

    def pid(self, thread: Words) -> Words:
        """Return the thread ids of threads."""
        return np.array(self.pids, dtype=np.int64)[thread]

    @property
    def events(self) -> int:
        """Events so far."""
        return int(self._counts[ALL_EVENTS])

    @property
    def vcpu_threads(self) -> list[int]:
        """The threads that fault, or enter or leave the guest."""
        return sorted(self._runs)

    @property
    def gfn(self) -> Words:
        """The page of each fault."""
        return (self.fault("address") >> PAGE_SHIFT) & GFN

    @property
    def thread_vcpus(self) -> tuple[Words, NDArray[np.bool_]]:
        """The vCPU of each thread (-1: it is none), and whether it is a guess.

        The first event of the thread that has a vCPU tells; where none does, threads are numbered as they
        come, after the numbers that are taken.
        """
        known = np.array([self._vcpu_of.get(number, -1) for number in range(len(self.pids))], dtype=np.int64)
        without = [number for number in self.vcpu_threads if known[number] < 0]
        free = int(max(known.max(initial=-1), self.fault("vcpu").max(initial=-1))) + 1
        guessed = np.zeros(len(known), dtype=np.bool_)
        known[without], guessed[without] = np.arange(free, free + len(without)), True
        return known, guessed

    def outcome(self, kernel: str) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
        """Return how each fault ended, as places in `NAMES`, and whether that was inferred."""
        state, ret = self.fault("state"), self.fault("ret")
        numbers = np.full(16, NAMES.index("ERROR"), dtype=np.int8)
        for number, name in OUTCOMES[kernel].items():
            numbers[number] = NAMES.index(name)
        nothing = "RETRY" if self.saw(*_WRITES) else "unknown"
        evidence = np.array(
            [NAMES.index(name) for name in (nothing, "FIXED", "EMULATE", "SPURIOUS")], np.int8
        )
        found = np.zeros(len(state), dtype=np.int8)
        returned, passed = state == RETURNED, state == PASSED
        in_range = (ret[returned] >= 0) & (ret[returned] < len(numbers))
        found[returned] = numbers[np.where(in_range, ret[returned], len(numbers) - 1)]
        found[passed] = evidence[self.fault("evidence")[passed]]
        found[passed & (found == NAMES.index("RETRY")) & self._went_on()] = NAMES.index("unknown")
        found[state == LOST] = NAMES.index("unknown")
        return found, passed & (found != NAMES.index("unknown"))

    def _went_on(self) -> NDArray[np.bool_]:
        """Whether the thread's next fault, if there is one, is on another page."""
        order = np.argsort(self.fault("thread"), kind="stable")
        before, after = order[:-1], order[1:]
        gfn, thread = self.gfn, self.fault("thread")
        found = np.zeros(len(order), dtype=np.bool_)
        found[before] = (thread[before] == thread[after]) & (gfn[before] != gfn[after])
        return found

    def places(self, outcome: NDArray[np.int8]) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
        """Return where and why each fault was told to try again; only RETRY has a place."""
        retried = outcome == NAMES.index("RETRY")
        where = np.where(retried, self.fault("where"), 0).astype(np.int8)
        where[retried & (where == 0)] = WHERE.index("unknown")
        told = retried & (where > 0) & (where < WHERE.index("race"))
        why = np.where(told, self.fault("why"), 0).astype(np.int8)
        if self.memslots is None or not self.saw(*_ENDS):
            why[told] = WHY.index("unknown")
        return where, why

    def saw(self, *events: str) -> bool:
        """Whether one of some events was recorded at all."""
        return any(CODE[event] in self._seen for event in events)

    def _number(self, pids: Words) -> Words:
        """Give each thread a number, in the order in which they come."""
        known, first, inverse = np.unique(pids, return_index=True, return_inverse=True)
        for pid in known[np.argsort(first)].tolist():
            if pid not in self._threads:
                self._threads[pid] = len(self.pids)
                self.pids.append(pid)
        numbers = [self._threads[pid] for pid in known.tolist()]
        return np.array(numbers, dtype=np.int64)[inverse]

    def _note_vcpus(self, event: NDArray[np.uint8], thread: Words, word: Words) -> None:
        """Note the first vCPU that an event of each thread tells."""
        tells = [CODE[name] for name, fields in EVENT_FIELDS.items() if fields[:1] == ("vcpu",)]
        rows = np.flatnonzero(np.isin(event, tells) & (word >= 0) & (word < VCPUS_LIMIT))
        threads, first = np.unique(thread[rows], return_index=True)
        for number, row in zip(threads.tolist(), rows[first].tolist(), strict=True):
            self._vcpu_of.setdefault(number, int(word[row]))


def _cpus(numbers: NDArray[Any]) -> Words:
    """Return numbers of CPUs, -1 for those that no machine has."""
    wide = numbers.astype(np.int64)
    return np.where((wide < 0) | (wide >= CPUS_LIMIT), -1, wide)


def _room(array: Words, rows: int) -> Words:
    """Return an array with room for so many rows, new ones filled with -1; it at least doubles."""
    if rows <= len(array):
        return array
    more = np.full((max(rows, 2 * len(array)) - len(array), *array.shape[1:]), -1, dtype=np.int64)
    return np.concatenate([array, more])
