"""The three locks (docs/model.md 5): mmu_lock, mmap_lock, page-table locks.

Each method that takes or drops a lock is one step of that name. After one that takes it, the caller's next
step is due when the lock is granted.
"""

from __future__ import annotations

from collections import deque

from oracle.actor import Actor, Steps
from oracle.lines import Line


class MmuLock:
    """A queued rwlock (kernel/locking/qrwlock.c): its word and the wait lock lie on one line.

    Attributes
    ----------
    readers : int
        Readers inside, and a reader at the head of the queue that has announced itself.
    writer : bool
        Whether a writer is inside.
    waiting : bool
        Whether the writer at the head keeps new readers out (_QW_WAITING).
    queue : deque of (Actor, bool)
        Who waits, and whether to write; the first is the head.
    spins : bool
        Whether the head has looked and found the lock taken.
    """

    def __init__(self) -> None:
        self.line = Line()
        self.readers, self.writer, self.waiting, self.spins = 0, False, False, False
        self.queue: deque[tuple[Actor, bool]] = deque()

    def read_lock(self, actor: Actor) -> Steps:
        yield from actor.step("read_lock")
        self._add(actor)
        if not self.writer and not self.waiting:
            self.readers += 1
            return
        self._add(actor)  # takes the announcement back
        self._enqueue(actor, writes=False)
        yield from actor.step("queue_head")
        self._waited(actor, actor.t, "read")
        self._add(actor)
        self.readers += 1
        if self.writer:
            self.spins = True
            actor.sleep()
        else:
            self._granted(actor, actor.t)

    def write_lock(self, actor: Actor) -> Steps:
        yield from actor.step("write_lock")
        self._cas(actor)
        if not (self.writer or self.waiting or self.readers):
            self.writer = True
            return
        self._enqueue(actor, writes=True)
        yield from actor.step("queue_head")
        if self.writer or self.readers:
            self._waited(actor, actor.t, "write")
            self._add(actor)
            self.waiting = self.spins = True
            actor.sleep()
            yield from actor.step("write_grant")
        self._waited(actor, actor.t, "write")
        self._cas(actor)
        self.writer, self.waiting = True, False
        self._granted(actor, actor.t)

    def read_unlock(self, actor: Actor) -> Steps:
        yield from actor.step("read_unlock")
        self._add(actor)
        self.readers -= 1
        if self.spins and self.queue[0][1] and not self.readers and not self.writer:
            self._wake_writer(actor)

    def write_unlock(self, actor: Actor) -> Steps:
        yield from actor.step("write_unlock")
        actor.store(self.line, "mmu_lock")
        self.writer = False
        if not self.spins:
            return
        head, writes = self.queue[0]
        if writes:
            if not self.readers:
                self._wake_writer(actor)
            return
        at = max(actor.t, head.since)
        self._waited(head, at, "read")
        head.t = at
        head.load(self.line, "mmu_lock_wait")
        at, head.t = head.t, None
        self._granted(head, at)
        head.wake(at)

    def _enqueue(self, actor: Actor, *, writes: bool) -> None:
        """Queue, behind the wait lock; without an event unless at the head."""
        self._add(actor)
        self.queue.append((actor, writes))
        actor.since = actor.t
        if len(self.queue) > 1:
            actor.sleep()

    def _wake_writer(self, actor: Actor) -> None:
        head = self.queue[0][0]
        head.wake(max(actor.t, head.since))

    def _granted(self, actor: Actor, at: int) -> None:
        """Let the head leave the queue; its successor looks one transfer later."""
        assert self.queue.popleft()[0] is actor
        self.spins = False
        if self.queue:
            successor = self.queue[0][0]
            latency = actor.world.x[f"{successor.thread.distance(actor.thread)}_latency"]
            successor.wake(max(at + latency, successor.since))

    def _waited(self, actor: Actor, until: int, mode: str) -> None:
        actor.book("mmu_lock_wait", until - actor.since)
        actor.count(f"lock_wait.mmu_lock.{mode}", until - actor.since)

    def _add(self, actor: Actor) -> None:
        actor.add(self.line, "mmu_lock", "mmu_lock")

    def _cas(self, actor: Actor) -> None:
        actor.cas(self.line, "mmu_lock", "mmu_lock")


