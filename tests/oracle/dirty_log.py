"""The dirty log: the bitmap, the buffer that hardware fills, and who reads it (docs/model.md 8 and 11.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oracle import notifier
from oracle.actor import Actor, Steps
from oracle.memory import HostRegion
from oracle.tables import Sptep

if TYPE_CHECKING:
    from oracle.storm import Client
    from oracle.vcpu import Vcpu

PML_ENTRIES = 512
WORD = 64  # pages


def mark_page(actor: Actor, gfn: int) -> None:
    """mark_page_dirty_in_slot: set_bit_le in the memslot's dirty bitmap."""
    region = actor.vm.region(gfn)
    region.dirty.add(gfn - region.gfn)
    actor.add(region.dirty_line(gfn), "dirty_bitmap", "dirty_log")


def pml_flush(cpu: Vcpu) -> Steps:
    """vmx_flush_pml_buffer: what hardware has noted goes into the bitmap; one step a line."""
    while cpu.pml:
        yield from cpu.step("pml_flush")
        line = cpu.vm.region(cpu.pml[0]).dirty_line(cpu.pml[0])
        while cpu.pml and cpu.vm.region(cpu.pml[0]).dirty_line(cpu.pml[0]) is line:
            mark_page(cpu, cpu.pml.popleft())


def clear(client: Client, region: HostRegion, start: int, end: int) -> Steps:
    """kvm_vm_ioctl_clear_dirty_log over [start, end)."""
    vm, scenario = client.vm, client.world.scenario
    if scenario.pml_on:
        yield from client.step("sync_dirty_log")
        for cpu in vm.vcpus:
            if cpu.next_step == "access":
                client.local(1, "dirty_log")
                client.work("ipi_send", "dirty_log")
                cpu.debt += client.world.x["exit"] + client.world.x["entry"]
                client.count("kicks")
    yield from vm.mmu_lock.write_lock(client)
    yield from client.step("clear_dirty")
    pending, cursor = False, start
    while cursor < end:
        bits = sorted(region.dirty & set(range(cursor - region.gfn, cursor - region.gfn + WORD)))
        if bits:
            client.add(region.dirty_line(cursor), "dirty_bitmap", "dirty_log")
            region.dirty.difference_update(bits)
            pending |= yield from clear_leaves(client, region, [region.gfn + bit for bit in bits])
        cursor += WORD
    yield from vm.mmu_lock.write_unlock(client)
    yield from client.step("cleared")
    if pending:
        yield from notifier.flush(client)
        yield from client.step("done")


def clear_leaves(client: Client, region: HostRegion, gfns: list[int]) -> Steps:
    """Have the next write to each page logged again; return whether a leaf changed.

    The step that finds no leaf any more goes on with the next word.
    """
    scenario, tables = client.world.scenario, client.vm.tables
    splits = scenario.initially_all_set and scenario.eager_page_split
    changed = False
    yield from client.step("clear_leaf")
    for gfn in gfns:
        while True:
            sptep = tables.walk(gfn)
            if sptep.leaf is None:
                break
            if sptep.level > 1 and splits:
                split(client, sptep)
                yield from client.step("clear_leaf")
                continue
            changed |= yield from clear_leaf(client, region, gfn, sptep)
            yield from client.step("clear_leaf")
            break
    return changed


def clear_leaf(client: Client, region: HostRegion, gfn: int, sptep: Sptep) -> Steps:
    """Take W or D from a leaf; return whether it was set."""
    leaf = sptep.leaf
    bit = "d" if client.world.scenario.pml_on and sptep.level == 1 else "w"
    was_set = getattr(leaf, bit)
    if was_set:
        if leaf.volatile:
            client.add(sptep.line, "spte", "spte")
        else:
            client.store(sptep.line, "spte")
        client.vm.tables.set(sptep, leaf.but(**{bit: False}))
    client.work("zap_skip", "walk")
    folio = region.folio(gfn, region.pte(gfn))
    if was_set and bit == "d" and folio and client.world.marks_page(leaf):
        yield from client.step("clear_mark")
        region.folio(gfn, region.pte(gfn)).mark_dirty(client)
    return was_set


def split(client: Client, sptep: Sptep) -> None:
    """tdp_mmu_split_huge_page, with mmu_lock held for writing, which keeps all others from those lines."""
    vm = client.vm
    client.store(sptep.line, "spte")
    vm.tables.link(sptep)
    client.count("huge_splits")
    client.count("tables_built")
    client.write_alone(vm.stat_line, "stat_pages", "stat_pages")
    client.add(vm.stat_line, "stat_pages", "stat_pages")
    if not client.world.path.table_list_lock:
        client.write_alone(vm.table_line, "page_table", "walk")
    client.work("table_alloc", "walk")
