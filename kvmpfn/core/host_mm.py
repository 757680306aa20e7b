"""The host's side: page tables, folios, allocation and the LRU flags that decide what a mark costs.

A region's host tables hang off one word per 2 MiB (a table, or a huge entry), or one per 1 GiB for
1 GiB hugetlb. Frames are told apart by a generation that grows with each frame an entry gets.
"""

from . import layout as L
from .events import count, fail
from .jit import jit
from .lines import charge, private, rmw_add, rmw_cas, rmw_cas_loop, store, tally

HOST_FAULT_RMWS = 10
"""Locked instructions of the host's own in an anonymous fault, besides mmap_lock and page-table locks:
about 15 counted on a real kernel (data/README.md) less the five that are modelled one by one."""


@jit
def allocate_words(w, words):
    """The next free words of the arena."""
    at = w[L.BUMP]
    if at + words > w[L.LIMIT]:
        fail(w, 1, at)
        return w[L.BUMP] - words
    w[L.BUMP] = at + words
    return at


@jit
def region_of(w, vm, gfn):
    """The memslot of a gfn (gfn_to_memslot)."""
    r = w[vm + L.REGIONS]
    for _ in range(w[vm + L.REGION_COUNT] - 1):
        if gfn < w[r + L.R_GFN] + w[r + L.R_PAGES]:
            return r
        r += L.REGION_WORDS
    return r


@jit
def gfn_of_page(w, vm, page):
    """The gfn of the VM's n-th page of memory, over all its regions."""
    r = w[vm + L.REGIONS]
    for _ in range(w[vm + L.REGION_COUNT] - 1):
        if page < w[r + L.R_FIRST] + w[r + L.R_PAGES]:
            break
        r += L.REGION_WORDS
    return w[r + L.R_GFN] + page - w[r + L.R_FIRST]


@jit
def pte_address(w, r, gfn):
    """The host entry that maps a gfn, its table made if there is none yet."""
    rel = gfn - w[r + L.R_GFN]
    if w[r + L.R_HOST_LEVEL] == 3:
        return w[r + L.R_HOST] + (rel >> 18)
    slot = w[r + L.R_HOST] + (rel >> 9)
    if w[r + L.R_HOST_LEVEL] == 2:
        return slot
    if w[slot] == 0:
        w[slot] = allocate_words(w, L.TABLE_WORDS)
    return w[slot] + (rel & 511)


@jit
def pte_line(w, r, gfn):
    """The cache line of that entry."""
    rel = gfn - w[r + L.R_GFN]
    if w[r + L.R_HOST_LEVEL] == 3:
        return w[r + L.R_HOST_LINES] + (rel >> 21)
    if w[r + L.R_HOST_LEVEL] == 2:
        return w[r + L.R_HOST_LINES] + (rel >> 12)
    return w[w[r + L.R_HOST] + (rel >> 9)] + L.TABLE_LINES + ((rel & 511) >> 3)


@jit
def ptl_of(w, r, gfn):
    """The page-table lock: per 2 MiB of hva for 4K entries, per PMD page (1 GiB) for 2M, per mm for 1G."""
    rel = gfn - w[r + L.R_GFN]
    if w[r + L.R_HOST_LEVEL] == 1:
        return w[w[r + L.R_HOST] + (rel >> 9)] + L.TABLE_PTL
    if w[r + L.R_HOST_LEVEL] == 2:
        return w[r + L.R_PTLS] + (rel >> 18) * L.PTL_WORDS
    return w[r + L.R_PTLS]


@jit
def folio_of(w, r, gfn, pte):
    """The folio behind a host entry; 0 where there is none whose count may be touched."""
    backing = w[r + L.R_BACKING]
    if backing == L.B_PFNMAP or backing == L.B_TAIL_PAGES:
        return 0
    rel = gfn - w[r + L.R_GFN]
    if pte & L.P_ZERO:
        return w[L.ZERO_FOLIO]
    if pte & L.P_FILE:
        return w[r + L.R_FILE_FOLIOS] + (rel >> w[r + L.R_ORDER]) * L.FOLIO_WORDS
    order = w[r + L.R_ORDER]
    if backing == L.B_PAGE_CACHE:
        order = 0  # a private copy
    return w[r + L.R_FOLIOS] + (rel >> order) * L.FOLIO_WORDS


