"""One attempt at a fault, from the handler's entry to the guest's (docs/model.md 8).

Named after the kernel's functions: kvm_tdp_page_fault, fast_page_fault, is_page_fault_stale, kvm_tdp_mmu_map,
tdp_mmu_map_handle_target_level, kvm_mmu_finish_page_fault.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from oracle import faultin, notifier
from oracle.actor import Steps
from oracle.memory import Folio
from oracle.tables import FROZEN, Entry, Leaf

if TYPE_CHECKING:
    from oracle.vcpu import Vcpu

RETRY, FIXED, SPURIOUS, EMULATE, ERROR = "retry", "fixed", "spurious", "emulate", "error"


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
    looks : int
        How often the host was asked to make the page ready.
    """

    seq: int = 0
    generation: int = 0
    writable: bool = False
    folio: Folio | None = None
    held: list[tuple[Folio, int]] = field(default_factory=list)
    looks: int = 0

    def take(self, generation: int, folio: Folio | None, *, writable: bool) -> None:
        """Remember the page."""
        self.generation, self.folio, self.writable = generation, folio, writable

    def got(self, cpu: Vcpu, folio: Folio) -> None:
        """Hold a reference whose atomic has just ended."""
        folio.in_flight += 1
        self.held.append((folio, cpu.t))
        cpu.count("gets")

    def put(self, cpu: Vcpu, *, first: bool = False) -> None:
        """put_page: give the last reference back; or the first, as an upgrade does beside its second get."""
        folio, since = self.held.pop(0 if first else -1)
        (cpu.ride_along if first else cpu.add)(folio.line, "folio", "folio")
        folio.in_flight -= 1
        cpu.count("puts")
        cpu.count("reference_hold_ps", cpu.t - since)


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
            fault.put(cpu)
    yield from cpu.step("finish")
    if cpu.flush_requested:
        cpu.flush_requested = False
        cpu.add(cpu.request_line, "vcpu_request", "flush")
        cpu.work("flush_tlb", "flush")
    cpu.local(2, "handler")
    cpu.work("handler_return", "handler")
    cpu.work("entry", "exit_entry")
    assert not fault.held
    return outcome


def fast_page_fault(cpu: Vcpu) -> Steps:
    """fast_page_fault: a write to a leaf that lacks only W; return the outcome, None to go the slow way."""
    scenario, tables = cpu.world.scenario, cpu.vm.tables
    yield from cpu.step("fast_page_fault")
    level, leaf = tables.leaf(cpu.gfn)
    line = tables.line(level, cpu.gfn)
    if leaf and leaf.w:
        cpu.load(line, "spte")
        cpu.count("pf_fast")
        return SPURIOUS
    if not leaf or not leaf.mmu_writable or (level > 1 and scenario.dirty_logging):
        cpu.load(line, "spte")
        return None
    cpu.cas(line, "spte", "spte")
    tables.set(level, cpu.gfn, leaf.but(w=True))
    cpu.count("pf_fast")
    if scenario.dirty_logging:
        yield from cpu.step("fast_dirty")
        mark_page_dirty(cpu)
    return FIXED


def mark_page_dirty(cpu: Vcpu) -> None:
    """mark_page_dirty_in_slot: set_bit_le in the memslot's dirty bitmap."""
    cpu.add(cpu.vm.region(cpu.gfn).dirty_line(cpu.gfn), "dirty_bitmap", "dirty_log")


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
        fault.put(cpu)
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
        outcome = yield from tdp_mmu_map(cpu, fault)
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
            fault.put(cpu)
    return outcome


def goal_level(cpu: Vcpu) -> int:
    """kvm_mmu_hugepage_adjust: the largest level that the host entry, the slot and the log allow."""
    region, world = cpu.vm.region(cpu.gfn), cpu.world
    nx_split = cpu.executes and world.scenario.nx_huge_pages_on
    if region.pte(cpu.gfn).state == "absent" or world.scenario.dirty_logging or nx_split:
        return 1
    return region.level if region.congruent else 1


