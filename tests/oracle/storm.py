"""Storm clients: who comes, when, and over what (docs/model.md 11)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvmpfn.storms import Storm
from oracle import aging, dirty_log, host_ops
from oracle.actor import Actor, Steps
from oracle.draws import GAP, PLACE
from oracle.lines import Thread
from oracle.memory import TABLE, HostRegion, pages_of

if TYPE_CHECKING:
    from oracle.world import VM, World


class Client(Actor):
    """One storm client of one VM."""

    def __init__(self, world: World, vm: VM, number: int, thread: Thread, smt: int, storm: Storm) -> None:
        self.storm = storm
        self.totals = dict.fromkeys(("asked", "done", "late_ps", "late_max_ps", "busy_ps", "skipped"), 0)
        self.scanned = 0  # page at which the last span ended, before it was widened
        super().__init__(world, vm, number, thread, smt)

    def arrivals(self, t0: int) -> Iterator[int | None]:
        """Yield nominal times; None for a closed loop, whose next follows from the end of the last."""
        storm, draws = self.storm, self.world.draws
        nominal, clock, k = t0, 0, 0
        while True:
            if storm.arrival == "closed_loop":
                yield None
            elif storm.arrival == "periodic":
                nominal += storm.gap_ps
                yield nominal
            elif storm.arrival == "poisson":
                nominal += draws.exponential(self.number, GAP, k, storm.gap_ps)
                yield nominal
            else:
                clock += draws.exponential(self.number, GAP, k, storm.gap_ps)
                phase, within = divmod(clock, storm.on_ps)
                yield t0 + phase * (storm.on_ps + storm.off_ps) + within
            k += 1

    def run(self) -> Steps:
        storm, totals = self.storm, self.totals
        self.t = self.world.start(self.number)
        arrivals, first = self.arrivals(self.t), True
        while True:
            nominal = next(arrivals)
            if nominal is None:
                nominal = self.t if first else self.t + storm.think_ps
            first = False
            late = max(0, self.t - nominal)
            self.t = max(self.t, nominal)
            yield from self.step("idle")
            if not self.vm.vcpus_running or totals["asked"] == storm.limit:
                break
            began = self.t
            k = totals["asked"]
            totals["asked"] += 1
            self.count("storm_asked")
            self.count("storm_late", late > 0)
            totals["late_ps"] += late
            totals["late_max_ps"] = max(totals["late_max_ps"], late)
            region, start, end = self.span(k)
            self.last_start = start
            busy = False
            if self.skips(region, start, end) or (busy := self.finds_busy(region, start, end)):
                self.count_skipped()
                if busy:
                    self.count("host_op_busy")
                self.t += max(1, self.private("zap_skip"))
                continue
            if storm.action == "age":
                yield from aging.age(self, start, end)
            elif storm.action == "clear_dirty_log":
                yield from dirty_log.clear(self, region, start, end)
            else:
                yield from host_ops.operate(self, region, start, end)
            self.count("storm_done")
            totals["done"] += 1
            totals["busy_ps"] += self.t - began
        self.next_step = None

    def span(self, k: int) -> tuple[HostRegion, int, int]:
        """Return the region and the gfns of arrival `k`, widened to what the action takes whole."""
        storm, pages = self.storm, self.world.scenario.pages
        first = storm.offset_pages
        if first is None and storm.place == "scan":
            first = self.scanned % pages
        elif first is None:
            first = self.world.draws.below(self.number, PLACE, k, pages - storm.span_pages + 1)
        region = self.vm.region(self.vm.gfn(first))
        low, end = region.gfn + first - region.first, region.gfn + region.pages
        high = min(low + storm.span_pages, end)
        self.scanned = first + high - low
        if storm.action == "khugepaged":
            high = low + 1
        unit = self.unit(region, low)
        low = low // unit * unit
        unit = self.unit(region, high - 1)
        return region, low, min(-(-high // unit) * unit, end)

    def unit(self, region: HostRegion, gfn: int) -> int:
        """Return the pages that a span is widened to at a gfn."""
        action = self.storm.action
        if action == "khugepaged":
            return TABLE
        if action == "clear_dirty_log":
            return dirty_log.WORD
        if region.backing == "thp" and action not in ("migration", "fork", "age"):
            return 1
        return pages_of(region.level_at(gfn))

    def skips(self, region: HostRegion, start: int, end: int) -> bool:
        """Whether there is nothing to do, or somebody has the lock that is only tried."""
        action, lock = self.storm.action, self.vm.mmap_lock
        if action == "numa_balancing":
            return lock.writer or bool(lock.queue)
        if action == "khugepaged":
            return not region.can_collapse(start)
        wanted = action in ("migration", "reclaim", "ksm")
        return wanted and not any(host_ops.changes(self, region, gfn) for gfn in range(start, end))

    def finds_busy(self, region: HostRegion, start: int, end: int) -> bool:
        """Whether the operation looks at the pages' counts first, and finds KVM's reference there."""
        if self.storm.action not in ("migration", "khugepaged"):
            return False
        own = [gfn for gfn in range(start, end) if self.would_move(region, gfn)]
        return any(region.folio(gfn, region.pte(gfn)).in_flight for gfn in own)

    def would_move(self, region: HostRegion, gfn: int) -> bool:
        """Whether a page is one of those that migration or khugepaged would take elsewhere."""
        if self.storm.action == "migration":
            return host_ops.changes(self, region, gfn)
        pte = region.pte(gfn)
        return pte.state in ("rw", "ro", "protnone") and not pte.zero

    def count_skipped(self) -> None:
        """Count an operation that did not come about."""
        self.count("storm_skipped")
        self.totals["skipped"] += 1
