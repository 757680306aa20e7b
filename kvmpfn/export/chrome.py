"""A run's steps as the JSON of the Trace Event Format, which the Perfetto UI and chrome://tracing open.

A virtual machine is a process. Each of its vCPUs and storm clients has a track of slices that nest: what it
is about, for which lock it waits, which it holds. mmu_lock and mmap_lock have a track each of who holds them
for writing, and a counter of readers. Where a fault turns out to be stale, an arrow comes from the
invalidation.

The format (Trace Event Format, Google, document 1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU) wants slices of
a track to nest, and times in microseconds; with six digits behind the point they are exact to the picosecond.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TextIO

from kvmpfn.core import layout as L
from kvmpfn.explain.actors import CALLED, MMU_LOCK_STEPS, begins_fault
from kvmpfn.explain.fault import Attempt, Fault
from kvmpfn.explain.retries import cells, new_retry, staled_by

if TYPE_CHECKING:
    from kvmpfn.export.steps import Machine

__all__ = ["Chrome"]

Path = tuple[str, ...]
"""Names of slices, the outermost first."""

KINDS = {L.READ: "read", L.WRITE: "write", L.EXEC: "exec"}
OUTCOMES = {
    L.RET_RETRY: "RETRY", L.RET_FIXED: "FIXED", L.RET_SPURIOUS: "SPURIOUS", L.RET_EMULATE: "EMULATE",
    L.RET_ERROR: "ERROR",
}  # fmt: skip

MMU_LOCK_ASKED = MMU_LOCK_STEPS - {L.PC_READ_UNLOCK, L.PC_WRITE_UNLOCK}
MMAP_LOCK_ASKED = (L.PC_MMAP_LOCK, L.PC_OWNER_LOAD, L.PC_OWNER_STORE)
LOCK_STEPS = MMU_LOCK_STEPS | {L.PC_MMAP_LOCK, L.PC_MMAP_UNLOCK, L.PC_START_LOCKED, L.PC_END_LOCKED}
"""Steps that may change who holds a lock of the VM, or how many invalidations are in progress."""

HOST_FAULT = range(L.PC_MM_FAULT, L.PC_LRU_ADD + 1)
MAPPING = range(L.PC_MAPPED, L.PC_STATS + 1)
MAY_RETRY = frozenset(
    (L.PC_HANDLE, L.PC_FAST_PAGE_FAULT, L.PC_PRECHECK, L.PC_MAPPED, L.PC_MM_FAULT, L.PC_LINK, L.PC_FREEZE,
     L.PC_FROZEN, L.PC_TABLE_COUNT, L.PC_LEAF, L.PC_SET_LEAF)
)  # fmt: skip
"""Steps that make a stale test or may lose a race."""

NOTIFIER = {
    L.PC_START: ("start",),
    **dict.fromkeys(range(L.PC_START_LOCKED, L.PC_YIELD + 1), ("start", "mmu_lock held", "zap")),
    L.PC_RELOCK: ("start",),
    **dict.fromkeys((L.PC_RESUME, L.PC_FLUSHED), ("start", "mmu_lock held", "zap")),
    L.PC_STARTED: ("start",),
    L.PC_END: ("end",),
    L.PC_END_LOCKED: ("end", "mmu_lock held"),
    L.PC_ENDED: ("end",),
}
"""What whoever invalidates is about in a step."""

NOTIFIER_CALLS = MMU_LOCK_STEPS | {L.PC_FLUSH}

CLIENT = {
    **dict.fromkeys((L.PC_SPLIT, L.PC_SPLIT_FLUSHED), ("split",)),
    **dict.fromkeys((L.PC_PTES, L.PC_PTE_END), ("hold",)),
    **dict.fromkeys((L.PC_COLLAPSE, L.PC_COLLAPSE_FLUSHED, L.PC_COLLAPSED), ("collapse",)),
    L.PC_SYNC_DIRTY_LOG: ("kick",),
}
"""What a storm client is about outside the notifier."""

MOVES = {"migration": ("move",), "khugepaged": ("collapse",)}
"""What actions are about that have more to do after the notifier's end."""

LOCK_TRACKS = (("mmu_lock", L.MMU_WRITER, L.MMU_READERS), ("mmap_lock", L.MMAP_WRITER, L.MMAP_READERS))
LOCK_TID = 1 << 11
"""Thread numbers of lock tracks, counted from the process's: above those of all actors."""


