"""What an operation does to the host's entries, between the notifier's start and end and after it.

Between start's return and end's call the entries change one by one in address order, under their page-table
locks.
"""

from . import layout as L
from .arrivals import over
from .events import call, count, schedule
from .host_locks import spin_lock
from .host_mm import (
    first_of_pte,
    folio_of,
    in_flight,
    is_anonymous,
    new_frame,
    peek_pte,
    pte_address,
    ptl_of,
    region_of,
    set_pte,
)
from .jit import jit
from .lines import private
from .mmu_notifier import invalidate

BUSY_TRIES = 10  # NR_MAX_MIGRATE_PAGES_RETRY, mm/migrate.c
PAGES_OF_PUD = 1 << 18


@jit
def next_range(w, a, gfn, t):
    """The operation's next notifier call, from `gfn` on: all of its span, or one a PUD (mm/mprotect.c)."""
    w[a + L.N_START] = gfn
    w[a + L.N_END] = w[a + L.S_END]
    action = w[a + L.S_ACTION]
    if action == L.ACT_NUMA or action == L.ACT_MPROTECT:
        w[a + L.N_END] = min(w[a + L.S_END], (gfn // PAGES_OF_PUD + 1) * PAGES_OF_PUD)
    w[a + L.S_PTE_CURSOR] = -1
    back_at = L.PC_COLLAPSE if action == L.ACT_KHUGEPAGED else L.PC_PTES
    invalidate(w, a, L.PC_START, back_at, t)


@jit
def wanted(w, a, r, pte):
    """Whether this action changes a host entry in this state."""
    state = pte & L.P_STATE
    action = w[a + L.S_ACTION]
    again = w[a + L.S_ROUND] == 1
    if action == L.ACT_MIGRATION or action == L.ACT_RECLAIM:
        return state == L.P_RW and is_anonymous(w, r) and (pte & L.P_COMPOUND) == 0
    if action == L.ACT_KSM:
        if again:
            return mine(w, a, pte, L.P_RO)
        return state == L.P_RW and is_anonymous(w, r) and (pte & L.P_COMPOUND) == 0
    if action == L.ACT_MPROTECT:
        return mine(w, a, pte, L.P_RO) if again else state == L.P_RW
    if action == L.ACT_FORK:
        return state == L.P_RW
    if action == L.ACT_NUMA:
        plain = (pte & (L.P_ZERO | L.P_KSM)) == 0 and w[r + L.R_BACKING] != L.B_DAX
        return plain and (state == L.P_RW or state == L.P_RO)
    return state == L.P_RW or state == L.P_RO or state == L.P_PROTNONE or state == L.P_SPECIAL


@jit
def moves_whole(action):
    """Operations that take a THP whole: they are not on a part of it."""
    return action == L.ACT_MIGRATION or action == L.ACT_FORK or action == L.ACT_AGE


@jit
def splits_all(action):
    """Operations that work on small pages only: they split a huge page whose part they are on."""
    return action == L.ACT_RECLAIM or action == L.ACT_KSM


@jit
def ptes(w, a):
    """Change the next host entry of the range when it is due; after the last, flush and call range_end."""
    t = w[L.NOW]
    r = region_of(w, w[a + L.VM], w[a + L.N_START])
    if w[a + L.S_PTE_CURSOR] < 0:
        w[a + L.S_PTE_CURSOR] = w[a + L.N_START]
        w[a + L.S_HOLD_T0] = t
        w[a + L.S_CHANGED] = 0
    start, end = w[a + L.N_START], w[a + L.N_END]
    gfn = w[a + L.S_PTE_CURSOR]
    unit = 1
    while gfn < end:
        first, unit = first_of_pte(w, r, gfn)
        whole = first == gfn and first + unit <= end and (unit == 1 or not splits_all(w[a + L.S_ACTION]))
        if whole and wanted(w, a, r, peek_pte(w, r, gfn)):
            break
        gfn = first + unit
    w[a + L.S_PTE_CURSOR] = gfn
    if gfn >= end:
        if w[a + L.HELD_PTL]:
            call(w, a, L.PC_PTL_UNLOCK, L.PC_PTES, t)
        elif w[a + L.S_CHANGED]:
            call(w, a, L.PC_HOST_FLUSH, L.PC_PTE_END, t)
        else:
            pte_end(w, a)
        return
    due = w[a + L.S_HOLD_T0] + w[a + L.S_HOLD] * (gfn - start) // (end - start)
    ptl = ptl_of(w, r, gfn)
    if due > t:
        schedule(w, a, L.PC_PTES, due)
    elif w[a + L.HELD_PTL] == ptl:
        change_pte(w, a, r, gfn, t)
        w[a + L.S_PTE_CURSOR] = gfn + unit
    elif w[a + L.HELD_PTL]:
        call(w, a, L.PC_PTL_UNLOCK, L.PC_PTES, t)
    else:
        spin_lock(w, a, ptl, L.PC_PTES, t)


@jit
def change_pte(w, a, r, gfn, t):
    """What the storm's action makes of a host entry."""
    addr = pte_address(w, r, gfn)
    action = w[a + L.S_ACTION]
    note = (w[a + L.ID] + 1) << L.P_CLIENT_SHIFT
    plain = w[addr] & ~(L.P_STATE | L.P_CLIENT_MASK)
    t_set = set_pte(w, a, r, gfn, t)
    if action == L.ACT_NUMA:
        w[addr] = plain | L.P_PROTNONE
    elif action == L.ACT_FORK:
        w[addr] = plain | L.P_RO
    elif action == L.ACT_MIGRATION or action == L.ACT_RECLAIM:
        w[addr] = plain | L.P_MIGRATION | note
    elif action == L.ACT_MADVISE:
        w[addr] = plain | L.P_ABSENT | note
    elif w[a + L.S_ROUND] == 0:  # mprotect, KSM
        w[addr] = plain | L.P_RO | note
    elif action == L.ACT_MPROTECT:
        w[addr] = plain | L.P_RW
    else:
        w[addr] = ((w[addr] >> L.P_GEN_SHIFT) + 1) << L.P_GEN_SHIFT | L.P_RO | L.P_KSM
        count(w, a, L.K_KSM_MERGES, 1)
    w[a + L.S_CHANGED] = 1
    schedule(w, a, L.PC_PTES, t_set)


@jit
def pte_end(w, a):
    """The entries are changed and flushed: range_end, not before the hold is over."""
    if w[a + L.S_ACTION] == L.ACT_KSM and w[a + L.S_ROUND] == 0:
        write_protect_page(w, a)
    invalidate(w, a, L.PC_END, L.PC_AFTER, max(w[L.NOW], w[a + L.S_HOLD_T0] + w[a + L.S_HOLD]))


@jit
def write_protect_page(w, a):
    """KSM gives a page up whose count says that somebody else uses it (mm/ksm.c)."""
    r = region_of(w, w[a + L.VM], w[a + L.N_START])
    for gfn in range(w[a + L.N_START], w[a + L.N_END]):
        pte = peek_pte(w, r, gfn)
        if mine(w, a, pte, L.P_RO) and referenced(w, r, gfn, pte):
            w[a + L.S_BUSY_NOW] = 1
    if not w[a + L.S_BUSY_NOW]:
        return
    count(w, a, L.K_HOST_OP_BUSY, 1)
    for gfn in range(w[a + L.N_START], w[a + L.N_END]):
        pte = peek_pte(w, r, gfn)
        if mine(w, a, pte, L.P_RO):
            w[pte_address(w, r, gfn)] = (pte & ~(L.P_STATE | L.P_CLIENT_MASK)) | L.P_RW


@jit
def referenced(w, r, gfn, pte):
    """Whether KVM holds a reference in flight to the folio of an entry."""
    return in_flight(w, folio_of(w, r, gfn, pte))


@jit
def mine(w, a, pte, state):
    """A host entry that this client brought into a state."""
    return (pte & L.P_STATE) == state and (pte & L.P_CLIENT_MASK) >> L.P_CLIENT_SHIFT == w[a + L.ID] + 1


@jit
def after(w, a):
    """range_end has returned: on with the next range or round, free what was unmapped, or move it."""
    t = w[L.NOW]
    action = w[a + L.S_ACTION]
    if w[a + L.N_END] < w[a + L.S_END]:
        next_range(w, a, w[a + L.N_END], t)
    elif action == L.ACT_MPROTECT and w[a + L.S_ROUND] == 0:
        second_round(w, a, t)
    elif action == L.ACT_KSM and w[a + L.S_ROUND] == 0 and w[a + L.S_CHANGED] and not w[a + L.S_BUSY_NOW]:
        second_round(w, a, t)
    elif action == L.ACT_MIGRATION or action == L.ACT_RECLAIM:
        move(w, a, t)
    else:
        if action == L.ACT_MADVISE:
            free_unmapped(w, a)
        over(w, a, t)


@jit
def second_round(w, a, t):
    """Mprotect allows writing again; KSM replaces the page that it has write-protected."""
    w[a + L.S_ROUND] = 1
    next_range(w, a, w[a + L.S_START], t)


@jit
def free_unmapped(w, a):
    """tlb_finish_mmu: frames of its own that are still unmapped go back to the allocator."""
    r = region_of(w, w[a + L.VM], w[a + L.S_START])
    kept = L.P_FILE | L.P_ZERO | L.P_KSM | L.P_COMPOUND
    gfn = w[a + L.S_START]
    while gfn < w[a + L.S_END]:
        first, unit = first_of_pte(w, r, gfn)
        pte = peek_pte(w, r, gfn)
        if mine(w, a, pte, L.P_ABSENT) and pte >> L.P_GEN_SHIFT > 0 and (pte & kept) == 0:
            w[pte_address(w, r, gfn)] = pte | L.P_FREED
        gfn = first + unit


@jit
def move(w, a, t):
    """migrate_pages, or the page-out of reclaim: not with a reference in flight (folio_ref_freeze)."""
    r = region_of(w, w[a + L.VM], w[a + L.N_START])
    moved = 0
    busy = 0
    gfn = w[a + L.N_START]
    while gfn < w[a + L.N_END]:
        first, unit = first_of_pte(w, r, gfn)
        pte = peek_pte(w, r, gfn)
        if mine(w, a, pte, L.P_MIGRATION):
            moved += unit
            if referenced(w, r, gfn, pte):
                busy = 1
        gfn = first + unit
    w[a + L.S_BUSY_NOW] = busy
    if busy:
        count(w, a, L.K_HOST_OP_BUSY, 1)
    if w[a + L.S_ACTION] == L.ACT_RECLAIM:
        restore(w, a)
    elif busy:
        w[a + L.S_BUSY_TRIES] += 1
        schedule(w, a, L.PC_RESTORE, t + w[L.C_MIGRATE_BUSY_RETRY])
    else:
        schedule(w, a, L.PC_RESTORE, t + moved * private(w, a, L.PART_HOST_FAULT, w[L.C_COPY_4K]))


@jit
def restore(w, a):
    """remove_migration_ptes: the new frames, or the old ones where a reference in flight forbade the move."""
    t = w[L.NOW]
    r = region_of(w, w[a + L.VM], w[a + L.N_START])
    gfn = w[a + L.N_START]
    while gfn < w[a + L.N_END]:
        first, unit = first_of_pte(w, r, gfn)
        pte = peek_pte(w, r, gfn)
        if mine(w, a, pte, L.P_MIGRATION):
            addr = pte_address(w, r, gfn)
            plain = pte & ~(L.P_STATE | L.P_CLIENT_MASK)
            if w[a + L.S_BUSY_NOW]:
                w[addr] = plain | L.P_RW
            elif w[a + L.S_ACTION] == L.ACT_RECLAIM:
                w[addr] = plain | L.P_ABSENT | L.P_SWAP | L.P_FREED
                count(w, a, L.K_SWAP_OUTS, 1)
            else:
                new_frame(w, a, r, addr, gfn, L.P_RW, 0)
        gfn = first + unit
    waiter = w[a + L.S_WAITERS]
    w[a + L.S_WAITERS] = 0
    while waiter != 0:
        following = w[waiter + L.NEXT]
        at = max(t, w[waiter + L.SINCE]) + w[L.C_SLEEP_WAKE]
        w[waiter + L.V_PARTS + L.PART_HOST_FAULT] += at - w[waiter + L.SINCE]
        schedule(w, waiter, L.PC_SLOW, at)
        waiter = following
    again = w[a + L.S_BUSY_NOW] != 0 and w[a + L.S_BUSY_TRIES] < BUSY_TRIES
    if again and w[a + L.S_ACTION] == L.ACT_MIGRATION:
        next_range(w, a, w[a + L.S_START], t)
    else:
        over(w, a, t)
