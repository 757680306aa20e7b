"""The guest's access and the fault it takes: kvm_tdp_page_fault, read from top to bottom.

access -> handle -> (faultin.py) -> request -> mapped -> [link]* -> leaf -> finish, and back to the
guest, which repeats the access. A RETRY is that whole round again: exit, handler, entry.
"""

from . import layout as L
from .draws import GFN, KIND, THINK, below, chance, exponential, permute
from .events import bin_add, count, fail, histogram_bucket, schedule
from .host_locks import mmap_unlock, ptl_unlock
from .host_mm import (
    gfn_of_page,
    mark_page_accessed,
    pte_address,
    put_folio,
    region_of,
    set_folio_dirty,
)
from .jit import jit
from .lines import load, load_seq_line, local_barrier, private, rmw_add, rmw_cas, store
from .mmu_notifier import FALSE_RANGE, FRESH, RANGE, flush_remote_tlbs, mmu_invalidate_retry_gfn
from .qrwlock import fault_lock, fault_unlock
from .tdp_mmu import (
    is_access_allowed,
    is_leaf,
    link_table,
    lookup,
    make_spte,
    update_page_stats,
)


@jit
def draw_access(w, a):
    """The vCPU's n-th access: its gfn, kind and the compute time before it; False when there are no more."""
    n = w[a + L.V_N]
    kind = w[a + L.V_W_KIND]
    if w[a + L.V_W_LIMIT] >= 0 and n >= w[a + L.V_W_LIMIT]:
        return False
    actor = w[a + L.V_W_ACTOR]
    vm = w[a + L.VM]
    if kind == L.W_REPLAY:
        row = w[a + L.V_W_TRACE] + 3 * n
        w[a + L.V_GFN] = w[row]
        w[a + L.V_KIND] = w[row + 1]
        w[a + L.V_THINK] = w[row + 2] + w[a + L.V_W_THINK]
        return True
    size = w[a + L.V_W_COUNT]
    if kind == L.W_UNIFORM:
        page = below(w, actor, GFN, n, size)
    elif w[a + L.V_W_ORDER]:
        page = permute(w, actor, (w[a + L.V_W_FIRST] + n) % size, size)
    else:
        page = (w[a + L.V_W_FIRST] + n) % size
    w[a + L.V_GFN] = gfn_of_page(w, vm, w[a + L.V_W_BASE] + page)
    w[a + L.V_KIND] = L.READ
    writes = w[a + L.V_W_WRITES]
    if writes >= (1 << 32) or (writes > 0 and chance(w, w[a + L.ID], KIND, n, writes)):
        w[a + L.V_KIND] = L.WRITE
    w[a + L.V_THINK] = w[a + L.V_W_THINK]
    if w[a + L.V_W_THINK_EXP]:
        w[a + L.V_THINK] = exponential(w, w[a + L.ID], THINK, n, w[a + L.V_W_THINK])
    return True


@jit
def stop_vcpu(w, a):
    """The vCPU runs no more: out of accesses, the run is over, or its VM died."""
    vm = w[a + L.VM]
    w[a + L.FINISHED] = 1
    w[a + L.T_END] = w[L.NOW]
    w[a + L.PC] = L.PC_DONE
    w[vm + L.VM_RUNNING] -= 1
    w[L.RUNNING] -= 1


@jit
def access(w, a):
    """The guest touches memory: hardware walks the tables, sets A and D, or exits with a violation."""
    vm = w[a + L.VM]
    t = w[L.NOW]
    if w[a + L.V_OWED] > 0:
        w[a + L.V_KICKED] += w[a + L.V_OWED]
        schedule(w, a, L.PC_ACCESS, t + w[a + L.V_OWED])
        w[a + L.V_OWED] = 0
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
    addr, _, _ = lookup(w, vm, gfn)
    spte = w[addr]
    if is_access_allowed(spte, w[a + L.V_KIND]):
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
        w[a + L.V_N] += 1
        w[a + L.V_ACCESSES] += 1
        count(w, a, L.K_ACCESSES, 1)
        w[a + L.V_GUEST] += done - t
        schedule(w, a, L.PC_ACCESS, done)
        return
    if w[L.TAKEN] >= w[L.UNTIL_FAULTS]:
        stop_vcpu(w, a)
        return
    w[a + L.V_PRESENT] = 1 if is_leaf(spte) else 0
    w[a + L.V_T0] = t
    t += private(w, a, L.PART_EXIT_ENTRY, w[L.C_EXIT])
    t += private(w, a, L.PART_HANDLER, w[L.C_HANDLER_ENTRY])
    schedule(w, a, L.PC_HANDLE, t)


