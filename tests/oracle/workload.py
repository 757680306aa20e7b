"""Which page a vCPU accesses next, how, and after how much computing (docs/model.md 12)."""

from __future__ import annotations

from typing import NamedTuple

from kvmpfn.scenario import Scenario
from kvmpfn.workloads import DemandPaging, Replay, SnapshotRestore, Uniform
from oracle.draws import GFN, KIND, THINK, Draws

READ, WRITE, EXECUTE = range(3)
IMAGE = 2047  # the actor number whose permutation orders every VM's image


class Access(NamedTuple):
    """One access, before regions turn its page into a gfn."""

    page: int
    kind: int
    think: int


class Accesses:
    """The accesses of one vCPU: the `index`-th of its VM, actor `number`."""

    def __init__(self, scenario: Scenario, number: int, index: int) -> None:
        work, pages, vcpus = scenario.workload, scenario.pages, scenario.vcpus
        self.work, self.pages, self.number, self.index = work, pages, number, index
        self.draws = Draws(scenario.seed)
        self.base, self.count = 0, pages
        self.end: int | None = None
        if isinstance(work, DemandPaging):
            if work.share == "partitioned":
                self.base = index * pages // vcpus
                self.count = (index + 1) * pages // vcpus - self.base
            self.end = work.passes * self.count
            self.writes = 1 << 32 if work.access == "write" else 0
        elif isinstance(work, Uniform):
            self.end = work.accesses
            self.writes = int(work.writes * (1 << 32))
        elif isinstance(work, SnapshotRestore):
            working_set = min(work.working_set_pages, pages)
            self.base = index * working_set // vcpus
            self.end = (index + 1) * working_set // vcpus - self.base
            self.writes = int(work.writes * (1 << 32))
        elif isinstance(work, Replay):
            self.end = len(work.vcpus[index])

    def get(self, n: int) -> Access | None:
        """Return access `n`, or None after the last."""
        if self.end is not None and n >= self.end:
            return None
        work, draws = self.work, self.draws
        think = work.think_ps
        if think and work.think_dist == "exponential":
            think = draws.exponential(self.number, THINK, n, think)
        if isinstance(work, Replay):
            page, kind, own = work.vcpus[self.index][n]
            return Access(page, kind, own + think)
        if isinstance(work, Uniform):
            page = draws.below(self.number, GFN, n, self.pages)
        elif isinstance(work, SnapshotRestore):
            page = (self.base + n) % self.pages
            if work.order == "random":
                page = draws.permute(IMAGE, page, self.pages)
        else:
            page = n % self.count
            if work.order == "random":
                page = draws.permute(self.number, page, self.count)
            page += self.base
        writes = draws.chance(self.number, KIND, n, self.writes)
        return Access(page, WRITE if writes else READ, think)
