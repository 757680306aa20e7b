"""The loop: the least event's actor takes its step, until none is left (docs/model.md, "Steps")."""

from . import layout as L
from .checks import check_vm
from .clients import after, age_locked, change_ptes, idle, next_arrival, restore
from .draws import START, below
from .events import log, pop, schedule
from .faultin import (
    follow,
    follow_page,
    host_fault_allocated,
    host_fault_install,
    hva_to_pfn_fast,
    hva_to_pfn_remapped,
    hva_to_pfn_slow,
)
from .jit import jit, kernel
from .mmu_notifier import end, end_locked, flushed, resume, start, start_locked, zap
from .page_fault import access, finish, freeze, frozen, handle, leaf, link, mapped, request
from .populate import populate
from .qrwlock import queue_head


@jit
def step_fault(w, a, pc):
    """The steps of a vCPU."""
    if pc == L.PC_ACCESS:
        access(w, a)
    elif pc == L.PC_HANDLE:
        handle(w, a)
    elif pc == L.PC_GUP:
        hva_to_pfn_fast(w, a)
    elif pc == L.PC_REQUEST:
        request(w, a)
    elif pc == L.PC_MAPPED:
        mapped(w, a)
    elif pc == L.PC_LEAF:
        leaf(w, a)
    elif pc == L.PC_FINISH:
        finish(w, a)
    elif pc == L.PC_MMAP_LOCK:
        hva_to_pfn_slow(w, a)
    elif pc == L.PC_HOST_ALLOC:
        host_fault_allocated(w, a)
    elif pc == L.PC_PTL:
        host_fault_install(w, a)
    elif pc == L.PC_FOLLOW:
        follow(w, a)
    elif pc == L.PC_FOLLOW_PTL:
        follow_page(w, a)
    elif pc == L.PC_REMAP:
        hva_to_pfn_remapped(w, a)
    elif pc == L.PC_LINK:
        link(w, a)
    elif pc == L.PC_FREEZE:
        freeze(w, a)
    elif pc == L.PC_FROZEN:
        frozen(w, a)


@jit
def step_notifier(w, a, pc):
    """The steps of whoever invalidates: a storm client, or a vCPU that breaks copy-on-write."""
    if pc == L.PC_QUEUE_HEAD:
        queue_head(w, a)
    elif pc == L.PC_ZAP:
        zap(w, a)
    elif pc == L.PC_PTES or pc == L.PC_PTES_PTL:
        change_ptes(w, a)
    elif pc == L.PC_START:
        start(w, a)
    elif pc == L.PC_START_LOCKED:
        start_locked(w, a)
    elif pc == L.PC_FLUSHED:
        flushed(w, a)
    elif pc == L.PC_END:
        end(w, a)
    elif pc == L.PC_END_LOCKED:
        end_locked(w, a)
    elif pc == L.PC_AFTER:
        after(w, a)
    elif pc == L.PC_RESTORE:
        restore(w, a)
    elif pc == L.PC_RESUME:
        resume(w, a)
    elif pc == L.PC_AGE_LOCKED:
        age_locked(w, a)
    elif pc == L.PC_IDLE:
        idle(w, a)


@kernel
def prepare(w):
    """Fill populated memory, and give every actor its first event, staggered by a draw in [0, 10 us)."""
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
def run_until(w, budget):
    """Take up to `budget` events; returns how many are left in the queue.

    Parameters
    ----------
    w : ndarray of int64, shape (words,)
        The engine's memory, laid out as in layout.py; changed in place.
    budget : int
        Events to take before coming back, so that progress can be shown and a run interrupted.
    """
    while budget > 0 and w[L.HEAP_LEN] > 0 and w[L.ERROR] == 0:
        budget -= 1
        a = pop(w)
        w[L.EVENTS] += 1
        if w[L.LOG_CAP] > 0:
            log(w, a, w[a + L.V_GFN], w[a + L.N_START])
        pc = w[a + L.PC]
        if pc <= L.PC_FINISH or pc == L.PC_FREEZE or pc == L.PC_FROZEN:
            step_fault(w, a, pc)
        else:
            step_notifier(w, a, pc)
        if w[L.CHECK]:
            check_vm(w, w[a + L.VM])
    return w[L.HEAP_LEN]
