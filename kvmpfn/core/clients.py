"""Storm clients: when an invalidation comes, where it lands, and what it does to the host's tables.

One client is serial: idle -> [mmap_lock] -> start -> ptes -> [host_flush] -> end -> after -> done. Between
start's return and end's call its host entries change one by one in address order, under their page-table
locks.
"""

from . import layout as L
from .draws import GAP, PLACE, below, exponential
from .events import call, count, schedule
from .host_locks import down, mmap_trylock, spin_lock
from .host_mm import folio_of, gfn_of_page, new_frame, peek_pte, pte_address, ptl_of, region_of, set_pte
from .jit import jit
from .lines import private
from .mmu_notifier import invalidate

BUSY_TRIES = 10  # NR_MAX_MIGRATE_PAGES_RETRY, mm/migrate.c


@jit
def next_arrival(w, a, t):
    """Advance the arrival process; a client that is late starts at once."""
    w[a + L.S_K] += 1
    arrival = w[a + L.S_ARRIVAL]
    gap = w[a + L.S_GAP]
    if arrival == L.ARR_CLOSED:
        w[a + L.S_NOMINAL] = t + gap
    elif arrival == L.ARR_PERIODIC:
        w[a + L.S_NOMINAL] += gap
    elif arrival == L.ARR_POISSON:
        w[a + L.S_NOMINAL] += exponential(w, w[a + L.ID], GAP, w[a + L.S_K], gap)
    else:  # a Poisson process on a clock that runs only in the bursts
        w[a + L.S_BURST_T] += exponential(w, w[a + L.ID], GAP, w[a + L.S_K], gap)
        on = w[a + L.S_ON]
        bursts = w[a + L.S_BURST_T] // on
        w[a + L.S_NOMINAL] = w[a + L.T_START] + bursts * (on + w[a + L.S_OFF]) + w[a + L.S_BURST_T] % on
    schedule(w, a, L.PC_IDLE, max(t, w[a + L.S_NOMINAL]))


@jit
def idle(w, a):
    """An invalidation is due: place its span, take the lock its kind takes."""
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
    page = w[a + L.S_OFFSET]
    if page < 0:
        page = below(w, w[a + L.ID], PLACE, w[a + L.S_K], w[vm + L.PAGES] - w[a + L.S_SPAN] + 1)
    gfn = gfn_of_page(w, vm, page)
    r = region_of(w, vm, gfn)
    unit = 1 << (9 * (w[r + L.R_HOST_LEVEL] - 1))
    base = w[r + L.R_GFN]
    w[a + L.N_START] = base + (gfn - base) // unit * unit
    stop = (gfn - base + w[a + L.S_SPAN] + unit - 1) // unit * unit
    w[a + L.N_END] = base + min(stop, w[r + L.R_PAGES])
    w[a + L.N_CURSOR] = w[a + L.N_START]
    w[a + L.N_PENDING_FLUSH] = 0
    w[a + L.N_RETURN] = L.PC_PTES
    w[a + L.S_UNIT_CURSOR] = -1
    w[a + L.S_BUSY_T0] = t
    w[a + L.S_BUSY_TRIES] = 0
    action = w[a + L.S_ACTION]
    if action == L.ACT_AGE:
        if w[L.M_AGING_LOCK]:
            call(w, a, L.PC_WRITE_LOCK, L.PC_AGE, t)
        else:
            schedule(w, a, L.PC_AGE, t)
    elif action == L.ACT_MIGRATION:
        schedule(w, a, L.PC_START, t)
    elif action == L.ACT_FORK:
        down(w, a, L.MODE_WRITE, L.PC_START, t)
    elif action == L.ACT_NUMA and not mmap_trylock(w, a):
        w[a + L.S_SKIPPED] += 1
        count(w, a, L.K_STORM_SKIPPED, 1)
        next_arrival(w, a, t)
    else:
        down(w, a, L.MODE_READ, L.PC_START, t)


