"""The guest's access and the fault it takes: kvm_tdp_page_fault, read from top to bottom.

access -> handle -> (faultin.py) -> [precheck] -> read_lock -> mapped -> [link -> table_count]* -> leaf ->
stats -> [release] -> read_unlock -> [release_clean] -> finish, and back to the guest, which repeats the
access. A RETRY is that whole round again: exit, handler, entry.
"""

from . import layout as L
from .dirty_log import logs_write, mark_page_dirty_in_slot
from .events import bin_add, call, count, fail, histogram_bucket, schedule
from .faultin import ask_lock
from .host_mm import (
    host_level,
    mark_page_accessed,
    prefetch_page,
    pte_address,
    region_of,
    set_folio_dirty,
)
from .jit import jit, prefetch
from .lines import load, load_seq_line, local_barrier, outside_fault, private, rmw_add, rmw_cas, store
from .mmu_notifier import FALSE_RANGE, FRESH, RANGE, flush_remote_tlbs, mmu_invalidate_retry_gfn
from .notes import note_slow
from .qrwlock import fault_unlock
from .references import put_folio
from .tdp_mmu import (
    count_table,
    free_table,
    is_access_allowed,
    is_leaf,
    link_table,
    lookup,
    lookup_above,
    make_spte,
    mark_removed_leaves,
    remove_entries,
    removed_leaf_marks,
    ride_page_stats,
    update_page_stats,
    update_split_stats,
)
from .workload import draw_access, look_for_end


@jit
def stop_vcpu(w, a):
    """The vCPU runs no more: out of accesses, the run is over, or its VM died. It keeps no references."""
    if w[a + L.V_BATCH_COUNT] > 0:
        call(w, a, L.PC_DRAIN_PUTS, L.PC_ACCESS, w[L.NOW])
        return
    vm = w[a + L.VM]
    w[a + L.FINISHED] = 1
    w[a + L.T_END] = w[L.NOW]
    w[a + L.PC] = L.PC_STOPPED
    w[vm + L.VM_RUNNING] -= 1
    w[L.RUNNING] -= 1


