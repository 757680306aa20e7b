"""The search: every state that any interleaving reaches, breadth first.

What is one step. Everything is an access of its own, except where no other thread could tell: what mmu_lock's
writers alone write is read with the acquisition for write; the two counts under mn_invalidate_lock, the
invalidation of a cache under its lock and GUP-slow under the page-table lock are one step each, since nobody
reads what they write in between, or those who do would read the same (see `host` and `gup`).

Bounds. Tries are not counted: a try leaves nothing in the vCPU's own state, and all words are bounded by the
number of invalidations (the sequence and the generations grow by one each), so the graph is finite and holds
tries without end as cycles. Nothing is cut off.

Reduction. A plain load of a word that no thread can write any more, or that mmu_lock keeps from being written
until the loader unlocks, commutes with every step that other threads can take before it and with every other
step of its own thread that is ready too, and changes nothing that a property looks at. So where one is
ready, it is enough to go on with it alone (a persistent set of one, invisible step). No step is put off for
ever: a thread has finitely many loads on its way to an entry, a lock or an atomic, where all that can happen
is looked at again. Violations, deadlocks and cycles are therefore reached in the reduced graph if and only if
they are in the whole one; only the number of steps to them may differ, so counterexamples come from the
whole one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from kvmpfn.protocol.gup import Setting
from kvmpfn.protocol.order import Local, Move
from kvmpfn.protocol.threads import Thread, initial_memory, threads
from kvmpfn.protocol.words import Violation
from kvmpfn.units import InputError

__all__ = ["Found", "Search"]

SHIFT = 24
"""Bits of a state's key for the number of the memory, and for the number of each thread's local state."""

MASK = (1 << SHIFT) - 1


Step = tuple[int, Violation | None]
"""What a step adds to a state's key, and what it breaks."""

Steps = tuple[tuple[Step, ...], tuple[tuple[Step, int], ...]]
"""The steps of a thread; and those that are plain loads, with the bit of the word nobody may yet write."""


class Found(NamedTuple):
    """What a search ends with.

    Attributes
    ----------
    states, transitions : int
        How many were reached until the search ended.
    violation : Violation or None
        The first one found, by the number of steps that lead to it.
    moves : list of (int, int)
        Thread and place among its moves, for each step that leads to the violation.
    repeats_from : int or None
        Where the cycle begins, if the violation is that the steps may go round for ever.
    """

    states: int
    transitions: int
    violation: Violation | None
    moves: list[tuple[int, int]]
    repeats_from: int | None


