"""Aging: who asks which pages were accessed (docs/model.md 11.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oracle import notifier
from oracle.actor import Steps
from oracle.memory import pages_of

if TYPE_CHECKING:
    from oracle.storm import Client


def age(client: Client, start: int, end: int) -> Steps:
    """kvm_age_gfn over a span: no range, no sequence."""
    path, vm = client.world.path, client.vm
    locks = path.aging_lock == "write"
    if locks:
        yield from vm.mmu_lock.write_lock(client)
    aged, cursor = False, start
    while True:
        yield from client.step("age")
        found = vm.tables.next_leaf(cursor, end)
        if found is None:
            break
        gfn, sptep = found
        if sptep.leaf.a:
            client.cas(sptep.line, "spte", "spte")
            vm.tables.set(sptep, sptep.leaf.but(a=False))
            client.count("aged")
            aged = True
        client.work("zap_skip", "walk")
        cursor = gfn + pages_of(sptep.level)
    client.work("zap_skip", "walk")
    if aged and path.aging_flush:
        yield from notifier.flush(client)
    yield from client.step("aged")
    if locks:
        yield from vm.mmu_lock.write_unlock(client)
        yield from client.step("done")
