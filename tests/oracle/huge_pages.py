"""Transparent huge pages that are split, or made by khugepaged (docs/model.md 11, *split* and *collapse*)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oracle import host_ops, notifier
from oracle.actor import Steps
from oracle.lines import Line
from oracle.memory import TABLE, HostRegion

if TYPE_CHECKING:
    from oracle.storm import Client

SPLITS_FOLIO = ("reclaim", "ksm")


def set_entry(client: Client, line: Line) -> None:
    """Write an entry of the host's table."""
    client.store(line, "host_fault")
    client.work("host_pte", "host_fault")


def split(client: Client, region: HostRegion, gfn: int) -> Steps:
    """__split_huge_pmd, under a notifier call of its own; return whether a held folio ends the operation."""
    yield from notifier.start(client, gfn, gfn + TABLE)
    lock = region.ptl(gfn, level=2)
    yield from client.step("split")
    yield from lock.lock(client)
    yield from client.step("split")
    held = False
    if region.huge(gfn) and host_ops.changes(client, region, gfn):
        set_entry(client, region.line(gfn))
        client.rmw("host", TABLE)
        client.rmw("host_folio")
        client.spend((TABLE + 1) * client.world.x["own_add"], "host_fault")
        splits_folio = client.storm.action in SPLITS_FOLIO
        held = splits_folio and region.folio(gfn, region.pte(gfn)).in_flight > 0
        region.split_huge(gfn, compound=held or not splits_folio)
        client.count("thp_splits")
        client.count("host_op_busy", held)
        yield from notifier.host_flush(client)
        yield from client.step("split_flushed")
    yield from lock.unlock(client)
    yield from notifier.end(client, gfn, gfn + TABLE)
    return held


def collapse(client: Client, region: HostRegion, gfn: int, end: int) -> Steps:
    """collapse_huge_page: take the table out, copy its pages into a huge one, map that."""
    yield from notifier.start(client, gfn, end)
    lock = region.ptl(gfn, level=2)
    yield from client.step("collapse")
    yield from lock.lock(client)
    yield from client.step("collapse")
    taken = region.take_out(gfn) if region.can_collapse(gfn) else None
    if taken:
        set_entry(client, region.line(gfn))
        yield from notifier.host_flush(client)
        yield from client.step("collapse_flushed")
    yield from lock.unlock(client)
    yield from notifier.end(client, gfn, end)
    yield from client.step("after")
    if not taken:
        client.count_skipped()
        return
    own = [(page, pte) for page, pte in enumerate(taken, gfn) if pte.present and not pte.zero]
    held = any(region.folio(page, pte).in_flight for page, pte in own)
    client.count("host_op_busy", held)
    if not held:
        client.t += client.private("copy_4k") * len(own) + client.private("zero_4k") * (TABLE - len(own))
    yield from client.step("collapsed")
    yield from lock.lock(client)
    yield from client.step("collapsed")
    set_entry(client, region.line(gfn))
    if held:
        region.put_back(gfn)
    else:
        region.own_frame(gfn, client)
        client.count("thp_collapses")
    yield from lock.unlock(client)
    yield from client.step("over")
