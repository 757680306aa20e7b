"""The host's side: page tables, folios, allocation and the LRU flags that decide what a mark costs.

A region's host tables hang off one word per 2 MiB (a table, a huge entry, or for thp either), or one per
1 GiB for 1 GiB hugetlb. Frames are told apart by a generation that grows with each frame an entry gets.
"""

from . import layout as L
from .events import back, count, fail, schedule
from .jit import jit, prefetch
from .lines import charge, private, ride_add, ride_line, rmw_add, rmw_cas, store, tally
from .notes import note_wait

HOST_FAULT_RMWS = 8
"""Locked instructions of the host's own in an anonymous fault, besides mmap_lock and page-table locks: 6.6
were counted site by site on 6.1, 9.3 on 6.16 (data/recordings/lock_sites.csv)."""


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
def split_table(w, r, gfn):
    """The host table of a 2M page of thp that is split; 0 if it is not."""
    if w[r + L.R_BACKING] != L.B_THP:
        return 0
    slot = w[w[r + L.R_HOST] + ((gfn - w[r + L.R_GFN]) >> 9)]
    return slot >> L.P_GEN_SHIFT if slot & L.P_SPLIT else 0


@jit
def host_level(w, r, gfn):
    """host_pfn_mapping_level: the level of the host entry that maps a gfn."""
    return 1 if split_table(w, r, gfn) else w[r + L.R_HOST_LEVEL]


@jit
def first_of_pte(w, r, gfn):
    """The first gfn that the host entry of a gfn maps, and how many it maps."""
    unit = 1 << (9 * (host_level(w, r, gfn) - 1))
    rel = gfn - w[r + L.R_GFN]
    return gfn - rel % unit, unit


@jit
def pte_address(w, r, gfn):
    """The host entry that maps a gfn, its table made if there is none yet."""
    rel = gfn - w[r + L.R_GFN]
    if w[r + L.R_HOST_LEVEL] == 3:
        return w[r + L.R_HOST] + (rel >> 18)
    slot = w[r + L.R_HOST] + (rel >> 9)
    if w[r + L.R_HOST_LEVEL] == 2:
        table = split_table(w, r, gfn)
        return table + (rel & 511) if table else slot
    if w[slot] == 0:
        w[slot] = allocate_words(w, L.TABLE_WORDS)
        w[L.HOST_TABLES] += 1
    return w[slot] + (rel & 511)


@jit
def pte_line(w, r, gfn):
    """The cache line of that entry."""
    rel = gfn - w[r + L.R_GFN]
    if w[r + L.R_HOST_LEVEL] == 3:
        return w[r + L.R_HOST_LINES] + (rel >> 21)
    table = 0
    if w[r + L.R_HOST_LEVEL] == 2:
        table = split_table(w, r, gfn)
        if table == 0:
            return pmd_line(w, r, gfn)
    else:
        table = w[w[r + L.R_HOST] + (rel >> 9)]
    return table + L.TABLE_LINES + ((rel & 511) >> 3)


@jit
def pmd_line(w, r, gfn):
    """The cache line of the 2M entry of a gfn."""
    return w[r + L.R_HOST_LINES] + ((gfn - w[r + L.R_GFN]) >> 12)


@jit
def ptl_of(w, r, gfn):
    """The page-table lock: per 2 MiB of hva for 4K entries, per PMD page (1 GiB) for 2M, per mm for 1G."""
    rel = gfn - w[r + L.R_GFN]
    if w[r + L.R_HOST_LEVEL] == 1:
        return w[w[r + L.R_HOST] + (rel >> 9)] + L.TABLE_PTL
    if w[r + L.R_HOST_LEVEL] == 2:
        table = split_table(w, r, gfn)
        return table + L.TABLE_PTL if table else pmd_lock(w, r, gfn)
    return w[r + L.R_PTLS]


@jit
def pmd_lock(w, r, gfn):
    """The page-table lock of the 2M entry of a gfn."""
    return w[r + L.R_PTLS] + ((gfn - w[r + L.R_GFN]) >> 18) * L.PTL_WORDS


