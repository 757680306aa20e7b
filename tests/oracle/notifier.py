"""The other side: MMU notifier, flushes (docs/model.md 9 and 10) and the stale test (8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oracle.actor import Actor, Steps
from oracle.lines import Line
from oracle.memory import pages_of
from oracle.tables import Leaf

if TYPE_CHECKING:
    from oracle.vcpu import Vcpu


class Invalidations:
    """The words of struct kvm that say what is being invalidated (kernel-facts.md 2.1)."""

    def __init__(self) -> None:
        self.line = Line()
        self.mn_line = Line()  # mn_invalidate_lock
        self.version = 0  # grows with each store to the line
        self.seq = 0
        self.in_progress = 0
        self.active_count = 0
        self.range = (0, 0)
        self.active: list[tuple[int, int]] = []

    def stale(self, gfn: int, snapshot: int) -> str | None:
        """mmu_invalidate_retry: why a fault on `gfn` is stale, or None."""
        if any(start <= gfn < end for start, end in self.active):
            return "range"
        if self.seq != snapshot:
            return "seq"
        if self.in_progress and self.range[0] <= gfn < self.range[1]:
            return "false_range"
        return None


def start(actor: Actor, first: int, end: int) -> Steps:
    """kvm_mmu_notifier_invalidate_range_start over [first, end)."""
    vm, kvm = actor.vm, actor.vm.invalidations
    actor.last_start = first
    yield from actor.step("start")
    actor.add(kvm.mn_line, "mn_lock", "walk")
    kvm.active_count += 1
    actor.work("notifier_call", "walk")
    yield from vm.mmu_lock.write_lock(actor)
    yield from actor.step("start_locked")
    actor.store(kvm.line, "seq_line")
    kvm.version += 1
    kvm.in_progress += 1
    kvm.active.append((first, end))
    low, high = kvm.range if kvm.in_progress > 1 else (first, end)
    kvm.range = (min(low, first), max(high, end))
    yield from unmap_gfn_range(actor, first, end)
    yield from actor.step("flushed")
    yield from vm.mmu_lock.write_unlock(actor)
    yield from actor.step("started")


def unmap_gfn_range(actor: Actor, first: int, end: int) -> Steps:
    """kvm_unmap_gfn_range: zap the leaves of [first, end) under mmu_lock, and flush if there were any."""
    vm, path, tables = actor.vm, actor.world.path, actor.vm.tables
    cursor, pending, progress = first, False, False
    while True:
        actor.work("zap_skip", "walk")
        found = tables.next_leaf(cursor, end) if path.guarded else None
        if found is None:
            break
        gfn, sptep = found
        yield from actor.step("zap")
        if actor.world.zap_yields and progress and vm.mmu_lock.queue:
            actor.count("zap_yields")
            if pending:
                yield from flush(actor)
            pending = progress = False
            yield from actor.step("yield")
            yield from vm.mmu_lock.write_unlock(actor)
            yield from actor.step("relock")
            yield from vm.mmu_lock.write_lock(actor)
            yield from actor.step("resume")
            continue
        leaf = sptep.leaf
        if leaf.volatile:
            actor.add(sptep.line, "spte", "spte")
        else:
            actor.store(sptep.line, "spte")
        tables.set(sptep, None)
        actor.write_alone(vm.stat_line, "stat_pages", "stat_pages")
        actor.count("zapped")
        pending = progress = True
        cursor = gfn + pages_of(sptep.level)
        actor.work("zap_leaf", "walk")
        yield from mark_zapped(actor, gfn, leaf)
    if pending:
        yield from flush(actor)


def mark_zapped(actor: Actor, gfn: int, leaf: Leaf) -> Steps:
    """Hand a zapped leaf's dirty and accessed bits on to the page, in kernels that do so."""
    lru, region = actor.world.lru, actor.vm.region(gfn)
    if region.folio(gfn, region.pte(gfn)) is None or not actor.world.marks_page(leaf):
        return
    yield from actor.step("zap_mark")
    folio = region.folio(gfn, region.pte(gfn))
    if leaf.d:
        folio.mark_dirty(actor)
    if leaf.a:
        folio.mark_accessed(actor, lru)


def end(actor: Actor, first: int, last: int) -> Steps:
    """kvm_mmu_notifier_invalidate_range_end."""
    vm, kvm = actor.vm, actor.vm.invalidations
    yield from actor.step("end")
    actor.work("notifier_call", "walk")
    yield from vm.mmu_lock.write_lock(actor)
    yield from actor.step("end_locked")
    actor.store(kvm.line, "seq_line")
    kvm.version += 1
    kvm.seq += 1
    kvm.in_progress -= 1
    kvm.active.remove((first, last))
    actor.count("invalidations")
    if actor in vm.vcpus:
        actor.count("invalidations.self")
    yield from vm.mmu_lock.write_unlock(actor)
    yield from actor.step("ended")
    kvm.active_count -= 1
    actor.add(kvm.mn_line, "mn_lock", "walk")


def flush(actor: Actor) -> Steps:
    """kvm_flush_remote_tlbs: a request to every vCPU, and an IPI to those in the guest, waited for."""
    actor.count("remote_tlb_flush_requests")
    acks, asked = [], set()

    def waiting() -> list[Vcpu]:
        return [cpu for cpu in actor.vm.vcpus if cpu.next_step is not None and cpu.number not in asked]

    while True:
        yield from actor.step("flush")
        for cpu in waiting()[:1]:
            asked.update(other.number for other in actor.vm.vcpus if other.number <= cpu.number)
            actor.add(cpu.request_line, "vcpu_request", "flush")
            if cpu.next_step == "access" and cpu is not actor:
                actor.local(1, "flush")
                actor.work("ipi_send", "flush")
                acks.append(actor.t + ipi(actor, cpu))
                cpu.kick()
                actor.count("kicks")
            else:
                cpu.flush_requested = True
        if not waiting():
            break
    if acks:
        actor.count("remote_tlb_flush")
        actor.spend(max(actor.t, *acks) - actor.t, "flush")


def host_flush(actor: Actor) -> Steps:
    """The host's own shootdown of a translation that it took away."""
    yield from actor.step("host_flush")
    others = [cpu for cpu in actor.vm.vcpus if cpu.next_step is not None and cpu is not actor]
    if not others:
        return
    actor.work("ipi_send", "host_fault")
    for cpu in others:
        actor.count("host_ipis")
        if cpu.next_step == "access":
            cpu.kick()
    actor.spend(max(ipi(actor, cpu) for cpu in others), "host_fault")


def ipi(actor: Actor, cpu: Actor) -> int:
    """Return how long an IPI takes to be answered."""
    near = actor.thread.socket == cpu.thread.socket
    return actor.world.x["ipi_socket" if near else "ipi_remote"]
