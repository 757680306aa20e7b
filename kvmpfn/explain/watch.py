"""Go through the slowest faults of a run event by event, and note who is in their way.

The engine runs at full speed up to a fault's first event, and one event at a time until its last. Before and
after each event its memory is read: what was booked to the fault, who holds the lock that it waits for. What
cannot be read there, waits for lines and answers, the engine writes into a ring (`core.notes.note_wait`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from kvmpfn.core import layout as L
from kvmpfn.core.names import PARTS, STEPS
from kvmpfn.explain.actors import MMU_LOCK_STEPS, Actors, begins_fault
from kvmpfn.explain.fault import Attempt, Blame, Fault, Piece
from kvmpfn.explain.retries import cells, entry_changed, follow_entry, new_retry, staled_by
from kvmpfn.simulator import EVENTS_A_CHUNK, InvariantError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvmpfn.simulator import _World

__all__ = ["watch"]

LOCK_STEPS = {
    "mmu_lock": MMU_LOCK_STEPS,
    "mmap_lock": frozenset((L.PC_MMAP_LOCK, L.PC_MMAP_UNLOCK)),
    "ptl": frozenset((L.PC_PTL_LOCK, L.PC_PTL_UNLOCK)),
    "migration": frozenset[int](),
}
"""What a vCPU may wait for, and the steps that change who has it: a migration's entry has no lock."""

ASKED = {
    "mmu_lock": L.PC_QUEUE_HEAD,
    "mmap_lock": L.PC_MMAP_LOCK,
    "ptl": L.PC_PTL_LOCK,
    "migration": L.PC_MM_FAULT,
}
"""The step in which it waits."""

WAKE = {L.PC_WRITE_UNLOCK: 0, L.PC_PTL_UNLOCK: 0, L.PC_MMAP_UNLOCK: 1, L.PC_RESTORE: 1, L.PC_AFTER: 1}
"""Steps of others that end such a wait and book it; 1 where the vCPU slept and has to wake up.

Reclaim puts its entries back in `after`.
"""

OUTCOMES = ("retry", "fixed", "spurious", "emulate", "error")


def watch(world: _World, slowest: NDArray[np.int64]) -> list[Fault]:
    """Run a world from its beginning to the end of the last of some faults.

    Parameters
    ----------
    world : _World
        Not yet run, with a ring of waits.
    slowest : ndarray of int64, shape (faults, 4)
        As `core.notes.note_slow` keeps them: latency in ps, number of the vCPU among the actors, and of the
        fault's first and last event.

    Returns
    -------
    list of Fault
        In the given order.

    Raises
    ------
    InvariantError
        The pieces of a fault do not sum to its latency.
    """
    from kvmpfn.core.engine import prepare

    faults = [Fault(actor, ps, first, last) for ps, actor, first, last in slowest.tolist()]
    with np.errstate(over="ignore"):
        prepare(world.words)
        watcher = _Watch(world)
        for fault in faults:
            fault.a = watcher.actors.pointers[fault.actor]
            fault.vm = watcher.w[fault.a + L.VM]
        watcher.follow(faults)
    for fault in faults:
        if sum(piece.ps for piece in fault.pieces) != fault.latency:
            raise InvariantError(f"the pieces of a fault are not its latency, {fault.latency} ps")
    return faults


