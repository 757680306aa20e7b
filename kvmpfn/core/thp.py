"""Transparent huge pages that do not stay: split when a part is unmapped, collapsed by khugepaged.

cut -> start -> split -> host_flush -> split_flushed -> end -> cut; khugepaged, mmap_lock held for writing:
start -> collapse -> host_flush -> collapse_flushed -> end -> after -> collapsed -> over (mm/huge_memory.c,
mm/khugepaged.c).
"""

from . import layout as L
from .arrivals import count_skipped, over
from .events import call, count, schedule
from .host_locks import spin_lock
from .host_mm import (
    allocate_words,
    first_of_pte,
    folio_in,
    folio_of,
    in_flight,
    new_frame,
    peek_pte,
    pmd_line,
    pmd_lock,
    region_of,
    split_table,
)
from .host_ops import moves_whole, next_range, splits_all, wanted
from .jit import jit
from .lines import charge, private, store, tally
from .mmu_notifier import invalidate


@jit
def pmd_slot(w, r, gfn):
    """Where the 2M entry of a gfn is."""
    return w[r + L.R_HOST] + ((gfn - w[r + L.R_GFN]) >> 9)


@jit
def has_pmd_lock(w, a, r, gfn, pc):
    """Whether the lock of the 2M entry of a gfn is held; if not, it is called for, then the step again."""
    lock = pmd_lock(w, r, gfn)
    if w[a + L.HELD_PTL] == lock:
        return True
    spin_lock(w, a, lock, pc, w[L.NOW])
    return False


@jit
def must_split(w, a, r, gfn):
    """Whether the operation has to split the 2M entry of a gfn before it can work on its span."""
    first, unit = first_of_pte(w, r, gfn)
    if unit == 1 or not wanted(w, a, r, peek_pte(w, r, gfn)):
        return False
    if splits_all(w[a + L.S_ACTION]):
        return True
    return first < w[a + L.S_START] or first + unit > w[a + L.S_END]


@jit
def next_cut(w, a, r):
    """The first 2M page that has to be split; -1 if there is none."""
    action = w[a + L.S_ACTION]
    if w[r + L.R_BACKING] != L.B_THP or moves_whole(action):
        return -1
    gfn, last = w[a + L.S_START], w[a + L.S_END] - 1
    if splits_all(action):
        while gfn <= last:
            if must_split(w, a, r, gfn):
                return first_of_pte(w, r, gfn)[0]
            gfn = w[r + L.R_GFN] + ((gfn - w[r + L.R_GFN]) | 511) + 1
        return -1
    if must_split(w, a, r, gfn):
        return first_of_pte(w, r, gfn)[0]
    if must_split(w, a, r, last):
        return first_of_pte(w, r, last)[0]
    return -1


@jit
def cut(w, a):
    """The huge pages that the operation cannot take whole are split, one after the other."""
    t = w[L.NOW]
    r = region_of(w, w[a + L.VM], w[a + L.S_START])
    if w[a + L.S_BUSY_NOW]:
        over(w, a, t)
        return
    gfn = next_cut(w, a, r)
    if gfn < 0:
        next_range(w, a, w[a + L.S_START], t)
        return
    w[a + L.N_START] = gfn
    w[a + L.N_END] = gfn + 512
    invalidate(w, a, L.PC_START, L.PC_SPLIT, t)


@jit
def end_range(w, a, after, t):
    """Drop the page-table lock, then call range_end, which comes back at `after`."""
    w[a + L.N_RETURN] = after
    call(w, a, L.PC_PTL_UNLOCK, L.PC_END, t)


@jit
def split(w, a):
    """__split_huge_pmd, and for reclaim and KSM split_huge_page: a table in the place of the 2M entry."""
    t = w[L.NOW]
    gfn = w[a + L.N_START]
    r = region_of(w, w[a + L.VM], gfn)
    if not has_pmd_lock(w, a, r, gfn, L.PC_SPLIT):
        return
    if not must_split(w, a, r, gfn):
        end_range(w, a, L.PC_CUT, t)
        return
    pte = peek_pte(w, r, gfn)
    folio = folio_of(w, r, gfn, pte)
    t = set_pmd(w, a, r, gfn, t)
    w[pmd_slot(w, r, gfn)] = spare_table(w, r, gfn) << L.P_GEN_SHIFT | L.P_SPLIT
    table = split_table(w, r, gfn)
    whole = not splits_all(w[a + L.S_ACTION])
    if not whole and in_flight(w, folio):
        count(w, a, L.K_HOST_OP_BUSY, 1)  # can_split_folio
        w[a + L.S_BUSY_NOW] = 1
        whole = True
    for i in range(512):
        w[table + i] = pte | L.P_COMPOUND if whole else pte
        own = table + L.TABLE_WORDS + i * L.FOLIO_WORDS
        if not whole:
            flags = w[folio + L.FOLIO_STATE] & L.F_FLAGS
            w[own + L.FOLIO_STATE] = (w[own + L.FOLIO_STATE] & ~L.F_FLAGS) | flags
    tally(w, a, L.X_HOST, 512)  # _mapcount of each page
    tally(w, a, L.X_HOST_FOLIO, 1)  # page_ref_add
    charge(w, a, L.PART_HOST_FAULT, 513 * w[L.C_OWN_ADD])
    count(w, a, L.K_THP_SPLITS, 1)
    call(w, a, L.PC_HOST_FLUSH, L.PC_SPLIT_FLUSHED, t + 513 * w[L.C_OWN_ADD])