@jit
def retry(w, a, counter, t, pc):
    """The fault is stale or lost a race: RET_PF_RETRY."""
    w[a + L.V_OUTCOME] = L.RET_RETRY
    count(w, a, counter, 1)
    schedule(w, a, pc, t)


@jit
def stale_counter(base, why):
    """The cell of retry.<where>.<why>; `base` is <where>'s range cell."""
    if why == RANGE:
        return base
    if why == FALSE_RANGE:
        return base + 1
    return base + 2


@jit
def handle(w, a):
    """kvm_mmu_page_fault up to GUP: the lockless fast path, the snapshot, the first pre-check."""
    vm = w[a + L.VM]
    t = w[L.NOW]
    count(w, a, L.K_PF_TAKEN, 1)
    w[L.TAKEN] += 1
    w[a + L.V_TAKEN] += 1
    w[a + L.V_TRIES] += 1
    bin_add(w, L.TL_TAKEN, t, 1)
    w[a + L.V_REF] = 0
    w[a + L.V_FOLIO] = 0
    t = local_barrier(w, a, 1, L.PART_HANDLER, t)  # srcu_read_lock
    # fast_page_fault: a write to a present leaf, no lock taken
    if w[a + L.V_PRESENT] and w[a + L.V_KIND] == L.WRITE:
        addr, line, level = lookup(w, vm, w[a + L.V_GFN])
        t = load(w, a, line, L.PART_SPTE, t)
        spte = w[addr]
        if is_leaf(spte):
            if spte & L.SPTE_W:
                count(w, a, L.K_PF_FAST, 1)
                w[a + L.V_OUTCOME] = L.RET_SPURIOUS
                schedule(w, a, L.PC_FINISH, t)
                return
            if spte & L.SPTE_MMU_W and not (level > 1 and w[L.DIRTY_LOGGING]):
                t = rmw_cas(w, a, line, L.X_SPTE, L.PART_SPTE, t)
                w[addr] = spte | L.SPTE_W
                if w[L.DIRTY_LOGGING]:
                    t = rmw_add(w, a, vm + L.BITMAP_LINE, L.X_DIRTY_BITMAP, L.PART_DIRTY_LOG, t)
                count(w, a, L.K_PF_FAST, 1)
                w[a + L.V_OUTCOME] = L.RET_FIXED
                schedule(w, a, L.PC_FINISH, t)
                return
    t = load_seq_line(w, a, t)
    w[a + L.V_SEQ] = w[vm + L.SEQ]
    if w[L.M_PRECHECKS]:
        why = mmu_invalidate_retry_gfn(w, a)
        if why != FRESH:
            retry(w, a, stale_counter(L.K_RETRY_PRE_GUP_RANGE, why), t, L.PC_FINISH)
            return
    schedule(w, a, L.PC_GUP, t)


@jit
def request(w, a):
    """GUP is done: its locks are dropped, the second pre-check made, mmu_lock asked for."""
    t = ptl_unlock(w, a, w[L.NOW])
    t = mmap_unlock(w, a, t)
    if w[L.M_PRECHECKS]:
        t = load_seq_line(w, a, t)
        why = mmu_invalidate_retry_gfn(w, a)
        if why != FRESH:
            retry(w, a, stale_counter(L.K_RETRY_POST_GUP_RANGE, why), t, L.PC_FINISH)
            return
    fault_lock(w, a, L.PC_MAPPED, t)


@jit
def mapped(w, a):
    """mmu_lock is held: is_page_fault_stale decides, then kvm_tdp_mmu_map walks."""
    r = region_of(w, w[a + L.VM], w[a + L.V_GFN])
    t = w[L.NOW] + private(w, a, L.PART_HANDLER, w[L.C_HANDLER_LOCK])
    if w[L.M_SEQ_CHECKED]:
        t = load_seq_line(w, a, t)
        why = mmu_invalidate_retry_gfn(w, a)
        if why != FRESH:
            unlock_and_finish(w, a, stale_counter(L.K_RETRY_LOCKED_RANGE, why), t)
            return
    # kvm_mmu_hugepage_adjust: the host's level, unless slot, dirty logging or an NX exec fault forbid it
    pte = w[pte_address(w, r, w[a + L.V_GFN])]
    level = w[r + L.R_HOST_LEVEL]
    if (pte & L.P_STATE) == L.P_ABSENT or w[L.DIRTY_LOGGING]:
        level = 1
    if w[L.NX_HUGE_PAGES] and w[a + L.V_KIND] == L.EXEC:
        level = 1
    w[a + L.V_LEVEL] = min(level, w[r + L.R_MAX_LEVEL])
    walk(w, a, t)


