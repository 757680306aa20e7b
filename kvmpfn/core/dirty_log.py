"""Dirty logging: the bitmap, hardware's page-modification log, and who reads and clears the bits.

A fault sets a bit (mark_page_dirty_in_slot); with PML a guest's first write to a page only notes it in the
vCPU's buffer, which every exit empties. KVM_CLEAR_DIRTY_LOG takes mmu_lock for writing over the whole call:
idle -> [sync_dirty_log] -> write_lock -> [clear_dirty -> [clear_leaf -> [clear_mark]]*]* -> write_unlock ->
cleared -> [flush] -> done.
"""

from . import layout as L
from .events import back, call, count, schedule
from .host_mm import region_of, set_folio_dirty
from .jit import jit
from .lines import local_barrier, outside_fault, private, ride_add, rmw_add, store
from .tdp_mmu import (
    count_table,
    has_volatile_bits,
    is_leaf,
    lookup,
    put_table,
    update_split_stats,
    zapped_folio,
)


@jit
def dirty_line(w, r, gfn):
    """The line of the dirty bitmap that holds a page's bit; 512 pages have one."""
    return w[r + L.R_BITMAP] + ((gfn - w[r + L.R_GFN]) >> 9) * L.BITMAP_WORDS


@jit
def dirty_word(w, r, gfn):
    """Where the 32 bits are that a page's bit is one of."""
    return dirty_line(w, r, gfn) + 1 + (((gfn - w[r + L.R_GFN]) >> 5) & 15)


@jit
def set_dirty_bit(w, r, gfn):
    """Note that a page was written."""
    w[dirty_word(w, r, gfn)] |= 1 << ((gfn - w[r + L.R_GFN]) & 31)


@jit
def set_all_dirty(w, r):
    """KVM_DIRTY_LOG_INITIALLY_SET: every page counts as written."""
    for rel in range(0, w[r + L.R_PAGES], 32):
        w[dirty_word(w, r, w[r + L.R_GFN] + rel)] = (1 << min(32, w[r + L.R_PAGES] - rel)) - 1


@jit
def mark_page_dirty_in_slot(w, a, gfn, t):
    """set_bit_le in the dirty bitmap, a line of which covers 512 pages."""
    r = region_of(w, w[a + L.VM], gfn)
    set_dirty_bit(w, r, gfn)
    return rmw_add(w, a, dirty_line(w, r, gfn), L.X_DIRTY_BITMAP, L.PART_DIRTY_LOG, t)


@jit
def logs_write(w, a, spte, level):
    """Hardware logs a write that sets D; True if the buffer is full, and the write has to wait."""
    if level > 1 or w[a + L.V_KIND] != L.WRITE or (spte & L.SPTE_D) != 0:
        return False
    n = w[a + L.V_PML_COUNT]
    if n == L.PML_ENTRIES:
        count(w, a, L.K_PML_FULL, 1)
        return True
    w[w[a + L.V_PML] + n] = w[a + L.V_GFN]
    w[a + L.V_PML_COUNT] = n + 1
    return False


@jit
def pml_flush(w, a):
    """vmx_flush_pml_buffer: the oldest page's bit, and those after it on the same line."""
    first = w[a + L.V_PML_NEXT]
    buffer, n = w[a + L.V_PML], w[a + L.V_PML_COUNT]
    t = mark_page_dirty_in_slot(w, a, w[buffer + first], w[L.NOW])
    r = region_of(w, w[a + L.VM], w[buffer + first])
    line = dirty_line(w, r, w[buffer + first])
    following = first + 1
    while following < n:
        other = region_of(w, w[a + L.VM], w[buffer + following])
        if other != r or dirty_line(w, other, w[buffer + following]) != line:
            break
        set_dirty_bit(w, r, w[buffer + following])
        t = ride_add(w, a, line, L.X_DIRTY_BITMAP, L.PART_DIRTY_LOG, t)
        following += 1
    if w[a + L.AFTER] == L.PC_ACCESS:
        outside_fault(w, a, L.PART_DIRTY_LOG, t - w[L.NOW])
    w[a + L.V_PML_NEXT] = following
    if following < n:
        schedule(w, a, L.PC_PML_FLUSH, t)
        return
    w[a + L.V_PML_NEXT] = 0
    w[a + L.V_PML_COUNT] = 0
    back(w, a, t)


@jit
def sync_dirty_log(w, a):
    """kvm_arch_sync_dirty_log: kick the vCPUs, so that their PML buffers are flushed; nobody waits."""
    vm = w[a + L.VM]
    t = w[L.NOW]
    for i in range(w[vm + L.VCPU_TOTAL]):
        v = w[vm + L.VCPUS] + i * L.VCPU_WORDS
        if w[v + L.FINISHED] or w[v + L.PC] != L.PC_ACCESS:
            continue
        t = local_barrier(w, a, 1, L.PART_FLUSH, t)
        t += private(w, a, L.PART_FLUSH, w[L.C_IPI_SEND])
        w[v + L.V_OWED] += w[L.C_EXIT] + w[L.C_ENTRY]
        count(w, a, L.K_KICKS, 1)
    call(w, a, L.PC_WRITE_LOCK, L.PC_CLEAR_DIRTY, t)


