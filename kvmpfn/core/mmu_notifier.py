"""The other side: invalidate_range_start and _end, the flush, and the staleness test that faults make.

An actor that invalidates puts [N_START, N_END) in its record, takes `start`, and gets its step N_RETURN
back when start has returned; the same for `end` (virt/kvm/kvm_main.c). A vCPU that breaks copy-on-write
inside GUP goes through the same steps.

start -> write_lock -> start_locked -> [zap]* -> flush -> flushed -> write_unlock -> started;
end -> write_lock -> end_locked -> write_unlock -> ended.
"""

from . import layout as L
from .events import back, bin_add, call, count, fail, schedule
from .jit import jit
from .lines import charge, local_barrier, private, rmw_add, rmw_cas, store
from .notes import note_wait
from .qrwlock import contended
from .tdp_mmu import marks_page, next_leaf, propagate_accessed_dirty, zap_leaf

FRESH, RANGE, FALSE_RANGE, SEQ = 0, 1, 2, 3


@jit
def mmu_invalidate_retry_gfn(w, a):
    """mmu_invalidate_retry_gfn: FRESH, or why the fault is stale.

    RANGE if an invalidation in progress covers the gfn; else SEQ if one finished since the snapshot, wherever
    it was; else FALSE_RANGE if only the collapsed interval covers the gfn, and the kernel goes by that.
    """
    vm = w[a + L.VM]
    gfn = w[a + L.V_GFN]
    collapsed = w[vm + L.IN_PROGRESS] > 0 and gfn >= w[vm + L.RANGE_START] and gfn < w[vm + L.RANGE_END]
    if collapsed:
        other = w[vm + L.ACTIVE_HEAD]
        while other != 0:
            if gfn >= w[other + L.N_START] and gfn < w[other + L.N_END]:
                return RANGE
            other = w[other + L.N_ACTIVE_NEXT]
    if w[vm + L.SEQ] != w[a + L.V_SEQ]:
        return SEQ
    if collapsed and not w[L.M_RANGE_LIST]:
        return FALSE_RANGE
    return FRESH


@jit
def flush_remote_tlbs(w, a, after, t):
    """kvm_flush_remote_tlbs: call flush, a step a vCPU; `after` comes when the last has answered."""
    count(w, a, L.K_REMOTE_TLB_FLUSH_REQUESTS, 1)
    w[a + L.N_FLUSH_NEXT] = 0
    w[a + L.N_FLUSH_LAST] = t
    w[a + L.N_FLUSH_KICKED] = 0
    call(w, a, L.PC_FLUSH, after, t)


@jit
def next_running(w, vm, i):
    """The first vCPU from the i-th on that has not stopped; VCPU_TOTAL if there is none."""
    while i < w[vm + L.VCPU_TOTAL] and w[w[vm + L.VCPUS] + i * L.VCPU_WORDS + L.FINISHED]:
        i += 1
    return i


@jit
def flush(w, a):
    """kvm_make_vcpu_request for the next vCPU: a request bit, and a kick if it is in the guest."""
    vm = w[a + L.VM]
    t = w[L.NOW]
    i = next_running(w, vm, w[a + L.N_FLUSH_NEXT])
    if i < w[vm + L.VCPU_TOTAL]:
        v = w[vm + L.VCPUS] + i * L.VCPU_WORDS
        t = rmw_add(w, a, v + L.V_REQUEST_LINE, L.X_VCPU_REQUEST, L.PART_FLUSH, t)
        if w[v + L.PC] == L.PC_ACCESS:
            t = local_barrier(w, a, 1, L.PART_FLUSH, t)
            t += private(w, a, L.PART_FLUSH, w[L.C_IPI_SEND])
            ipi = w[L.C_IPI_SOCKET]
            if w[v + L.SOCKET] != w[a + L.SOCKET]:
                ipi = w[L.C_IPI_REMOTE]
            if t + ipi > w[a + L.N_FLUSH_LAST]:
                w[a + L.N_FLUSH_LAST] = t + ipi
                w[a + L.N_FLUSH_WHO] = w[v + L.CPU] + 1
            w[v + L.V_OWED] += w[L.C_EXIT] + w[L.C_FLUSH_TLB] + w[L.C_ENTRY]
            w[a + L.N_FLUSH_KICKED] += 1
        else:
            w[v + L.V_TLB_REQUEST] = 1
        i = next_running(w, vm, i + 1)
        w[a + L.N_FLUSH_NEXT] = i
    if i < w[vm + L.VCPU_TOTAL]:
        schedule(w, a, L.PC_FLUSH, t)
        return
    count(w, a, L.K_KICKS, w[a + L.N_FLUSH_KICKED])
    if w[a + L.N_FLUSH_KICKED] > 0:
        count(w, a, L.K_REMOTE_TLB_FLUSH, 1)
    last = max(t, w[a + L.N_FLUSH_LAST])
    charge(w, a, L.PART_FLUSH, last - t)
    if last > t:
        note_wait(w, a, 0, w[a + L.N_FLUSH_WHO], t, last)
    back(w, a, last)