@jit
def access(w, a):
    """The guest touches memory: hardware walks the tables, sets A and D, or exits with a violation."""
    vm = w[a + L.VM]
    t = w[L.NOW]
    if w[a + L.V_OWED] > 0:
        t += w[a + L.V_OWED]
        w[a + L.V_KICKED] += w[a + L.V_OWED]
        w[a + L.V_OWED] = 0
        after_exit(w, a, L.PC_ACCESS, t)
        return
    if w[a + L.V_TLB_REQUEST]:
        t = serve_flush_request(w, a, t)
        outside_fault(w, a, L.PART_FLUSH, t - w[L.NOW])
        schedule(w, a, L.PC_ACCESS, t)
        return
    if not w[vm + L.ALIVE] or t >= w[L.UNTIL_PS]:
        stop_vcpu(w, a)
        return
    if not w[a + L.V_HAVE]:
        if not draw_access(w, a):
            stop_vcpu(w, a)
            return
        w[a + L.V_HAVE] = 1
        if w[a + L.V_THINK] > 0:
            think = w[a + L.V_THINK] * w[a + L.SMT] // 100
            w[a + L.V_GUEST] += think
            schedule(w, a, L.PC_ACCESS, t + think)
            return
    gfn = w[a + L.V_GFN]
    addr, line, level = lookup(w, vm, gfn)
    spte = w[addr]
    if is_access_allowed(spte, w[a + L.V_KIND]):
        if w[L.DIRTY_LOGGING] and w[L.PML] and logs_write(w, a, spte, level):
            w[a + L.V_OWED] += w[L.C_EXIT] + w[L.C_ENTRY]  # the buffer is full: handle_pml_full
            schedule(w, a, L.PC_ACCESS, t)
            return
        r = region_of(w, vm, gfn)
        pte = w[pte_address(w, r, gfn)]
        state = pte & L.P_STATE
        mapped = (spte >> L.SPTE_PFN_SHIFT) & L.SPTE_PFN_MASK
        gone = state == L.P_ABSENT or state == L.P_MIGRATION or state == L.P_PROTNONE
        if mapped != pte >> L.P_GEN_SHIFT or gone:
            count(w, a, L.K_STALE_USES, 1)
            if mapped != pte >> L.P_GEN_SHIFT or (pte & L.P_FREED) != 0:
                count(w, a, L.K_FREED_USES, 1)
            if w[L.CHECK] and w[L.M_GUARDED] and w[L.M_SEQ_CHECKED]:
                fail(w, 2, 2)  # invariant 2: a page that is not the host's to give is mapped
        done = t + w[L.C_ACCESS] * w[a + L.SMT] // 100
        marked = spte | L.SPTE_A
        if w[a + L.V_KIND] == L.WRITE:
            marked |= L.SPTE_D
        if marked != spte:
            w[addr] = marked
        w[a + L.V_HAVE] = 0
        w[a + L.V_CHAIN] = 0  # of attempts that another vCPU's mapping has made needless
        w[a + L.V_TRIES] = 0
        w[a + L.V_N] += 1
        w[a + L.V_ACCESSES] += 1
        count(w, a, L.K_ACCESSES, 1)
        w[a + L.V_GUEST] += done - t
        if w[w[a + L.V_PHASE] + L.PH_ENDLESS]:
            look_for_end(w, a)
        schedule(w, a, L.PC_ACCESS, done)
        return
    if w[L.TAKEN] >= w[L.UNTIL_FAULTS]:
        stop_vcpu(w, a)
        return
    prefetch(w, line)  # the leaf's; both are looked at after the exit, many events later
    prefetch_page(w, vm, gfn)
    w[a + L.V_HITS] = 0
    if w[a + L.V_TRIES] == 0:
        w[a + L.V_FIRST_EVENT] = w[L.EVENTS]
    for part in range(L.PART_COUNT):
        w[a + L.V_PARTS + part] = 0
    w[a + L.V_PRESENT] = 1 if is_leaf(spte) else 0
    w[a + L.V_T0] = t
    t += private(w, a, L.PART_EXIT_ENTRY, w[L.C_EXIT])
    t += private(w, a, L.PART_HANDLER, w[L.C_HANDLER_ENTRY])
    after_exit(w, a, L.PC_HANDLE, t)


@jit
def after_exit(w, a, pc, t):
    """vmx_handle_exit: the PML buffer is flushed at every exit; then on to `pc`."""
    if w[a + L.V_PML_COUNT] > 0:
        call(w, a, L.PC_PML_FLUSH, pc, t)
    else:
        schedule(w, a, pc, t)


@jit
def serve_flush_request(w, a, t):
    """kvm_check_request(KVM_REQ_TLB_FLUSH) before the guest is entered."""
    w[a + L.V_TLB_REQUEST] = 0
    t = rmw_add(w, a, a + L.V_REQUEST_LINE, L.X_VCPU_REQUEST, L.PART_FLUSH, t)
    return t + private(w, a, L.PART_FLUSH, w[L.C_FLUSH_TLB])


@jit
def out(w, a, outcome, t):
    """kvm_tdp_page_fault is left, without a lock: the release that v6.1 makes here, then on to the guest."""
    w[a + L.V_OUTCOME] = outcome
    call(w, a, way_out(w, a), L.PC_FINISH, t)


@jit
def way_out(w, a):
    """The step after mmu_lock is dropped: release_clean if a mark or a put is due, else to_finish's."""
    if w[a + L.V_FOLIO] != 0 and (w[a + L.V_REF] or accessed_after_unlock(w, a)):
        return L.PC_RELEASE_CLEAN
    return to_finish(w, a)


