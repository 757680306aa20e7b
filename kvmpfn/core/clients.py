"""Storm clients: when an operation comes, where it lands, and how it begins and ends.

One client is serial: idle -> [mmap_lock] -> cut -> [start -> split -> host_flush -> end]* -> start -> ptes ->
[host_flush] -> end -> after -> [mmap_unlock] -> done. What the operations do to the host's tables is in
host_ops.py, splitting and collapsing huge pages in thp.py; aging is in mmu_notifier.py, the dirty log's
readers are in dirty_log.py.
"""

from . import layout as L
from .arrivals import done, skip
from .draws import PLACE, below
from .events import call, count, schedule
from .host_locks import down, mmap_trylock
from .host_mm import first_of_pte, gfn_of_page, peek_pte, region_of
from .host_ops import moves_whole, referenced, wanted
from .jit import jit
from .mmu_notifier import flush_remote_tlbs
from .thp import can_collapse, split_table_of


@jit
def idle(w, a):
    """An operation is due: place its span, take the lock its kind takes."""
    vm = w[a + L.VM]
    t = w[L.NOW]
    if w[vm + L.VM_RUNNING] == 0 or (w[a + L.S_LIMIT] >= 0 and w[a + L.S_K] >= w[a + L.S_LIMIT]):
        w[a + L.FINISHED] = 1
        w[a + L.T_END] = t
        w[a + L.PC] = L.PC_STOPPED
        return
    late = t - w[a + L.S_NOMINAL]
    w[a + L.S_ASKED] += 1
    w[a + L.S_LATE] += late
    w[a + L.S_LATE_MAX] = max(w[a + L.S_LATE_MAX], late)
    count(w, a, L.K_STORM_ASKED, 1)
    if late > 0:
        count(w, a, L.K_STORM_LATE, 1)
    r = place_span(w, a)
    w[a + L.N_START] = w[a + L.S_START]
    w[a + L.N_END] = w[a + L.S_END]
    w[a + L.N_CURSOR] = w[a + L.S_START]
    w[a + L.N_PENDING_FLUSH] = 0
    w[a + L.S_ROUND] = 0
    w[a + L.S_BUSY_NOW] = 0
    w[a + L.S_BUSY_T0] = t
    w[a + L.S_BUSY_TRIES] = 0
    begin(w, a, r, w[a + L.S_ACTION], t)


@jit
def place_span(w, a):
    """Choose [S_START, S_END) and return its region."""
    vm = w[a + L.VM]
    span = w[a + L.S_SPAN]
    page = w[a + L.S_OFFSET]
    if page == L.PLACE_SCAN:
        page = w[a + L.S_SCAN]
    elif page == L.PLACE_RANDOM:
        page = below(w, w[a + L.ID], PLACE, w[a + L.S_K], w[vm + L.PAGES] - span + 1)
    gfn = gfn_of_page(w, vm, page)
    r = region_of(w, vm, gfn)
    base = w[r + L.R_GFN]
    action = w[a + L.S_ACTION]
    first, last = gfn, min(gfn + span, base + w[r + L.R_PAGES]) - 1
    w[a + L.S_SCAN] = w[r + L.R_FIRST] + last + 1 - base
    if w[a + L.S_SCAN] >= w[vm + L.PAGES]:
        w[a + L.S_SCAN] = 0
    if action == L.ACT_KHUGEPAGED:
        first = base + ((gfn - base) & ~511)
        last = first + 511
    elif action == L.ACT_CLEAR_DIRTY_LOG:
        first = base + ((first - base) & ~63)
        last = min(base + ((last - base) | 63), base + w[r + L.R_PAGES] - 1)
    elif w[r + L.R_BACKING] != L.B_THP or moves_whole(action):
        first, _ = first_of_pte(w, r, first)
        last_first, unit = first_of_pte(w, r, last)
        last = last_first + unit - 1
    w[a + L.S_START] = first
    w[a + L.S_END] = last + 1
    return r


@jit
def moves_pages(action):
    """Operations on folios, which find their mappings by rmap."""
    return action == L.ACT_MIGRATION or action == L.ACT_RECLAIM or action == L.ACT_KSM


@jit
def any_wanted(w, a, r):
    """Whether the operation would change an entry of its span."""
    gfn = w[a + L.S_START]
    while gfn < w[a + L.S_END]:
        first, unit = first_of_pte(w, r, gfn)
        if wanted(w, a, r, peek_pte(w, r, gfn)):
            return True
        gfn = first + unit
    return False


@jit
def looks_first(action):
    """Operations that leave a page whose count says that somebody uses it alone from the start.

    Compaction (isolate_migratepages_block) and khugepaged (hpage_collapse_scan_pmd).
    """
    return action == L.ACT_MIGRATION or action == L.ACT_KHUGEPAGED


@jit
def any_referenced(w, a, r):
    """Whether KVM holds a reference in flight to a folio that the operation would move."""
    gfn = w[a + L.S_START]
    while gfn < w[a + L.S_END]:
        first, unit = first_of_pte(w, r, gfn)
        pte = peek_pte(w, r, gfn)
        if wanted(w, a, r, pte) and (pte & L.P_ZERO) == 0 and referenced(w, r, gfn, pte):
            return True
        gfn = first + unit
    return False


@jit
def begin(w, a, r, action, t):
    """Take what the operation takes before it calls the notifier."""
    if action == L.ACT_AGE:
        if w[L.M_AGING_LOCK]:
            call(w, a, L.PC_WRITE_LOCK, L.PC_AGE, t)
        else:
            schedule(w, a, L.PC_AGE, t)
    elif action == L.ACT_CLEAR_DIRTY_LOG:
        if w[L.PML]:
            schedule(w, a, L.PC_SYNC_DIRTY_LOG, t)
        else:
            call(w, a, L.PC_WRITE_LOCK, L.PC_CLEAR_DIRTY, t)
    elif moves_pages(action) and not any_wanted(w, a, r):
        skip(w, a, t)  # no such page is mapped: the notifier is not called
    elif action == L.ACT_KHUGEPAGED and not can_collapse(w, r, split_table_of(w, a, r)):
        skip(w, a, t)
    elif looks_first(action) and any_referenced(w, a, r):
        count(w, a, L.K_HOST_OP_BUSY, 1)
        skip(w, a, t)
    elif action == L.ACT_MIGRATION or action == L.ACT_RECLAIM:
        schedule(w, a, L.PC_CUT, t)
    elif action == L.ACT_FORK or action == L.ACT_MPROTECT or action == L.ACT_KHUGEPAGED:
        down(w, a, L.MODE_WRITE, L.PC_CUT, t)
    elif action == L.ACT_NUMA and not mmap_trylock(w, a):
        skip(w, a, t)
    else:
        down(w, a, L.MODE_READ, L.PC_CUT, t)


@jit
def aged(w, a):
    """An aging pass is over; before lockless aging it held mmu_lock for writing."""
    if w[L.M_AGING_LOCK]:
        call(w, a, L.PC_WRITE_UNLOCK, L.PC_DONE, w[L.NOW])
    else:
        done(w, a, w[L.NOW])


@jit
def cleared(w, a):
    """The dirty log is read and mmu_lock dropped: kvm_flush_remote_tlbs_memslot, if a leaf was changed."""
    if w[a + L.N_PENDING_FLUSH]:
        flush_remote_tlbs(w, a, L.PC_DONE, w[L.NOW])
    else:
        done(w, a, w[L.NOW])
