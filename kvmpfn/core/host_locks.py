"""The host's sleeping and spinning locks: mmap_lock (a rwsem) and the page-table locks.

A fault takes them in the order mmap_lock, page-table lock, and holds neither under mmu_lock. Each is a step
that is called.
"""

from . import layout as L
from .events import back, call, schedule
from .jit import jit
from .lines import load, ride_add, rmw_add, rmw_cas, store, waited

READERS_WOKEN = 256  # MAX_READERS_WAKEUP, kernel/locking/rwsem.c


@jit
def _append(w, a, head, tail, t):
    """Join a FIFO queue at `t`."""
    w[a + L.SINCE] = t
    w[a + L.NEXT] = 0
    if w[head] == 0:
        w[head] = a
    else:
        w[w[tail] + L.NEXT] = a
    w[tail] = a


@jit
def down(w, a, mode, after, t):
    """Call mmap_lock for reading or writing."""
    w[a + L.WAIT_MODE] = mode
    call(w, a, L.PC_MMAP_LOCK, after, t)


@jit
def mmap_lock(w, a):
    """down_read or down_write of mm->mmap_lock: FIFO; who has to wait sleeps."""
    vm = w[a + L.VM]
    t = rmw_add(w, a, vm + L.MMAP_LINE, L.X_MMAP_LOCK, L.PART_MMAP_LOCK, w[L.NOW])
    mode = w[a + L.WAIT_MODE]
    w[a + L.HELD_MMAP] = mode + 1
    free = w[vm + L.MMAP_WRITER] == 0 and w[vm + L.MMAP_HEAD] == 0
    if mode == L.MODE_READ and free:
        w[vm + L.MMAP_READERS] += 1
        schedule(w, a, L.PC_OWNER_LOAD, t)
    elif mode == L.MODE_WRITE and free and w[vm + L.MMAP_READERS] == 0:
        w[vm + L.MMAP_WRITER] = a
        schedule(w, a, L.PC_OWNER_STORE, t)
    else:
        t = ride_add(w, a, vm + L.MMAP_LINE, L.X_MMAP_LOCK, L.PART_MMAP_LOCK, t)  # sem->wait_lock
        _append(w, a, vm + L.MMAP_HEAD, vm + L.MMAP_TAIL, t)


@jit
def owner_load(w, a):
    """rwsem_set_reader_owned reads the owner's word, on the count's line, which others have taken since.

    Threads of one mm that only read mmap_lock stay at 3.2 M faults/s (will-it-scale page_fault3, Zi Yan, LKML
    <289DA3C0-9AE5-4992-A35A-C13FCE4D8544@nvidia.com>): four hand-offs a fault, two of them the count's.
    """
    line = w[a + L.VM] + L.MMAP_LINE
    schedule(w, a, L.PC_OWNER_STORE, store(w, a, line, L.PART_MMAP_LOCK, w[L.NOW]))


@jit
def owner_store(w, a):
    """And writes it."""
    back(w, a, store(w, a, w[a + L.VM] + L.MMAP_LINE, L.PART_MMAP_LOCK, w[L.NOW]))


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
    if w[a + L.WAIT_MODE] == L.MODE_WRITE:
        schedule(w, a, L.PC_OWNER_STORE, at)
    else:
        back(w, a, at)  # rwsem_mark_wake has set the owner for all readers that it wakes


@jit
def mmap_unlock(w, a):
    """up_read or up_write: wakes the first writer, or all queued readers (rwsem_mark_wake)."""
    vm = w[a + L.VM]
    t = rmw_add(w, a, vm + L.MMAP_LINE, L.X_MMAP_LOCK, L.PART_MMAP_LOCK, w[L.NOW])
    if w[a + L.HELD_MMAP] == L.MODE_READ + 1:
        w[vm + L.MMAP_READERS] -= 1
    else:
        w[vm + L.MMAP_WRITER] = 0
    w[a + L.HELD_MMAP] = 0
    schedule(w, a, w[a + L.AFTER_MMAP], t)
    first = w[vm + L.MMAP_HEAD]
    if first == 0 or w[vm + L.MMAP_WRITER] or w[vm + L.MMAP_READERS]:
        return
    if w[first + L.WAIT_MODE] == L.MODE_WRITE:
        w[vm + L.MMAP_HEAD] = w[first + L.NEXT]
        if w[vm + L.MMAP_HEAD] == 0:
            w[vm + L.MMAP_TAIL] = 0
        w[vm + L.MMAP_WRITER] = first
        _wake(w, first, L.K_LOCK_WAIT_MMAP_LOCK_WRITE, t)
        return
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


@jit
def spin_lock(w, a, ptl, after, t):
    """Call ptl_lock."""
    w[a + L.HELD_PTL] = ptl
    call(w, a, L.PC_PTL_LOCK, after, t)


@jit
def ptl_lock(w, a):
    """spin_lock of a page-table lock; FIFO."""
    ptl = w[a + L.HELD_PTL]
    t = rmw_cas(w, a, ptl + L.PTL_LINE, L.X_PTL, L.PART_PTL, w[L.NOW])
    if w[ptl + L.PTL_HELD] == 0:
        w[ptl + L.PTL_HELD] = a
        back(w, a, t)
    else:
        t = ride_add(w, a, ptl + L.PTL_LINE, L.X_PTL, L.PART_PTL, t)  # xchg of the queue's tail
        _append(w, a, ptl + L.PTL_HEAD, ptl + L.PTL_TAIL, t)


@jit
def ptl_unlock(w, a):
    """spin_unlock: a store; the next in line sees it after a transfer."""
    ptl = w[a + L.HELD_PTL]
    w[a + L.HELD_PTL] = 0
    t = store(w, a, ptl + L.PTL_LINE, L.PART_PTL, w[L.NOW])
    following = w[ptl + L.PTL_HEAD]
    w[ptl + L.PTL_HELD] = following
    if following != 0:
        w[ptl + L.PTL_HEAD] = w[following + L.NEXT]
        if w[ptl + L.PTL_HEAD] == 0:
            w[ptl + L.PTL_TAIL] = 0
        at = max(t, w[following + L.SINCE])
        waited(w, following, L.K_LOCK_WAIT_PTL_EXCLUSIVE, L.PART_PTL_WAIT, w[following + L.SINCE], at)
        back(w, following, load(w, following, ptl + L.PTL_LINE, L.PART_PTL_WAIT, at))
    back(w, a, t)


@jit
def unlock_both(w, a, after, t):
    """Call ptl_unlock, then mmap_unlock; `after` comes when both are dropped."""
    w[a + L.AFTER_MMAP] = after
    call(w, a, L.PC_PTL_UNLOCK, L.PC_MMAP_UNLOCK, t)