@jit
def to_finish(w, a):
    """The step before the guest is entered: a full batch of puts is drained."""
    if w[L.M_PUT_BATCH] > 1 and w[a + L.V_BATCH_REFS] >= w[L.M_PUT_BATCH]:
        return L.PC_DRAIN_PUTS
    return L.PC_FINISH


@jit
def accessed_after_unlock(w, a):
    """Whether this fault marks its page accessed after mmu_lock is released."""
    if w[L.LRU] == L.LRU_OFF or w[L.M_ACCESSED_MARKING] != L.ACCESSED_AFTER_UNLOCK:
        return False
    return w[a + L.V_OUTCOME] != L.RET_RETRY or w[L.M_ACCESSED_ON_RETRY] != 0


@jit
def stale_cell(base, why):
    """The cell of retry.<where>.<why>; `base` is <where>'s range cell."""
    if why == RANGE:
        return base
    if why == FALSE_RANGE:
        return base + 1
    return base + 2


@jit
def handle(w, a):
    """kvm_mmu_page_fault up to GUP: the lockless fast path, or the snapshot and the first pre-check."""
    t = w[L.NOW]
    count(w, a, L.K_PF_TAKEN, 1)
    w[L.TAKEN] += 1
    w[a + L.V_TAKEN] += 1
    w[a + L.V_TRIES] += 1
    bin_add(w, L.TL_TAKEN, t, 1)
    w[a + L.V_REF] = 0
    w[a + L.V_FOLIO] = 0
    w[a + L.V_COW] = 0
    w[a + L.V_UPGRADE] = 0
    w[a + L.V_LOOKS] = 0
    t = local_barrier(w, a, 1, L.PART_HANDLER, t)  # srcu_read_lock
    if w[a + L.V_PRESENT] and w[a + L.V_KIND] == L.WRITE:
        schedule(w, a, L.PC_FAST_PAGE_FAULT, t)
    else:
        snapshot(w, a, t)


@jit
def fast_page_fault(w, a):
    """A write to a present leaf: make it writable again without a lock, if KVM alone forbade it."""
    t = w[L.NOW]
    addr, line, level = lookup(w, w[a + L.VM], w[a + L.V_GFN])
    spte = w[addr]
    fixable = (spte & L.SPTE_MMU_W) != 0 and not (level > 1 and w[L.DIRTY_LOGGING])
    if is_leaf(spte) and (spte & L.SPTE_W) != 0:
        count(w, a, L.K_PF_FAST, 1)
        out(w, a, L.RET_SPURIOUS, load(w, a, line, L.PART_SPTE, t))
    elif is_leaf(spte) and fixable:
        t = rmw_cas(w, a, line, L.X_SPTE, L.PART_SPTE, t)  # fast_pf_fix_direct_spte
        w[addr] = spte | L.SPTE_W
        count(w, a, L.K_PF_FAST, 1)
        w[a + L.V_OUTCOME] = L.RET_FIXED
        schedule(w, a, L.PC_FAST_DIRTY if w[L.DIRTY_LOGGING] else L.PC_FINISH, t)
    else:
        snapshot(w, a, load(w, a, line, L.PART_SPTE, t))


@jit
def fast_dirty(w, a):
    """mark_page_dirty_in_slot of the fast path."""
    out(w, a, L.RET_FIXED, mark_page_dirty_in_slot(w, a, w[a + L.V_GFN], w[L.NOW]))


@jit
def snapshot(w, a, t):
    """fault->mmu_seq = kvm->mmu_invalidate_seq, and the check before GUP (v6.8 and later)."""
    t = load_seq_line(w, a, t)
    w[a + L.V_SEQ] = w[w[a + L.VM] + L.SEQ]
    if w[L.M_PRECHECKS] and retry_if_stale(w, a, L.K_RETRY_PRE_GUP_RANGE):
        out(w, a, L.RET_RETRY, t)
    else:
        schedule(w, a, L.PC_GUP, t)


