"""Mapping a page in KVM's tables, under mmu_lock (docs/model.md 8, *mapped* to *stats*).

Named after kvm_tdp_mmu_map, tdp_mmu_map_handle_target_level, tdp_mmu_link_sp and handle_removed_pt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oracle import dirty_log, notifier
from oracle.actor import Actor, Steps
from oracle.memory import TABLE
from oracle.outcome import FIXED, RETRY, SPURIOUS
from oracle.tables import FROZEN, Entry, Leaf, Sptep, Table

if TYPE_CHECKING:
    from oracle.fault import Fault
    from oracle.vcpu import Vcpu


def goal_level(cpu: Vcpu) -> int:
    """kvm_mmu_hugepage_adjust: the largest level that the host entry, the slot and the log allow."""
    region, world = cpu.vm.region(cpu.gfn), cpu.world
    pte = region.pte(cpu.gfn)
    if pte.state == "absent" or world.scenario.dirty_logging or executes_without_huge(cpu):
        return 1
    return pte.level if region.congruent else 1


def executes_without_huge(cpu: Vcpu) -> bool:
    """Whether the access is an execution that may not use a huge page."""
    return cpu.executes and cpu.world.scenario.nx_huge_pages_on


def map_page(cpu: Vcpu, fault: Fault) -> Steps:
    """kvm_tdp_mmu_map: walk, make tables, set the leaf; return the outcome."""
    world, tables, gfn = cpu.world, cpu.vm.tables, cpu.gfn
    goal = goal_level(cpu)
    while True:
        sptep = tables.walk(gfn, goal)
        while isinstance(sptep.entry, Table) and sptep.entry.forbids_leaf:
            goal -= 1
            sptep = tables.walk(gfn, goal)
        seen = sptep.entry
        cpu.spend(cpu.private("table_load", tables.levels - sptep.level + 1), "walk")
        if seen == FROZEN:
            return race(cpu, "frozen")
        if sptep.level == goal:
            break
        if isinstance(seen, Leaf) and world.path.huge_split == "zap":
            lost = yield from zap_huge(cpu, sptep, seen)
        else:
            cpu.work("table_alloc", "walk")
            lost = yield from link_table(cpu, sptep, seen)
        if lost:
            return race(cpu, lost)
    cpu.load(sptep.line, "spte")
    cpu.work("handler_map", "handler")
    yield from cpu.step("leaf")
    if world.path.early_spurious and isinstance(seen, Leaf) and seen.grants(cpu.writes, cpu.executes):
        return SPURIOUS
    new = make_spte(cpu, fault, sptep.level, seen)
    if world.scenario.dirty_logging and new.w:
        dirty_log.mark_page(cpu, gfn)
        yield from cpu.step("set_leaf")
    if new == seen:
        return SPURIOUS
    if world.path.mmu_lock == "exclusive":
        cpu.store(sptep.line, "spte")
    else:
        cpu.cas(sptep.line, "spte", "spte")
    if sptep.entry != seen or sptep.table.removed:
        return race(cpu, "leaf")
    tables.set(sptep, new)
    if not isinstance(seen, Leaf):
        cpu.count("installs")
        if isinstance(seen, Table):
            yield from unlink(cpu, fault, seen)
            yield from notifier.flush(cpu)
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


def link_table(cpu: Vcpu, sptep: Sptep, seen: Entry) -> Steps:
    """tdp_mmu_link_sp, or tdp_mmu_split_huge_page; return "parent" if somebody was faster."""
    vm, region = cpu.vm, cpu.vm.region(cpu.gfn)
    yield from cpu.step("link")
    cpu.cas(sptep.line, "page_table", "walk")
    if sptep.entry != seen or sptep.table.removed:
        cpu.count("tables_lost")
        return "parent"
    forbids = executes_without_huge(cpu) and region.pte(cpu.gfn).level >= sptep.level
    vm.tables.link(sptep, nx=forbids)
    cpu.count("tables_built")
    if isinstance(seen, Leaf):
        cpu.count("huge_splits")
        yield from cpu.step("split_stats")
        cpu.add(vm.stat_line, "stat_pages", "stat_pages")
        cpu.add(vm.stat_line, "stat_pages", "stat_pages")
    yield from cpu.step("table_count")
    count_table(cpu)
    return None


def count_table(actor: Actor) -> None:
    """Count a table that comes or goes, with or without the list that older kernels kept."""
    line = actor.vm.table_line
    if actor.world.path.table_list_lock:
        actor.cas(line, "page_table", "walk")
        actor.store(line, "walk")
    else:
        actor.add(line, "page_table", "walk")


def zap_huge(cpu: Vcpu, sptep: Sptep, seen: Leaf) -> Steps:
    """Freeze a huge leaf that is in the way, flush, empty it; return "leaf" if it changed first."""
    tables = cpu.vm.tables
    yield from cpu.step("freeze")
    cpu.cas(sptep.line, "spte", "spte")
    if sptep.entry != seen:
        return "leaf"
    tables.set(sptep, FROZEN)
    cpu.count("huge_splits")
    yield from cpu.step("freeze_stats")
    cpu.add(cpu.vm.stat_line, "stat_pages", "stat_pages")
    yield from notifier.flush(cpu)
    yield from cpu.step("frozen")
    tables.set(sptep, None)
    cpu.store(sptep.line, "spte")
    return None


def unlink(cpu: Vcpu, fault: Fault, table: Table) -> Steps:
    """handle_removed_pt: freeze the entries of a table that a huge leaf has replaced, and count them out."""
    vm, exclusive = cpu.vm, cpu.world.path.mmu_lock == "exclusive"
    table.removed = True
    leaves: list[Leaf] = []
    for first in range(0, TABLE, 8):
        yield from cpu.step("unlink")
        line = Sptep(table, first).line
        if exclusive:
            cpu.store(line, "spte")
        for sptep in (Sptep(table, index) for index in range(first, first + 8)):
            if not exclusive:
                cpu.add(line, "spte", "spte")
            if sptep.leaf:
                leaves.append(sptep.leaf)
            vm.tables.set(sptep, FROZEN)
    yield from cpu.step("unlink_count")
    count_table(cpu)
    cpu.count("tables_freed")
    if leaves:
        yield from cpu.step("unlink_stats")
        for _ in leaves:
            cpu.add(vm.stat_line, "stat_pages", "stat_pages")
    marked = [leaf for leaf in leaves if cpu.world.marks_page(leaf)]
    if fault.folio and marked:
        yield from cpu.step("unlink_mark")
        for leaf in marked:
            if leaf.d:
                fault.folio.mark_dirty(cpu)
            if leaf.a:
                fault.folio.mark_accessed(cpu, cpu.world.lru)
