"""mmu_lock: the kernel's queued rwlock (kernel/locking/qrwlock.c), one a VM.

Only a writer at the head of the queue sets WAITING and stops new readers; one queued behind a reader
does not. A reader at the head waits for no writer; a writer at the head for no reader and no writer. The
next waiter becomes head one line transfer after a grant. RMWs: read 1 + 1 uncontended, 5 in all contended;
write 1 uncontended, 4 contended; a write unlock is a store.
"""

from . import layout as L
from .events import schedule
from .jit import jit
from .lines import distance, load, rmw_add, rmw_cas, store, waited


@jit
def _enqueue(w, a, mode, after, t):
    """Take wait_lock and join the queue's tail (queued_{read,write}_lock_slowpath)."""
    vm = w[a + L.VM]
    t = rmw_add(w, a, vm + L.MMU_LINE, L.X_MMU_LOCK, L.PART_MMU_LOCK, t)
    w[a + L.WAIT_MODE] = mode
    w[a + L.AFTER] = after
    w[a + L.SINCE] = t
    w[a + L.NEXT] = 0
    if w[vm + L.MMU_TAIL] == 0:
        w[vm + L.MMU_HEAD] = a
        schedule(w, a, L.PC_QUEUE_HEAD, t)
    else:
        w[w[vm + L.MMU_TAIL] + L.NEXT] = a
    w[vm + L.MMU_TAIL] = a


@jit
def read_lock(w, a, after, t):
    """queued_read_lock: the actor's step `after` comes when it holds the lock."""
    vm = w[a + L.VM]
    t = rmw_add(w, a, vm + L.MMU_LINE, L.X_MMU_LOCK, L.PART_MMU_LOCK, t)
    if w[vm + L.MMU_WRITER] or w[vm + L.MMU_WAITING]:
        t = rmw_add(w, a, vm + L.MMU_LINE, L.X_MMU_LOCK, L.PART_MMU_LOCK, t)  # undo
        _enqueue(w, a, L.MODE_READ, after, t)
    else:
        w[vm + L.MMU_READERS] += 1
        schedule(w, a, after, t)


@jit
def write_lock(w, a, after, t):
    """queued_write_lock: a cmpxchg of 0, else the queue."""
    vm = w[a + L.VM]
    t = rmw_cas(w, a, vm + L.MMU_LINE, L.X_MMU_LOCK, L.PART_MMU_LOCK, t)
    if w[vm + L.MMU_WRITER] or w[vm + L.MMU_WAITING] or w[vm + L.MMU_READERS]:
        _enqueue(w, a, L.MODE_WRITE, after, t)
    else:
        w[vm + L.MMU_WRITER] = a
        schedule(w, a, after, t)


@jit
def _grant(w, vm, head, t):
    """The head leaves the queue with the lock at `t`; the next becomes head a transfer later."""
    successor = w[head + L.NEXT]
    w[vm + L.MMU_HEAD] = successor
    w[vm + L.MMU_SPINNING] = 0
    if successor == 0:
        w[vm + L.MMU_TAIL] = 0
    else:
        d = distance(w, w[successor + L.CPU], w[head + L.CPU] + 1)
        at = max(t + w[L.C_LATENCY_CORE - 1 + d], w[successor + L.SINCE])
        schedule(w, successor, L.PC_QUEUE_HEAD, at)
    schedule(w, head, w[head + L.AFTER], t)


@jit
def _write_grant(w, vm, head, t):
    """The writer at the head sees the lock free at `t`: its cmpxchg takes it."""
    waited(w, head, L.K_LOCK_WAIT_MMU_LOCK_WRITE, L.PART_MMU_LOCK_WAIT, w[head + L.SINCE], t)
    t = rmw_cas(w, head, vm + L.MMU_LINE, L.X_MMU_LOCK, L.PART_MMU_LOCK, t)
    w[vm + L.MMU_WRITER] = head
    w[vm + L.MMU_WAITING] = 0
    _grant(w, vm, head, t)


@jit
def queue_head(w, a):
    """The actor has become the head of the queue."""
    vm = w[a + L.VM]
    t = w[L.NOW]
    if w[a + L.WAIT_MODE] == L.MODE_READ:
        waited(w, a, L.K_LOCK_WAIT_MMU_LOCK_READ, L.PART_MMU_LOCK_WAIT, w[a + L.SINCE], t)
        t = rmw_add(w, a, vm + L.MMU_LINE, L.X_MMU_LOCK, L.PART_MMU_LOCK, t)
        w[a + L.SINCE] = t
        w[vm + L.MMU_READERS] += 1
        if w[vm + L.MMU_WRITER] == 0:
            _grant(w, vm, a, t)
        else:
            w[vm + L.MMU_SPINNING] = 1
    elif w[vm + L.MMU_WRITER] == 0 and w[vm + L.MMU_READERS] == 0:
        _write_grant(w, vm, a, t)
    else:
        waited(w, a, L.K_LOCK_WAIT_MMU_LOCK_WRITE, L.PART_MMU_LOCK_WAIT, w[a + L.SINCE], t)
        t = rmw_add(w, a, vm + L.MMU_LINE, L.X_MMU_LOCK, L.PART_MMU_LOCK, t)
        w[a + L.SINCE] = t
        w[vm + L.MMU_WAITING] = 1
        w[vm + L.MMU_SPINNING] = 1


@jit
def read_unlock(w, a, t):
    """queued_read_unlock; the last reader lets a waiting writer in at the end of its RMW."""
    vm = w[a + L.VM]
    t = rmw_add(w, a, vm + L.MMU_LINE, L.X_MMU_LOCK, L.PART_MMU_LOCK, t)
    w[vm + L.MMU_READERS] -= 1
    head = w[vm + L.MMU_HEAD]
    if w[vm + L.MMU_SPINNING] and w[head + L.WAIT_MODE] == L.MODE_WRITE:
        if w[vm + L.MMU_READERS] == 0 and w[vm + L.MMU_WRITER] == 0:
            _write_grant(w, vm, head, max(t, w[head + L.SINCE]))
    return t


@jit
def write_unlock(w, a, t):
    """queued_write_unlock: a store; the spinning head sees it after a transfer."""
    vm = w[a + L.VM]
    t = store(w, a, vm + L.MMU_LINE, L.PART_MMU_LOCK, t)
    w[vm + L.MMU_WRITER] = 0
    head = w[vm + L.MMU_HEAD]
    if w[vm + L.MMU_SPINNING]:
        at = max(t, w[head + L.SINCE])
        if w[head + L.WAIT_MODE] == L.MODE_READ:
            waited(w, head, L.K_LOCK_WAIT_MMU_LOCK_READ, L.PART_MMU_LOCK_WAIT, w[head + L.SINCE], at)
            _grant(w, vm, head, load(w, head, vm + L.MMU_LINE, L.PART_MMU_LOCK_WAIT, at))
        elif w[vm + L.MMU_READERS] == 0:
            _write_grant(w, vm, head, at)
    return t


@jit
def contended(w, vm):
    """rwlock_needbreak: somebody waits for mmu_lock."""
    return w[vm + L.MMU_HEAD] != 0


@jit
def fault_lock(w, a, after, t):
    """A fault's mmu_lock: read for the TDP MMU, write for the exclusive mode."""
    if w[L.M_EXCLUSIVE]:
        write_lock(w, a, after, t)
    else:
        read_lock(w, a, after, t)


@jit
def fault_unlock(w, a, t):
    """Undo fault_lock."""
    if w[L.M_EXCLUSIVE]:
        return write_unlock(w, a, t)
    return read_unlock(w, a, t)