@jit
def precheck(w, a):
    """The check between GUP and mmu_lock (v6.8 and later)."""
    t = load_seq_line(w, a, w[L.NOW])
    if retry_if_stale(w, a, L.K_RETRY_POST_GUP_RANGE):
        out(w, a, L.RET_RETRY, t)
    else:
        ask_lock(w, a, t)


@jit
def retry_if_stale(w, a, cells):
    """mmu_invalidate_retry_gfn; counts a retry in the cell of its reason."""
    why = mmu_invalidate_retry_gfn(w, a)
    if why == FRESH:
        return False
    count(w, a, stale_cell(cells, why), 1)
    return True


@jit
def mapped(w, a):
    """mmu_lock is held: is_page_fault_stale decides, then kvm_tdp_mmu_map walks."""
    r = region_of(w, w[a + L.VM], w[a + L.V_GFN])
    t = w[L.NOW]
    if w[L.M_SEQ_CHECKED]:
        t = load_seq_line(w, a, t)
        if retry_if_stale(w, a, L.K_RETRY_LOCKED_RANGE):
            retry_locked(w, a, t)
            return
    # kvm_mmu_hugepage_adjust: the host's level, unless slot, dirty logging or an NX exec fault forbid it
    pte = w[pte_address(w, r, w[a + L.V_GFN])]
    level = host_level(w, r, w[a + L.V_GFN])
    if (pte & L.P_STATE) == L.P_ABSENT or w[L.DIRTY_LOGGING]:
        level = 1
    if w[L.NX_HUGE_PAGES] and w[a + L.V_KIND] == L.EXEC:
        level = 1
    w[a + L.V_LEVEL] = min(level, w[r + L.R_MAX_LEVEL])
    walk(w, a, t)


@jit
def walk(w, a, t):
    """kvm_tdp_mmu_map's loop: link what is missing, split what is too large, stop at the goal's entry."""
    vm, gfn = w[a + L.VM], w[a + L.V_GFN]
    addr, line, level = lookup_above(w, vm, gfn, w[a + L.V_LEVEL])
    while not may_replace(w, w[addr], level):
        w[a + L.V_LEVEL] -= 1  # disallowed_hugepage_adjust
        addr, line, level = lookup_above(w, vm, gfn, w[a + L.V_LEVEL])
    entry = w[addr]
    t += private(w, a, L.PART_WALK, w[L.C_TABLE_LOAD] * (w[L.LEVELS] - level + 1))
    if entry == L.SPTE_FROZEN:
        lost_race(w, a, L.K_RETRY_RACE_FROZEN, t)
        return
    if level == w[a + L.V_LEVEL]:
        t = load(w, a, line, L.PART_SPTE, t)
        w[a + L.V_LEAF] = addr
        w[a + L.V_LEAF_LINE] = line
        w[a + L.V_OLD] = entry
        schedule(w, a, L.PC_LEAF, t + private(w, a, L.PART_HANDLER, w[L.C_HANDLER_MAP]))
        return
    w[a + L.V_LINK] = addr
    w[a + L.V_LINK_LINE] = line
    w[a + L.V_LINK_OLD] = entry
    w[a + L.V_LINK_LEVEL] = level
    if is_leaf(entry) and not w[L.M_SPLIT_IN_PLACE]:
        schedule(w, a, L.PC_FREEZE, t)
    else:
        schedule(w, a, L.PC_LINK, t + private(w, a, L.PART_WALK, w[L.C_TABLE_ALLOC]))


@jit
def may_replace(w, entry, level):
    """Whether a leaf may take an entry's place: not an NX table's, nor, here, of one with tables below."""
    if (entry & L.SPTE_TABLE) == 0:
        return True
    table = entry >> L.SPTE_PFN_SHIFT
    if w[table + L.TABLE_NX]:
        return False
    if level == 3:
        for i in range(512):
            if w[table + i] & L.SPTE_TABLE:
                return False
    return True