@jit
def folio_of(w, r, gfn, pte):
    """The folio behind a host entry; 0 where there is none whose count may be touched."""
    return folio_in(w, r, gfn, pte, split_table(w, r, gfn))


@jit
def folio_in(w, r, gfn, pte, split):
    """`folio_of` for a 2M page whose table, if it is a split one, is `split`."""
    backing = w[r + L.R_BACKING]
    if backing == L.B_PFNMAP or backing == L.B_TAIL_PAGES:
        return 0
    rel = gfn - w[r + L.R_GFN]
    if pte & L.P_ZERO:
        return w[L.ZERO_FOLIO]
    if pte & L.P_KSM:
        return w[r + L.R_KSM_FOLIOS] + (rel >> w[r + L.R_KSM_SHIFT]) * L.FOLIO_WORDS
    if pte & L.P_FILE:
        return w[r + L.R_FILE_FOLIOS] + (rel >> w[r + L.R_ORDER]) * L.FOLIO_WORDS
    if split != 0 and (pte & L.P_COMPOUND) == 0:
        return split + L.TABLE_WORDS + (rel & 511) * L.FOLIO_WORDS
    order = w[r + L.R_ORDER]
    if backing == L.B_PAGE_CACHE:
        order = 0  # a private copy
    return w[r + L.R_FOLIOS] + (rel >> order) * L.FOLIO_WORDS


@jit
def is_anonymous(w, r):
    """Private memory without a file; what KSM, swap and migration move."""
    return w[r + L.R_BACKING] <= L.B_THP


@jit
def is_file(w, r):
    """Memory that maps a file: page cache, or DAX."""
    backing = w[r + L.R_BACKING]
    return backing == L.B_PAGE_CACHE or backing == L.B_DAX


@jit
def is_pfnmap(w, r):
    """A VM_PFNMAP area: check_vma_flags refuses it to GUP."""
    backing = w[r + L.R_BACKING]
    return backing == L.B_PFNMAP or backing == L.B_PFNMAP_STRUCT_PAGE or backing == L.B_TAIL_PAGES


@jit
def in_flight(w, folio):
    """Whether KVM holds a reference in flight to a folio."""
    return w[folio + L.FOLIO_STATE] >= L.F_REF_ONE


@jit
def new_frame(w, a, r, addr, gfn, state, file):
    """Point a host entry at a frame of its own (or of the file), one generation on."""
    pte = ((w[addr] >> L.P_GEN_SHIFT) + 1) << L.P_GEN_SHIFT | state
    if file:
        pte |= L.P_FILE
    w[addr] = pte
    folio = folio_of(w, r, gfn, pte)
    if folio != 0 and not file and state == L.P_RW:  # neither the zero page nor a driver's own page is made
        w[folio + L.FOLIO_STATE] &= L.F_TOGGLES | ~L.F_FLAGS
        if not in_flight(w, folio):
            # Allocating and mapping it has brought its struct page to this CPU.
            w[folio + L.FOLIO_LINE] = (w[L.NOW] << L.OWNER_BITS) | (w[a + L.CPU] + 1)


@jit
def _resource(w, a, free, hold, t):
    """Use something that one thread of a socket has at a time, in the order of asking; when it is done."""
    if w[free] > t:
        note_wait(w, a, free, 0, t, w[free])
    w[free] = max(t, w[free]) + hold
    charge(w, a, L.PART_HOST_FAULT, w[free] - t)
    return w[free]


@jit
def alloc(w, a):
    """alloc_pages: the host's own atomics; every pcp batch the zone lock (rmqueue_bulk)."""
    t = w[L.NOW]
    tally(w, a, L.X_HOST, HOST_FAULT_RMWS)
    w[a + L.V_PCP] += w[a + L.V_PAGES]
    if w[a + L.V_PCP] >= w[L.C_ZONE_LOCK_BATCH]:
        w[a + L.V_PCP] = 0
        t = _resource(w, a, w[L.SOCKETS] + 3 * w[a + L.SOCKET], w[L.C_ZONE_LOCK_HOLD], t)
        tally(w, a, L.X_HOST, 1)
    schedule(w, a, L.PC_FILL, t)