@jit
def new_frame(w, r, addr, gfn, state, file):
    """Point a host entry at a frame of its own (or of the file), one generation on."""
    pte = ((w[addr] >> L.P_GEN_SHIFT) + 1) << L.P_GEN_SHIFT | state
    if file:
        pte |= L.P_FILE
    w[addr] = pte
    folio = folio_of(w, r, gfn, pte)
    if folio != 0 and not file:
        w[folio + L.FOLIO_STATE] &= L.F_TOGGLES | ~((1 << 32) - 1)
        if w[folio + L.FOLIO_STATE] < L.F_REF_ONE:
            w[folio + L.FOLIO_LINE] = 0


@jit
def allocate_pages(w, a, pages, t):
    """Take pages from the allocator: private work, a zone lock every pcp batch, an LRU lock every batch."""
    socket = w[L.SOCKETS] + 3 * w[a + L.SOCKET]
    t += private(w, a, L.PART_HOST_FAULT, w[L.C_HOST_FAULT])
    tally(w, a, L.X_HOST, HOST_FAULT_RMWS)
    w[a + L.V_PCP] += pages
    if w[a + L.V_PCP] >= w[L.C_ZONE_LOCK_BATCH]:
        w[a + L.V_PCP] = 0
        grant = max(t, w[socket])
        w[socket] = grant + w[L.C_ZONE_LOCK_HOLD]
        charge(w, a, L.PART_HOST_FAULT, w[socket] - t)
        t = w[socket]
        tally(w, a, L.X_HOST, 1)
    w[a + L.V_LRU] += 1
    if w[a + L.V_LRU] >= w[L.C_LRU_BATCH]:
        w[a + L.V_LRU] = 0
        grant = max(t, w[socket + 2])
        w[socket + 2] = grant + w[L.C_ZONE_LOCK_HOLD]
        charge(w, a, L.PART_HOST_FAULT, w[socket + 2] - t)
        t = w[socket + 2]
        tally(w, a, L.X_HOST, 1)
    return t