def tdp_mmu_map(cpu: Vcpu, fault: Fault) -> Steps:
    """kvm_tdp_mmu_map: walk, make tables, set the leaf; return the outcome."""
    world, tables, gfn = cpu.world, cpu.vm.tables, cpu.gfn
    goal = goal_level(cpu)
    while True:
        level, seen = tables.lowest(gfn)
        cpu.spend(cpu.private("table_load", tables.levels - level + 1), "walk")
        if seen == FROZEN:
            return race(cpu, "frozen")
        if level <= goal:
            break
        if isinstance(seen, Leaf) and world.path.huge_split == "zap":
            lost = yield from zap_huge(cpu, level, seen)
        else:
            cpu.work("table_alloc", "walk")
            lost = yield from link_table(cpu, level, seen)
        if lost:
            return race(cpu, lost)
    cpu.load(tables.line(level, gfn), "spte")
    cpu.work("handler_map", "handler")
    yield from cpu.step("leaf")
    if world.path.early_spurious and isinstance(seen, Leaf) and seen.grants(cpu.writes, cpu.executes):
        return SPURIOUS
    new = make_spte(cpu, fault, level, seen)
    if world.scenario.dirty_logging and new.w:
        mark_page_dirty(cpu)
        yield from cpu.step("set_leaf")
    if new == seen:
        return SPURIOUS
    line = tables.line(level, gfn)
    if world.path.mmu_lock == "exclusive":
        cpu.store(line, "spte")
    else:
        cpu.cas(line, "spte", "spte")
    if tables.get(level, gfn) != seen:
        return race(cpu, "leaf")
    tables.set(level, gfn, new)
    if not isinstance(seen, Leaf):
        cpu.count("installs")
        yield from cpu.step("stats")
        cpu.add(cpu.vm.stat_line, "stat_pages", "stat_pages")
    return FIXED


def race(cpu: Vcpu, what: str) -> str:
    """Count a lost race."""
    cpu.count(f"retry.race.{what}")
    return RETRY


def make_spte(cpu: Vcpu, fault: Fault, level: int, old: Entry) -> Leaf:
    """make_spte."""
    world, writable = cpu.world, fault.writable
    was_writable = isinstance(old, Leaf) and old.w
    return Leaf(
        generation=fault.generation,
        w=writable,
        x=level == 1 or not world.scenario.nx_huge_pages_on,
        a=True,
        d=writable and not was_writable,
        host_writable=writable,
        mmu_writable=writable,
        refcounted=fault.folio is not None and world.bit_covers(level),
    )


def link_table(cpu: Vcpu, level: int, seen: Entry) -> Steps:
    """tdp_mmu_link_sp, or tdp_mmu_split_huge_page; return "parent" if somebody was faster."""
    vm, tables = cpu.vm, cpu.vm.tables
    yield from cpu.step("link")
    cpu.cas(tables.line(level, cpu.gfn), "page_table", "walk")
    if tables.get(level, cpu.gfn) != seen:
        cpu.count("tables_lost")
        return "parent"
    tables.link(level, cpu.gfn)
    cpu.count("tables_built")
    if isinstance(seen, Leaf):
        cpu.count("huge_splits")
        yield from cpu.step("split_stats")
        cpu.add(vm.stat_line, "stat_pages", "stat_pages")
        cpu.add(vm.stat_line, "stat_pages", "stat_pages")
    yield from cpu.step("table_count")
    if cpu.world.path.table_list_lock:
        cpu.cas(vm.table_line, "page_table", "walk")
        cpu.store(vm.table_line, "walk")
    else:
        cpu.add(vm.table_line, "page_table", "walk")
    return None


def zap_huge(cpu: Vcpu, level: int, seen: Leaf) -> Steps:
    """Freeze a huge leaf that is in the way, flush, empty it; return "leaf" if it changed first."""
    tables = cpu.vm.tables
    line = tables.line(level, cpu.gfn)
    yield from cpu.step("freeze")
    cpu.cas(line, "spte", "spte")
    if tables.get(level, cpu.gfn) != seen:
        return "leaf"
    tables.set(level, cpu.gfn, FROZEN)
    cpu.count("huge_splits")
    yield from cpu.step("freeze_stats")
    cpu.add(cpu.vm.stat_line, "stat_pages", "stat_pages")
    yield from notifier.flush(cpu)
    yield from cpu.step("frozen")
    tables.set(level, cpu.gfn, None)
    cpu.store(line, "spte")
    return None