@jit
def link(w, a):
    """A missing table, or a huge leaf split in place: one cmpxchg in the parent; the loser retries."""
    old, level = w[a + L.V_LINK_OLD], w[a + L.V_LINK_LEVEL]
    gone = unlinked(w, a, w[a + L.V_LINK], level)
    won, t = link_table(w, a, w[a + L.V_LINK], w[a + L.V_LINK_LINE], -1 if gone else old, level, w[L.NOW])
    if won and w[L.NX_HUGE_PAGES] and w[a + L.V_KIND] == L.EXEC:
        r = region_of(w, w[a + L.VM], w[a + L.V_GFN])
        if host_level(w, r, w[a + L.V_GFN]) >= level:
            w[(w[w[a + L.V_LINK]] >> L.SPTE_PFN_SHIFT) + L.TABLE_NX] = 1
    if not won:
        lost_race(w, a, L.K_RETRY_RACE_PARENT, t)
    else:
        schedule(w, a, L.PC_SPLIT_STATS if is_leaf(old) else L.PC_TABLE_COUNT, t)


@jit
def split_stats(w, a):
    """tdp_mmu_split_huge_page's kvm_update_page_stats."""
    schedule(w, a, L.PC_TABLE_COUNT, update_split_stats(w, a, w[a + L.V_LINK_LEVEL], w[L.NOW]))


@jit
def table_count(w, a):
    """tdp_account_mmu_page, or the list of 6.1; then the walk goes on."""
    walk(w, a, count_table(w, a, w[L.NOW]))


@jit
def freeze(w, a):
    """tdp_mmu_zap_spte_atomic (6.1): freeze the huge leaf and flush before the entry may be used again."""
    t = rmw_cas(w, a, w[a + L.V_LINK_LINE], L.X_SPTE, L.PART_SPTE, w[L.NOW])
    gone = unlinked(w, a, w[a + L.V_LINK], w[a + L.V_LINK_LEVEL])
    if gone or w[w[a + L.V_LINK]] != w[a + L.V_LINK_OLD]:
        lost_race(w, a, L.K_RETRY_RACE_LEAF, t)
        return
    w[w[a + L.V_LINK]] = L.SPTE_FROZEN
    count(w, a, L.K_HUGE_SPLITS, 1)
    schedule(w, a, L.PC_FREEZE_STATS, t)


@jit
def freeze_stats(w, a):
    """handle_changed_spte's kvm_update_page_stats, then the flush."""
    t = update_page_stats(w, a, w[a + L.V_LINK_LEVEL], -1, w[L.NOW])
    flush_remote_tlbs(w, a, L.PC_FROZEN, t)


@jit
def frozen(w, a):
    """All CPUs have flushed: the entry is free for a table."""
    if w[w[a + L.V_LINK]] == L.SPTE_FROZEN:
        w[w[a + L.V_LINK]] = 0
    walk(w, a, store(w, a, w[a + L.V_LINK_LINE], L.PART_SPTE, w[L.NOW]))


@jit
def lost_race(w, a, cell, t):
    """Another vCPU was faster: RET_PF_RETRY."""
    count(w, a, cell, 1)
    retry_locked(w, a, t)


@jit
def retry_locked(w, a, t):
    """RET_PF_RETRY under mmu_lock: what the path does to the page before the unlock, if anything."""
    w[a + L.V_OUTCOME] = L.RET_RETRY
    put = w[L.M_REFERENCE] == L.REF_LOCKED_PUT and w[a + L.V_REF]
    if w[a + L.V_FOLIO] != 0 and (put or accessed_unused(w)):
        schedule(w, a, L.PC_RELEASE_UNUSED, t)
    else:
        unlock(w, a, t)


@jit
def accessed_unused(w):
    """Whether a RETRY under mmu_lock marks its page: v8 to v11 do, behind their out_unlock label."""
    return accessed_locked(w) and w[L.M_ACCESSED_ON_RETRY]


