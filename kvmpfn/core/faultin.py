"""hva to pfn: fast GUP, slow GUP with the host's own fault, and follow-pfn (virt/kvm/kvm_main.c, mm/gup.c).

The steps of `hva_to_pfn`, in the order they are tried:

gup -> get -> got, or
gup -> mmap_lock -> slow -> ptl_lock -> follow -> ptl_unlock ->
[mm_fault -> [alloc -> fill] -> ptl_lock -> install -> ptl_unlock -> ptl_lock -> follow -> ptl_unlock] ->
mmap_unlock -> (a read: gup once more, for write permission) -> got.

They leave in the vCPU's fault: V_FOLIO (0 where there is no struct page to count), V_GEN (which frame),
V_WRITABLE (may the SPTE be writable), and a held reference where the fault path takes one.
"""

from . import layout as L
from .events import count, schedule
from .host_locks import down, spin_lock, unlock_both
from .host_mm import (
    around,
    drain_lru_batch,
    fill_pages,
    folio_add,
    folio_of,
    host_level,
    is_anonymous,
    is_file,
    is_pfnmap,
    lru_batch_full,
    map_folio,
    new_frame,
    pte_address,
    pte_line,
    ptl_of,
    region_of,
    set_pte,
)
from .jit import jit
from .lines import charge, load, private
from .mmu_notifier import invalidate
from .qrwlock import fault_lock
from .references import got_reference, put_folio, put_page, try_get_folio

PATIENCE = 16
"""Times that a fault has the host make its page ready before it minds that the run is over."""


@jit
def host_pte(w, a):
    """The region, the address and the value of the faulting gfn's host entry."""
    r = region_of(w, w[a + L.VM], w[a + L.V_GFN])
    addr = pte_address(w, r, w[a + L.V_GFN])
    return r, addr, w[addr]


@jit
def lock_ptl(w, a, after, t):
    """Call ptl_lock for the faulting gfn."""
    r = region_of(w, w[a + L.VM], w[a + L.V_GFN])
    spin_lock(w, a, ptl_of(w, r, w[a + L.V_GFN]), after, t)


@jit
def took_page(w, a, r, pte, folio, writable):
    """GUP succeeded: the frame, the folio, the permission."""
    w[a + L.V_GEN] = pte >> L.P_GEN_SHIFT
    w[a + L.V_WRITABLE] = writable if w[r + L.R_WRITABLE] else 0
    w[a + L.V_FOLIO] = folio


@jit
def gup(w, a):
    """get_user_page_fast_only(FOLL_WRITE): tried for reads too; fails on anything but a writable entry."""
    r, _, pte = host_pte(w, a)
    t = w[L.NOW] + private(w, a, L.PART_GUP, w[L.C_GUP_FAST])
    t = load(w, a, pte_line(w, r, w[a + L.V_GFN]), L.PART_GUP, t)
    if not w[r + L.R_WRITABLE] and w[a + L.V_KIND] == L.WRITE:
        w[a + L.V_OUTCOME] = L.RET_EMULATE  # KVM_PFN_ERR_RO_FAULT: a read-only slot is written
        schedule(w, a, L.PC_FINISH, t)
    elif (pte & L.P_STATE) != L.P_RW:
        missed(w, a, t)
    elif w[L.M_REFERENCE] == L.REF_NONE:
        took_page(w, a, r, pte, folio_of(w, r, w[a + L.V_GFN], pte), 1)
        got(w, a, t)
    else:
        w[a + L.V_PTE] = pte
        w[a + L.V_PTE_FOLIO] = folio_of(w, r, w[a + L.V_GFN], pte)
        schedule(w, a, L.PC_GET, t)


@jit
def missed(w, a, t):
    """Fast GUP failed: on to slow GUP; after it (a read asked for write permission) nothing changes."""
    if w[a + L.V_UPGRADE]:
        got(w, a, t)
    else:
        count(w, a, L.K_GUP_FAST_MISS, 1)
        down(w, a, L.MODE_READ, L.PC_SLOW, t)