@jit
def walk(w, a, t):
    """kvm_tdp_mmu_map's loop: link what is missing, split what is too large, stop at the goal's entry."""
    addr, line, level = lookup(w, w[a + L.VM], w[a + L.V_GFN])
    entry = w[addr]
    t += private(w, a, L.PART_WALK, w[L.C_TABLE_LOAD] * (w[L.LEVELS] - level + 1))
    if entry == L.SPTE_FROZEN:
        unlock_and_finish(w, a, L.K_RETRY_RACE_FROZEN, t)
        return
    if level <= w[a + L.V_LEVEL]:
        w[a + L.V_LEVEL] = level  # disallowed_hugepage_adjust: a table sits at the goal
        t = load(w, a, line, L.PART_SPTE, t)
        w[a + L.V_LEAF] = addr
        w[a + L.V_LEAF_LINE] = line
        w[a + L.V_OLD] = entry
        schedule(w, a, L.PC_LEAF, t + private(w, a, L.PART_HANDLER, w[L.C_HANDLER_MAP]))
        return
    w[a + L.V_LINK] = addr
    w[a + L.V_LINK_LINE] = line
    w[a + L.V_LINK_OLD] = entry
    if is_leaf(entry) and not w[L.M_SPLIT_IN_PLACE]:
        schedule(w, a, L.PC_FREEZE, t)
    else:
        schedule(w, a, L.PC_LINK, t + private(w, a, L.PART_WALK, w[L.C_TABLE_ALLOC]))


@jit
def link(w, a):
    """A missing table, or a huge leaf split in place: one cmpxchg in the parent; the loser retries."""
    _, _, level = lookup(w, w[a + L.VM], w[a + L.V_GFN])
    won, t = link_table(w, a, w[a + L.V_LINK], w[a + L.V_LINK_LINE], w[a + L.V_LINK_OLD], level, w[L.NOW])
    if won:
        walk(w, a, t)
    else:
        unlock_and_finish(w, a, L.K_RETRY_RACE_PARENT, t)


@jit
def freeze(w, a):
    """tdp_mmu_zap_spte_atomic (6.1): freeze the huge leaf and flush before the entry may be used again."""
    t = rmw_cas(w, a, w[a + L.V_LINK_LINE], L.X_SPTE, L.PART_SPTE, w[L.NOW])
    if w[w[a + L.V_LINK]] != w[a + L.V_LINK_OLD]:
        unlock_and_finish(w, a, L.K_RETRY_RACE_LEAF, t)
        return
    _, _, level = lookup(w, w[a + L.VM], w[a + L.V_GFN])
    w[w[a + L.V_LINK]] = L.SPTE_FROZEN
    t = update_page_stats(w, a, level, -1, t)
    count(w, a, L.K_HUGE_SPLITS, 1)
    schedule(w, a, L.PC_FROZEN, flush_remote_tlbs(w, a, t))


@jit
def frozen(w, a):
    """All CPUs have flushed: the entry is free for a table."""
    w[w[a + L.V_LINK]] = 0
    walk(w, a, store(w, a, w[a + L.V_LINK_LINE], L.PART_SPTE, w[L.NOW]))


@jit
def unlock_and_finish(w, a, counter, t):
    """A RETRY under mmu_lock: the locked put of v6.13 is made as `unused`, then unlock."""
    if w[L.M_REFERENCE] == L.REF_LOCKED_PUT:
        t = put_folio(w, a, t)
    t = fault_unlock(w, a, t)
    retry(w, a, counter, t, L.PC_FINISH)