@jit
def release_unused(w, a):
    """kvm_release_page_unused of v6.13, the put; or v11's kvm_set_page_accessed of a page it did not map."""
    t = w[L.NOW]
    if accessed_unused(w):
        t = mark_page_accessed(w, a, w[a + L.V_FOLIO], t)
    if w[L.M_REFERENCE] == L.REF_LOCKED_PUT:
        t = put_folio(w, a, t)
    unlock(w, a, t)


@jit
def unlock(w, a, t):
    """Drop mmu_lock, then out."""
    fault_unlock(w, a, way_out(w, a), t)


@jit
def leaf(w, a):
    """tdp_mmu_map_handle_target_level: a leaf that allows the access is left, else one is made."""
    old = w[a + L.V_OLD]
    if w[L.M_EARLY_SPURIOUS] and is_access_allowed(old, w[a + L.V_KIND]):
        w[a + L.V_OUTCOME] = L.RET_SPURIOUS
        to_release(w, a, w[L.NOW])
        return
    if w[L.DIRTY_LOGGING] and make_spte(w, a, old, w[a + L.V_LEVEL], w[a + L.V_GEN]) & L.SPTE_W:
        schedule(w, a, L.PC_SET_LEAF, mark_page_dirty_in_slot(w, a, w[a + L.V_GFN], w[L.NOW]))
    else:
        set_leaf(w, a)


@jit
def set_leaf(w, a):
    """tdp_mmu_set_spte_atomic: cmpxchg the leaf against what the walk saw; one that is right is left."""
    t = w[L.NOW]
    old = w[a + L.V_OLD]
    level = w[a + L.V_LEVEL]
    new = make_spte(w, a, old, level, w[a + L.V_GEN])
    if new == old:
        w[a + L.V_OUTCOME] = L.RET_SPURIOUS
        to_release(w, a, t)
        return
    if w[L.M_EXCLUSIVE]:
        t = store(w, a, w[a + L.V_LEAF_LINE], L.PART_SPTE, t)
    else:
        t = rmw_cas(w, a, w[a + L.V_LEAF_LINE], L.X_SPTE, L.PART_SPTE, t)
    if w[w[a + L.V_LEAF]] != old or unlinked(w, a, w[a + L.V_LEAF], level):
        lost_race(w, a, L.K_RETRY_RACE_LEAF, t)
        return
    if w[L.CHECK]:
        check_install(w, a, old, new)
    w[w[a + L.V_LEAF]] = new
    w[a + L.V_OUTCOME] = L.RET_FIXED
    if is_leaf(old):
        to_release(w, a, t)
        return
    count(w, a, L.K_INSTALLS, 1)
    if old & L.SPTE_TABLE:
        w[L.UNLINKED] += 1
        w[a + L.V_UNLINK] = old >> L.SPTE_PFN_SHIFT
        w[a + L.V_UNLINK_NEXT] = 0
        w[a + L.V_UNLINK_LEAVES] = 0
        schedule(w, a, L.PC_UNLINK, t)
    else:
        schedule(w, a, L.PC_STATS, t)


@jit
def unlinked(w, a, addr, level):
    """Whether an entry that a walk had found has left the tree (its memory may hold another table by now)."""
    return w[L.UNLINKED] != 0 and lookup_above(w, w[a + L.VM], w[a + L.V_GFN], level)[0] != addr


@jit
def unlink(w, a):
    """handle_removed_pt: no fault may use an entry of the replaced table any more; a line a step."""
    table = w[a + L.V_UNLINK]
    first = w[a + L.V_UNLINK_NEXT]
    leaves, t = remove_entries(w, a, table, first, w[L.NOW])
    w[a + L.V_UNLINK_LEAVES] += leaves
    w[a + L.V_UNLINK_NEXT] = first + 8
    schedule(w, a, L.PC_UNLINK if first + 8 < 512 else L.PC_UNLINK_COUNT, t)


