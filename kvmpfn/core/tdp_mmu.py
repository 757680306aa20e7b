"""KVM's own page tables: walked, allocated and zapped as the TDP MMU does (arch/x86/kvm/mmu/tdp_mmu.c)."""

from . import layout as L
from .events import bin_add, count
from .host_mm import allocate_words, folio_of, mark_page_accessed, pte_address, region_of, set_folio_dirty
from .jit import jit
from .lines import private, ride_add, ride_line, rmw_add, rmw_cas, store


@jit
def is_leaf(spte):
    """A present entry that maps memory."""
    return (spte & L.SPTE_PRESENT) != 0 and (spte & L.SPTE_TABLE) == 0


@jit
def lookup(w, vm, gfn):
    """Walk from the root to the lowest entry for a gfn: (entry's address, its line, its level)."""
    return lookup_above(w, vm, gfn, 1)


@jit
def lookup_above(w, vm, gfn, goal):
    """Walk from the root to the lowest entry for a gfn, but not below a level."""
    table = w[vm + L.ROOT]
    level = w[L.LEVELS]
    while True:
        index = (gfn >> (9 * (level - 1))) & 511
        entry = w[table + index]
        if level == goal or (entry & L.SPTE_TABLE) == 0:
            return table + index, table + L.TABLE_LINES + (index >> 3), level
        table = entry >> L.SPTE_PFN_SHIFT
        level -= 1


@jit
def next_leaf(w, vm, gfn, end):
    """The first leaf that maps something in [gfn, end): (address, line, level, gfn), gfn -1 if none."""
    while gfn < end:
        addr, line, level = lookup(w, vm, gfn)
        if is_leaf(w[addr]):
            return addr, line, level, gfn
        if level == 1:
            index = gfn & 511
            table = addr - index
            stop = min(512, index + end - gfn)
            while index < stop and not is_leaf(w[table + index]):
                index += 1
            gfn = (gfn & ~511) + index
            if index < stop:
                return table + index, table + L.TABLE_LINES + (index >> 3), 1, gfn
        else:
            shift = 9 * (level - 1)
            gfn = ((gfn >> shift) + 1) << shift
    return 0, 0, 0, -1


@jit
def update_page_stats(w, a, level, amount, t):
    """kvm_update_page_stats: an atomic add on the VM's one line of kvm->stat.pages[]."""
    count(w, a, L.K_PAGES_4K + level - 1, amount)
    return rmw_add(w, a, w[a + L.VM] + L.STAT_LINE, L.X_STAT_PAGES, L.PART_STAT_PAGES, t)


@jit
def ride_page_stats(w, a, level, amount, t):
    """One more kvm_update_page_stats in the same step."""
    count(w, a, L.K_PAGES_4K + level - 1, amount)
    return ride_add(w, a, w[a + L.VM] + L.STAT_LINE, L.X_STAT_PAGES, L.PART_STAT_PAGES, t)


@jit
def update_split_stats(w, a, level, t):
    """A huge leaf has become 512 smaller ones: both counts, on one line."""
    t = update_page_stats(w, a, level, -1, t)
    return ride_page_stats(w, a, level - 1, 512, t)


@jit
def has_volatile_bits(spte):
    """spte_has_volatile_bits: hardware or the fast path may change it under the writer."""
    if (spte & L.SPTE_MMU_W) != 0 and (spte & L.SPTE_W) == 0:
        return True
    if (spte & L.SPTE_A) == 0:
        return True
    return (spte & L.SPTE_W) != 0 and (spte & L.SPTE_D) == 0


@jit
def zapped_folio(w, a, gfn, spte):
    """The folio that zapping a leaf marks; 0 where the kernel leaves the struct page alone."""
    if not w[L.M_ZAP_MARKS_PAGE]:
        return 0
    if w[L.M_SPTE_BIT] != L.BIT_NONE and (spte & L.SPTE_REFCOUNTED) == 0:
        return 0
    r = region_of(w, w[a + L.VM], gfn)
    return folio_of(w, r, gfn, w[pte_address(w, r, gfn)])