@jit
def over(w, a, t):
    """The operation is over: mmap_lock is dropped, where it is held."""
    if w[a + L.HELD_MMAP]:
        w[a + L.AFTER_MMAP] = L.PC_DONE
        schedule(w, a, L.PC_MMAP_UNLOCK, t)
    else:
        done(w, a, t)


@jit
def done(w, a, t):
    """Nothing is held any more: the next operation is awaited."""
    w[a + L.S_DONE] += 1
    w[a + L.S_BUSY] += t - w[a + L.S_BUSY_T0]
    count(w, a, L.K_STORM_DONE, 1)
    next_arrival(w, a, t)


@jit
def aged(w, a):
    """An aging pass is over; before lockless aging it held mmu_lock for writing."""
    if w[L.M_AGING_LOCK]:
        call(w, a, L.PC_WRITE_UNLOCK, L.PC_DONE, w[L.NOW])
    else:
        done(w, a, w[L.NOW])


@jit
def wanted(w, a, pte):
    """Whether this action changes a host entry in this state."""
    state = pte & L.P_STATE
    action = w[a + L.S_ACTION]
    if action == L.ACT_MIGRATION:
        return state == L.P_RW and (pte & L.P_FILE) == 0
    if action == L.ACT_FORK:
        return state == L.P_RW
    if action == L.ACT_NUMA:
        return state == L.P_RW or state == L.P_RO
    return state == L.P_RW or state == L.P_RO or state == L.P_PROTNONE or state == L.P_SPECIAL