@jit
def fill_pages(w, a, pages, each, t):
    """Zero or copy pages: `each` a page on this CPU, no faster than the socket's memory can write."""
    socket = w[L.SOCKETS] + 3 * w[a + L.SOCKET]
    begin = max(t, w[socket + 1])
    w[socket + 1] = begin + pages * w[L.C_ZERO_BANDWIDTH_4K]
    done = max(t + pages * each * w[a + L.SMT] // 100, w[socket + 1])
    charge(w, a, L.PART_HOST_FAULT, done - t)
    return done


@jit
def get_folio(w, a, folio, fast, t):
    """Take the fault's reference: GUP-fast's cmpxchg loop and PG_referenced, or slow GUP's plain add."""
    w[a + L.V_FOLIO] = folio
    if w[L.M_REFERENCE] == L.REF_NONE:
        return t
    if fast:
        t = rmw_cas_loop(w, a, folio + L.FOLIO_LINE, L.X_FOLIO, L.PART_FOLIO, t)
    else:
        t = rmw_add(w, a, folio + L.FOLIO_LINE, L.X_FOLIO, L.PART_FOLIO, t)
    w[a + L.V_REF] = 1
    w[a + L.V_REF_T0] = t
    w[folio + L.FOLIO_STATE] += L.F_REF_ONE
    count(w, a, L.K_GETS, 1)
    if fast:
        t = rmw_add(w, a, folio + L.FOLIO_LINE, L.X_FOLIO, L.PART_FOLIO, t)
        w[folio + L.FOLIO_STATE] |= L.F_REFERENCED
    return t


@jit
def put_folio(w, a, t):
    """put_page, if the fault holds a reference."""
    if w[a + L.V_REF] == 0:
        return t
    folio = w[a + L.V_FOLIO]
    t = rmw_add(w, a, folio + L.FOLIO_LINE, L.X_FOLIO, L.PART_FOLIO, t)
    w[a + L.V_REF] = 0
    w[folio + L.FOLIO_STATE] -= L.F_REF_ONE
    count(w, a, L.K_PUTS, 1)
    count(w, a, L.K_REFERENCE_HOLD_PS, t - w[a + L.V_REF_T0])
    return t


@jit
def set_folio_dirty(w, a, folio, t):
    """SetPageDirty: one RMW, set already or not."""
    w[folio + L.FOLIO_STATE] |= L.F_DIRTY
    return rmw_add(w, a, folio + L.FOLIO_LINE, L.X_FOLIO, L.PART_FOLIO, t)


@jit
def mark_page_accessed(w, a, folio, t):
    """folio_mark_accessed (mm/swap.c): 0 to 2 RMWs, by the LRU kind and the folio's flags."""
    if w[L.LRU] == L.LRU_OFF:
        return t
    line = folio + L.FOLIO_LINE
    state = w[folio + L.FOLIO_STATE]
    if state & L.F_UNEVICTABLE:
        return t
    if (state & L.F_REFERENCED) == 0:
        w[folio + L.FOLIO_STATE] = state | L.F_REFERENCED
        return rmw_add(w, a, line, L.X_FOLIO, L.PART_FOLIO, t)
    if state & L.F_TOGGLES:  # a hugetlb head is on no LRU: REFERENCED is cleared again
        w[folio + L.FOLIO_STATE] = state & ~L.F_REFERENCED
        return rmw_add(w, a, line, L.X_FOLIO, L.PART_FOLIO, t)
    if w[L.LRU] == L.LRU_MGLRU:
        if (state & L.F_WORKINGSET) == 0:
            w[folio + L.FOLIO_STATE] = state | L.F_WORKINGSET
            return rmw_add(w, a, line, L.X_FOLIO, L.PART_FOLIO, t)
        if (state & L.F_LRU_REFS) != L.F_LRU_REFS:
            w[folio + L.FOLIO_STATE] = state + (1 << L.F_LRU_REFS_SHIFT)
            return rmw_cas(w, a, line, L.X_FOLIO, L.PART_FOLIO, t)
        return t
    if state & L.F_ACTIVE:
        return t
    # Activation: set or get now and clear PG_referenced; a folio on the LRU costs four more host RMWs
    # when the CPU's batch drains.
    w[folio + L.FOLIO_STATE] = (state | L.F_ACTIVE) & ~L.F_REFERENCED
    t = rmw_add(w, a, line, L.X_FOLIO, L.PART_FOLIO, t)
    if state & L.F_ON_LRU:
        tally(w, a, L.X_HOST_FOLIO, 4)
    return rmw_add(w, a, line, L.X_FOLIO, L.PART_FOLIO, t)


@jit
def host_folio_add(w, a, folio, t):
    """The host maps a file folio: reference and mapcount, two RMWs on the folio's line."""
    t = rmw_add(w, a, folio + L.FOLIO_LINE, L.X_HOST_FOLIO, L.PART_HOST_FAULT, t)
    return rmw_add(w, a, folio + L.FOLIO_LINE, L.X_HOST_FOLIO, L.PART_HOST_FAULT, t)


@jit
def fault_around(w, a, r, gfn, t):
    """do_fault_around: map the present page-cache pages of the aligned window; two RMWs a page."""
    state = L.P_RO if w[r + L.R_PRIVATE] else L.P_RW
    window = max(1, w[r + L.R_FAULT_AROUND])
    first = gfn - (gfn - w[r + L.R_GFN]) % window
    for other in range(first, min(first + window, w[r + L.R_GFN] + w[r + L.R_PAGES])):
        addr = pte_address(w, r, other)
        if (w[addr] & L.P_STATE) == L.P_ABSENT and other != gfn:
            new_frame(w, r, addr, other, state, 1)
            folio = folio_of(w, r, other, w[addr])
            t = host_folio_add(w, a, folio, t)
    return t


@jit
def set_pte(w, a, r, gfn, t):
    """The store of a host entry and the work around it."""
    t = store(w, a, pte_line(w, r, gfn), L.PART_HOST_FAULT, t)
    return t + private(w, a, L.PART_HOST_FAULT, w[L.C_HOST_PTE])


@jit
def peek_pte(w, r, gfn):
    """The host entry of a gfn; 0 where there is no table for it yet."""
    if w[r + L.R_HOST_LEVEL] == 1 and w[w[r + L.R_HOST] + ((gfn - w[r + L.R_GFN]) >> 9)] == 0:
        return 0
    return w[pte_address(w, r, gfn)]
