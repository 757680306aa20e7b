"""The host's sleeping and spinning locks: mmap_lock (a rwsem) and the page-table locks.

A fault takes them in the order mmap_lock, page-table lock, and holds neither under mmu_lock.
"""

from . import layout as L
from .events import schedule
from .jit import jit
from .lines import load, rmw_add, rmw_cas, store, waited

READERS_WOKEN = 256  # MAX_READERS_WAKEUP, kernel/locking/rwsem.c


@jit
def mmap_lock(w, a, mode, after, t):
    """down_read or down_write of mm->mmap_lock: FIFO; who has to wait sleeps."""
    vm = w[a + L.VM]
    t = rmw_add(w, a, vm + L.MMAP_LINE, L.X_MMAP_LOCK, L.PART_MMAP_LOCK, t)
    w[a + L.HELD_MMAP] = mode + 1
    free = w[vm + L.MMAP_WRITER] == 0 and w[vm + L.MMAP_HEAD] == 0
    if mode == L.MODE_READ and free:
        w[vm + L.MMAP_READERS] += 1
        schedule(w, a, after, t)
    elif mode == L.MODE_WRITE and free and w[vm + L.MMAP_READERS] == 0:
        w[vm + L.MMAP_WRITER] = a
        schedule(w, a, after, t)
    else:
        t = rmw_add(w, a, vm + L.MMAP_LINE, L.X_MMAP_LOCK, L.PART_MMAP_LOCK, t)  # sem->wait_lock
        w[a + L.WAIT_MODE] = mode
        w[a + L.AFTER] = after
        w[a + L.SINCE] = t
        w[a + L.NEXT] = 0
        if w[vm + L.MMAP_HEAD] == 0:
            w[vm + L.MMAP_HEAD] = a
        else:
            w[w[vm + L.MMAP_TAIL] + L.NEXT] = a
        w[vm + L.MMAP_TAIL] = a


@jit
def mmap_trylock(w, a):
    """True if mmap_read_trylock would get the lock now."""
    vm = w[a + L.VM]
    return w[vm + L.MMAP_WRITER] == 0 and w[vm + L.MMAP_HEAD] == 0


@jit
def _wake(w, a, counter, t):
    w[a + L.NEXT] = 0
    at = max(t, w[a + L.SINCE]) + w[L.C_SLEEP_WAKE]
    waited(w, a, counter, L.PART_MMAP_WAIT, w[a + L.SINCE], at)
    schedule(w, a, w[a + L.AFTER], at)


@jit
def mmap_unlock(w, a, t):
    """up_read or up_write, if held: wakes the first writer, or all queued readers (rwsem_mark_wake)."""
    if w[a + L.HELD_MMAP] == 0:
        return t
    vm = w[a + L.VM]
    t = rmw_add(w, a, vm + L.MMAP_LINE, L.X_MMAP_LOCK, L.PART_MMAP_LOCK, t)
    if w[a + L.HELD_MMAP] == L.MODE_READ + 1:
        w[vm + L.MMAP_READERS] -= 1
    else:
        w[vm + L.MMAP_WRITER] = 0
    w[a + L.HELD_MMAP] = 0
    first = w[vm + L.MMAP_HEAD]
    if first == 0 or w[vm + L.MMAP_WRITER] or w[vm + L.MMAP_READERS]:
        return t
    if w[first + L.WAIT_MODE] == L.MODE_WRITE:
        w[vm + L.MMAP_HEAD] = w[first + L.NEXT]
        if w[vm + L.MMAP_HEAD] == 0:
            w[vm + L.MMAP_TAIL] = 0
        w[vm + L.MMAP_WRITER] = first
        _wake(w, first, L.K_LOCK_WAIT_MMAP_LOCK_WRITE, t)
        return t
    woken = 0
    last = 0
    waiter = first
    w[vm + L.MMAP_HEAD] = 0
    while waiter != 0:
        following = w[waiter + L.NEXT]
        if w[waiter + L.WAIT_MODE] == L.MODE_READ and woken < READERS_WOKEN:
            woken += 1
            w[vm + L.MMAP_READERS] += 1
            _wake(w, waiter, L.K_LOCK_WAIT_MMAP_LOCK_READ, t)
        else:
            w[waiter + L.NEXT] = 0
            if last == 0:
                w[vm + L.MMAP_HEAD] = waiter
            else:
                w[last + L.NEXT] = waiter
            last = waiter
        waiter = following
    w[vm + L.MMAP_TAIL] = last
    return t


@jit
def ptl_lock(w, a, ptl, after, t):
    """spin_lock of a page-table lock; FIFO."""
    t = rmw_cas(w, a, ptl + L.PTL_LINE, L.X_PTL, L.PART_PTL, t)
    w[a + L.HELD_PTL] = ptl
    if w[ptl + L.PTL_HELD] == 0:
        w[ptl + L.PTL_HELD] = a
        schedule(w, a, after, t)
    else:
        t = rmw_add(w, a, ptl + L.PTL_LINE, L.X_PTL, L.PART_PTL, t)  # xchg of the queue's tail
        w[a + L.AFTER] = after
        w[a + L.SINCE] = t
        w[a + L.NEXT] = 0
        if w[ptl + L.PTL_HEAD] == 0:
            w[ptl + L.PTL_HEAD] = a
        else:
            w[w[ptl + L.PTL_TAIL] + L.NEXT] = a
        w[ptl + L.PTL_TAIL] = a


@jit
def ptl_unlock(w, a, t):
    """spin_unlock, if held: a store; the next in line sees it after a transfer."""
    ptl = w[a + L.HELD_PTL]
    if ptl == 0:
        return t
    w[a + L.HELD_PTL] = 0
    t = store(w, a, ptl + L.PTL_LINE, L.PART_PTL, t)
    following = w[ptl + L.PTL_HEAD]
    w[ptl + L.PTL_HELD] = following
    if following != 0:
        w[ptl + L.PTL_HEAD] = w[following + L.NEXT]
        if w[ptl + L.PTL_HEAD] == 0:
            w[ptl + L.PTL_TAIL] = 0
        at = max(t, w[following + L.SINCE])
        waited(w, following, L.K_LOCK_WAIT_PTL_EXCLUSIVE, L.PART_PTL_WAIT, w[following + L.SINCE], at)
        schedule(w, following, w[following + L.AFTER], load(w, following, ptl, L.PART_PTL_WAIT, at))
    return t