@jit
def ptes(w, a):
    """Change the next host entry of the span when it is due; after the last, flush and call range_end."""
    t = w[L.NOW]
    r = region_of(w, w[a + L.VM], w[a + L.N_START])
    unit = 1 << (9 * (w[r + L.R_HOST_LEVEL] - 1))
    if w[a + L.S_UNIT_CURSOR] < 0:
        w[a + L.S_UNIT_CURSOR] = w[a + L.N_START]
        w[a + L.S_HOLD_T0] = t
        w[a + L.S_CHANGED] = 0
    gfn = w[a + L.S_UNIT_CURSOR]
    while gfn < w[a + L.N_END] and not wanted(w, a, peek_pte(w, r, gfn)):
        gfn += unit
    w[a + L.S_UNIT_CURSOR] = gfn
    if gfn >= w[a + L.N_END]:
        if w[a + L.HELD_PTL]:
            call(w, a, L.PC_PTL_UNLOCK, L.PC_PTES, t)
        elif w[a + L.S_CHANGED]:
            call(w, a, L.PC_HOST_FLUSH, L.PC_PTE_END, t)
        else:
            pte_end(w, a)
        return
    units = (w[a + L.N_END] - w[a + L.N_START]) // unit
    due = w[a + L.S_HOLD_T0] + w[a + L.S_HOLD] * ((gfn - w[a + L.N_START]) // unit) // units
    ptl = ptl_of(w, r, gfn)
    if due > t:
        schedule(w, a, L.PC_PTES, due)
    elif w[a + L.HELD_PTL] == ptl:
        change_pte(w, a, r, gfn, t)
        w[a + L.S_UNIT_CURSOR] = gfn + unit
    elif w[a + L.HELD_PTL]:
        call(w, a, L.PC_PTL_UNLOCK, L.PC_PTES, t)
    else:
        spin_lock(w, a, ptl, L.PC_PTES, t)


@jit
def change_pte(w, a, r, gfn, t):
    """What the storm's action makes of a host entry."""
    addr = pte_address(w, r, gfn)
    action = w[a + L.S_ACTION]
    if action == L.ACT_NUMA:
        state = L.P_PROTNONE
    elif action == L.ACT_FORK:
        state = L.P_RO
    elif action == L.ACT_MIGRATION:
        state = L.P_MIGRATION | (w[a + L.ID] << L.P_CLIENT_SHIFT)
    else:
        state = L.P_ABSENT | (w[a + L.ID] << L.P_CLIENT_SHIFT)
    w[addr] = (w[addr] & ~L.P_STATE) | state
    w[a + L.S_CHANGED] = 1
    schedule(w, a, L.PC_PTES, set_pte(w, a, r, gfn, t))


@jit
def pte_end(w, a):
    """The entries are changed and flushed: range_end, not before the hold is over."""
    invalidate(w, a, L.PC_END, L.PC_AFTER, max(w[L.NOW], w[a + L.S_HOLD_T0] + w[a + L.S_HOLD]))


@jit
def mine(w, a, pte, state):
    """A host entry that this client brought into a state."""
    return (pte & L.P_STATE) == state and (pte & L.P_CLIENT_MASK) >> L.P_CLIENT_SHIFT == w[a + L.ID]


@jit
def after(w, a):
    """range_end has returned: free what was unmapped, or go on with the migration."""
    t = w[L.NOW]
    r = region_of(w, w[a + L.VM], w[a + L.N_START])
    unit = 1 << (9 * (w[r + L.R_HOST_LEVEL] - 1))
    moved = 0
    busy = 0
    gfn = w[a + L.N_START]
    while gfn < w[a + L.N_END]:
        pte = peek_pte(w, r, gfn)
        if w[a + L.S_ACTION] == L.ACT_MIGRATION:
            if mine(w, a, pte, L.P_MIGRATION):
                moved += unit
                if w[folio_of(w, r, gfn, pte) + L.FOLIO_STATE] >= L.F_REF_ONE:
                    busy = 1
        elif mine(w, a, pte, L.P_ABSENT) and pte >> L.P_GEN_SHIFT > 0 and (pte & (L.P_FILE | L.P_ZERO)) == 0:
            w[pte_address(w, r, gfn)] = pte | L.P_FREED
        gfn += unit
    if w[a + L.S_ACTION] != L.ACT_MIGRATION:
        over(w, a, t)
        return
    w[a + L.S_UNMAPPED] = busy
    if busy:
        count(w, a, L.K_HOST_OP_BUSY, 1)
        w[a + L.S_BUSY_TRIES] += 1
        schedule(w, a, L.PC_RESTORE, t + w[L.C_MIGRATE_BUSY_RETRY])
    else:
        schedule(w, a, L.PC_RESTORE, t + moved * private(w, a, L.PART_HOST_FAULT, w[L.C_COPY_4K]))


@jit
def restore(w, a):
    """remove_migration_ptes: the new frames, or the old ones where a reference in flight forbade the move."""
    t = w[L.NOW]
    r = region_of(w, w[a + L.VM], w[a + L.N_START])
    unit = 1 << (9 * (w[r + L.R_HOST_LEVEL] - 1))
    gfn = w[a + L.N_START]
    while gfn < w[a + L.N_END]:
        pte = peek_pte(w, r, gfn)
        if mine(w, a, pte, L.P_MIGRATION):
            addr = pte_address(w, r, gfn)
            if w[a + L.S_UNMAPPED]:
                w[addr] = (pte & ~(L.P_STATE | L.P_CLIENT_MASK)) | L.P_RW
            else:
                new_frame(w, a, r, addr, gfn, L.P_RW, 0)
        gfn += unit
    waiter = w[a + L.S_WAITERS]
    w[a + L.S_WAITERS] = 0
    while waiter != 0:
        following = w[waiter + L.NEXT]
        at = max(t, w[waiter + L.SINCE]) + w[L.C_SLEEP_WAKE]
        w[waiter + L.V_PARTS + L.PART_HOST_FAULT] += at - w[waiter + L.SINCE]
        schedule(w, waiter, L.PC_SLOW, at)
        waiter = following
    if w[a + L.S_UNMAPPED] and w[a + L.S_BUSY_TRIES] < BUSY_TRIES:
        w[a + L.S_UNIT_CURSOR] = -1
        invalidate(w, a, L.PC_START, L.PC_PTES, t)
    else:
        over(w, a, t)
