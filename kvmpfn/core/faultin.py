"""hva to pfn: fast GUP, slow GUP with the host's own fault, and follow-pfn (virt/kvm/kvm_main.c, mm/gup.c).

The steps of `hva_to_pfn`, in the order they are tried. Each leaves in the vCPU's fault: V_FOLIO (0 where
there is no struct page to count), V_GEN (which frame), V_WRITABLE (may the SPTE be writable), and a held
reference where the fault path takes one.
"""

from . import layout as L
from .events import count, schedule
from .host_locks import mmap_lock, mmap_unlock, ptl_lock, ptl_unlock
from .host_mm import (
    allocate_pages,
    fault_around,
    fill_pages,
    folio_of,
    get_folio,
    host_folio_add,
    new_frame,
    pte_address,
    pte_line,
    ptl_of,
    put_folio,
    region_of,
    set_pte,
)
from .jit import jit
from .lines import charge, load, private, rmw_add, tally


@jit
def host_pte(w, a):
    """The region, the address and the value of the faulting gfn's host entry."""
    r = region_of(w, w[a + L.VM], w[a + L.V_GFN])
    addr = pte_address(w, r, w[a + L.V_GFN])
    return r, addr, w[addr]


@jit
def took_page(w, a, pte, folio, writable, fast, t):
    """A successful GUP: the reference (put at once by the early-put paths), the frame, the permission."""
    w[a + L.V_GEN] = pte >> L.P_GEN_SHIFT
    r = region_of(w, w[a + L.VM], w[a + L.V_GFN])
    w[a + L.V_WRITABLE] = writable if w[r + L.R_WRITABLE] else 0
    w[a + L.V_FOLIO] = folio
    t = get_folio(w, a, folio, fast, t)
    if w[L.M_REFERENCE] == L.REF_EARLY_PUT:
        t = put_folio(w, a, t)
    return t


@jit
def hva_to_pfn_fast(w, a):
    """get_user_page_fast_only(FOLL_WRITE): tried for reads too; fails on anything but a writable entry."""
    r, _, pte = host_pte(w, a)
    t = w[L.NOW] + private(w, a, L.PART_GUP, w[L.C_GUP_FAST])
    t = load(w, a, pte_line(w, r, w[a + L.V_GFN]), L.PART_GUP, t)
    w[a + L.V_FROM_SLOW] = 0
    w[a + L.V_COW] = 0
    if not w[r + L.R_WRITABLE] and w[a + L.V_KIND] == L.WRITE:
        w[a + L.V_OUTCOME] = L.RET_EMULATE  # KVM_PFN_ERR_RO_FAULT: a read-only slot is written
        schedule(w, a, L.PC_FINISH, t)
    elif (pte & L.P_STATE) == L.P_RW:
        t = took_page(w, a, pte, folio_of(w, r, w[a + L.V_GFN], pte), 1, True, t)
        schedule(w, a, L.PC_REQUEST, t)
    else:
        count(w, a, L.K_GUP_FAST_MISS, 1)
        w[a + L.V_FROM_SLOW] = 1
        mmap_lock(w, a, L.MODE_READ, L.PC_MMAP_LOCK, t)