@jit
def split_flushed(w, a):
    """No CPU has the huge translation any more."""
    end_range(w, a, L.PC_CUT, w[L.NOW])


@jit
def spare_table(w, r, gfn):
    """The table that a 2M page gets when it is split: always the same one."""
    spare = w[r + L.R_SPARE] + ((gfn - w[r + L.R_GFN]) >> 9)
    w[L.HOST_TABLES] += 1
    if w[spare] == 0:
        w[spare] = allocate_words(w, L.SPLIT_WORDS)
    return w[spare]


@jit
def set_pmd(w, a, r, gfn, t):
    """The store of a 2M entry and the work around it."""
    t = store(w, a, pmd_line(w, r, gfn), L.PART_HOST_FAULT, t)
    return t + private(w, a, L.PART_HOST_FAULT, w[L.C_HOST_PTE])


@jit
def split_table_of(w, a, r):
    """The table of the 2M page that khugepaged looks at; 0 if there is none."""
    return split_table(w, r, w[a + L.S_START])


@jit
def can_collapse(w, r, table):
    """hpage_collapse_scan_pmd: small pages, one of them writable, none on its way elsewhere."""
    if table == 0:
        return False
    writable = False
    for i in range(512):
        pte = w[table + i]
        if (pte & L.P_STATE) == L.P_MIGRATION or (pte & L.P_SWAP) != 0:
            return False
        if (pte & L.P_STATE) == L.P_RW:
            writable = True
    return writable


@jit
def collapse(w, a):
    """collapse_huge_page, mmap_lock held for writing: take the table of small pages out of the tree."""
    t = w[L.NOW]
    gfn = w[a + L.N_START]
    r = region_of(w, w[a + L.VM], gfn)
    if not has_pmd_lock(w, a, r, gfn, L.PC_COLLAPSE):
        return
    table = split_table(w, r, gfn)
    w[a + L.S_TABLE] = 0
    if not can_collapse(w, r, table):
        end_range(w, a, L.PC_AFTER, t)
        return
    w[a + L.S_TABLE] = table
    generation = 0
    for i in range(512):
        generation = max(generation, w[table + i] >> L.P_GEN_SHIFT)
    w[pmd_slot(w, r, gfn)] = generation << L.P_GEN_SHIFT | L.P_ABSENT
    call(w, a, L.PC_HOST_FLUSH, L.PC_COLLAPSE_FLUSHED, set_pmd(w, a, r, gfn, t))


@jit
def collapse_flushed(w, a):
    """pmdp_collapse_flush has returned; range_end comes before the copy."""
    end_range(w, a, L.PC_AFTER, w[L.NOW])


@jit
def isolate_and_copy(w, a, t):
    """__collapse_huge_page_isolate and _copy: not with a reference in flight, else 2 MiB are written."""
    if w[a + L.S_TABLE] == 0:
        count_skipped(w, a)
        over(w, a, t)
        return
    table = w[a + L.S_TABLE]
    gfn = w[a + L.N_START]
    r = region_of(w, w[a + L.VM], gfn)
    pages = 0
    for i in range(512):
        pte = w[table + i]
        if (pte & L.P_STATE) == L.P_ABSENT or (pte & L.P_ZERO) != 0:
            continue
        pages += 1
        if in_flight(w, folio_in(w, r, gfn + i, pte, table)):
            w[a + L.S_BUSY_NOW] = 1
    if w[a + L.S_BUSY_NOW]:
        count(w, a, L.K_HOST_OP_BUSY, 1)
    else:
        t += pages * private(w, a, L.PART_HOST_FAULT, w[L.C_COPY_4K])
        t += (512 - pages) * private(w, a, L.PART_HOST_FAULT, w[L.C_ZERO_4K])
    schedule(w, a, L.PC_COLLAPSED, t)


@jit
def collapsed(w, a):
    """set_huge_pmd, or the old table back where a page was busy."""
    t = w[L.NOW]
    gfn = w[a + L.N_START]
    r = region_of(w, w[a + L.VM], gfn)
    if not has_pmd_lock(w, a, r, gfn, L.PC_COLLAPSED):
        return
    table = w[a + L.S_TABLE]
    slot = pmd_slot(w, r, gfn)
    t = set_pmd(w, a, r, gfn, t)
    if w[a + L.S_BUSY_NOW]:
        w[slot] = table << L.P_GEN_SHIFT | L.P_SPLIT
    else:
        new_frame(w, a, r, slot, gfn, L.P_RW, 0)
        count(w, a, L.K_THP_COLLAPSES, 1)
        w[L.HOST_TABLES] -= 1
    call(w, a, L.PC_PTL_UNLOCK, L.PC_OVER, t)