class Search:
    """An exploration, each state a number.

    A thread's step depends on its local state and the shared words only, so the steps of each such pair are
    worked out once and remembered as the difference that they make to the key.

    Parameters
    ----------
    setting : Setting
        What is explored.
    properties : iterable of str
        Which properties end the search when they are broken.
    reduced : bool
        Whether loads that cannot make a difference go alone (see the module).
    """

    def __init__(self, setting: Setting, properties: Iterable[str], reduced: bool = True) -> None:
        self.reduced = reduced
        self.words = setting.words
        self.properties = tuple(properties)
        self.threads: list[Thread] = threads(setting)
        self._memories: list[tuple[int, ...]] = []
        self._memory_number: dict[tuple[int, ...], int] = {}
        self._locals: list[list[Local]] = [[] for _ in self.threads]
        self._local_number: list[dict[Local, int]] = [{} for _ in self.threads]
        self._steps: list[dict[int, Steps]] = [{} for _ in self.threads]
        self._pending_words: list[dict[int, int]] = [{} for _ in self.threads]
        self._rest: list[dict[int, bool]] = [{} for _ in self.threads]
        self.initial = self._number_memory(initial_memory(setting))
        for at, thread in enumerate(self.threads):
            self.initial |= self._number_local(at, thread.initial()) << SHIFT * (at + 1)

    def run(self, limit: int) -> Found:
        """Search until a property is broken or nothing is left.

        Parameters
        ----------
        limit : int
            States after which to give up.

        Raises
        ------
        InputError
            When it has come to that.
        """
        reached = {self.initial: self.initial}
        order = deque([self.initial])
        clients = [at for at, thread in enumerate(self.threads) if thread.ends]
        calm: list[int] = []
        transitions = 0
        while order:
            state = order.popleft()
            steps = self._steps_of(state)
            for difference, violation in steps:
                transitions += 1
                after = state + difference
                if violation:
                    path = [*self._path(reached, state), after]
                    return Found(len(reached), transitions, violation, self._moves(path), None)
                if after not in reached:
                    reached[after] = state
                    order.append(after)
            if len(reached) > limit:
                raise InputError(f"more than {limit:,} states; nearest is a smaller configuration", "limit")
            if not steps and (violation := self.end(state)):
                moves = self._moves(self._path(reached, state))
                return Found(len(reached), transitions, violation, moves, None)
            if all(self._rests(at, state) for at in clients):
                calm.append(state)
        if "completion" in self.properties and (cycle := self._cycle(calm)):
            first = self._path(reached, cycle[0])
            violation = Violation(
                ("completion",), "the storms are over, and these steps can go round for ever"
            )
            moves = self._moves([*first, *cycle[1:], cycle[0]])
            return Found(len(reached), transitions, violation, moves, len(first) - 1)
        return Found(len(reached), transitions, None, [], None)

    def moves_of(self, at: int, state: int) -> list[Move]:
        """Work out a thread's steps anew."""
        local = self._locals[at][state >> SHIFT * (at + 1) & MASK]
        return list(self.threads[at].moves(local, self._memories[state & MASK]))

    def after(self, at: int, state: int, move: Move) -> int:
        """Return the state that a step leads to."""
        shift = SHIFT * (at + 1)
        local = self._number_local(at, move.local)
        return (
            state
            + ((local - (state >> shift & MASK)) << shift)
            + (self._number_memory(move.memory) - (state & MASK))
        )

    def memory(self, state: int) -> tuple[int, ...]:
        """Return the shared words of a state."""
        return self._memories[state & MASK]

    def broken(self, move: Move) -> Violation | None:
        """Return what a step breaks, of the properties that count."""
        found = [
            violation
            for violation in (self.words.check(list(move.memory)), move.violation)
            if violation and any(name in self.properties for name in violation.properties)
        ]
        names = [name for violation in found for name in violation.properties if name in self.properties]
        return Violation(tuple(dict.fromkeys(names)), found[0].text) if found else None

    def _number_memory(self, memory: tuple[int, ...]) -> int:
        number = self._memory_number.setdefault(memory, len(self._memories))
        if number == len(self._memories):
            self._memories.append(memory)
        return number

    def _number_local(self, at: int, local: Local) -> int:
        number = self._local_number[at].setdefault(local, len(self._locals[at]))
        if number == len(self._locals[at]):
            self._locals[at].append(local)
        return number

    def _steps_of(self, state: int) -> list[Step]:
        """Return the steps that lead on from a state: all, or one that may go alone."""
        every: list[Step] = []
        memory = state & MASK
        rest, pending = state, -1
        for at, known in enumerate(self._steps):
            rest >>= SHIFT
            pair = (rest & MASK) << SHIFT | memory
            steps, loads = known.get(pair) or self._work_out(at, pair)
            if loads:
                pending = self._pending(state) if pending < 0 else pending
                for step, word in loads:
                    if not word & pending:
                        return [step]
            every += steps
        return every

    def _pending(self, state: int) -> int:
        """Return the bits of the words that any thread may yet write."""
        words = 0
        for at, known in enumerate(self._pending_words):
            state >>= SHIFT
            local = state & MASK
            if local not in known:
                known[local] = self.threads[at].pending(self._locals[at][local])
            words |= known[local]
        return words

    def _work_out(self, at: int, pair: int) -> Steps:
        shift = SHIFT * (at + 1)
        local, memory = pair >> SHIFT, pair & MASK
        state = local << shift | memory
        steps, loads = [], []
        for move in self.moves_of(at, state):
            step = (self.after(at, state, move) - state, self.broken(move))
            steps.append(step)
            if self.reduced and move.word is not None and not move.ghost:
                loads.append((step, 0 if move.alone else 1 << move.word))
        entry = self._steps[at][pair] = (tuple(steps), tuple(loads))
        return entry

    def end(self, state: int) -> Violation | None:
        """Return what is wrong with a state in which no thread can move."""
        waiting = [thread.name for at, thread in enumerate(self.threads) if not self._rests(at, state)]
        if waiting:
            found = Violation(("deadlock",), f"{', '.join(waiting)} cannot go on")
        else:
            balance = self.words.balance(list(self.memory(state)))
            if balance is None:
                return None
            found = balance
        return found if found.properties[0] in self.properties else None

    def _rests(self, at: int, state: int) -> bool:
        pair = (state >> SHIFT * (at + 1) & MASK) << SHIFT | state & MASK
        known = self._rest[at]
        if pair not in known:
            known[pair] = self.threads[at].rests(self._locals[at][pair >> SHIFT], self._memories[pair & MASK])
        return known[pair]

    def _cycle(self, states: list[int]) -> list[int] | None:
        """Return a cycle among states that no step leaves, of the first state on one, if there is any.

        Take away what has no predecessor left, again and again (Kahn): what stays has a cycle behind it.
        """
        inside = set(states)
        predecessors = dict.fromkeys(states, 0)
        for state in states:
            for after in self._successors(state):
                predecessors[after] += 1
        free = [state for state in states if predecessors[state] == 0]
        while free:
            state = free.pop()
            inside.discard(state)
            for after in self._successors(state):
                predecessors[after] -= 1
                if predecessors[after] == 0:
                    free.append(after)
        return next(
            (cycle for state in states if state in inside and (cycle := self._round(state, inside))), None
        )

    def _round(self, start: int, inside: set[int]) -> list[int] | None:
        """Return the shortest way from a state back to it, if there is one."""
        reached = {start: start}
        order = deque([start])
        while order:
            state = order.popleft()
            for after in self._successors(state):
                if after == start:
                    return self._path(reached, state)
                if after in inside and after not in reached:
                    reached[after] = state
                    order.append(after)
        return None

    def _successors(self, state: int) -> list[int]:
        return [state + difference for difference, _ in self._steps_of(state)]

    def _path(self, reached: dict[int, int], state: int) -> list[int]:
        path = [state]
        while reached[state] != state:
            state = reached[state]
            path.append(state)
        return path[::-1]

    def _moves(self, path: list[int]) -> list[tuple[int, int]]:
        """Return which moves lead from each state of a path to the next."""
        found = []
        for state, after in pairwise(path):
            found.append(
                next(
                    (at, place)
                    for at in range(len(self.threads))
                    for place, move in enumerate(self.moves_of(at, state))
                    if self.after(at, state, move) == after
                )
            )
        return found
