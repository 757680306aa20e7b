"""Storm clients: who invalidates, when, and what it does to the host (docs/model.md 11)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvmpfn.storms import Storm
from oracle import notifier
from oracle.actor import Actor, Steps
from oracle.draws import GAP, PLACE
from oracle.lines import Thread
from oracle.locks import PageTableLock
from oracle.memory import HostRegion, pages_of

if TYPE_CHECKING:
    from oracle.world import VM, World

CHANGES = {
    "madvise": {"rw": "absent", "ro": "absent", "protnone": "absent", "special": "absent"},
    "numa_balancing": {"rw": "protnone", "ro": "protnone"},
    "migration": {"rw": "migration"},
    "fork": {"rw": "ro"},
}
"""The states that an action changes, and to what."""

MOST_TRIES = 10


class Client(Actor):
    """One storm client of one VM."""

    def __init__(self, world: World, vm: VM, number: int, thread: Thread, smt: int, storm: Storm) -> None:
        self.storm = storm
        self.totals = dict.fromkeys(("asked", "done", "late_ps", "late_max_ps", "busy_ps", "skipped"), 0)
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
            if storm.action == "age":
                yield from self.age(start, end)
            elif storm.action == "numa_balancing" and (self.vm.mmap_lock.writer or self.vm.mmap_lock.queue):
                self.count("storm_skipped")
                totals["skipped"] += 1
                continue
            else:
                yield from self.invalidate(region, start, end)
            self.count("storm_done")
            totals["done"] += 1
            totals["busy_ps"] += self.t - began
        self.next_step = None

    def span(self, k: int) -> tuple[HostRegion, int, int]:
        """Return the region and the gfns of arrival `k`: whole host pages of one region."""
        storm, pages = self.storm, self.world.scenario.pages
        first = storm.offset_pages
        if first is None:
            first = self.world.draws.below(self.number, PLACE, k, pages - storm.span_pages + 1)
        region = self.vm.region(self.vm.gfn(first))
        size = pages_of(region.level)
        low = (first - region.first) // size * size
        high = -(-(first - region.first + storm.span_pages) // size) * size
        return region, region.gfn + low, region.gfn + min(high, region.pages)

    def invalidate(self, region: HostRegion, start: int, end: int) -> Steps:
        """Do what a client of the notifier does: start, change entries, end, and what follows."""
        action, vm = self.storm.action, self.vm
        with_mmap = action != "migration"
        if with_mmap:
            lock = vm.mmap_lock
            yield from (lock.write_lock if action == "fork" else lock.read_lock)(self)
        for tries in range(1, MOST_TRIES + 1):
            yield from notifier.start(self, start, end)
            changed = yield from self.change_ptes(region, start, end)
            yield from notifier.end(self, start, end)
            yield from self.step("after")
            if action == "madvise":
                self.free_pages(region, start, end)
            if action != "migration":
                break
            busy = self.copy_pages(region, changed)
            yield from self.step("restore")
            self.restore(region, changed, busy)
            if not busy or tries == MOST_TRIES:
                break
        if with_mmap:
            yield from vm.mmap_lock.unlock(self)
            yield from self.step("done")

    def change_ptes(self, region: HostRegion, start: int, end: int) -> Steps:
        """Change entries one by one, evenly over the hold; return the first gfns of those changed."""
        storm, size = self.storm, pages_of(region.level)
        n = (end - start) // size
        changed: list[int] = []
        lock: PageTableLock | None = None
        i, began = 0, None
        while True:
            yield from self.step("ptes")
            began = self.t if began is None else began
            while i < n and not self.changes(region, start + i * size):
                i += 1
            gfn = start + i * size
            if i < n and self.t < began + storm.hold_ps * i // n:
                self.t = began + storm.hold_ps * i // n
            elif lock and (i == n or region.ptl(gfn) is not lock):
                yield from lock.unlock(self)
                lock = None
            elif i < n and not lock:
                lock = region.ptl(gfn)
                yield from lock.lock(self)
            elif i < n:
                self.store(region.line(gfn), "host_fault")
                self.work("host_pte", "host_fault")
                pte = region.pte(gfn)
                unmapped_by = self if storm.action == "madvise" else None
                region.set(gfn, pte.to(CHANGES[storm.action][pte.state], unmapped_by))
                changed.append(gfn)
                i += 1
            else:
                break
        if changed:
            yield from notifier.host_flush(self)
            yield from self.step("pte_end")
        self.t = max(self.t, began + storm.hold_ps)
        return changed

    def changes(self, region: HostRegion, gfn: int) -> bool:
        """Whether the action changes an entry."""
        action, pte = self.storm.action, region.pte(gfn)
        if (action == "migration" and pte.file) or (action == "fork" and not region.copied_on_write):
            return False
        return pte.state in CHANGES[action]

    def free_pages(self, region: HostRegion, start: int, end: int) -> None:
        """Give the frames back that this client has unmapped, and nobody mapped again."""
        for gfn in range(start, end, pages_of(region.level)):
            pte = region.pte(gfn)
            if pte.state == "absent" and pte.unmapped_by is self and not pte.file and not pte.zero:
                region.set(gfn, pte.released())

    def copy_pages(self, region: HostRegion, gfns: list[int]) -> bool:
        """migrate_folio: copy, or find that somebody holds a reference, and wait; return if that is so."""
        if any(region.folio(gfn, region.pte(gfn)).in_flight for gfn in gfns):
            self.count("host_op_busy")
            self.t += self.world.x["migrate_busy_retry"]
            return True
        self.t += self.private("copy_4k") * pages_of(region.level) * len(gfns)
        return False

    def restore(self, region: HostRegion, gfns: list[int], busy: bool) -> None:
        """remove_migration_ptes, and wake who sleeps on them."""
        for gfn in gfns:
            if busy:
                region.set(gfn, region.pte(gfn).to("rw"))
            else:
                region.own_frame(gfn, self)
        own = {region.index(gfn) for gfn in gfns}
        for cpu in list(self.vm.sleepers):
            if self.vm.region(cpu.gfn) is region and region.index(cpu.gfn) in own:
                self.vm.sleepers.remove(cpu)
                due = max(self.t, cpu.since) + self.world.x["sleep_wake"]
                cpu.book("host_fault", due - cpu.since)
                cpu.wake(due)

    def age(self, start: int, end: int) -> Steps:
        """kvm_age_gfn over a span: no range, no sequence."""
        path, vm = self.world.path, self.vm
        locks = path.aging_lock == "write"
        if locks:
            yield from vm.mmu_lock.write_lock(self)
        aged, cursor = False, start
        while True:
            yield from self.step("age")
            found = vm.tables.next_leaf(cursor, end)
            if found is None:
                break
            gfn, level, leaf = found
            if leaf.a:
                self.cas(vm.tables.line(level, gfn), "spte", "spte")
                vm.tables.set(level, gfn, leaf.but(a=False))
                self.count("aged")
                aged = True
            self.work("zap_skip", "walk")
            cursor = gfn + pages_of(level)
        self.work("zap_skip", "walk")
        if aged and path.aging_flush:
            yield from notifier.flush(self)
        yield from self.step("aged")
        if locks:
            yield from vm.mmu_lock.write_unlock(self)
            yield from self.step("done")