@jit
def marks_page(w, a, gfn, spte):
    """Whether zapping this leaf touches its struct page."""
    marks = (spte & L.SPTE_D) != 0 or ((spte & L.SPTE_A) != 0 and w[L.LRU] != L.LRU_OFF)
    return marks and zapped_folio(w, a, gfn, spte) != 0


@jit
def propagate_accessed_dirty(w, a, gfn, spte, t):
    """What zapping a leaf does to its struct page."""
    folio = zapped_folio(w, a, gfn, spte)
    if folio == 0:
        return t
    if spte & L.SPTE_D:
        t = set_folio_dirty(w, a, folio, t)
    if spte & L.SPTE_A:
        t = mark_page_accessed(w, a, folio, t)
    return t


@jit
def zap_leaf(w, a, addr, line, level, t):
    """One leaf of tdp_mmu_zap_leafs, under mmu_lock for write: (what it was, time)."""
    spte = w[addr]
    if has_volatile_bits(spte):
        t = rmw_add(w, a, line, L.X_SPTE, L.PART_SPTE, t)
    else:
        t = store(w, a, line, L.PART_SPTE, t)
    w[addr] = 0
    t = update_page_stats(w, a, level, -1, t)
    count(w, a, L.K_ZAPPED, 1)
    bin_add(w, L.TL_ZAPPED, w[L.NOW], 1)
    return spte, t + private(w, a, L.PART_WALK, w[L.C_ZAP_LEAF])


@jit
def link_table(w, a, addr, line, expected, level, t):
    """tdp_mmu_link_sp: cmpxchg a new table into its parent entry; (won, time). Splits a huge leaf."""
    t = rmw_cas(w, a, line, L.X_PAGE_TABLE, L.PART_WALK, t)
    if w[addr] != expected:
        count(w, a, L.K_TABLES_LOST, 1)
        return False, t
    put_table(w, a, addr, level)
    return True, t


@jit
def put_table(w, a, addr, level):
    """A table in the place of an entry; a huge leaf there becomes 512 smaller ones with the same bits."""
    old = w[addr]
    table = allocate_table(w)
    if is_leaf(old):
        child = old
        if level == 2:
            child &= ~L.SPTE_HUGE
        for i in range(512):
            w[table + i] = child
        count(w, a, L.K_HUGE_SPLITS, 1)
    w[addr] = (table << L.SPTE_PFN_SHIFT) | L.SPTE_TABLE | L.SPTE_PRESENT
    count(w, a, L.K_TABLES_BUILT, 1)


@jit
def allocate_table(w):
    """An empty table: one that was freed, or new."""
    table = w[L.FREE_TABLES]
    if table == 0:
        return allocate_words(w, L.TABLE_WORDS)
    w[L.FREE_TABLES] = w[table]
    for i in range(L.TABLE_WORDS):
        w[table + i] = 0
    return table


@jit
def free_table(w, table):
    """Give a table back, as RCU does when no walk can see it (here they look again: `unlinked`)."""
    w[table] = w[L.FREE_TABLES]
    w[L.FREE_TABLES] = table


@jit
def remove_entries(w, a, table, first, t):
    """Freeze the eight entries of a line for good: (leaves among them, time).

    What they were stays beside SPTE_REMOVED, for the marks that are still to be made.
    """
    line = table + L.TABLE_LINES + (first >> 3)
    leaves = 0
    if w[L.M_EXCLUSIVE]:
        t = store(w, a, line, L.PART_SPTE, t)
    for i in range(first, first + 8):
        if not w[L.M_EXCLUSIVE]:
            if i == first:
                t = rmw_add(w, a, line, L.X_SPTE, L.PART_SPTE, t)
            else:
                t = ride_add(w, a, line, L.X_SPTE, L.PART_SPTE, t)
        old = w[table + i]
        if is_leaf(old):
            leaves += 1
            w[table + i] = (old & ~L.SPTE_PRESENT) | L.SPTE_REMOVED
        else:
            w[table + i] = L.SPTE_REMOVED
    return leaves, t