@jit
def get(w, a):
    """gup_pte_range: a reference by a cmpxchg loop, the entry looked at again, PG_referenced.

    In an upgrade hva_to_pfn_slow puts the page that it had, and goes on with this one.
    """
    r, _, pte = host_pte(w, a)
    folio = w[a + L.V_PTE_FOLIO]
    old, old_t0 = w[a + L.V_FOLIO], w[a + L.V_REF_T0]
    t = try_get_folio(w, a, folio, w[L.NOW])
    if pte != w[a + L.V_PTE] or folio_of(w, r, w[a + L.V_GFN], pte) != folio:
        t = put_page(w, a, t)
        if w[a + L.V_UPGRADE]:
            w[a + L.V_FOLIO], w[a + L.V_REF], w[a + L.V_REF_T0] = old, 1, old_t0
        else:
            w[a + L.V_FOLIO] = 0
        missed(w, a, t)
        return
    t = folio_add(w, a, folio, L.X_FOLIO, t)
    w[folio + L.FOLIO_STATE] |= L.F_REFERENCED
    took_page(w, a, r, pte, folio, 1)
    if w[a + L.V_UPGRADE]:
        t0, w[a + L.V_REF_T0] = w[a + L.V_REF_T0], old_t0
        w[a + L.V_FOLIO] = old
        t = put_page(w, a, t)
        w[a + L.V_FOLIO], w[a + L.V_REF], w[a + L.V_REF_T0] = folio, 1, t0
    got(w, a, t)


@jit
def got(w, a, t):
    """hva_to_pfn returns; the early-put paths put the reference at once."""
    if w[L.M_REFERENCE] == L.REF_EARLY_PUT and w[a + L.V_REF]:
        schedule(w, a, L.PC_EARLY_PUT, t)
    else:
        to_lock(w, a, t)


@jit
def early_put(w, a):
    """The series' put_page right after GUP, which has no mode without a reference."""
    to_lock(w, a, put_folio(w, a, w[L.NOW]))


@jit
def to_lock(w, a, t):
    """The page is known: the second pre-check if there is one, then mmu_lock."""
    if w[L.M_PRECHECKS]:
        schedule(w, a, L.PC_PRECHECK, t)
    else:
        ask_lock(w, a, t)


@jit
def ask_lock(w, a, t):
    """kvm_faultin_pfn returns, and mmu_lock is asked for."""
    fault_lock(w, a, L.PC_MAPPED, t + private(w, a, L.PART_HANDLER, w[L.C_HANDLER_LOCK]))


@jit
def slow(w, a):
    """get_user_pages_unlocked, mmap_lock held: follow the entry under its lock, whatever it is."""
    r = region_of(w, w[a + L.VM], w[a + L.V_GFN])
    t = w[L.NOW] + private(w, a, L.PART_GUP, w[L.C_GUP_SLOW])
    if is_pfnmap(w, r):
        # check_vma_flags refuses VM_IO | VM_PFNMAP; hva_to_pfn takes the lock once more for follow_pfn.
        w[a + L.AFTER_MMAP] = L.PC_REMAP
        schedule(w, a, L.PC_MMAP_UNLOCK, t)
        return
    lock_ptl(w, a, L.PC_FOLLOW, load(w, a, pte_line(w, r, w[a + L.V_GFN]), L.PART_GUP, t))


@jit
def run_is_over(w, a):
    """Whether the vCPU's next access would be its last."""
    over = w[L.NOW] >= w[L.UNTIL_PS] or w[L.TAKEN] >= w[L.UNTIL_FAULTS]
    return over or not w[w[a + L.VM] + L.ALIVE]


@jit
def mm_fault(w, a):
    """faultin_page: nothing to follow there as wanted, so the host takes a fault of its own."""
    r, _, pte = host_pte(w, a)
    t = w[L.NOW]
    w[a + L.V_LOOKS] += 1
    if w[a + L.V_LOOKS] > PATIENCE and run_is_over(w, a):
        # A signal is pending: KVM_PFN_ERR_SIGPENDING takes the vCPU out, else a storm could keep it for ever.
        count(w, a, L.K_RETRY_OTHER, 1)
        w[a + L.V_OUTCOME] = L.RET_RETRY
        w[a + L.AFTER_MMAP] = L.PC_FINISH
        schedule(w, a, L.PC_MMAP_UNLOCK, t)
        return
    state = pte & L.P_STATE
    write = w[a + L.V_KIND] == L.WRITE
    if state == L.P_MIGRATION:
        client = w[w[L.ACTOR_PTRS] + ((pte & L.P_CLIENT_MASK) >> L.P_CLIENT_SHIFT) - 1]
        count(w, a, L.K_MIGRATION_WAITS, 1)
        w[a + L.SINCE] = t
        w[a + L.NEXT] = w[client + L.S_WAITERS]
        w[client + L.S_WAITERS] = a
    elif state == L.P_RW or (state == L.P_RO and not write):
        lock_ptl(w, a, L.PC_FOLLOW, t)
    else:
        handle_mm_fault(w, a, r, pte, t)


