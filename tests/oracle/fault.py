"""One attempt at a fault, from the handler's entry to the guest's (docs/model.md 8).

Named after the kernel's functions: kvm_tdp_page_fault, fast_page_fault, is_page_fault_stale,
kvm_mmu_finish_page_fault.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from oracle import dirty_log, faultin, tdp_mmu
from oracle.actor import Steps
from oracle.folio import Folio
from oracle.outcome import FIXED, RETRY, SPURIOUS

if TYPE_CHECKING:
    from oracle.locks import PageTableLock
    from oracle.memory import HostRegion
    from oracle.vcpu import Vcpu


@dataclass
class Fault:
    """struct kvm_page_fault: what one attempt has found so far.

    Attributes
    ----------
    seq : int
        The snapshot of mmu_invalidate_seq.
    generation, writable, folio
        The page that was taken.
    held : list of (Folio, int)
        References, and since when; two for a moment in an upgrade.
    ptl : PageTableLock
        The page-table lock that it took last.
    looks : int
        How often the host was asked to make the page ready.
    """

    seq: int = 0
    generation: int = 0
    writable: bool = False
    folio: Folio | None = None
    held: list[tuple[Folio, int]] = field(default_factory=list)
    ptl: PageTableLock | None = None
    looks: int = 0

    def take(self, generation: int, folio: Folio | None, *, writable: bool) -> None:
        """Remember the page."""
        self.generation, self.folio, self.writable = generation, folio, writable

    def got(self, cpu: Vcpu, folio: Folio) -> None:
        """Hold a reference whose atomic has just ended."""
        folio.in_flight += 1
        self.held.append((folio, cpu.t))
        cpu.count("gets")

    def lock(self, cpu: Vcpu, region: HostRegion) -> Steps:
        """Take the page-table lock of the host entry as it is now."""
        self.ptl = region.ptl(cpu.gfn)
        yield from self.ptl.lock(cpu)

    def put(self, cpu: Vcpu, *, first: bool = False) -> None:
        """put_page: give the last reference back; or the first, as an upgrade does beside its second get."""
        folio, since = self.held.pop(0 if first else -1)
        (cpu.ride_along if first else cpu.add)(folio.line, "folio", "folio")
        put(cpu, folio, since)

    def release(self, cpu: Vcpu) -> None:
        """Give KVM's reference back, or put it off."""
        if cpu.batch.size > 1:
            cpu.batch.add(*self.held.pop())
        else:
            self.put(cpu)


def put(cpu: Vcpu, folio: Folio, since: int) -> None:
    """Hold a reference no more, whose atomic has just ended."""
    folio.in_flight -= 1
    cpu.count("puts")
    cpu.count("reference_hold_ps", cpu.t - since)


def drain_puts(cpu: Vcpu) -> Steps:
    """Put what the batch holds: folio_put_refs, one atomic for all references to a folio."""
    while cpu.batch.since:
        yield from cpu.step("drain_puts")
        folio = next(iter(cpu.batch.since))
        cpu.add(folio.line, "folio", "folio")
        for since in cpu.batch.since.pop(folio):
            put(cpu, folio, since)


def handle(cpu: Vcpu, *, was_present: bool) -> Steps:
    """kvm_mmu_page_fault: return the outcome, at the time of the guest's entry."""
    fault, path = Fault(), cpu.world.path
    yield from cpu.step("handle")
    cpu.count("pf_taken")
    cpu.totals["taken"] += 1
    cpu.world.taken += 1
    cpu.local(1, "handler")
    outcome = None
    if cpu.writes and was_present:
        outcome = yield from fast_page_fault(cpu)
    if outcome is None:
        outcome = yield from tdp_page_fault(cpu, fault)
    # Out: what is left to do for the page after mmu_lock.
    marks = path.accessed_marking == "after_unlock" and (outcome != RETRY or path.accessed_on_retry)
    marks = marks and cpu.world.lru != "off"
    if fault.folio and (marks or fault.held):
        yield from cpu.step("release_clean")
        if marks:
            fault.folio.mark_accessed(cpu, cpu.world.lru)
        if fault.held:
            fault.release(cpu)
    if cpu.batch.full:
        yield from drain_puts(cpu)
    yield from cpu.step("finish")
    cpu.serve_flush_request()
    cpu.local(2, "handler")
    cpu.work("handler_return", "handler")
    cpu.work("entry", "exit_entry")
    assert not fault.held
    return outcome