@jit
def fill_pages(w, a, t):
    """Zero or copy pages on this CPU, no faster than the socket's memory can write."""
    pages = w[a + L.V_PAGES]
    each = w[L.C_COPY_4K] if w[a + L.V_COPY] else w[L.C_ZERO_4K]
    bandwidth = w[L.SOCKETS] + 3 * w[a + L.SOCKET] + 1
    w[bandwidth] = max(t, w[bandwidth]) + pages * w[L.C_ZERO_BANDWIDTH_4K]
    alone = t + pages * each * w[a + L.SMT] // 100
    done = max(alone, w[bandwidth])
    if done > alone:
        note_wait(w, a, bandwidth, 0, alone, done)
    charge(w, a, L.PART_HOST_FAULT, done - t)
    return done


@jit
def lru_batch_full(w, a):
    """folio_add_lru: one more folio in the CPU's batch; True when it has to be drained."""
    w[a + L.V_LRU] += 1
    if w[a + L.V_LRU] < w[L.C_LRU_BATCH]:
        return False
    w[a + L.V_LRU] = 0
    return True


@jit
def drain_lru_batch(w, a, t):
    """folio_batch_move_lru under the lruvec's lock."""
    tally(w, a, L.X_HOST, 1)
    return _resource(w, a, w[L.SOCKETS] + 3 * w[a + L.SOCKET] + 2, w[L.C_LRU_LOCK_HOLD], t)


@jit
def folio_add(w, a, folio, kind, t):
    """An atomic on a folio's line: the step's first asks for the line, the others ride."""
    if t == w[L.NOW]:
        return rmw_add(w, a, folio + L.FOLIO_LINE, kind, L.PART_FOLIO, t)
    return ride_add(w, a, folio + L.FOLIO_LINE, kind, L.PART_FOLIO, t)


@jit
def set_folio_dirty(w, a, folio, t):
    """SetPageDirty: one RMW, set already or not; a reserved page is left alone (kvm_is_ad_tracked_page)."""
    if w[folio + L.FOLIO_STATE] & L.F_RESERVED:
        return t
    w[folio + L.FOLIO_STATE] |= L.F_DIRTY
    return folio_add(w, a, folio, L.X_FOLIO, t)


@jit
def mark_page_accessed(w, a, folio, t):
    """folio_mark_accessed (mm/swap.c): 0 to 2 RMWs, by the LRU kind and the folio's flags."""
    state = w[folio + L.FOLIO_STATE]
    if w[L.LRU] == L.LRU_OFF or state & L.F_RESERVED:
        return t
    if (state & L.F_REFERENCED) == 0:
        w[folio + L.FOLIO_STATE] = state | L.F_REFERENCED
    elif state & L.F_TOGGLES:  # a hugetlb head is on no LRU: REFERENCED is cleared again
        w[folio + L.FOLIO_STATE] = state & ~L.F_REFERENCED
    elif w[L.LRU] == L.LRU_MGLRU:
        if (state & L.F_WORKINGSET) != 0 and (state & L.F_LRU_REFS) == L.F_LRU_REFS:
            return t
        if state & L.F_WORKINGSET:
            w[folio + L.FOLIO_STATE] = state + (1 << L.F_LRU_REFS_SHIFT)
            return folio_cas(w, a, folio, t)
        w[folio + L.FOLIO_STATE] = state | L.F_WORKINGSET
    elif state & L.F_ACTIVE:
        return t
    else:
        # Activation: set or get now and clear PG_referenced; a folio on the LRU costs four more host RMWs
        # when the CPU's batch drains.
        w[folio + L.FOLIO_STATE] = (state | L.F_ACTIVE) & ~L.F_REFERENCED
        t = folio_add(w, a, folio, L.X_FOLIO, t)
        if state & L.F_ON_LRU:
            tally(w, a, L.X_HOST_FOLIO, 4)
    return folio_add(w, a, folio, L.X_FOLIO, t)