class MmapLock:
    """An rwsem (kernel/locking/rwsem.c): who finds it taken sleeps.

    Attributes
    ----------
    readers : int
        Readers inside.
    writer : bool
        Whether a writer is inside.
    queue : deque of (Actor, bool)
        Who sleeps, and whether to write.
    """

    MOST_READERS = 256  # woken together

    def __init__(self) -> None:
        self.line = Line()
        self.readers, self.writer = 0, False
        self.queue: deque[tuple[Actor, bool]] = deque()

    def read_lock(self, actor: Actor) -> Steps:
        yield from actor.step("mmap_lock")
        self._add(actor)
        if self.writer or self.queue:
            self._sleep(actor, writes=False)
            return
        self.readers += 1
        yield from actor.step("owner_load")
        actor.store(self.line, "mmap_lock")
        yield from actor.step("owner_store")
        actor.store(self.line, "mmap_lock")

    def write_lock(self, actor: Actor) -> Steps:
        yield from actor.step("mmap_lock")
        self._add(actor)
        if self.writer or self.queue or self.readers:
            self._sleep(actor, writes=True)
        else:
            self.writer = True
        yield from actor.step("owner_store")
        actor.store(self.line, "mmap_lock")

    def unlock(self, actor: Actor) -> Steps:
        yield from actor.step("mmap_unlock")
        self._add(actor)
        if self.writer:
            self.writer = False
        else:
            self.readers -= 1
        assert self.readers >= 0
        if self.readers or not self.queue:
            return
        if self.queue[0][1]:
            self.writer = True
            self._wake(actor, *self.queue.popleft())
            return
        woken = [sleeper for sleeper in self.queue if not sleeper[1]][: self.MOST_READERS]
        self.readers = len(woken)
        for sleeper in woken:
            self.queue.remove(sleeper)
            self._wake(actor, *sleeper)

    def _sleep(self, actor: Actor, *, writes: bool) -> None:
        self._add(actor)
        self.queue.append((actor, writes))
        actor.sleep()

    def _wake(self, waker: Actor, sleeper: Actor, writes: bool) -> None:
        due = max(waker.t, sleeper.since) + waker.world.x["sleep_wake"]
        sleeper.book("mmap_wait", due - sleeper.since)
        sleeper.count(f"lock_wait.mmap_lock.{'write' if writes else 'read'}", due - sleeper.since)
        sleeper.wake(due)

    def _add(self, actor: Actor) -> None:
        actor.add(self.line, "mmap_lock", "mmap_lock")


class PageTableLock:
    """A spinlock that is handed on in the order of asking; the queue's first holds it."""

    def __init__(self) -> None:
        self.line = Line()
        self.queue: deque[Actor] = deque()

    def lock(self, actor: Actor) -> Steps:
        yield from actor.step("ptl_lock")
        actor.cas(self.line, "ptl", "ptl")
        self.queue.append(actor)
        if len(self.queue) > 1:
            actor.add(self.line, "ptl", "ptl")
            actor.sleep()

    def unlock(self, actor: Actor) -> Steps:
        yield from actor.step("ptl_unlock")
        actor.store(self.line, "ptl")
        assert self.queue.popleft() is actor
        if self.queue:
            heir = self.queue[0]
            at = max(actor.t, heir.since)
            heir.book("ptl_wait", at - heir.since)
            heir.count("lock_wait.ptl.exclusive", at - heir.since)
            heir.t = at
            heir.load(self.line, "ptl_wait")
            at, heir.t = heir.t, None
            heir.wake(at)
