"""The loop: the least event's actor takes its step, until none is left (docs/model.md, "Steps")."""

from . import layout as L
from .arrivals import done, next_arrival, over
from .checks import check_vm
from .clients import aged, cleared, idle
from .dirty_log import clear_dirty, clear_leaf, clear_mark, pml_flush, sync_dirty_log
from .draws import START, below
from .events import least_event, log, pop, popped, schedule
from .faultin import (
    cow_lock,
    early_put,
    fill,
    follow,
    follow_lock,
    get,
    got,
    gup,
    install,
    installed,
    lru_add,
    map_file,
    mm_fault,
    pfn_get,
    remap,
    remapped,
    slow,
)
from .host_locks import mmap_lock, mmap_unlock, owner_load, owner_store, ptl_lock, ptl_unlock
from .host_mm import alloc, host_flush
from .host_ops import after, pte_end, ptes, restore
from .jit import jit, kernel, memory
from .mmu_notifier import (
    age,
    end,
    end_locked,
    ended,
    flush,
    flushed,
    relock,
    resume,
    start,
    start_locked,
    started,
    yield_lock,
    zap,
    zap_mark,
)
from .page_fault import (
    access,
    fast_dirty,
    fast_page_fault,
    finish,
    freeze,
    freeze_stats,
    frozen,
    handle,
    leaf,
    link,
    mapped,
    precheck,
    release,
    release_clean,
    release_unused,
    set_leaf,
    split_stats,
    stats,
    table_count,
    unlink,
    unlink_count,
    unlink_mark,
    unlink_stats,
)
from .populate import populate
from .qrwlock import queue_head, read_lock, read_unlock, write_grant, write_lock, write_unlock
from .references import drain_puts
from .thp import collapse, collapse_flushed, collapsed, cut, isolate_and_copy, split, split_flushed