@jit
def unlink_count(w, a):
    """tdp_mmu_unlink_sp: the table leaves the list, or the count."""
    count(w, a, L.K_TABLES_FREED, 1)
    t = count_table(w, a, w[L.NOW])
    if w[a + L.V_UNLINK_LEAVES] > 0:
        schedule(w, a, L.PC_UNLINK_STATS, t)
    else:
        free_unlinked(w, a, t)


@jit
def unlink_stats(w, a):
    """handle_changed_spte's kvm_update_page_stats for each leaf that was in the table."""
    t = w[L.NOW]
    level, leaves = w[a + L.V_LEVEL] - 1, w[a + L.V_UNLINK_LEAVES]
    t = update_page_stats(w, a, level, -1, t)
    for _ in range(leaves - 1):
        t = ride_page_stats(w, a, level, -1, t)
    if removed_leaf_marks(w, a):
        schedule(w, a, L.PC_UNLINK_MARK, t)
    else:
        free_unlinked(w, a, t)


@jit
def unlink_mark(w, a):
    """handle_changed_spte's kvm_set_pfn_{dirty,accessed}: all leaves mapped parts of one folio."""
    free_unlinked(w, a, mark_removed_leaves(w, a, w[L.NOW]))


@jit
def free_unlinked(w, a, t):
    """The table is freed, and vCPUs flush before the fault goes on."""
    free_table(w, w[a + L.V_UNLINK])
    flush_remote_tlbs(w, a, L.PC_STATS, t)


@jit
def stats(w, a):
    """handle_changed_spte's kvm_update_page_stats of a new leaf."""
    to_release(w, a, update_page_stats(w, a, w[a + L.V_LEVEL], 1, w[L.NOW]))


@jit
def to_release(w, a, t):
    """kvm_mmu_finish_page_fault: what the path does to the page before it drops mmu_lock, if anything."""
    dirty = w[a + L.V_WRITABLE] and w[L.M_DIRTY_MARKING] == L.DIRTY_AT_MAP
    put = w[a + L.V_REF] and w[L.M_REFERENCE] == L.REF_LOCKED_PUT
    if w[a + L.V_FOLIO] != 0 and (dirty or put or accessed_locked(w)):
        schedule(w, a, L.PC_RELEASE, t)
    else:
        unlock(w, a, t)


@jit
def accessed_locked(w):
    """Whether faults mark their pages accessed before mmu_lock is released."""
    marking = w[L.M_ACCESSED_MARKING]
    locked = marking == L.ACCESSED_LOCKED_RELEASE or marking == L.ACCESSED_BEFORE_UNLOCK
    return locked and w[L.LRU] != L.LRU_OFF


@jit
def release(w, a):
    """kvm_release_faultin_page, under mmu_lock: dirty, accessed, put."""
    t = w[L.NOW]
    if w[a + L.V_WRITABLE] and w[L.M_DIRTY_MARKING] == L.DIRTY_AT_MAP:
        t = set_folio_dirty(w, a, w[a + L.V_FOLIO], t)
    if accessed_locked(w):
        t = mark_page_accessed(w, a, w[a + L.V_FOLIO], t)
    if w[L.M_REFERENCE] == L.REF_LOCKED_PUT:
        t = put_folio(w, a, t)
    unlock(w, a, t)


@jit
def check_install(w, a, old, new):
    """Invariants 1, 3 and 4 of an install, for the fault paths that are guarded and checked."""
    if not (w[L.M_GUARDED] and w[L.M_SEQ_CHECKED]):
        return
    vm = w[a + L.VM]
    gfn = w[a + L.V_GFN]
    other = w[vm + L.ACTIVE_HEAD]
    while other != 0:
        # A huge leaf may reach into a range that cuts it: the host splits it, under a call of its own, before
        # it changes a part.
        if gfn >= w[other + L.N_START] and gfn < w[other + L.N_END]:
            fail(w, 2, 3)
        other = w[other + L.N_ACTIVE_NEXT]
    pfn = (old >> L.SPTE_PFN_SHIFT) & L.SPTE_PFN_MASK
    if is_leaf(old) and pfn != (new >> L.SPTE_PFN_SHIFT) & L.SPTE_PFN_MASK:
        fail(w, 2, 4)
    if not w[L.M_EXCLUSIVE] and w[vm + L.MMU_READERS] <= 0:
        fail(w, 2, 5)