@jit
def leaf(w, a):
    """tdp_mmu_map_handle_target_level: cmpxchg the leaf against what the walk saw; release; unlock."""
    vm = w[a + L.VM]
    t = w[L.NOW]
    old = w[a + L.V_OLD]
    level = w[a + L.V_LEVEL]
    w[a + L.V_OUTCOME] = L.RET_SPURIOUS
    if not (w[L.M_EARLY_SPURIOUS] and is_access_allowed(old, w[a + L.V_KIND])):
        new = make_spte(w, a, old, level, w[a + L.V_GEN])
        if w[L.DIRTY_LOGGING] and new & L.SPTE_W:
            t = rmw_add(w, a, vm + L.BITMAP_LINE, L.X_DIRTY_BITMAP, L.PART_DIRTY_LOG, t)
        if new != old:
            if w[L.M_EXCLUSIVE]:
                t = store(w, a, w[a + L.V_LEAF_LINE], L.PART_SPTE, t)
            else:
                t = rmw_cas(w, a, w[a + L.V_LEAF_LINE], L.X_SPTE, L.PART_SPTE, t)
            if w[w[a + L.V_LEAF]] != old:
                unlock_and_finish(w, a, L.K_RETRY_RACE_LEAF, t)
                return
            if w[L.CHECK]:
                check_install(w, a, old, new)
            w[w[a + L.V_LEAF]] = new
            if not is_leaf(old):
                count(w, a, L.K_INSTALLS, 1)
                t = update_page_stats(w, a, level, 1, t)
            w[a + L.V_OUTCOME] = L.RET_FIXED
    if w[a + L.V_FOLIO] != 0:
        # kvm_release_faultin_page's order, under mmu_lock: dirty, accessed, put
        if w[a + L.V_WRITABLE] and w[L.M_DIRTY_MARKING] == L.DIRTY_AT_MAP:
            t = set_folio_dirty(w, a, w[a + L.V_FOLIO], t)
        marking = w[L.M_ACCESSED_MARKING]
        if marking == L.ACCESSED_LOCKED_RELEASE or marking == L.ACCESSED_BEFORE_UNLOCK:
            t = mark_page_accessed(w, a, w[a + L.V_FOLIO], t)
        if w[L.M_REFERENCE] == L.REF_LOCKED_PUT:
            t = put_folio(w, a, t)
    schedule(w, a, L.PC_FINISH, fault_unlock(w, a, t))


@jit
def check_install(w, a, old, new):
    """Invariants 1, 3 and 4 of an install, for the fault paths that are guarded and checked."""
    if not (w[L.M_GUARDED] and w[L.M_SEQ_CHECKED]):
        return
    vm = w[a + L.VM]
    shift = 9 * (w[a + L.V_LEVEL] - 1)
    first = (w[a + L.V_GFN] >> shift) << shift
    other = w[vm + L.ACTIVE_HEAD]
    while other != 0:
        if first < w[other + L.N_END] and first + (1 << shift) > w[other + L.N_START]:
            fail(w, 2, 3)
        other = w[other + L.N_ACTIVE_NEXT]
    pfn = (old >> L.SPTE_PFN_SHIFT) & L.SPTE_PFN_MASK
    if is_leaf(old) and pfn != (new >> L.SPTE_PFN_SHIFT) & L.SPTE_PFN_MASK:
        fail(w, 2, 4)
    if not w[L.M_EXCLUSIVE] and w[vm + L.MMU_READERS] <= 0:
        fail(w, 2, 5)


@jit
def finish(w, a):
    """Out of the handler: the reference held until now is put, requests are served, the guest is entered."""
    vm = w[a + L.VM]
    t = w[L.NOW]
    outcome = w[a + L.V_OUTCOME]
    retried = outcome == L.RET_RETRY
    if w[a + L.V_FOLIO] != 0 and w[L.M_ACCESSED_MARKING] == L.ACCESSED_AFTER_UNLOCK:
        if not retried or w[L.M_ACCESSED_ON_RETRY]:
            t = mark_page_accessed(w, a, w[a + L.V_FOLIO], t)
    t = put_folio(w, a, t)
    if w[a + L.V_TLB_REQUEST]:
        w[a + L.V_TLB_REQUEST] = 0
        t = rmw_add(w, a, a + L.V_REQUEST_LINE, L.X_VCPU_REQUEST, L.PART_FLUSH, t)
        t += private(w, a, L.PART_FLUSH, w[L.C_FLUSH_TLB])
    t = local_barrier(w, a, 1, L.PART_HANDLER, t)  # srcu_read_unlock
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
    w[w[L.TRIES] + min(w[a + L.V_TRIES], L.TRIES_BUCKETS) - 1] += 1
    w[a + L.V_TRIES_MAX] = max(w[a + L.V_TRIES_MAX], w[a + L.V_TRIES])
    w[a + L.V_LATENCY_MAX] = max(w[a + L.V_LATENCY_MAX], w[a + L.V_CHAIN])
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
        w[a + L.V_PARTS + part] = 0
    if retried:
        w[base + L.PART_WASTED] += spent
    if total != spent:
        fail(w, 2, 6)  # conservation: the parts of an attempt are its time, exactly