@jit
def step(w, a, pc):
    """Take an actor's step: first the steps of a vCPU."""
    if pc == L.PC_ACCESS:
        access(w, a)
    elif pc == L.PC_HANDLE:
        handle(w, a)
    elif pc == L.PC_FAST_PAGE_FAULT:
        fast_page_fault(w, a)
    elif pc == L.PC_FAST_DIRTY:
        fast_dirty(w, a)
    elif pc == L.PC_PML_FLUSH:
        pml_flush(w, a)
    elif pc == L.PC_GUP:
        gup(w, a)
    elif pc == L.PC_GET:
        get(w, a)
    elif pc == L.PC_EARLY_PUT:
        early_put(w, a)
    elif pc == L.PC_GOT:
        got(w, a, w[L.NOW])
    elif pc == L.PC_PRECHECK:
        precheck(w, a)
    elif pc == L.PC_SLOW:
        slow(w, a)
    elif pc == L.PC_MM_FAULT:
        mm_fault(w, a)
    elif pc == L.PC_ALLOC:
        alloc(w, a)
    elif pc == L.PC_FILL:
        fill(w, a)
    elif pc == L.PC_COW_LOCK:
        cow_lock(w, a)
    elif pc == L.PC_INSTALL:
        install(w, a)
    elif pc == L.PC_MAP_FILE:
        map_file(w, a)
    elif pc == L.PC_INSTALLED:
        installed(w, a)
    elif pc == L.PC_LRU_ADD:
        lru_add(w, a)
    elif pc == L.PC_FOLLOW_LOCK:
        follow_lock(w, a)
    elif pc == L.PC_FOLLOW:
        follow(w, a)
    elif pc == L.PC_PFN_GET:
        pfn_get(w, a)
    elif pc == L.PC_REMAP:
        remap(w, a)
    elif pc == L.PC_REMAPPED:
        remapped(w, a)
    elif pc == L.PC_MAPPED:
        mapped(w, a)
    elif pc == L.PC_LINK:
        link(w, a)
    elif pc == L.PC_SPLIT_STATS:
        split_stats(w, a)
    elif pc == L.PC_TABLE_COUNT:
        table_count(w, a)
    elif pc == L.PC_FREEZE:
        freeze(w, a)
    elif pc == L.PC_FREEZE_STATS:
        freeze_stats(w, a)
    elif pc == L.PC_FROZEN:
        frozen(w, a)
    elif pc == L.PC_RELEASE_UNUSED:
        release_unused(w, a)
    elif pc == L.PC_LEAF:
        leaf(w, a)
    elif pc == L.PC_SET_LEAF:
        set_leaf(w, a)
    elif pc == L.PC_UNLINK:
        unlink(w, a)
    elif pc == L.PC_UNLINK_COUNT:
        unlink_count(w, a)
    elif pc == L.PC_UNLINK_STATS:
        unlink_stats(w, a)
    elif pc == L.PC_UNLINK_MARK:
        unlink_mark(w, a)
    elif pc == L.PC_STATS:
        stats(w, a)
    elif pc == L.PC_RELEASE:
        release(w, a)
    elif pc == L.PC_RELEASE_CLEAN:
        release_clean(w, a)
    elif pc == L.PC_DRAIN_PUTS:
        drain_puts(w, a)
    elif pc == L.PC_FINISH:
        finish(w, a)
    # Steps that are called: locks and flushes.
    elif pc == L.PC_READ_LOCK:
        read_lock(w, a)
    elif pc == L.PC_WRITE_LOCK:
        write_lock(w, a)
    elif pc == L.PC_QUEUE_HEAD:
        queue_head(w, a)
    elif pc == L.PC_WRITE_GRANT:
        write_grant(w, a)
    elif pc == L.PC_READ_UNLOCK:
        read_unlock(w, a)
    elif pc == L.PC_WRITE_UNLOCK:
        write_unlock(w, a)
    elif pc == L.PC_MMAP_LOCK:
        mmap_lock(w, a)
    elif pc == L.PC_OWNER_LOAD:
        owner_load(w, a)
    elif pc == L.PC_OWNER_STORE:
        owner_store(w, a)
    elif pc == L.PC_MMAP_UNLOCK:
        mmap_unlock(w, a)
    elif pc == L.PC_PTL_LOCK:
        ptl_lock(w, a)
    elif pc == L.PC_PTL_UNLOCK:
        ptl_unlock(w, a)
    elif pc == L.PC_FLUSH:
        flush(w, a)
    elif pc == L.PC_HOST_FLUSH:
        host_flush(w, a)
    # Whoever invalidates: a storm client, or a vCPU that breaks copy-on-write.
    elif pc == L.PC_START:
        start(w, a)
    elif pc == L.PC_START_LOCKED:
        start_locked(w, a)
    elif pc == L.PC_ZAP:
        zap(w, a)
    elif pc == L.PC_ZAP_MARK:
        zap_mark(w, a)
    elif pc == L.PC_YIELD:
        yield_lock(w, a)
    elif pc == L.PC_RELOCK:
        relock(w, a)
    elif pc == L.PC_RESUME:
        resume(w, a)
    elif pc == L.PC_FLUSHED:
        flushed(w, a)
    elif pc == L.PC_STARTED:
        started(w, a)
    elif pc == L.PC_END:
        end(w, a)
    elif pc == L.PC_END_LOCKED:
        end_locked(w, a)
    elif pc == L.PC_ENDED:
        ended(w, a)
    # A storm client outside the notifier.
    elif pc == L.PC_IDLE:
        idle(w, a)
    elif pc == L.PC_CUT:
        cut(w, a)
    elif pc == L.PC_SPLIT:
        split(w, a)
    elif pc == L.PC_SPLIT_FLUSHED:
        split_flushed(w, a)
    elif pc == L.PC_PTES:
        ptes(w, a)
    elif pc == L.PC_PTE_END:
        pte_end(w, a)
    elif pc == L.PC_AFTER and w[a + L.S_ACTION] == L.ACT_KHUGEPAGED:
        isolate_and_copy(w, a, w[L.NOW])
    elif pc == L.PC_AFTER:
        after(w, a)
    elif pc == L.PC_RESTORE:
        restore(w, a)
    elif pc == L.PC_COLLAPSE:
        collapse(w, a)
    elif pc == L.PC_COLLAPSE_FLUSHED:
        collapse_flushed(w, a)
    elif pc == L.PC_COLLAPSED:
        collapsed(w, a)
    elif pc == L.PC_OVER:
        over(w, a, w[L.NOW])
    elif pc == L.PC_AGE:
        age(w, a)
    elif pc == L.PC_AGED:
        aged(w, a)
    elif pc == L.PC_SYNC_DIRTY_LOG:
        sync_dirty_log(w, a)
    elif pc == L.PC_CLEAR_DIRTY:
        clear_dirty(w, a)
    elif pc == L.PC_CLEAR_LEAF:
        clear_leaf(w, a)
    elif pc == L.PC_CLEAR_MARK:
        clear_mark(w, a)
    elif pc == L.PC_CLEARED:
        cleared(w, a)
    elif pc == L.PC_DONE:
        done(w, a, w[L.NOW])


@kernel
def prepare(words):
    """Fill populated memory, and give every actor its first event, staggered by a draw in [0, 10 us)."""
    w = memory(words)
    populate(w)
    for i in range(w[L.ACTORS]):
        a = w[w[L.ACTOR_PTRS] + i]
        t = below(w, i, START, 0, 10_000_000)
        w[a + L.T_START] = t
        if w[a + L.IS_VCPU]:
            schedule(w, a, L.PC_ACCESS, t)
        elif w[a + L.S_ARRIVAL] == L.ARR_CLOSED:
            w[a + L.S_NOMINAL] = t
            schedule(w, a, L.PC_IDLE, t)
        else:
            w[a + L.S_NOMINAL] = t
            w[a + L.S_K] = -1
            next_arrival(w, a, t)


@kernel
def run_until(words, budget):
    """Take up to `budget` events; returns whether any is left.

    Parameters
    ----------
    words : ndarray of int64, shape (words,)
        The engine's memory, laid out as in layout.py; changed in place.
    budget : int
        Events to take before coming back, so that progress can be shown and a run interrupted.
    """
    w = memory(words)
    logs, checks = w[L.LOG_CAP] > 0, w[L.CHECK] != 0
    while budget > 0 and least_event(w) != L.NEVER and w[L.ERROR] == 0:
        budget -= 1
        a = pop(w)
        w[L.EVENTS] += 1
        if logs:
            log(w, a, w[a + L.V_GFN], w[a + L.N_START])
        step(w, a, w[a + L.PC])
        popped(w, a)
        if checks:
            check_vm(w, w[a + L.VM])
    return least_event(w) != L.NEVER