@jit
def hva_to_pfn_slow(w, a):
    """get_user_pages_unlocked, mmap_lock held: fault the page in if it is not there as wanted."""
    r, _, pte = host_pte(w, a)
    gfn = w[a + L.V_GFN]
    t = w[L.NOW] + private(w, a, L.PART_GUP, w[L.C_GUP_SLOW])
    if w[r + L.R_BACKING] == L.B_PFNMAP or w[r + L.R_BACKING] == L.B_TAIL_PAGES:
        # check_vma_flags refuses VM_IO | VM_PFNMAP; hva_to_pfn takes the lock once more for follow_pfn.
        t = mmap_unlock(w, a, t)
        mmap_lock(w, a, L.MODE_READ, L.PC_REMAP, t)
        return
    t = load(w, a, pte_line(w, r, gfn), L.PART_GUP, t)
    state = pte & L.P_STATE
    write = w[a + L.V_KIND] == L.WRITE
    if state == L.P_MIGRATION:
        client = w[w[L.ACTOR_PTRS] + ((pte & L.P_CLIENT_MASK) >> L.P_CLIENT_SHIFT)]
        count(w, a, L.K_MIGRATION_WAITS, 1)
        w[a + L.SINCE] = t
        w[a + L.NEXT] = w[client + L.S_WAITERS]
        w[client + L.S_WAITERS] = a
        return
    if state == L.P_RW or (state == L.P_RO and not write):
        ptl_lock(w, a, ptl_of(w, r, gfn), L.PC_FOLLOW_PTL, t)
        return
    # handle_mm_fault
    count(w, a, L.K_HOST_FAULTS, 1)
    w[a + L.V_ALLOC_DONE] = 0
    backing = w[r + L.R_BACKING]
    pages = 1 << (9 * (w[r + L.R_HOST_LEVEL] - 1))
    if state == L.P_PROTNONE:
        count(w, a, L.K_NUMA_HINTS, 1)
        t += private(w, a, L.PART_HOST_FAULT, w[L.C_NUMA_HINT])
    elif state == L.P_RO:
        count(w, a, L.K_COW_BREAKS, 1)
        w[a + L.V_COW] = 1
        t = allocate_pages(w, a, 1, t + private(w, a, L.PART_HOST_FAULT, w[L.C_COW_BREAK]))
        t = fill_pages(w, a, 1, w[L.C_COPY_4K], t)
    elif backing == L.B_PAGE_CACHE and (not write or not w[r + L.R_PRIVATE]):
        t += private(w, a, L.PART_HOST_FAULT, w[L.C_NUMA_HINT])
    elif backing == L.B_PAGE_CACHE:
        t = fill_pages(w, a, 1, w[L.C_COPY_4K], allocate_pages(w, a, 1, t))
    elif backing == L.B_ANON and not write:
        t += private(w, a, L.PART_HOST_FAULT, w[L.C_NUMA_HINT])  # maps the zero page
    else:
        t = fill_pages(w, a, pages, w[L.C_ZERO_4K], allocate_pages(w, a, pages, t))
    schedule(w, a, L.PC_HOST_ALLOC, t)


@jit
def host_fault_allocated(w, a):
    """The page is there and filled: break copy-on-write under a notifier of its own, or just take the PTL."""
    r = region_of(w, w[a + L.VM], w[a + L.V_GFN])
    if w[a + L.V_COW] and not w[a + L.V_ALLOC_DONE]:
        w[a + L.V_ALLOC_DONE] = 1
        w[a + L.CONTEXT] = L.CTX_ZAP
        w[a + L.PART_AS] = L.PART_SELF_INVALIDATION
        w[a + L.N_START] = w[a + L.V_GFN]
        w[a + L.N_END] = w[a + L.V_GFN] + 1
        w[a + L.N_RETURN] = L.PC_HOST_ALLOC
        schedule(w, a, L.PC_START, w[L.NOW])
        return
    w[a + L.CONTEXT] = L.CTX_FAULT
    w[a + L.PART_AS] = -1
    ptl_lock(w, a, ptl_of(w, r, w[a + L.V_GFN]), L.PC_PTL, w[L.NOW])


@jit
def host_fault_install(w, a):
    """Under the page-table lock: look again, install; who comes second frees its page."""
    r, addr, pte = host_pte(w, a)
    gfn = w[a + L.V_GFN]
    t = w[L.NOW]
    state = pte & L.P_STATE
    write = w[a + L.V_KIND] == L.WRITE
    backing = w[r + L.R_BACKING]
    if state == L.P_ABSENT and not w[a + L.V_COW]:
        t = set_pte(w, a, r, gfn, t)
        if backing == L.B_PAGE_CACHE and not (write and w[r + L.R_PRIVATE]):
            new_frame(w, r, addr, gfn, L.P_RO if w[r + L.R_PRIVATE] else L.P_RW, 1)
            t = host_folio_add(w, a, folio_of(w, r, gfn, w[addr]), t)
            if not write:
                t = fault_around(w, a, r, gfn, t)
        elif backing == L.B_ANON and not write:
            new_frame(w, r, addr, gfn, L.P_RO, 0)
            w[addr] |= L.P_ZERO
        else:
            new_frame(w, r, addr, gfn, L.P_RW, 0)
    elif state == L.P_PROTNONE:
        t = set_pte(w, a, r, gfn, t)
        read_only = (pte & L.P_ZERO) != 0 or ((pte & L.P_FILE) != 0 and w[r + L.R_PRIVATE] != 0)
        w[addr] = (pte & ~L.P_STATE) | (L.P_RO if read_only else L.P_RW)
    elif state == L.P_RO and w[a + L.V_COW]:
        t = set_pte(w, a, r, gfn, t)
        new_frame(w, r, addr, gfn, L.P_RW, 0)
    else:
        count(w, a, L.K_HOST_FAULTS_LOST, 1)
    if w[a + L.V_COW]:
        t = ptl_unlock(w, a, t)
        w[a + L.CONTEXT] = L.CTX_ZAP
        w[a + L.PART_AS] = L.PART_SELF_INVALIDATION
        w[a + L.N_RETURN] = L.PC_FOLLOW
        schedule(w, a, L.PC_END, t)
    else:
        schedule(w, a, L.PC_FOLLOW, t)