@jit
def handle_mm_fault(w, a, r, pte, t):
    """The host's own fault: make the page ready, then install it under the page-table lock."""
    count(w, a, L.K_HOST_FAULTS, 1)
    state = pte & L.P_STATE
    level = host_level(w, r, w[a + L.V_GFN])
    w[a + L.V_PTE] = pte
    w[a + L.V_LEVEL] = level
    w[a + L.V_OWN_FRAME] = 0
    w[a + L.V_PAGES] = 1
    w[a + L.V_COPY] = 1
    allocates = True
    if state == L.P_PROTNONE:
        count(w, a, L.K_NUMA_HINTS, 1)
        allocates = False
    elif state == L.P_RO:
        count(w, a, L.K_COW_BREAKS, 1)
        w[a + L.V_COW] = 1
        t += private(w, a, L.PART_HOST_FAULT, w[L.C_COW_BREAK])
    elif pte & L.P_SWAP:
        count(w, a, L.K_SWAP_INS, 1)
        charge(w, a, L.PART_HOST_FAULT, w[L.C_SWAP_IN])
        t += w[L.C_SWAP_IN]
    elif maps_file(w, a, r) or maps_zero_page(w, a, r, pte, level):
        allocates = False
    elif not is_file(w, r):
        w[a + L.V_PAGES] = 1 << (9 * (level - 1))
        w[a + L.V_COPY] = 0
    if allocates:
        schedule(w, a, L.PC_ALLOC, t + private(w, a, L.PART_HOST_FAULT, w[L.C_HOST_FAULT]))
    else:
        lock_ptl(w, a, L.PC_INSTALL, t + private(w, a, L.PART_HOST_FAULT, w[L.C_NUMA_HINT]))


@jit
def maps_file(w, a, r):
    """Whether a fault on an absent entry maps a page of the file itself."""
    return is_file(w, r) and (w[a + L.V_KIND] != L.WRITE or not w[r + L.R_PRIVATE])


@jit
def maps_zero_page(w, a, r, pte, level):
    """Whether a fault on an absent entry maps the zero page: do_anonymous_page of a read."""
    small = is_anonymous(w, r) and level == 1 and (pte & L.P_SWAP) == 0
    return small and w[a + L.V_KIND] != L.WRITE


@jit
def fill(w, a):
    """The new page is zeroed or copied; a copy-on-write is broken under a notifier of its own."""
    t = fill_pages(w, a, w[L.NOW])
    if w[a + L.V_COW]:
        in_notifier(w, a)
        w[a + L.N_START] = w[a + L.V_GFN]
        w[a + L.N_END] = w[a + L.V_GFN] + 1
        invalidate(w, a, L.PC_START, L.PC_COW_LOCK, t)
    else:
        lock_ptl(w, a, L.PC_INSTALL, t)


@jit
def in_notifier(w, a):
    """From here the vCPU works for its own notifier."""
    w[a + L.CONTEXT] = L.CTX_ZAP
    w[a + L.PART_AS] = L.PART_SELF_INVALIDATION


@jit
def in_fault(w, a):
    """The vCPU is back in its fault."""
    w[a + L.CONTEXT] = L.CTX_FAULT
    w[a + L.PART_AS] = -1


@jit
def cow_lock(w, a):
    """wp_page_copy: invalidate_range_start has returned, now the page-table lock."""
    in_fault(w, a)
    lock_ptl(w, a, L.PC_INSTALL, w[L.NOW])