@jit
def release_clean(w, a):
    """kvm_release_pfn_clean after mmu_lock is dropped: mark the page accessed, put what is still held."""
    t = w[L.NOW]
    if accessed_after_unlock(w, a):
        t = mark_page_accessed(w, a, w[a + L.V_FOLIO], t)
    t = put_folio(w, a, t)
    call(w, a, to_finish(w, a), L.PC_FINISH, t)


@jit
def finish(w, a):
    """Out of the handler: requests are served, the guest is entered."""
    vm = w[a + L.VM]
    t = w[L.NOW]
    outcome = w[a + L.V_OUTCOME]
    retried = outcome == L.RET_RETRY
    if w[a + L.V_TLB_REQUEST]:
        t = serve_flush_request(w, a, t)
    t = local_barrier(w, a, 2, L.PART_HANDLER, t)  # srcu_read_unlock, vcpu->mode
    t += private(w, a, L.PART_HANDLER, w[L.C_HANDLER_RETURN])
    t += private(w, a, L.PART_EXIT_ENTRY, w[L.C_ENTRY])
    spent = t - w[a + L.V_T0]
    w[a + L.V_FAULTS] += spent
    w[a + L.V_CHAIN] += spent
    book_attempt(w, a, retried, spent)
    if retried:
        w[a + L.V_RETRIES] += 1
        bin_add(w, L.TL_RETRIES, w[L.NOW], 1)
        bin_add(w, L.TL_WASTED_PS, w[L.NOW], spent)
        schedule(w, a, L.PC_ACCESS, t)
        return
    bin_add(w, L.TL_RESOLVED, w[L.NOW], 1)
    w[w[L.HIST] + histogram_bucket(w[a + L.V_CHAIN])] += 1
    w[w[L.TRIES] + min(w[a + L.V_TRIES], L.TRIES_BUCKETS - 1)] += 1
    w[a + L.V_TRIES_MAX] = max(w[a + L.V_TRIES_MAX], w[a + L.V_TRIES])
    w[a + L.V_LATENCY_MAX] = max(w[a + L.V_LATENCY_MAX], w[a + L.V_CHAIN])
    note_slow(w, a)
    w[a + L.V_CHAIN] = 0
    w[a + L.V_TRIES] = 0
    if outcome == L.RET_FIXED:
        count(w, a, L.K_PF_FIXED, 1)
    elif outcome == L.RET_SPURIOUS:
        count(w, a, L.K_PF_SPURIOUS, 1)
    elif outcome == L.RET_EMULATE:
        count(w, a, L.K_PF_EMULATE, 1)
        w[a + L.V_HAVE] = 0  # the instruction is emulated: the access is done
        w[a + L.V_N] += 1
        w[a + L.V_ACCESSES] += 1
        count(w, a, L.K_ACCESSES, 1)
    else:
        count(w, a, L.K_PF_ERROR, 1)
        w[vm + L.ALIVE] = 0
    schedule(w, a, L.PC_ACCESS, t)


@jit
def book_attempt(w, a, retried, spent):
    """Close an attempt's parts: split if it was the last, whole into `wasted` if it retries."""
    base = w[L.PARTS] + w[w[a + L.VM] + L.VM_ID] * L.PART_COUNT
    total = 0
    for part in range(L.PART_COUNT):
        ps = w[a + L.V_PARTS + part]
        total += ps
        if not retried:
            w[base + part] += ps
    if retried:
        w[base + L.PART_WASTED] += spent
    if total != spent:
        fail(w, 2, 6)  # conservation: the parts of an attempt are its time, exactly
