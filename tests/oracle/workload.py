"""What a vCPU accesses next, how, and after how much computing, phase by phase (docs/model.md 12)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from kvmpfn.scenario import Scenario
from oracle.draws import KIND, THINK, Draws
from oracle.pages import KINDS, Who

READ, WRITE, EXECUTE = range(3)


class Access(NamedTuple):
    """One access, before regions turn its page into a gfn; `m` is its number in its phase."""

    page: int
    kind: int
    think: int
    m: int


class Phase:
    """One phase of one vCPU.

    Attributes
    ----------
    end : int or None
        How many accesses it has; None if it has no end of its own.
    writes, execs : int
        Shares of accesses, in units of 2^-32.
    """

    def __init__(self, given: Any, who: Who) -> None:
        self.given, self.who = given, who
        self.end, self.page = KINDS[given.kind](given, who)
        if given.kind == "demand_paging":
            self.writes, self.execs = (1 << 32 if given.access == "write" else 0), 0
        elif given.kind == "replay":
            self.writes = self.execs = 0  # it has kinds of its own, and an end
        else:
            self.writes, self.execs = int(given.writes * (1 << 32)), int(given.execs * (1 << 32))

    def access(self, n: int, m: int) -> Access:
        """Return access `n` of the vCPU, the phase's `m`-th."""
        think, who = self.given.think_ps, self.who
        if think and self.given.think_dist == "exponential":
            think = who.draws.exponential(who.number, THINK, n, think)
        if self.given.kind == "replay":
            page, kind, own = self.given.vcpus[who.index][m]
            return Access(page, kind, own + think, m)
        if who.draws.chance(who.number, KIND, n, self.writes):
            kind = WRITE
        else:
            executes = who.draws.chance(who.number, KIND, n, self.writes + self.execs)
            kind = EXECUTE if executes else READ
        return Access(self.page(n, m), kind, think, m)


class Accesses:
    """All accesses of the `index`-th vCPU of its VM, actor `number`.

    Attributes
    ----------
    phase : Phase
        The one that the last access belongs to.
    over : bool
        Whether the workload was found to have come to its end.
    """

    def __init__(self, scenario: Scenario, number: int, index: int) -> None:
        work = scenario.workload
        who = Who(number, index, scenario.vcpus, scenario.pages, Draws(scenario.seed))
        given, self._repeat = (work.phases, work.repeat) if work.kind == "phases" else ((work,), 1)
        self._phases = [Phase(each, who) for each in given]
        self.phase, self.over = self._phases[0], False
        self._all = self._each()

    def next(self) -> Access | None:
        """Return the next access, or None after the last."""
        return None if self.over else next(self._all, None)

    def _each(self) -> Iterator[Access]:
        n = 0
        for _ in range(self._repeat):
            for phase in self._phases:
                m = 0
                while m != phase.end:
                    self.phase = phase
                    yield phase.access(n, m)
                    n, m = n + 1, m + 1
