"""hva to pfn: fast GUP, slow GUP, the host's own fault, PFNMAP (docs/model.md 8, *gup* to *remapped*).

Named after get_user_pages_fast, get_user_pages_unlocked, handle_mm_fault and follow_pfnmap_start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oracle import notifier
from oracle.actor import Steps
from oracle.memory import TABLE, HostPte, HostRegion, pages_of
from oracle.outcome import EMULATE, ERROR, RETRY

if TYPE_CHECKING:
    from oracle.fault import Fault
    from oracle.vcpu import Vcpu

SLEPT = "slept"
ALLOCATOR_ATOMICS = 8
PATIENCE = 16


def faultin_pfn(cpu: Vcpu, fault: Fault) -> Steps:
    """hva_to_pfn: take the page; return an outcome if the fault ends here, else None."""
    region = cpu.vm.region(cpu.gfn)
    upgrade = False
    while True:
        yield from cpu.step("gup")
        cpu.work("gup_fast", "gup")
        cpu.load(region.line(cpu.gfn), "gup")
        if cpu.writes and not region.writable:
            return EMULATE
        seen = region.pte(cpu.gfn)
        if seen.state == "rw" and (yield from gup_fast(cpu, fault, region, seen)):
            return None
        if upgrade:
            return None
        cpu.count("gup_fast_miss")
        yield from cpu.vm.mmap_lock.read_lock(cpu)
        outcome = yield from gup_slow(cpu, fault, region)
        if outcome != "upgrade":
            return outcome
        upgrade = True


def gup_fast(cpu: Vcpu, fault: Fault, region: HostRegion, seen: HostPte) -> Steps:
    """gup_pte_range on a writable entry: get, look again; return whether it stayed the same."""
    folio = region.folio(cpu.gfn, seen)
    if cpu.world.path.reference == "none":
        fault.take(seen.generation, folio, writable=region.writable)
        return True
    yield from cpu.step("get")
    cpu.casloop(folio.line, "folio", "folio")
    fault.got(cpu, folio)
    if region.pte(cpu.gfn) != seen:
        fault.put(cpu)  # the one just taken
        return False
    folio.referenced = True
    cpu.add(folio.line, "folio", "folio")
    fault.take(seen.generation, folio, writable=region.writable)
    if len(fault.held) > 1:
        fault.put(cpu, first=True)  # slow GUP's, in an upgrade
    return True


def gup_slow(cpu: Vcpu, fault: Fault, region: HostRegion) -> Steps:
    """get_user_pages_unlocked, with mmap_lock held: return an outcome, "upgrade", or None."""
    mmap_lock = cpu.vm.mmap_lock
    outcome = SLEPT
    while outcome == SLEPT:
        yield from cpu.step("slow")
        cpu.work("gup_slow", "gup")
        if region.special:
            yield from mmap_lock.unlock(cpu)
            yield from cpu.step("remap")
            yield from mmap_lock.read_lock(cpu)
            yield from cpu.step("remapped")
        else:
            cpu.load(region.line(cpu.gfn), "gup")
        outcome = yield from follow(cpu, fault, region)
    if outcome != RETRY:
        yield from fault.ptl.unlock(cpu)
    yield from mmap_lock.unlock(cpu)
    if outcome is None:
        yield from cpu.step("got")
    return outcome


def follow(cpu: Vcpu, fault: Fault, region: HostRegion) -> Steps:
    """Look under the page-table lock, have the page made ready, look again, until it is taken; keep the lock.

    Who slept on a migration entry holds no lock, and has slow GUP begin anew.
    """
    while True:
        yield from fault.lock(cpu, region)
        yield from cpu.step("follow")
        if fault.ptl is not region.ptl(cpu.gfn):
            yield from fault.ptl.unlock(cpu)
            yield from cpu.step("follow_lock")
            continue
        if region.special:
            return (yield from follow_pfnmap(cpu, fault, region))
        seen = region.pte(cpu.gfn)
        if usable(cpu, seen):
            return follow_page(cpu, fault, region, seen)
        yield from fault.ptl.unlock(cpu)
        yield from cpu.step("mm_fault")
        fault.looks += 1
        if fault.looks > PATIENCE and cpu.world.is_over(cpu):
            cpu.count("retry.other")
            return RETRY
        seen = region.pte(cpu.gfn)
        if seen.state == "migration":
            cpu.count("migration_waits")
            cpu.vm.sleepers.append(cpu)
            cpu.sleep()
            return SLEPT
        if not usable(cpu, seen):
            yield from host_fault(cpu, fault, region, seen)


def usable(cpu: Vcpu, pte: HostPte) -> bool:
    """Whether an access can use what the host has mapped."""
    return pte.state == "rw" or (pte.state == "ro" and not cpu.writes)


def follow_page(cpu: Vcpu, fault: Fault, region: HostRegion, seen: HostPte) -> str | None:
    """follow_page_pte: get, and touch; a read goes on to ask fast GUP for write permission."""
    folio = region.folio(cpu.gfn, seen)
    if cpu.world.path.reference != "none":
        cpu.add(folio.line, "folio", "folio")
        fault.got(cpu, folio)
        if cpu.world.lru != "off" and not folio.referenced:
            folio.referenced = True
            cpu.add(folio.line, "host_folio", "folio")
    fault.take(seen.generation, folio, writable=cpu.writes and region.writable)
    return None if cpu.writes else "upgrade"


def follow_pfnmap(cpu: Vcpu, fault: Fault, region: HostRegion) -> Steps:
    """hva_to_pfn_remapped: the pfn as it is; a page that has a count gets a reference in older kernels."""
    path = cpu.world.path
    if region.pte(cpu.gfn).state == "absent":
        cpu.count("host_faults")
        set_pte(cpu, region, region.pte(cpu.gfn).frame("special"))
    cpu.work("follow_pfn", "gup")
    if region.backing == "tail_pages" and path.nonrefcounted == "refuse":
        return ERROR
    seen = region.pte(cpu.gfn)
    fault.take(seen.generation, None, writable=region.writable)
    if region.backing == "pfnmap_struct_page" and path.pfnmap_reference and path.reference != "none":
        yield from cpu.step("pfn_get")
        folio = region.folio(cpu.gfn, seen)
        cpu.casloop(folio.line, "folio", "folio")
        fault.got(cpu, folio)
        fault.folio = folio
    return None


# The host's own fault


def set_pte(cpu: Vcpu, region: HostRegion, pte: HostPte) -> None:
    """Set the entry."""
    cpu.store(region.line(cpu.gfn), "host_fault")
    cpu.work("host_pte", "host_fault")
    region.set(cpu.gfn, pte)


def host_fault(cpu: Vcpu, fault: Fault, region: HostRegion, seen: HostPte) -> Steps:
    """handle_mm_fault, from the look at the entry to the step before it is followed again."""
    cpu.count("host_faults")
    breaks_cow = seen.state == "ro"
    if seen.state == "protnone":
        cpu.count("numa_hints")
        cpu.work("numa_hint", "host_fault")
    elif breaks_cow:
        cpu.count("cow_breaks")
        cpu.work("cow_break", "host_fault")
        cpu.work("host_fault", "host_fault")
        yield from new_page(cpu, 1, "copy_4k")
        cpu.enter_notifier()
        yield from notifier.start(cpu, cpu.gfn, cpu.gfn + 1)
        yield from cpu.step("cow_lock")
        cpu.leave_notifier()
    elif seen.swap:
        cpu.count("swap_ins")
        cpu.work("host_fault", "host_fault")
        cpu.spend(cpu.world.x["swap_in"], "host_fault")
        yield from new_page(cpu, 1, "copy_4k")
    elif of_file(cpu, region) or of_zero(cpu, region, seen):
        cpu.work("numa_hint", "host_fault")
    else:
        cpu.work("host_fault", "host_fault")
        if region.file:
            yield from new_page(cpu, 1, "copy_4k")
        else:
            yield from new_page(cpu, pages_of(seen.level), "zero_4k")
    yield from fault.lock(cpu, region)
    yield from install(cpu, fault, region, seen)
    if breaks_cow:
        cpu.enter_notifier()
    yield from fault.ptl.unlock(cpu)
    if breaks_cow:
        yield from notifier.end(cpu, cpu.gfn, cpu.gfn + 1)
    yield from cpu.step("follow_lock")
    cpu.leave_notifier()


def of_file(cpu: Vcpu, region: HostRegion) -> bool:
    """Whether what is absent will be a page of the file."""
    return region.file and not (cpu.writes and region.private)


def of_zero(cpu: Vcpu, region: HostRegion, seen: HostPte) -> bool:
    """Whether what is absent will be the zero page."""
    return region.anonymous and seen.level == 1 and not seen.swap and not cpu.writes


def new_page(cpu: Vcpu, n: int, fill: str) -> Steps:
    """alloc_pages and clear or copy `n` pages of 4K."""
    x, socket = cpu.world.x, cpu.world.sockets[cpu.thread.socket]
    yield from cpu.step("alloc")
    cpu.rmw("host", ALLOCATOR_ATOMICS)
    cpu.zone_pages += n
    if cpu.zone_pages >= x["zone_lock_batch"]:
        cpu.zone_pages = 0
        cpu.rmw("host")
        cpu.spend(socket.zone.use(cpu.t, x["zone_lock_hold"]) - cpu.t, "host_fault")
    yield from cpu.step("fill")
    free = socket.bandwidth.use(cpu.t, n * x["zero_bandwidth_4k"])
    cpu.spend(max(cpu.private(fill, n), free - cpu.t), "host_fault")


def install(cpu: Vcpu, fault: Fault, region: HostRegion, seen: HostPte) -> Steps:
    """Finish a host fault under the page-table lock: look at the entry again, and set it."""
    gfn, x = cpu.gfn, cpu.world.x
    yield from cpu.step("install")
    now, own = region.pte(gfn), False
    if fault.ptl is not region.ptl(gfn) or not seen.same(now):
        cpu.count("host_faults_lost")
    elif now.state == "protnone":
        set_pte(cpu, region, now.to("ro" if now.file and region.private else "rw"))
    elif now.state == "absent" and of_file(cpu, region):
        set_pte(cpu, region, now)
        region.file_frame(gfn)
        yield from map_file(cpu, region)
    elif now.state == "absent" and of_zero(cpu, region, now):
        set_pte(cpu, region, now.frame("ro", zero=True))
    else:
        set_pte(cpu, region, now)
        region.own_frame(gfn, cpu)
        own = True
        if now.state == "ro":
            yield from notifier.host_flush(cpu)
            yield from cpu.step("installed")
    if own:
        cpu.lru_pages += 1
        if cpu.lru_pages >= x["lru_batch"]:
            cpu.lru_pages = 0
            yield from cpu.step("lru_add")
            cpu.rmw("host")
            lru = cpu.world.sockets[cpu.thread.socket].lru
            cpu.spend(lru.use(cpu.t, x["lru_lock_hold"]) - cpu.t, "host_fault")


def map_file(cpu: Vcpu, region: HostRegion) -> Steps:
    """do_fault_around: count the mappings of the page, and of its neighbours if the access only reads."""
    table = cpu.gfn - cpu.gfn % TABLE
    window = cpu.gfn - cpu.gfn % region.fault_around
    first = max(window, table, region.gfn)
    last = min(window + region.fault_around, table + TABLE, region.gfn + region.pages)
    yield from map_page(cpu, region, cpu.gfn)
    if cpu.writes:
        return
    for gfn in range(first, last):
        if region.pte(gfn).state == "absent":
            yield from map_page(cpu, region, gfn)


def map_page(cpu: Vcpu, region: HostRegion, gfn: int) -> Steps:
    """Map one page of the file: its folio's count and its count of mappings."""
    yield from cpu.step("map_file")
    if gfn != cpu.gfn:
        region.file_frame(gfn)
    folio = region.folio(gfn, region.pte(gfn))
    cpu.add(folio.line, "host_folio", "host_fault")
    cpu.add(folio.line, "host_folio", "host_fault")