@jit
def invalidate(w, a, pc, after, t):
    """Take `start` or `end` at `t`; `after` comes when it has returned."""
    w[a + L.N_RETURN] = after
    schedule(w, a, pc, t)


@jit
def start(w, a):
    """invalidate_range_start: count the invalidation in, find the memslots, then mmu_lock for write."""
    vm = w[a + L.VM]
    t = rmw_add(w, a, vm + L.MN_LINE, L.X_MN_LOCK, L.PART_WALK, w[L.NOW])
    w[vm + L.MN_ACTIVE] += 1
    call(w, a, L.PC_WRITE_LOCK, L.PC_START_LOCKED, t + private(w, a, L.PART_WALK, w[L.C_NOTIFIER_CALL]))


@jit
def start_locked(w, a):
    """kvm_mmu_invalidate_begin: in_progress and the one collapsed range, which only widens until idle."""
    vm = w[a + L.VM]
    t = store(w, a, vm + L.SEQ_LINE, L.PART_SEQ_LINE, w[L.NOW])
    w[vm + L.SEQ_VERSION] += 1
    w[vm + L.IN_PROGRESS] += 1
    if w[vm + L.IN_PROGRESS] == 1:
        w[vm + L.RANGE_START] = w[a + L.N_START]
        w[vm + L.RANGE_END] = w[a + L.N_END]
    else:
        w[vm + L.RANGE_START] = min(w[vm + L.RANGE_START], w[a + L.N_START])
        w[vm + L.RANGE_END] = max(w[vm + L.RANGE_END], w[a + L.N_END])
    w[a + L.N_ACTIVE_NEXT] = w[vm + L.ACTIVE_HEAD]
    w[vm + L.ACTIVE_HEAD] = a
    w[a + L.N_CURSOR] = w[a + L.N_START]
    w[a + L.N_PENDING_FLUSH] = 0
    w[a + L.N_PROGRESS] = 0
    to_next_leaf(w, a, t)


@jit
def to_next_leaf(w, a, t):
    """Find the next leaf of the range: a step of its own, or on to the flush when there is none."""
    vm = w[a + L.VM]
    t += private(w, a, L.PART_WALK, w[L.C_ZAP_SKIP])
    gfn = -1
    if w[L.M_GUARDED]:
        addr, line, level, gfn = next_leaf(w, vm, w[a + L.N_CURSOR], w[a + L.N_END])
        w[a + L.N_LEAF] = addr
        w[a + L.N_LINE] = line
        w[a + L.N_LEAF_LEVEL] = level
    w[a + L.N_GFN] = gfn
    if gfn >= 0:
        schedule(w, a, L.PC_ZAP, t)
    elif w[a + L.N_PENDING_FLUSH]:
        flush_remote_tlbs(w, a, L.PC_FLUSHED, t)
    else:
        schedule(w, a, L.PC_FLUSHED, t)


@jit
def zap(w, a):
    """One leaf; before it, and after progress, a yielding kernel gives way to a waiting fault.

    tdp_mmu_iter_cond_resched: flush what is pending, unlock, and queue again at the tail.
    """
    vm = w[a + L.VM]
    t = w[L.NOW]
    if w[L.PREEMPT_YIELDS] and w[a + L.N_PROGRESS] and contended(w, vm):
        count(w, a, L.K_ZAP_YIELDS, 1)
        if w[a + L.N_PENDING_FLUSH]:
            w[a + L.N_PENDING_FLUSH] = 0
            flush_remote_tlbs(w, a, L.PC_YIELD, t)
        else:
            schedule(w, a, L.PC_YIELD, t)
        return
    gfn = w[a + L.N_GFN]
    level = w[a + L.N_LEAF_LEVEL]
    spte, t = zap_leaf(w, a, w[a + L.N_LEAF], w[a + L.N_LINE], level, t)
    w[a + L.N_PENDING_FLUSH] = 1
    w[a + L.N_PROGRESS] = 1
    shift = 9 * (level - 1)
    w[a + L.N_CURSOR] = ((gfn >> shift) + 1) << shift
    if marks_page(w, a, gfn, spte):
        w[a + L.N_LEAF] = spte
        schedule(w, a, L.PC_ZAP_MARK, t)
    else:
        to_next_leaf(w, a, t)