@jit
def follow(w, a):
    """Back in GUP after the host's fault: the page-table lock again, to follow the entry."""
    w[a + L.CONTEXT] = L.CTX_FAULT
    w[a + L.PART_AS] = -1
    w[a + L.V_COW] = 0
    r = region_of(w, w[a + L.VM], w[a + L.V_GFN])
    t = ptl_unlock(w, a, w[L.NOW])
    ptl_lock(w, a, ptl_of(w, r, w[a + L.V_GFN]), L.PC_FOLLOW_PTL, t)


@jit
def hva_to_pfn_remapped(w, a):
    """follow_pte of a VM_PFNMAP area, mmap_lock held a second time."""
    r = region_of(w, w[a + L.VM], w[a + L.V_GFN])
    ptl_lock(w, a, ptl_of(w, r, w[a + L.V_GFN]), L.PC_FOLLOW_PTL, w[L.NOW])


@jit
def follow_page(w, a):
    """Under the page-table lock: take the page (or the bare pfn); fault again if the entry changed."""
    r, addr, pte = host_pte(w, a)
    t = w[L.NOW]
    state = pte & L.P_STATE
    write = w[a + L.V_KIND] == L.WRITE
    backing = w[r + L.R_BACKING]
    if backing == L.B_PFNMAP or backing == L.B_TAIL_PAGES:
        t += private(w, a, L.PART_GUP, w[L.C_FOLLOW_PFN])
        w[a + L.V_FOLIO] = 0
        w[a + L.V_WRITABLE] = w[r + L.R_WRITABLE]
        w[a + L.V_GEN] = pte >> L.P_GEN_SHIFT
        if state == L.P_ABSENT:
            # The owner unmapped it and its fault handler maps it again (fixup_user_fault).
            count(w, a, L.K_HOST_FAULTS, 1)
            t = set_pte(w, a, r, w[a + L.V_GFN], t)
            new_frame(w, r, addr, w[a + L.V_GFN], L.P_SPECIAL, 0)
            w[a + L.V_GEN] = w[addr] >> L.P_GEN_SHIFT
        if backing == L.B_TAIL_PAGES and not w[L.M_NONREFCOUNTED_MAP]:
            w[a + L.V_OUTCOME] = L.RET_ERROR  # kvm_try_get_pfn: count 0 is refused, the guest gets -EFAULT
            t = mmap_unlock(w, a, ptl_unlock(w, a, t))
            schedule(w, a, L.PC_FINISH, t)
            return
        schedule(w, a, L.PC_REQUEST, t)
        return
    if state != L.P_RW and not (state == L.P_RO and not write):
        schedule(w, a, L.PC_MMAP_LOCK, ptl_unlock(w, a, t))
        return
    folio = folio_of(w, r, w[a + L.V_GFN], pte)
    writable = 1 if write or state == L.P_RW else 0
    t = took_page(w, a, pte, folio, writable, False, t)
    if w[L.M_REFERENCE] != L.REF_NONE:
        t = mark_touched(w, a, folio, t)
        if not write and state == L.P_RW:
            # hva_to_pfn_slow asks fast GUP once more for write permission: a get, PG_referenced, a put.
            t = rmw_add(w, a, folio + L.FOLIO_LINE, L.X_FOLIO, L.PART_FOLIO, t)
            t = rmw_add(w, a, folio + L.FOLIO_LINE, L.X_FOLIO, L.PART_FOLIO, t)
            w[folio + L.FOLIO_STATE] |= L.F_REFERENCED
            t = rmw_add(w, a, folio + L.FOLIO_LINE, L.X_FOLIO, L.PART_FOLIO, t)
    schedule(w, a, L.PC_REQUEST, t)


@jit
def mark_touched(w, a, folio, t):
    """FOLL_TOUCH: mark_page_accessed by GUP itself; the host's own, but on the folio's line."""
    before = w[folio + L.FOLIO_STATE] & L.F_REFERENCED
    if w[L.LRU] != L.LRU_OFF and not before:
        w[folio + L.FOLIO_STATE] |= L.F_REFERENCED
        tally(w, a, L.X_HOST_FOLIO, 1)
        t += w[L.C_OWN_ADD]
        charge(w, a, L.PART_FOLIO, w[L.C_OWN_ADD])
    return t