@jit
def pte_same(w, a, r, pte):
    """Whether the entry, under its own lock, is still as mm_fault saw it (vmf_pte_changed, pmd_none)."""
    gfn = w[a + L.V_GFN]
    if w[a + L.HELD_PTL] != ptl_of(w, r, gfn):
        return False
    old = w[a + L.V_PTE]
    if (old & L.P_STATE) != L.P_ABSENT:
        return (pte ^ old) & ~L.P_CLIENT_MASK == 0
    absent = (pte & L.P_STATE) == L.P_ABSENT and (pte & L.P_SWAP) == (old & L.P_SWAP)
    return absent and host_level(w, r, gfn) == w[a + L.V_LEVEL]


@jit
def install(w, a):
    """Under the page-table lock: look again, install; who comes second frees its page."""
    r, addr, pte = host_pte(w, a)
    gfn = w[a + L.V_GFN]
    t = w[L.NOW]
    if not pte_same(w, a, r, pte):
        count(w, a, L.K_HOST_FAULTS_LOST, 1)
        leave(w, a, t)
        return
    state = pte & L.P_STATE
    t = set_pte(w, a, r, gfn, t)
    if state == L.P_PROTNONE:
        private_file = (pte & L.P_FILE) != 0 and w[r + L.R_PRIVATE] != 0
        w[addr] = (pte & ~L.P_STATE) | (L.P_RO if private_file else L.P_RW)
    elif state == L.P_ABSENT and maps_file(w, a, r):
        new_frame(w, a, r, addr, gfn, L.P_RO if w[r + L.R_PRIVATE] else L.P_RW, 1)
        w[a + L.V_AROUND] = gfn
        schedule(w, a, L.PC_MAP_FILE, t)
        return
    elif state == L.P_ABSENT and maps_zero_page(w, a, r, pte, w[a + L.V_LEVEL]):
        new_frame(w, a, r, addr, gfn, L.P_RO, 0)
        w[addr] |= L.P_ZERO
    else:
        new_frame(w, a, r, addr, gfn, L.P_RW, 0)
        w[a + L.V_OWN_FRAME] = 1
        if w[a + L.V_COW]:
            w[a + L.AFTER] = L.PC_INSTALLED
            schedule(w, a, L.PC_HOST_FLUSH, t)  # ptep_clear_flush
            return
    leave(w, a, t)


@jit
def map_file(w, a):
    """filemap_map_pages: the faulting page, and for a read the present pages around it."""
    r, _, _ = host_pte(w, a)
    gfn = w[a + L.V_AROUND]
    addr = pte_address(w, r, gfn)
    if gfn != w[a + L.V_GFN]:
        new_frame(w, a, r, addr, gfn, L.P_RO if w[r + L.R_PRIVATE] else L.P_RW, 1)
    t = map_folio(w, a, folio_of(w, r, gfn, w[addr]), w[L.NOW])
    following = -1
    if w[a + L.V_KIND] != L.WRITE:
        following = around(w, r, w[a + L.V_GFN], -1 if gfn == w[a + L.V_GFN] else gfn)
    if following < 0:
        leave(w, a, t)
    else:
        w[a + L.V_AROUND] = following
        schedule(w, a, L.PC_MAP_FILE, t)


@jit
def installed(w, a):
    """The old translation is flushed."""
    leave(w, a, w[L.NOW])


@jit
def leave(w, a, t):
    """The entry is in place: a folio of our own joins the LRU batch, then the page-table lock is dropped."""
    if w[a + L.V_OWN_FRAME] and lru_batch_full(w, a):
        schedule(w, a, L.PC_LRU_ADD, t)
    else:
        unlock_ptl(w, a, t)


@jit
def lru_add(w, a):
    """folio_add_lru found its batch full."""
    unlock_ptl(w, a, drain_lru_batch(w, a, w[L.NOW]))


@jit
def unlock_ptl(w, a, t):
    """Drop the page-table lock; a copy-on-write ends its notifier before GUP goes on."""
    if w[a + L.V_COW]:
        in_notifier(w, a)
        w[a + L.N_RETURN] = L.PC_FOLLOW_LOCK
        w[a + L.AFTER] = L.PC_END
    else:
        w[a + L.AFTER] = L.PC_FOLLOW_LOCK
    schedule(w, a, L.PC_PTL_UNLOCK, t)