@jit
def folio_cas(w, a, folio, t):
    """A cmpxchg on a folio's flags: the step's first asks for the line, the others ride."""
    line = folio + L.FOLIO_LINE
    if t == w[L.NOW]:
        return rmw_cas(w, a, line, L.X_FOLIO, L.PART_FOLIO, t)
    tally(w, a, L.X_FOLIO, 1)
    done = ride_line(w, a, line, w[L.C_OWN_CAS], t)
    charge(w, a, L.PART_FOLIO, done - t)
    return done


@jit
def map_folio(w, a, folio, t):
    """The host maps a file folio: reference and mapcount, two RMWs on the folio's line."""
    t = rmw_add(w, a, folio + L.FOLIO_LINE, L.X_HOST_FOLIO, L.PART_HOST_FAULT, t)
    return ride_add(w, a, folio + L.FOLIO_LINE, L.X_HOST_FOLIO, L.PART_HOST_FAULT, t)


@jit
def around(w, r, gfn, after):
    """do_fault_around: the next absent entry behind `after` in the window of a gfn; -1 if there is none."""
    base = w[r + L.R_GFN]
    window = max(1, w[r + L.R_FAULT_AROUND])
    rel = gfn - base
    first = max(rel - rel % window, rel - rel % 512)
    stop = min(min(first + window, rel - rel % 512 + 512), w[r + L.R_PAGES])
    for other in range(base + max(first, after + 1 - base), base + stop):
        if other != gfn and (w[pte_address(w, r, other)] & L.P_STATE) == L.P_ABSENT:
            return other
    return -1


@jit
def set_pte(w, a, r, gfn, t):
    """The store of a host entry and the work around it."""
    t = store(w, a, pte_line(w, r, gfn), L.PART_HOST_FAULT, t)
    return t + private(w, a, L.PART_HOST_FAULT, w[L.C_HOST_PTE])


@jit
def host_flush(w, a):
    """flush_tlb_mm_range: the host's own shootdown interrupts the CPUs that run the VM, beside KVM's."""
    vm = w[a + L.VM]
    t = w[L.NOW]
    interrupted = 0
    ipi = 0
    who = 0
    for i in range(w[vm + L.VCPU_TOTAL]):
        v = w[vm + L.VCPUS] + i * L.VCPU_WORDS
        if w[v + L.FINISHED] or v == a:
            continue
        interrupted += 1
        takes = w[L.C_IPI_SOCKET if w[v + L.SOCKET] == w[a + L.SOCKET] else L.C_IPI_REMOTE]
        if takes > ipi:
            ipi = takes
            who = w[v + L.CPU] + 1
        if w[v + L.PC] == L.PC_ACCESS:
            w[v + L.V_OWED] += w[L.C_EXIT] + w[L.C_FLUSH_TLB] + w[L.C_ENTRY]
    if interrupted > 0:
        count(w, a, L.K_HOST_IPIS, interrupted)
        t += private(w, a, L.PART_HOST_FAULT, w[L.C_IPI_SEND])
        charge(w, a, L.PART_HOST_FAULT, ipi)
        note_wait(w, a, 0, who, t, t + ipi)
    back(w, a, t + ipi)


@jit
def peek_pte(w, r, gfn):
    """The host entry of a gfn; 0 where there is no table for it yet."""
    if w[r + L.R_HOST_LEVEL] == 1 and w[w[r + L.R_HOST] + ((gfn - w[r + L.R_GFN]) >> 9)] == 0:
        return 0
    return w[pte_address(w, r, gfn)]


@jit
def prefetch_page(w, vm, gfn):
    """Ask for what GUP will look at, an exit ahead: the host entry, its line and its folio, if they exist."""
    r = region_of(w, vm, gfn)
    rel = gfn - w[r + L.R_GFN]
    if w[r + L.R_HOST_LEVEL] == 1:
        table = w[w[r + L.R_HOST] + (rel >> 9)]
        if table != 0:
            prefetch(w, table + (rel & 511))
            prefetch(w, table + L.TABLE_LINES + ((rel & 511) >> 3))
            prefetch(w, w[r + L.R_FOLIOS] + rel * L.FOLIO_WORDS)