class _Watch:
    """The engine's memory, read between events."""

    def __init__(self, world: _World) -> None:
        self.words = world.words
        self.w = world.words.data
        self.actors = Actors(world.scenario, self.w)
        self.open: dict[int, Fault] = {}

    def follow(self, faults: list[Fault]) -> None:
        """Take event after event; many at once while no fault is followed."""
        from kvmpfn.core.engine import run_until

        w = self.w
        to_come = sorted(faults, key=lambda fault: -fault.first_event)
        while to_come or self.open:
            if not self.open:
                while skip := min(to_come[-1].first_event - 1 - w[L.EVENTS], EVENTS_A_CHUNK):
                    run_until(self.words, skip)
            event = w[L.EVENTS] + 1
            while to_come and to_come[-1].first_event == event:
                fault = to_come.pop()
                self.open[fault.a] = fault
            self.take()
            for fault in [fault for fault in self.open.values() if fault.last_event == event]:
                del self.open[fault.a]

    def take(self) -> None:
        """Take one event, and note what it means to the faults that are followed."""
        from kvmpfn.core.engine import run_until

        w = self.w
        key = w[w[L.QUEUE] + 1]
        t, x = key >> L.OWNER_BITS, self.actors.pointers[key & L.OWNER_MASK]
        step, vm = w[x + L.PC], w[x + L.VM]
        touched = []
        for fault in self.open.values():
            if fault.vm != vm:
                continue
            if fault.waiting and step in LOCK_STEPS[fault.waiting]:
                self.blame(fault, t, step, x)
            if fault.a == x or (fault.waiting and step in WAKE):
                touched.append((fault, self.parts(fault), w[fault.a + L.SINCE]))
        retries = cells(self.actors, vm) if x in self.open else []
        part_as, outcome, seen = w[x + L.PART_AS], w[x + L.V_OUTCOME], w[L.WAITS_SEEN]
        run_until(self.words, 1)
        for fault in self.open.values():
            if step == L.PC_END_LOCKED and fault.vm == vm and fault.ended is None:
                fault.ended = (x, f"had invalidated {self.actors.span(x)} meanwhile")
        for fault, before, since in touched:
            if fault.a != x:
                self.woken(fault, step, x, before, since)
                continue
            if booked := self.booked(fault, step, t, before):
                self.waited(fault, step, t, booked, since, seen, part_as)
                for part, ps in booked.items():
                    self.piece(fault, step, part, ps)
            if cell := new_retry(retries, cells(self.actors, vm)):
                who, because = staled_by(self.actors, fault, cell)
                last = fault.attempts[-1]
                last.outcome, last.holder, last.because = cell, self.name(fault, who), because
            self.queue(fault, step)
            follow_entry(self.actors, fault, step)
            if step == L.PC_FINISH:
                self.close(fault, outcome)
        for fault in self.open.values():
            if fault.entry and fault.changed_by is None and entry_changed(self.actors, fault, x):
                fault.changed_by = (x, self.actors.doing(x))

    def parts(self, fault: Fault) -> list[int]:
        """Return what is booked to the fault's attempt so far, in the order of `PARTS`."""
        at = fault.a + L.V_PARTS
        ps: list[int] = self.w[at : at + L.PART_COUNT].tolist()
        return ps

    def booked(self, fault: Fault, step: int, t: int, before: list[int]) -> dict[str, int]:
        """Return what the fault's own step booked, by part; what lies between attempts books nothing."""
        w, a = self.w, fault.a
        if step == L.PC_ACCESS:
            if not begins_fault(w, a):
                return {}
            before = [0] * L.PART_COUNT
            fault.attempts.append(Attempt(w[a + L.V_GFN], t))
        return _grown(before, self.parts(fault))

    def waited(
        self, fault: Fault, step: int, t: int, booked: dict[str, int], since: int, seen: int, part_as: int
    ) -> None:
        """Take the waits out of what a step of the fault's own booked, as pieces."""
        w = self.w
        if step in (L.PC_QUEUE_HEAD, L.PC_WRITE_GRANT) and t > since:
            part = "mmu_lock_wait" if part_as < 0 else PARTS[part_as]
            self.wait(fault, step, part, since, t)
            booked[part] -= t - since
        for number in range(seen, w[L.WAITS_SEEN]):
            at = w[L.WAITS] + 5 * (number % w[L.WAITS_CAP])
            asker, address, who, start, until = w[at : at + 5].tolist()
            if asker != fault.actor:
                continue
            name, part = self.actors.line(address, step, booked)
            part = part if part_as < 0 else PARTS[part_as]
            if booked.get(part, 0) < until - start:
                raise InvariantError(f"a wait for {name} in {STEPS[step]} is not booked to {part}")
            booked[part] -= until - start
            if not who:  # a socket's resource, whose users the engine does not note
                others = "" if name == "memory_bandwidth" else f"others of socket {w[fault.a + L.SOCKET]}"
                self.piece(fault, step, part, until - start, name, others)
                continue
            for thread, ps in self.chain(number, address, who, start, until):
                a = self.actors.on_thread[thread]
                doing = "" if a == fault.a else self.actors.doing(a)
                self.piece(fault, step, part, ps, name, self.name(fault, a), doing)

    def chain(self, number: int, address: int, who: int, start: int, until: int) -> Iterator[tuple[int, int]]:
        """Go back from who had a line to those who had it before, as far as a wait for it goes.

        A line is granted in the order of asking: an earlier wait for it that ended before `start` ends the
        search. An answer (`address` 0) has no queue.

        Yields
        ------
        who, ps : int
            A thread + 1, and for how much of the wait the line was its own; the latest first.
        """
        w, ring, cap = self.w, self.w[L.WAITS], self.w[L.WAITS_CAP]
        oldest = max(0, w[L.WAITS_SEEN] - cap) if address else number
        asker = w[self.actors.on_thread[who] + L.ID]
        for earlier in range(number - 1, oldest - 1, -1):
            at = ring + 5 * (earlier % cap)
            if w[at + 1] != address:
                continue
            granted = w[at + 4]
            if granted <= start:
                break
            if w[at] == asker:
                yield who, until - granted
                who, until = w[at + 2], granted
                asker = w[self.actors.on_thread[who] + L.ID]
        yield who, until - start

    def woken(self, fault: Fault, step: int, x: int, before: list[int], since: int) -> None:
        """Book the wait that another's step ended, if it was this fault's."""
        for part, ps in _grown(before, self.parts(fault)).items():
            asleep = ps - WAKE[step] * self.w[L.C_SLEEP_WAKE]
            if fault.waiting == "migration":
                fault.blames = [Blame(since + asleep, x, self.actors.operation(x))]
            asked = ASKED[fault.waiting]
            self.wait(fault, asked, part, since, since + asleep)
            self.piece(fault, asked, part, ps - asleep, "wake-up")
            fault.waiting = ""

    def wait(self, fault: Fault, step: int, part: str, since: int, until: int) -> None:
        """Cut a wait for a lock by who was in the way; the last one is so until the lock is granted."""
        if until <= since:
            return
        if not fault.blames:
            raise InvariantError(f"nobody was in the way of {self.actors.name(fault.a)} at {since} ps")
        shares: list[tuple[int, str, int]] = []
        at = since
        for end, who, doing in [*fault.blames[:-1], fault.blames[-1]._replace(until=until)]:
            stop = min(end, until)
            if stop <= at:
                continue
            ps = stop - at
            if shares and shares[-1][:2] == (who, doing):
                ps += shares.pop()[2]
            shares.append((who, doing, ps))
            at = stop
        for who, doing, ps in shares:
            self.piece(fault, step, part, ps, fault.waiting, self.actors.name(who), doing)

    def blame(self, fault: Fault, t: int, step: int, x: int) -> None:
        """Note who has been in the way until now: who holds the lock, else the first in the queue.

        A writer that waits for readers waits for the last of them: each one's leaving ends its share. While
        the lock is handed over, nobody new is in the way.
        """
        w, vm = self.w, fault.vm
        about = self.actors.doing
        if fault.waiting == "mmu_lock":
            who, head, leaves = w[vm + L.MMU_WRITER], w[vm + L.MMU_HEAD], step == L.PC_READ_UNLOCK
        elif fault.waiting == "mmap_lock":
            who, head, leaves = w[vm + L.MMAP_WRITER], w[vm + L.MMAP_HEAD], step == L.PC_MMAP_UNLOCK
            about = self.actors.operation
        elif w[x + L.HELD_PTL] == w[fault.a + L.HELD_PTL]:
            who, head, leaves = w[w[fault.a + L.HELD_PTL] + L.PTL_HELD], 0, False
        else:
            return
        if who in (0, fault.a):
            who = head
        if who in (0, fault.a):
            who = x if leaves else 0
        if who:
            fault.blames.append(Blame(t, who, about(who)))

    def queue(self, fault: Fault, step: int) -> None:
        """Note whether a step of the fault's own left it in a queue."""
        w, a, vm = self.w, fault.a, fault.vm
        if step == L.PC_QUEUE_HEAD and w[vm + L.MMU_HEAD] == a:
            return
        fault.waiting, fault.blames = "", []
        if step in (L.PC_READ_LOCK, L.PC_WRITE_LOCK) and w[vm + L.MMU_TAIL] == a:
            fault.waiting = "mmu_lock"
        elif step == L.PC_MMAP_LOCK and w[vm + L.MMAP_TAIL] == a:
            fault.waiting = "mmap_lock"
        elif step == L.PC_PTL_LOCK and w[w[a + L.HELD_PTL] + L.PTL_TAIL] == a:
            fault.waiting = "ptl"
        elif step == L.PC_MM_FAULT and w[a + L.PC] == L.PC_MM_FAULT:
            fault.waiting = "migration"
            return
        if fault.waiting:
            self.blame(fault, w[a + L.SINCE], step, a)

    def close(self, fault: Fault, outcome: int) -> None:
        """End the fault's attempt."""
        attempt, number = fault.attempts[-1], len(fault.attempts)
        attempt.ps = sum(piece.ps for piece in fault.pieces if piece.attempt == number)
        if outcome != L.RET_RETRY:
            attempt.outcome = OUTCOMES[outcome]

    def name(self, fault: Fault, a: int) -> str:
        """Name an actor, seen from the fault."""
        return "itself" if a == fault.a else self.actors.name(a)

    @staticmethod
    def piece(fault: Fault, step: int, part: str, ps: int, *wait: str) -> None:
        """Note a piece, unless it took no time; `wait` is what was waited for, for whom, who did what."""
        if ps:
            fault.pieces.append(Piece(len(fault.attempts), STEPS[step], part, ps, *wait))


def _grown(before: list[int], after: list[int]) -> dict[str, int]:
    """Return what was booked between two looks at the parts."""
    return {part: new - old for part, old, new in zip(PARTS, before, after, strict=True) if new != old}