@jit
def clear_dirty(w, a):
    """kvm_clear_dirty_log_protect: take the bits of the next 64 pages that have any, a long of the bitmap."""
    t = w[L.NOW]
    r = region_of(w, w[a + L.VM], w[a + L.N_START])
    gfn = w[a + L.N_CURSOR]
    while gfn < w[a + L.N_END]:
        low = dirty_word(w, r, gfn)
        if w[low] or w[low + 1]:
            w[a + L.S_BITS] = w[low]
            w[a + L.S_BITS_HIGH] = w[low + 1]
            w[a + L.S_BITS_GFN] = gfn
            w[low] = 0
            w[low + 1] = 0
            w[a + L.N_CURSOR] = gfn + 64
            t = rmw_add(w, a, dirty_line(w, r, gfn), L.X_DIRTY_BITMAP, L.PART_DIRTY_LOG, t)
            schedule(w, a, L.PC_CLEAR_LEAF, t)
            return
        gfn += 64
    w[a + L.N_CURSOR] = gfn
    call(w, a, L.PC_WRITE_UNLOCK, L.PC_CLEARED, t)


@jit
def next_bit(w, a):
    """The page of the first bit taken that has a leaf; bits before it are dropped. -1 if there is none."""
    vm = w[a + L.VM]
    for bit in range(64):
        word = a + (L.S_BITS if bit < 32 else L.S_BITS_HIGH)
        if w[word] & (1 << (bit & 31)):
            gfn = w[a + L.S_BITS_GFN] + bit
            if is_leaf(w[lookup(w, vm, gfn)[0]]):
                return gfn
            drop_bit(w, a, gfn)
    return -1


@jit
def drop_bit(w, a, gfn):
    """A page's bit is done."""
    bit = gfn - w[a + L.S_BITS_GFN]
    w[a + (L.S_BITS if bit < 32 else L.S_BITS_HIGH)] &= ~(1 << (bit & 31))


@jit
def clear_leaf(w, a):
    """kvm_arch_mmu_enable_log_dirty_pt_masked: one leaf can be logged again."""
    t = w[L.NOW]
    gfn = next_bit(w, a)
    if gfn < 0:
        clear_dirty(w, a)
        return
    addr, line, level = lookup(w, w[a + L.VM], gfn)
    spte = w[addr]
    if level > 1 and w[L.INITIALLY_ALL_SET] and w[L.EAGER_PAGE_SPLIT]:
        split_huge_page(w, a, addr, line, level, t)
        return
    drop_bit(w, a, gfn)
    bit = L.SPTE_D if w[L.PML] and level == 1 else L.SPTE_W
    if spte & bit:
        if has_volatile_bits(spte):
            t = rmw_add(w, a, line, L.X_SPTE, L.PART_SPTE, t)
        else:
            t = store(w, a, line, L.PART_SPTE, t)
        w[addr] = spte & ~bit
        w[a + L.N_PENDING_FLUSH] = 1
    t += private(w, a, L.PART_WALK, w[L.C_ZAP_SKIP])
    if spte & bit & L.SPTE_D and zapped_folio(w, a, gfn, spte) != 0:
        w[a + L.N_GFN] = gfn
        w[a + L.N_LEAF] = spte
        schedule(w, a, L.PC_CLEAR_MARK, t)
    else:
        schedule(w, a, L.PC_CLEAR_LEAF, t)


@jit
def split_huge_page(w, a, addr, line, level, t):
    """tdp_mmu_split_huge_page under mmu_lock for writing: nobody else asks for these lines meanwhile."""
    t = store(w, a, line, L.PART_SPTE, t)
    put_table(w, a, addr, level)
    t = update_split_stats(w, a, level, t)
    if not w[L.M_TABLE_LIST_LOCK]:
        t = count_table(w, a, t)
    t += private(w, a, L.PART_WALK, w[L.C_TABLE_ALLOC])
    schedule(w, a, L.PC_CLEAR_LEAF, t)


@jit
def clear_mark(w, a):
    """handle_changed_spte's kvm_set_pfn_dirty: the leaf's D bit is gone, the page remembers it."""
    folio = zapped_folio(w, a, w[a + L.N_GFN], w[a + L.N_LEAF])
    schedule(w, a, L.PC_CLEAR_LEAF, set_folio_dirty(w, a, folio, w[L.NOW]))