@jit
def zap_mark(w, a):
    """handle_changed_spte's kvm_set_pfn_{dirty,accessed}: what the leaf knew of its page's use."""
    to_next_leaf(w, a, propagate_accessed_dirty(w, a, w[a + L.N_GFN], w[a + L.N_LEAF], w[L.NOW]))


@jit
def yield_lock(w, a):
    """Give up mmu_lock in the middle of a zap."""
    call(w, a, L.PC_WRITE_UNLOCK, L.PC_RELOCK, w[L.NOW])


@jit
def relock(w, a):
    """And queue for it again at the tail."""
    call(w, a, L.PC_WRITE_LOCK, L.PC_RESUME, w[L.NOW])


@jit
def resume(w, a):
    """The lock again after a yield: look for the next leaf from where the zap stopped."""
    w[a + L.N_PROGRESS] = 0
    to_next_leaf(w, a, w[L.NOW])


@jit
def flushed(w, a):
    """All vCPUs have answered: unlock."""
    call(w, a, L.PC_WRITE_UNLOCK, L.PC_STARTED, w[L.NOW])


@jit
def started(w, a):
    """invalidate_range_start returns."""
    if w[L.CHECK] and w[L.M_GUARDED] and w[L.M_SEQ_CHECKED]:
        _, _, _, gfn = next_leaf(w, w[a + L.VM], w[a + L.N_START], w[a + L.N_END])
        if gfn >= 0:
            fail(w, 2, 1)  # invariant 1: nothing in the range is mapped when start returns
    schedule(w, a, w[a + L.N_RETURN], w[L.NOW])


@jit
def end(w, a):
    """invalidate_range_end: find the memslots, then mmu_lock for write again."""
    t = w[L.NOW] + private(w, a, L.PART_WALK, w[L.C_NOTIFIER_CALL])
    call(w, a, L.PC_WRITE_LOCK, L.PC_END_LOCKED, t)


@jit
def end_locked(w, a):
    """kvm_mmu_invalidate_end: seq + 1, then in_progress - 1; unlock."""
    vm = w[a + L.VM]
    t = store(w, a, vm + L.SEQ_LINE, L.PART_SEQ_LINE, w[L.NOW])
    w[vm + L.SEQ_VERSION] += 1
    w[vm + L.SEQ] += 1
    w[vm + L.IN_PROGRESS] -= 1
    before = 0
    other = w[vm + L.ACTIVE_HEAD]
    while other != a:
        before = other
        other = w[other + L.N_ACTIVE_NEXT]
    if before == 0:
        w[vm + L.ACTIVE_HEAD] = w[a + L.N_ACTIVE_NEXT]
    else:
        w[before + L.N_ACTIVE_NEXT] = w[a + L.N_ACTIVE_NEXT]
    count(w, a, L.K_INVALIDATIONS, 1)
    if w[a + L.IS_VCPU]:
        count(w, a, L.K_INVALIDATIONS_SELF, 1)
    bin_add(w, L.TL_INVALIDATIONS, w[L.NOW], 1)
    call(w, a, L.PC_WRITE_UNLOCK, L.PC_ENDED, t)


@jit
def ended(w, a):
    """The invalidation is counted out, and invalidate_range_end returns."""
    vm = w[a + L.VM]
    w[vm + L.MN_ACTIVE] -= 1
    t = rmw_add(w, a, vm + L.MN_LINE, L.X_MN_LOCK, L.PART_WALK, w[L.NOW])
    schedule(w, a, w[a + L.N_RETURN], t)


@jit
def age(w, a):
    """clear_flush_young: test and clear the next leaf's accessed bit, under mmu_lock or not."""
    t = w[L.NOW]
    addr, line, level, gfn = next_leaf(w, w[a + L.VM], w[a + L.N_CURSOR], w[a + L.N_END])
    if gfn >= 0:
        if w[addr] & L.SPTE_A:
            t = rmw_cas(w, a, line, L.X_SPTE, L.PART_SPTE, t)
            w[addr] &= ~L.SPTE_A
            count(w, a, L.K_AGED, 1)
            w[a + L.N_PENDING_FLUSH] = w[L.M_AGING_FLUSH]
        shift = 9 * (level - 1)
        w[a + L.N_CURSOR] = ((gfn >> shift) + 1) << shift
        schedule(w, a, L.PC_AGE, t + private(w, a, L.PART_WALK, w[L.C_ZAP_SKIP]))
        return
    t += private(w, a, L.PART_WALK, w[L.C_ZAP_SKIP])
    if w[a + L.N_PENDING_FLUSH]:
        flush_remote_tlbs(w, a, L.PC_AGED, t)
    else:
        schedule(w, a, L.PC_AGED, t)
