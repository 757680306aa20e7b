"""What is there before the first event: host memory already present, and leaves KVM has mapped already."""

from . import layout as L
from .dirty_log import set_all_dirty
from .host_mm import allocate_words, folio_of, is_anonymous, is_file, is_pfnmap, pte_address
from .jit import jit
from .tdp_mmu import lookup


@jit
def map_leaf(w, vm, r, gfn, level, pte):
    """Map one leaf as an earlier fault would have left it; write-protected where dirty logging demands."""
    while True:
        addr, _, at = lookup(w, vm, gfn)
        if at <= level:
            break
        table = allocate_words(w, L.TABLE_WORDS)
        w[addr] = (table << L.SPTE_PFN_SHIFT) | L.SPTE_TABLE | L.SPTE_PRESENT
        w[w[L.COUNTERS] + w[vm + L.VM_ID] * L.COUNTER_COUNT + L.K_TABLES_BUILT] += 1
    spte = ((pte >> L.P_GEN_SHIFT) << L.SPTE_PFN_SHIFT) | L.SPTE_PRESENT | L.SPTE_A | L.SPTE_X
    if level > 1:
        spte |= L.SPTE_HUGE
        if w[L.NX_HUGE_PAGES]:
            spte &= ~L.SPTE_X
    if (pte & L.P_STATE) != L.P_RO and w[r + L.R_WRITABLE]:
        spte |= L.SPTE_HOST_W | L.SPTE_MMU_W
        if not w[L.DIRTY_LOGGING] or w[L.INITIALLY_ALL_SET]:
            spte |= L.SPTE_W | L.SPTE_D
        elif w[L.PML] and level == 1:
            spte |= L.SPTE_W
    folio = folio_of(w, r, gfn, pte)
    if folio != 0 and (w[L.M_SPTE_BIT] == L.BIT_ALL or (w[L.M_SPTE_BIT] == L.BIT_4K and level == 1)):
        spte |= L.SPTE_REFCOUNTED
    w[addr] = spte
    w[w[L.COUNTERS] + w[vm + L.VM_ID] * L.COUNTER_COUNT + L.K_PAGES_4K + level - 1] += 1


@jit
def populate(w):
    """Fill the regions that the scenario declares populated or mapped."""
    for i in range(w[L.VM_COUNT]):
        vm = w[w[L.VM_PTRS] + i]
        for j in range(w[vm + L.REGION_COUNT]):
            r = w[vm + L.REGIONS] + j * L.REGION_WORDS
            if w[L.DIRTY_LOGGING] and w[L.INITIALLY_ALL_SET]:
                set_all_dirty(w, r)
            if not w[r + L.R_POPULATED]:
                continue
            backing = w[r + L.R_BACKING]
            state = L.P_RW
            if is_pfnmap(w, r):
                state = L.P_SPECIAL
            elif backing == L.B_KSM:
                state = L.P_RO | L.P_KSM
            elif backing == L.B_ZERO_PAGE:
                state = L.P_RO | L.P_ZERO
            elif is_file(w, r):
                state = (L.P_RO if w[r + L.R_PRIVATE] else L.P_RW) | L.P_FILE
            pte = (1 << L.P_GEN_SHIFT) | state
            unit = 1 << (9 * (w[r + L.R_HOST_LEVEL] - 1))
            first = w[r + L.R_GFN]
            for gfn in range(first, first + w[r + L.R_PAGES], unit):
                w[pte_address(w, r, gfn)] = pte
                folio = folio_of(w, r, gfn, pte)
                on_lru = is_anonymous(w, r) or backing == L.B_PAGE_CACHE
                if on_lru and folio != w[L.ZERO_FOLIO]:
                    w[folio + L.FOLIO_STATE] |= L.F_ON_LRU
            if w[r + L.R_MAPPED]:
                level = min(w[r + L.R_MAPPED], w[r + L.R_MAX_LEVEL], w[r + L.R_HOST_LEVEL])
                for gfn in range(first, first + w[r + L.R_PAGES], 1 << (9 * (level - 1))):
                    map_leaf(w, vm, r, gfn, level, pte)