@jit
def removed_leaf_marks(w, a):
    """Whether one of the leaves that were in a replaced table touches its struct page."""
    if w[a + L.V_FOLIO] == 0 or not w[L.M_ZAP_MARKS_PAGE]:
        return False
    table = w[a + L.V_UNLINK]
    for i in range(512):
        if leaf_marks(w, w[table + i]):
            return True
    return False


@jit
def leaf_marks(w, spte):
    """Whether a leaf, by its own bits, would mark its page."""
    if w[L.M_SPTE_BIT] != L.BIT_NONE and (spte & L.SPTE_REFCOUNTED) == 0:
        return False
    return (spte & L.SPTE_D) != 0 or ((spte & L.SPTE_A) != 0 and w[L.LRU] != L.LRU_OFF)


@jit
def mark_removed_leaves(w, a, t):
    """The marks of all leaves of a replaced table, on the fault's folio."""
    table = w[a + L.V_UNLINK]
    for i in range(512):
        spte = w[table + i]
        if leaf_marks(w, spte):
            if spte & L.SPTE_D:
                t = set_folio_dirty(w, a, w[a + L.V_FOLIO], t)
            if spte & L.SPTE_A:
                t = mark_page_accessed(w, a, w[a + L.V_FOLIO], t)
    return t


@jit
def count_table(w, a, t):
    """A new table goes on a list under tdp_mmu_pages_lock (6.1), or into an atomic count."""
    line = w[a + L.VM] + L.TABLES_LINE
    if not w[L.M_TABLE_LIST_LOCK]:
        return rmw_add(w, a, line, L.X_PAGE_TABLE, L.PART_WALK, t)
    t = rmw_cas(w, a, line, L.X_PAGE_TABLE, L.PART_WALK, t)
    return ride_line(w, a, line, 0, t)  # the unlock's store


@jit
def make_spte(w, a, old, level, gen):
    """make_spte: the leaf that this fault would install.

    The dirty bit is left out where the old leaf was writable already: that is why, before the early
    SPURIOUS check, a second vCPU rewrote a leaf that was right (data/README.md).
    """
    spte = (gen << L.SPTE_PFN_SHIFT) | L.SPTE_PRESENT | L.SPTE_A
    if level > 1:
        spte |= L.SPTE_HUGE
    if level == 1 or not w[L.NX_HUGE_PAGES]:
        spte |= L.SPTE_X
    if w[a + L.V_WRITABLE]:
        spte |= L.SPTE_HOST_W | L.SPTE_MMU_W | L.SPTE_W
        if (old & L.SPTE_PRESENT) == 0 or (old & L.SPTE_W) == 0:
            spte |= L.SPTE_D
    if w[a + L.V_FOLIO] != 0:
        if w[L.M_SPTE_BIT] == L.BIT_ALL or (w[L.M_SPTE_BIT] == L.BIT_4K and level == 1):
            spte |= L.SPTE_REFCOUNTED
    return spte


@jit
def is_access_allowed(spte, kind):
    """is_access_allowed: the leaf grants this kind of access."""
    if not is_leaf(spte):
        return False
    if kind == L.WRITE:
        return (spte & L.SPTE_W) != 0
    if kind == L.EXEC:
        return (spte & L.SPTE_X) != 0
    return True


@jit
def every_page_mapped(w, vm, kind):
    """Whether each page of the VM has a leaf that grants this kind of access."""
    for i in range(w[vm + L.REGION_COUNT]):
        r = w[vm + L.REGIONS] + i * L.REGION_WORDS
        gfn = w[r + L.R_GFN]
        end = gfn + w[r + L.R_PAGES]
        while gfn < end:
            addr, _, level = lookup(w, vm, gfn)
            if not is_access_allowed(w[addr], kind):
                return False
            gfn = ((gfn >> (9 * (level - 1))) + 1) << (9 * (level - 1))
    return True
