"""What a storm does to the host's page table, under the notifier (docs/model.md 11, *cut* to *restore*)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from oracle import huge_pages, notifier
from oracle.actor import Steps
from oracle.locks import PageTableLock
from oracle.memory import HostPte, HostRegion, pages_of

if TYPE_CHECKING:
    from oracle.storm import Client

WITHOUT_MMAP_LOCK = ("migration", "reclaim")
FOR_WRITING = ("fork", "mprotect", "khugepaged")
BY_PUD = ("numa_balancing", "mprotect")
PAGE_BY_PAGE = ("reclaim", "ksm")  # no huge page remains
NEVER_CUT = ("migration", "fork", "khugepaged")
MOST_TRIES = 10


def operate(client: Client, region: HostRegion, start: int, end: int) -> Steps:
    """Do one operation, with mmap_lock held if it takes it."""
    action, lock = client.storm.action, client.vm.mmap_lock
    if action not in WITHOUT_MMAP_LOCK:
        yield from (lock.write_lock if action in FOR_WRITING else lock.read_lock)(client)
    if (yield from cut(client, region, start, end)):
        yield from OPERATIONS[action](client, region, start, end)
    if action not in WITHOUT_MMAP_LOCK:
        yield from lock.unlock(client)
        yield from client.step("done")


def cut(client: Client, region: HostRegion, start: int, end: int) -> Steps:
    """Split the huge pages that the span does not cover whole; return whether the operation goes on."""
    while True:
        yield from client.step("cut")
        gfn = next(to_split(client, region, start, end), None)
        if gfn is None:
            return True
        if (yield from huge_pages.split(client, region, gfn)):
            yield from client.step("cut")
            return False


def to_split(client: Client, region: HostRegion, start: int, end: int) -> Iterator[int]:
    """Yield the first gfns of huge pages that the action has to split, in order."""
    action = client.storm.action
    if action in NEVER_CUT:
        return
    for gfn in range(start, end) if action in PAGE_BY_PAGE else (start, end - 1):
        first = gfn // pages_of(2) * pages_of(2)
        whole = start <= first and first + pages_of(2) <= end
        if region.huge(gfn) and (action in PAGE_BY_PAGE or not whole) and changes(client, region, gfn):
            yield first


def changes(client: Client, region: HostRegion, gfn: int, second: bool = False) -> bool:
    """Whether the action changes an entry, in its first round or its second."""
    pte = region.pte(gfn)
    match client.storm.action:
        case "madvise":
            return pte.state in ("rw", "ro", "protnone", "special")
        case "numa_balancing":
            left_alone = pte.zero or pte.ksm or region.backing == "dax"
            return pte.state in ("rw", "ro") and not left_alone
        case "fork":
            return pte.state == "rw" and region.copied_on_write
        case "mprotect" | "ksm" if second:
            return pte.state == "ro" and pte.noted is client
        case "mprotect":
            return pte.state == "rw"
        case "migration" | "reclaim" | "ksm":
            return pte.state == "rw" and region.anonymous and not pte.compound
    raise AssertionError(client.storm.action)


def changed(client: Client, pte: HostPte, second: bool) -> HostPte:
    """Return what the action makes of an entry."""
    match client.storm.action:
        case "madvise":
            return pte.to("absent", client)
        case "numa_balancing":
            return pte.to("protnone")
        case "fork":
            return pte.to("ro")
        case "mprotect":
            return pte.to("rw") if second else pte.to("ro", client)
        case "ksm":
            return pte.frame("ro", ksm=True) if second else pte.to("ro", client)
        case "migration" | "reclaim":
            return pte.to("migration")
    raise AssertionError(client.storm.action)


def sweep(client: Client, region: HostRegion, start: int, end: int, second: bool = False) -> Steps:
    """Change a range, as one notifier call or, by some, one for each GiB; return the first gfns changed."""
    gfns: list[int] = []
    while start < end:
        until = min(end, (start // pages_of(3) + 1) * pages_of(3)) if client.storm.action in BY_PUD else end
        yield from notifier.start(client, start, until)
        gfns += yield from change_ptes(client, region, start, until, second)
        yield from notifier.end(client, start, until)
        yield from client.step("after")
        start = until
    return gfns


def change_ptes(client: Client, region: HostRegion, start: int, end: int, second: bool) -> Steps:
    """Change entries one by one, evenly over the hold; return the first gfns of those changed."""
    gfns: list[int] = []
    lock: PageTableLock | None = None
    cursor, began = start, None
    while True:
        yield from client.step("ptes")
        began = client.t if began is None else began
        cursor = next_to_change(client, region, cursor, end, second)
        due = began + client.storm.hold_ps * (cursor - start) // (end - start)
        if cursor < end and client.t < due:
            client.t = due
        elif lock and (cursor == end or region.ptl(cursor) is not lock):
            yield from lock.unlock(client)
            lock = None
        elif cursor == end:
            break
        elif lock is None:
            lock = region.ptl(cursor)
            yield from lock.lock(client)
        else:
            pte = region.pte(cursor)
            huge_pages.set_entry(client, region.line(cursor))
            region.set(cursor, changed(client, pte, second))
            gfns.append(cursor)
            cursor += pages_of(pte.level)
    if gfns:
        yield from notifier.host_flush(client)
        yield from client.step("pte_end")
    if client.storm.action == "ksm" and not second and busy(client, region, gfns):
        gfns = []
    client.t = max(client.t, began + client.storm.hold_ps)
    return gfns


def next_to_change(client: Client, region: HostRegion, cursor: int, end: int, second: bool) -> int:
    """Return the first gfn of the next entry to be changed that lies whole in [cursor, end); else `end`."""
    gfn = cursor
    while gfn < end:
        size = pages_of(region.level_at(gfn))
        first = gfn // size * size
        whole = cursor <= first and first + size <= end
        made_after_cut = client.storm.action in PAGE_BY_PAGE and region.huge(gfn)
        if whole and not made_after_cut and changes(client, region, gfn, second):
            return first
        gfn = first + size
    return end


def busy(client: Client, region: HostRegion, gfns: list[int]) -> bool:
    """write_protect_page of KSM: whether somebody holds a page; if so all are as they were."""
    own = [gfn for gfn in gfns if region.pte(gfn).state == "ro" and region.pte(gfn).noted is client]
    if not any(region.folio(gfn, region.pte(gfn)).in_flight for gfn in own):
        return False
    client.count("host_op_busy")
    for gfn in own:
        region.set(gfn, region.pte(gfn).to("rw"))
    return True


# Operations


def madvise(client: Client, region: HostRegion, start: int, end: int) -> Steps:
    """MADV_DONTNEED: unmap, and give the frames back that nobody mapped again."""
    yield from sweep(client, region, start, end)
    gfn = start
    while gfn < end:
        pte = region.pte(gfn)
        kept = pte.file or pte.zero or pte.ksm or pte.compound
        if pte.state == "absent" and pte.noted is client and not kept:
            region.set(gfn, pte.released())
        gfn = (gfn // pages_of(pte.level) + 1) * pages_of(pte.level)


def mprotect(client: Client, region: HostRegion, start: int, end: int) -> Steps:
    """Take the right to write away, and give it back."""
    yield from sweep(client, region, start, end)
    yield from sweep(client, region, start, end, second=True)


def ksm(client: Client, region: HostRegion, start: int, end: int) -> Steps:
    """try_to_merge_one_page: write-protect, and if nobody holds a page, replace it."""
    if (yield from sweep(client, region, start, end)):
        merged = yield from sweep(client, region, start, end, second=True)
        client.count("ksm_merges", len(merged))


def migration(client: Client, region: HostRegion, start: int, end: int) -> Steps:
    """migrate_pages: unmap, copy, map the copy; again while somebody holds a page."""
    for _ in range(MOST_TRIES):
        gfns = yield from sweep(client, region, start, end)
        held = in_flight(client, region, gfns)
        if held:
            client.t += client.world.x["migrate_busy_retry"]
        else:
            client.t += client.private("copy_4k") * sum(pages_of(region.level_at(gfn)) for gfn in gfns)
        yield from client.step("restore")
        for gfn in gfns:
            if held:
                region.set(gfn, region.pte(gfn).to("rw"))
            else:
                region.own_frame(gfn, client)
        wake_sleepers(client, region, gfns)
        if not held:
            break


def reclaim(client: Client, region: HostRegion, start: int, end: int) -> Steps:
    """shrink_folio_list: unmap, and swap out unless somebody holds a page."""
    gfns = yield from sweep(client, region, start, end)
    held = in_flight(client, region, gfns)
    for gfn in gfns:
        pte = region.pte(gfn)
        region.set(gfn, pte.to("rw") if held else pte.swapped_out())
    client.count("swap_outs", 0 if held else len(gfns))
    wake_sleepers(client, region, gfns)


def in_flight(client: Client, region: HostRegion, gfns: list[int]) -> bool:
    """Whether KVM holds a reference to one of the pages, which is counted."""
    held = any(region.folio(gfn, region.pte(gfn)).in_flight for gfn in gfns)
    client.count("host_op_busy", held)
    return held


def wake_sleepers(client: Client, region: HostRegion, gfns: list[int]) -> None:
    """remove_migration_ptes: wake who sleeps on the entries."""
    for cpu in list(client.vm.sleepers):
        size = pages_of(region.level_at(cpu.gfn))
        if client.vm.region(cpu.gfn) is region and cpu.gfn // size * size in gfns:
            client.vm.sleepers.remove(cpu)
            due = max(client.t, cpu.since) + client.world.x["sleep_wake"]
            cpu.book("host_fault", due - cpu.since)
            cpu.wake(due)


OPERATIONS = {
    "madvise": madvise,
    "numa_balancing": sweep,
    "fork": sweep,
    "mprotect": mprotect,
    "ksm": ksm,
    "migration": migration,
    "reclaim": reclaim,
    "khugepaged": huge_pages.collapse,
}
