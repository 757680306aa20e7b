"""The event queue, the step log and the timeline.

The next event is the least (time, actor id), a key of time << OWNER_BITS | id (docs/model.md, "Order and
ties"). Each actor has at most one, so the queue is a tournament: a leaf an actor, and on each node the lesser
of the two below. A new key goes up one path without a branch, where a heap would guess at every level.
"""

from . import layout as L
from .jit import jit


@jit
def schedule(w, a, pc, t):
    """Give actor `a` its next step `pc` at time `t`."""
    w[a + L.PC] = pc
    settle(w, w[a + L.ID], (t << L.OWNER_BITS) | w[a + L.ID])


@jit
def settle(w, actor, key):
    """Put an actor's key at its leaf, and the least of each two below on every node up to the root."""
    tree = w[L.QUEUE]
    i = w[L.QUEUE_LEAVES] + actor
    w[tree + i] = key
    while i > 3:
        key = min(key, w[tree + (i ^ 1)])
        w[tree + (i >> 1)] = key
        key = min(key, w[tree + ((i >> 1) ^ 1)])
        i >>= 2
        w[tree + i] = key
    if i > 1:
        w[tree + 1] = min(key, w[tree + (i ^ 1)])


@jit
def call(w, a, pc, after, t):
    """Take the step `pc` at `t`; `after` comes when it is done, or when the lock it asks for is granted."""
    w[a + L.AFTER] = after
    schedule(w, a, pc, t)


@jit
def back(w, a, t):
    """A called step is done at `t`."""
    schedule(w, a, w[a + L.AFTER], t)


@jit
def least_event(w):
    """The key of the next event; L.NEVER if there is none."""
    return w[w[L.QUEUE] + 1]


@jit
def pop(w):
    """Take the least event's actor off its leaf, set NOW to its time, and return it.

    The nodes above are left as they are: the actor's step mostly gives it another event, and `popped` sees to
    it where it did not.
    """
    least = least_event(w)
    w[L.NOW] = least >> L.OWNER_BITS
    actor = least & L.OWNER_MASK
    w[w[L.QUEUE] + w[L.QUEUE_LEAVES] + actor] = L.NEVER
    return w[w[L.ACTOR_PTRS] + actor]


@jit
def popped(w, a):
    """After the step of an actor that was popped."""
    if w[w[L.QUEUE] + w[L.QUEUE_LEAVES] + w[a + L.ID]] == L.NEVER:
        settle(w, w[a + L.ID], L.NEVER)


@jit
def log(w, a, x, y):
    """Append the current step to the bounded event log, when one is kept."""
    row = w[L.LOG_SEEN]
    w[L.LOG_SEEN] = row + 1
    if row < w[L.LOG_CAP]:
        at = w[L.LOG] + 5 * row
        w[at] = w[L.NOW]
        w[at + 1] = w[a + L.ID]
        w[at + 2] = w[a + L.PC]
        w[at + 3] = x
        w[at + 4] = y


@jit
def bin_add(w, column, t, amount):
    """Add to a timeline bin; when time runs past the last bin, fold pairs and double the width."""
    bins = w[L.TIMELINE_BINS]
    base = w[L.TIMELINE]
    while t >> w[L.TIMELINE_SHIFT] >= bins:
        w[L.TIMELINE_SHIFT] += 1
        half = bins // 2
        for i in range(half):
            for c in range(L.TIMELINE_COUNT):
                w[base + i * L.TIMELINE_COUNT + c] = (
                    w[base + 2 * i * L.TIMELINE_COUNT + c] + w[base + (2 * i + 1) * L.TIMELINE_COUNT + c]
                )
        for i in range(half * L.TIMELINE_COUNT, bins * L.TIMELINE_COUNT):
            w[base + i] = 0
    w[base + (t >> w[L.TIMELINE_SHIFT]) * L.TIMELINE_COUNT + column] += amount


@jit
def histogram_bucket(value):
    """The latency bucket of a value in ps: 2**HIST_SUB_BITS buckets a factor of two."""
    e = 0
    while (value >> e) >= (2 << L.HIST_SUB_BITS):
        e += 1
    return (e << L.HIST_SUB_BITS) + (value >> e)


@jit
def count(w, a, counter, amount):
    """Add to a counter of the actor's VM."""
    w[w[a + L.COUNTERS_AT] + counter] += amount


@jit
def fail(w, error, where):
    """Stop the engine with an error of names.ERRORS; the first one is kept."""
    if w[L.ERROR] == 0:
        w[L.ERROR] = error
        w[L.ERROR_AT] = where