def fast_page_fault(cpu: Vcpu) -> Steps:
    """fast_page_fault: a write to a leaf that lacks only W; return the outcome, None to go the slow way."""
    logging, tables = cpu.world.scenario.dirty_logging, cpu.vm.tables
    yield from cpu.step("fast_page_fault")
    sptep = tables.walk(cpu.gfn)
    leaf = sptep.leaf
    if leaf and leaf.w:
        cpu.load(sptep.line, "spte")
        cpu.count("pf_fast")
        return SPURIOUS
    if not leaf or not leaf.mmu_writable or (sptep.level > 1 and logging):
        cpu.load(sptep.line, "spte")
        return None
    cpu.cas(sptep.line, "spte", "spte")
    tables.set(sptep, leaf.but(w=True))
    cpu.count("pf_fast")
    if logging:
        yield from cpu.step("fast_dirty")
        dirty_log.mark_page(cpu, cpu.gfn)
    return FIXED


def load_seq(cpu: Vcpu) -> None:
    """Read mmu_invalidate_seq and its like; the line is fetched once for each store to it."""
    kvm = cpu.vm.invalidations
    if cpu.paid_version != kvm.version:
        cpu.paid_version = kvm.version
        cpu.load(kvm.line, "seq_line")


def stale(cpu: Vcpu, fault: Fault, where: str) -> bool:
    """is_page_fault_stale, and its lock-free kin: whether the fault is stale, which is counted by reason."""
    why = cpu.vm.invalidations.stale(cpu.gfn, fault.seq)
    if why == "false_range" and cpu.world.path.invalidate_ranges == "list":
        why = None
    if why:
        cpu.count(f"retry.{where}.{why}")
    return why is not None


def tdp_page_fault(cpu: Vcpu, fault: Fault) -> Steps:
    """kvm_tdp_mmu_page_fault: snapshot, GUP, lock, map; return the outcome."""
    path, lock = cpu.world.path, cpu.vm.mmu_lock
    load_seq(cpu)
    fault.seq = cpu.vm.invalidations.seq
    if path.prechecks and stale(cpu, fault, "pre_gup"):
        return RETRY
    outcome = yield from faultin.faultin_pfn(cpu, fault)
    if outcome:
        return outcome
    if path.reference == "early_put" and fault.held:
        yield from cpu.step("early_put")
        fault.release(cpu)
    if path.prechecks:
        yield from cpu.step("precheck")
        load_seq(cpu)
        if stale(cpu, fault, "post_gup"):
            return RETRY
    cpu.work("handler_lock", "handler")
    exclusive = path.mmu_lock == "exclusive"
    yield from (lock.write_lock if exclusive else lock.read_lock)(cpu)
    outcome = yield from locked(cpu, fault)
    yield from (lock.write_unlock if exclusive else lock.read_unlock)(cpu)
    return outcome


def locked(cpu: Vcpu, fault: Fault) -> Steps:
    """Do what is done under mmu_lock."""
    path, lru = cpu.world.path, cpu.world.lru
    yield from cpu.step("mapped")
    outcome = None
    if path.seq_checked:
        load_seq(cpu)
        outcome = RETRY if stale(cpu, fault, "locked") else None
    if outcome is None:
        outcome = yield from tdp_mmu.map_page(cpu, fault)
    retried = outcome == RETRY
    dirty = path.dirty_marking == "at_map" and fault.writable and not retried
    marks = path.accessed_marking in ("locked_release", "before_unlock") and lru != "off"
    marks = marks and (path.accessed_on_retry or not retried)
    puts = path.reference == "locked_put" and bool(fault.held)
    if fault.folio and (dirty or marks or puts):
        yield from cpu.step("release_unused" if retried else "release")
        if dirty:
            fault.folio.mark_dirty(cpu)
        if marks:
            fault.folio.mark_accessed(cpu, lru)
        if puts:
            fault.release(cpu)
    return outcome