@jit
def follow_lock(w, a):
    """Back in GUP after the host's fault: the page-table lock again, to follow the entry."""
    in_fault(w, a)
    w[a + L.V_COW] = 0
    lock_ptl(w, a, L.PC_FOLLOW, w[L.NOW])


@jit
def remap(w, a):
    """hva_to_pfn_remapped: mmap_lock a second time."""
    down(w, a, L.MODE_READ, L.PC_REMAPPED, w[L.NOW])


@jit
def remapped(w, a):
    """follow_pte of a VM_PFNMAP area."""
    lock_ptl(w, a, L.PC_FOLLOW, w[L.NOW])


@jit
def follow(w, a):
    """Under the page-table lock: take the page (or the bare pfn); fault again if the entry changed."""
    r, addr, pte = host_pte(w, a)
    t = w[L.NOW]
    if w[a + L.HELD_PTL] != ptl_of(w, r, w[a + L.V_GFN]):
        w[a + L.AFTER] = L.PC_FOLLOW_LOCK  # split or collapsed since: it has another lock now
        schedule(w, a, L.PC_PTL_UNLOCK, t)
        return
    if is_pfnmap(w, r):
        follow_pfn(w, a, r, addr, pte, t)
        return
    state = pte & L.P_STATE
    write = w[a + L.V_KIND] == L.WRITE
    if state != L.P_RW and not (state == L.P_RO and not write):
        w[a + L.AFTER] = L.PC_MM_FAULT
        schedule(w, a, L.PC_PTL_UNLOCK, t)
        return
    folio = folio_of(w, r, w[a + L.V_GFN], pte)
    took_page(w, a, r, pte, folio, 1 if write else 0)
    if w[L.M_REFERENCE] != L.REF_NONE:
        t = folio_add(w, a, folio, L.X_FOLIO, t)
        got_reference(w, a, folio, t)
        if w[L.LRU] != L.LRU_OFF and (w[folio + L.FOLIO_STATE] & L.F_REFERENCED) == 0:
            w[folio + L.FOLIO_STATE] |= L.F_REFERENCED  # FOLL_TOUCH
            t = folio_add(w, a, folio, L.X_HOST_FOLIO, t)
    if write:
        unlock_both(w, a, L.PC_GOT, t)
    else:
        w[a + L.V_UPGRADE] = 1
        unlock_both(w, a, L.PC_GUP, t)


@jit
def follow_pfn(w, a, r, addr, pte, t):
    """follow_pte's pfn: no folio, but where KVM guesses that the struct page is counted (6.12 and before)."""
    if (pte & L.P_STATE) == L.P_ABSENT:
        # The owner unmapped it and its fault handler maps it again (fixup_user_fault).
        count(w, a, L.K_HOST_FAULTS, 1)
        t = set_pte(w, a, r, w[a + L.V_GFN], t)
        new_frame(w, a, r, addr, w[a + L.V_GFN], L.P_SPECIAL, 0)
    t += private(w, a, L.PART_GUP, w[L.C_FOLLOW_PFN])
    took_page(w, a, r, w[addr], 0, 1)
    backing = w[r + L.R_BACKING]
    if backing == L.B_TAIL_PAGES and not w[L.M_NONREFCOUNTED_MAP]:
        w[a + L.V_OUTCOME] = L.RET_ERROR  # kvm_try_get_pfn: count 0 is refused, the guest gets -EFAULT
        unlock_both(w, a, L.PC_FINISH, t)
    elif backing == L.B_PFNMAP_STRUCT_PAGE and w[L.M_PFNMAP_REFERENCE] and w[L.M_REFERENCE] != L.REF_NONE:
        schedule(w, a, L.PC_PFN_GET, t)
    else:
        unlock_both(w, a, L.PC_GOT, t)


@jit
def pfn_get(w, a):
    """kvm_try_get_pfn: get_page_unless_zero of a PFNMAP page whose struct page is counted."""
    r, _, pte = host_pte(w, a)
    t = try_get_folio(w, a, folio_of(w, r, w[a + L.V_GFN], pte), w[L.NOW])
    unlock_both(w, a, L.PC_GOT, t)