class Chrome:
    """Writes the slices of each step; a `kvmpfn.export.steps.Follower`.

    Parameters
    ----------
    machine : Machine
        What is simulated.
    out : text file
        Where the JSON goes, an event a line.
    told : dict of str to str
        What is to be said of the run, under ``otherData``.
    """

    def __init__(self, machine: Machine, out: TextIO, told: dict[str, str]) -> None:
        self.machine, self.w, self.out = machine, machine.words, out
        w = self.w
        out.write('{"displayTimeUnit":"ns",\n')
        out.write(f'"otherData":{json.dumps(told, sort_keys=True, ensure_ascii=False)},\n"traceEvents":[')
        self.first = True
        self.flows = 0
        self.track: dict[int, str] = {}
        self.stack: dict[int, Path] = {}
        self.ending: dict[int, str] = {}
        self.paths: dict[tuple[int, ...], Path] = {}
        self.locks: dict[int, list[int]] = {vm: [0] * (2 * len(LOCK_TRACKS) + 1) for vm in machine.vms}
        self.ended: dict[tuple[int, int], tuple[int, int, str]] = {}
        self.retries: list[int] = []
        for number, vm in enumerate(machine.vms):
            self._names(number, vm)
        for a in machine.actors.pointers:
            self.track[a] = self._track(w[w[a + L.VM] + L.VM_ID], machine.thread(a))
            self.stack[a] = ()

    def before(self, t: int, a: int, step: int) -> None:
        """Begin and end slices: from here on the actor is in this step."""
        w = self.w
        if step == L.PC_ACCESS or step == L.PC_IDLE:
            self._go(t, a, ())
        else:
            if step in MAY_RETRY:
                self.retries = cells(self.machine.actors, w[a + L.VM])
            elif step == L.PC_FINISH:
                self.ending[a] = f',"args":{{"outcome":"{OUTCOMES[w[a + L.V_OUTCOME]]}"}}'
            self._go(t, a, self._path(a, step))

    def after(self, t: int, a: int, step: int) -> None:
        """Begin a fault or an operation, end an operation, look at locks and at stale faults."""
        w = self.w
        if step == L.PC_ACCESS:
            self._accessed(t, a)
        elif step == L.PC_IDLE:
            if w[a + L.PC] not in (L.PC_IDLE, L.PC_STOPPED):
                gfns = f'"gfns":"[{w[a + L.S_START]}..{w[a + L.S_END]})"'
                self._go(t, a, (self.machine.actors.actions[w[a + L.ID]],), gfns)
        elif not w[a + L.IS_VCPU] and w[a + L.PC] in (L.PC_IDLE, L.PC_STOPPED):
            self._go(t, a, ())
        elif step in MAY_RETRY:
            self._tested(t, a)
        if step == L.PC_END_LOCKED:
            vm, number = w[a + L.VM], w[w[a + L.VM] + L.SEQ] - 1
            self.ended[vm, number] = (a, t, f"had invalidated {self.machine.actors.span(a)} meanwhile")
        if step in LOCK_STEPS:
            self._locks(t, w[a + L.VM])

    def close(self, t: int) -> None:
        """End what is open at the end of the log, and the file."""
        for a in self.machine.actors.pointers:
            self._go(t, a, ())
        for number, vm in enumerate(self.machine.vms):
            for i in range(len(LOCK_TRACKS)):
                if holder := self.locks[vm][2 * i]:
                    who = self.machine.actors.name(holder)
                    self._write(f'"ph":"E",{self._lock_track(number, i)},{_ts(t)},"name":"{who}"')
        self.out.write("\n]}\n")

    # Slices.

    def _path(self, a: int, step: int) -> Path:
        """Say what an actor is about in a step, as the slices that it is in."""
        w = self.w
        following = w[a + L.AFTER] if step in CALLED or step == L.PC_FLUSH else 0
        if following == L.PC_MMAP_UNLOCK or step == L.PC_MMAP_UNLOCK:
            following = w[a + L.AFTER_MMAP]
        key = (w[a + L.IS_VCPU], step, following, w[a + L.HELD_MMAP], w[a + L.CONTEXT], w[a + L.ID])
        path = self.paths.get(key)
        if path is None:
            path = self._fault_path(*key[1:5]) if key[0] else self._client_path(a, *key[1:4])
            self.paths[key] = path
        return path

    def _fault_path(self, step: int, following: int, mmap_held: int, context: int) -> Path:
        """Say what a vCPU is about."""
        called = step in CALLED or step == L.PC_FLUSH
        if step in (L.PC_PML_FLUSH, L.PC_DRAIN_PUTS) and following == L.PC_ACCESS:
            return ()
        if context == L.CTX_FAULT:
            if step == L.PC_PML_FLUSH:
                return ("fault", "exit", "pml_flush")
            if step in (L.PC_HANDLE, L.PC_FAST_PAGE_FAULT, L.PC_FAST_DIRTY):
                return ("fault", "handler")
            if step == L.PC_FINISH:
                return ("fault", "entry")
            if step in (L.PC_RELEASE_CLEAN, L.PC_DRAIN_PUTS):
                return ("fault", "release")
            if step in MMU_LOCK_ASKED:
                return ("fault", "mmu_lock wait")
            if step == L.PC_FLUSH:
                return ("fault", "mmu_lock held", "flush")
            if step in MMU_LOCK_STEPS:
                return ("fault", "mmu_lock held")
            if step in (L.PC_RELEASE, L.PC_RELEASE_UNUSED):
                return ("fault", "mmu_lock held", "release")
            if step in MAPPING:
                return ("fault", "mmu_lock held", "map")
            if step == L.PC_PRECHECK:
                return ("fault", "check")
        if step in MMAP_LOCK_ASKED:
            return ("fault", "gup", "mmap_lock wait")
        path: Path = ("fault", "gup", "mmap_lock held") if mmap_held else ("fault", "gup")
        subject = following if called else step
        if context == L.CTX_ZAP:
            path = (*path, "host fault")
            if step in NOTIFIER or step in NOTIFIER_CALLS:
                return path + _notifier(step, following)
            return path
        if subject in HOST_FAULT or subject == L.PC_COW_LOCK or step == L.PC_HOST_FLUSH:
            path = (*path, "host fault")
        return (*path, "ptl wait") if step == L.PC_PTL_LOCK else path

    def _client_path(self, a: int, step: int, following: int, mmap_held: int) -> Path:
        """Say what a storm client is about."""
        action = self.machine.actors.actions[self.w[a + L.ID]]
        path: Path = (action,)
        if step in MMAP_LOCK_ASKED:
            return (action, "mmap_lock wait")
        if mmap_held:
            path = (action, "mmap_lock held")
        subject = following if step in CALLED or step == L.PC_FLUSH else step
        if step in NOTIFIER or (step in NOTIFIER_CALLS and following in NOTIFIER):
            return path + _notifier(step, following)
        if action in ("age", "clear_dirty_log") and step != L.PC_SYNC_DIRTY_LOG:
            if step in MMU_LOCK_ASKED:
                return (*path, "mmu_lock wait")
            if step == L.PC_FLUSH and action == "clear_dirty_log":
                return (*path, "flush")
            if action == "age" and self.w[L.M_AGING_LOCK] == 0:
                return (*path, "flush") if step == L.PC_FLUSH else path
            if step in (L.PC_DONE, L.PC_CLEARED):
                return path
            return (*path, "mmu_lock held", "flush") if step == L.PC_FLUSH else (*path, "mmu_lock held")
        if subject in (L.PC_AFTER, L.PC_RESTORE):
            return path + MOVES.get(action, ())
        path = path + CLIENT.get(subject, ())
        if step == L.PC_HOST_FLUSH:
            return (*path, "host flush")
        return (*path, "ptl wait") if step == L.PC_PTL_LOCK else path

    def _go(self, t: int, a: int, path: Path, told: str = "") -> None:
        """End the slices that the actor is in no more, and begin those that it is in now.

        `told` is what is to be said of the outermost one.
        """
        old = self.stack[a]
        if old == path:
            return
        same = 0
        for one, other in zip(old, path, strict=False):
            if one != other:
                break
            same += 1
        track, ts = self.track[a], _ts(t)
        for depth in range(len(old) - 1, same - 1, -1):
            end = "" if depth else self.ending.pop(a, "")
            self._write(f'"ph":"E",{track},{ts},"name":"{old[depth]}"{end}')
        for depth, name in enumerate(path[same:], same):
            if depth:
                told = f'"gfns":"{self.machine.actors.span(a)}"' if name == "start" else ""
            args = f',"args":{{{told}}}' if told else ""
            self._write(f'"ph":"B",{track},{ts},"name":"{name}"{args}')
        self.stack[a] = path

    def _accessed(self, t: int, a: int) -> None:
        """An access that is not granted begins a fault."""
        w = self.w
        if begins_fault(w, a):
            access = f'"gfn":{w[a + L.V_GFN]},"access":"{KINDS[w[a + L.V_KIND]]}"'
            self._go(t, a, ("fault", "exit"), access)

    # Stale faults.

    def _tested(self, t: int, a: int) -> None:
        """Draw an arrow from the invalidation that has made a fault stale."""
        w, actors = self.w, self.machine.actors
        vm = w[a + L.VM]
        cell = new_retry(self.retries, cells(actors, vm))
        if not cell:
            return
        fault = Fault(w[a + L.ID], 0, 0, 0, a, vm, [Attempt(w[a + L.V_GFN], t)])
        since = t
        if cell.endswith(".seq") and (ended := self.ended.get((vm, w[a + L.V_SEQ]))):
            who, since, because = ended
            fault.ended = who, because
        who, because = staled_by(actors, fault, cell)
        told = {"because": f"{actors.name(who)} {because}"} if who else {}
        self._write(f'"ph":"i","s":"t",{self.track[a]},{_ts(t)},"name":"{cell}","args":{json.dumps(told)}')
        if who and who != a:
            self.flows += 1
            flow = f'"cat":"stale","name":"stale","id":{self.flows}'
            self._write(f'"ph":"s",{self.track[who]},{_ts(since)},{flow}')
            self._write(f'"ph":"f","bp":"e",{self.track[a]},{_ts(t)},{flow}')

    # Locks.

    def _locks(self, t: int, vm: int) -> None:
        """Tell of who has come to hold a lock of a VM, and how many."""
        w, seen = self.w, self.locks[vm]
        number = w[vm + L.VM_ID]
        pid = f'"pid":{self.machine.process(number)}'
        for i, (name, writer, readers) in enumerate(LOCK_TRACKS):
            if w[vm + writer] != seen[2 * i]:
                track = self._lock_track(number, i)
                for phase, holder in (("E", seen[2 * i]), ("B", w[vm + writer])):
                    if holder:
                        who = self.machine.actors.name(holder)
                        self._write(f'"ph":"{phase}",{track},{_ts(t)},"name":"{who}"')
                seen[2 * i] = w[vm + writer]
            if w[vm + readers] != seen[2 * i + 1]:
                seen[2 * i + 1] = w[vm + readers]
                args = f'"args":{{"readers":{w[vm + readers]}}}'
                self._write(f'"ph":"C",{pid},"tid":0,{_ts(t)},"name":"{name} readers",{args}')
        if w[vm + L.IN_PROGRESS] != seen[-1]:
            seen[-1] = w[vm + L.IN_PROGRESS]
            args = f'"args":{{"invalidations":{seen[-1]}}}'
            self._write(f'"ph":"C",{pid},"tid":0,{_ts(t)},"name":"in progress",{args}')

    # Tracks.

    def _track(self, vm: int, tid: int) -> str:
        return f'"pid":{self.machine.process(vm)},"tid":{tid}'

    def _lock_track(self, vm: int, lock: int) -> str:
        return self._track(vm, self.machine.process(vm) + LOCK_TID + lock)

    def _names(self, number: int, vm: int) -> None:
        """Name a VM's process and its tracks, in the order of their numbers."""
        machine, pid = self.machine, self.machine.process(number)
        tracks = [
            (machine.thread(a), machine.actors.names[self.w[a + L.ID]])
            for a in machine.actors.pointers
            if self.w[a + L.VM] == vm
        ]
        tracks += [(pid + LOCK_TID + i, f"{name} (writer)") for i, (name, _, _) in enumerate(LOCK_TRACKS)]
        self._meta("process_name", pid, 0, {"name": f"VM {number}"})
        self._meta("process_sort_index", pid, 0, {"sort_index": number})
        for tid, name in sorted(tracks):
            self._meta("thread_name", pid, tid, {"name": name})
            self._meta("thread_sort_index", pid, tid, {"sort_index": tid})

    def _meta(self, what: str, pid: int, tid: int, args: dict[str, Any]) -> None:
        self._write(f'"ph":"M","pid":{pid},"tid":{tid},"name":"{what}","args":{json.dumps(args)}')

    def _write(self, fields: str) -> None:
        """Write an event."""
        self.out.write(("\n{" if self.first else ",\n{") + fields + "}")
        self.first = False


def _notifier(step: int, following: int) -> Path:
    """Say what whoever invalidates is about."""
    if step == L.PC_FLUSH:
        return ("start", "mmu_lock held", "flush")
    if step in MMU_LOCK_ASKED:
        return (NOTIFIER[following][0], "mmu_lock wait")
    if step in MMU_LOCK_STEPS:
        return (NOTIFIER[following][0], "mmu_lock held")
    return NOTIFIER[step]


def _ts(t: int) -> str:
    """Write a time in ps as microseconds."""
    return f'"ts":{t // 10**6}.{t % 10**6:06d}'
