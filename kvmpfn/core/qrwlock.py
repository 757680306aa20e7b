"""mmu_lock: the kernel's queued rwlock (kernel/locking/qrwlock.c), one a VM.

Only a writer at the head of the queue sets WAITING and stops new readers; one queued behind a reader
does not. A reader at the head waits for no writer; a writer at the head for no reader and no writer. The
next waiter becomes head one line transfer after a grant. RMWs: read 1 + 1 uncontended, 5 in all contended;
write 1 uncontended, 4 contended; a write unlock is a store. Each function is a step that is called.
"""

from . import layout as L
from .events import back, call, schedule
from .jit import jit
from .lines import distance, load, ride_add, rmw_add, rmw_cas, store, waited


@jit
def _enqueue(w, a, mode, t):
    """Take wait_lock and join the queue's tail (queued_{read,write}_lock_slowpath)."""
    vm = w[a + L.VM]
    t = ride_add(w, a, vm + L.MMU_LINE, L.X_MMU_LOCK, L.PART_MMU_LOCK, t)
    w[a + L.WAIT_MODE] = mode
    w[a + L.SINCE] = t
    w[a + L.NEXT] = 0
    if w[vm + L.MMU_TAIL] == 0:
        w[vm + L.MMU_HEAD] = a
        schedule(w, a, L.PC_QUEUE_HEAD, t)
    else:
        w[w[vm + L.MMU_TAIL] + L.NEXT] = a
    w[vm + L.MMU_TAIL] = a


@jit
def read_lock(w, a):
    """queued_read_lock: an add; undone, and on to the queue, if a writer has the lock or is next."""
    vm = w[a + L.VM]
    t = rmw_add(w, a, vm + L.MMU_LINE, L.X_MMU_LOCK, L.PART_MMU_LOCK, w[L.NOW])
    if w[vm + L.MMU_WRITER] or w[vm + L.MMU_WAITING]:
        t = ride_add(w, a, vm + L.MMU_LINE, L.X_MMU_LOCK, L.PART_MMU_LOCK, t)  # undo
        _enqueue(w, a, L.MODE_READ, t)
    else:
        w[vm + L.MMU_READERS] += 1
        back(w, a, t)


@jit
def write_lock(w, a):
    """queued_write_lock: a cmpxchg of 0, else the queue."""
    vm = w[a + L.VM]
    t = rmw_cas(w, a, vm + L.MMU_LINE, L.X_MMU_LOCK, L.PART_MMU_LOCK, w[L.NOW])
    if w[vm + L.MMU_WRITER] or w[vm + L.MMU_WAITING] or w[vm + L.MMU_READERS]:
        _enqueue(w, a, L.MODE_WRITE, t)
    else:
        w[vm + L.MMU_WRITER] = a
        back(w, a, t)


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
    back(w, head, t)


@jit
def write_grant(w, a):
    """The writer at the head sees the lock free: its cmpxchg takes it."""
    vm = w[a + L.VM]
    t = w[L.NOW]
    waited(w, a, L.K_LOCK_WAIT_MMU_LOCK_WRITE, L.PART_MMU_LOCK_WAIT, w[a + L.SINCE], t)
    t = rmw_cas(w, a, vm + L.MMU_LINE, L.X_MMU_LOCK, L.PART_MMU_LOCK, t)
    w[vm + L.MMU_WRITER] = a
    w[vm + L.MMU_WAITING] = 0
    _grant(w, vm, a, t)


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
        write_grant(w, a)
    else:
        waited(w, a, L.K_LOCK_WAIT_MMU_LOCK_WRITE, L.PART_MMU_LOCK_WAIT, w[a + L.SINCE], t)
        t = rmw_add(w, a, vm + L.MMU_LINE, L.X_MMU_LOCK, L.PART_MMU_LOCK, t)
        w[a + L.SINCE] = t
        w[vm + L.MMU_WAITING] = 1
        w[vm + L.MMU_SPINNING] = 1


@jit
def read_unlock(w, a):
    """queued_read_unlock; the last reader lets a waiting writer try at the end of its RMW."""
    vm = w[a + L.VM]
    t = rmw_add(w, a, vm + L.MMU_LINE, L.X_MMU_LOCK, L.PART_MMU_LOCK, w[L.NOW])
    w[vm + L.MMU_READERS] -= 1
    head = w[vm + L.MMU_HEAD]
    if w[vm + L.MMU_SPINNING] and w[head + L.WAIT_MODE] == L.MODE_WRITE:
        if w[vm + L.MMU_READERS] == 0 and w[vm + L.MMU_WRITER] == 0:
            schedule(w, head, L.PC_WRITE_GRANT, max(t, w[head + L.SINCE]))
    back(w, a, t)


@jit
def write_unlock(w, a):
    """queued_write_unlock: a store; the spinning head sees it after a transfer."""
    vm = w[a + L.VM]
    t = store(w, a, vm + L.MMU_LINE, L.PART_MMU_LOCK, w[L.NOW])
    w[vm + L.MMU_WRITER] = 0
    head = w[vm + L.MMU_HEAD]
    if w[vm + L.MMU_SPINNING]:
        at = max(t, w[head + L.SINCE])
        if w[head + L.WAIT_MODE] == L.MODE_READ:
            waited(w, head, L.K_LOCK_WAIT_MMU_LOCK_READ, L.PART_MMU_LOCK_WAIT, w[head + L.SINCE], at)
            _grant(w, vm, head, load(w, head, vm + L.MMU_LINE, L.PART_MMU_LOCK_WAIT, at))
        elif w[vm + L.MMU_READERS] == 0:
            schedule(w, head, L.PC_WRITE_GRANT, at)
    back(w, a, t)


@jit
def contended(w, vm):
    """rwlock_needbreak: somebody waits for mmu_lock."""
    return w[vm + L.MMU_HEAD] != 0


@jit
def fault_lock(w, a, after, t):
    """A fault's mmu_lock: read for the TDP MMU, write for the exclusive mode."""
    call(w, a, L.PC_WRITE_LOCK if w[L.M_EXCLUSIVE] else L.PC_READ_LOCK, after, t)


@jit
def fault_unlock(w, a, after, t):
    """Undo fault_lock."""
    call(w, a, L.PC_WRITE_UNLOCK if w[L.M_EXCLUSIVE] else L.PC_READ_UNLOCK, after, t)
