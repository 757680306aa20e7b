"""The event queue, the step log and the timeline.

The next event is the least (time, actor id): a binary heap of time << OWNER_BITS | id (docs/model.md,
"Order and ties"). Each actor has at most one event in it.
"""

from . import layout as L
from .jit import jit


@jit
def schedule(w, a, pc, t):
    """Give actor `a` its next step `pc` at time `t`."""
    w[a + L.PC] = pc
    heap = w[L.HEAP]
    i = w[L.HEAP_LEN]
    w[L.HEAP_LEN] = i + 1
    key = (t << L.OWNER_BITS) | w[a + L.ID]
    while i > 0:
        parent = (i - 1) >> 1
        if w[heap + parent] <= key:
            break
        w[heap + i] = w[heap + parent]
        i = parent
    w[heap + i] = key


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
def pop(w):
    """Remove the least event, set NOW to its time, and return its actor."""
    heap = w[L.HEAP]
    least = w[heap]
    n = w[L.HEAP_LEN] - 1
    w[L.HEAP_LEN] = n
    if n > 0:
        key = w[heap + n]
        i = 0
        child = 1
        while child < n:
            if child + 1 < n and w[heap + child + 1] < w[heap + child]:
                child += 1
            if w[heap + child] >= key:
                break
            w[heap + i] = w[heap + child]
            i = child
            child = 2 * i + 1
        w[heap + i] = key
    w[L.NOW] = least >> L.OWNER_BITS
    return w[w[L.ACTOR_PTRS] + (least & L.OWNER_MASK)]


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
    while t >= bins * w[L.TIMELINE_BIN_PS]:
        w[L.TIMELINE_BIN_PS] *= 2
        half = bins // 2
        for i in range(half):
            for c in range(L.TIMELINE_COUNT):
                w[base + i * L.TIMELINE_COUNT + c] = (
                    w[base + 2 * i * L.TIMELINE_COUNT + c] + w[base + (2 * i + 1) * L.TIMELINE_COUNT + c]
                )
        for i in range(half * L.TIMELINE_COUNT, bins * L.TIMELINE_COUNT):
            w[base + i] = 0
    w[base + (t // w[L.TIMELINE_BIN_PS]) * L.TIMELINE_COUNT + column] += amount


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
    w[w[L.COUNTERS] + w[w[a + L.VM] + L.VM_ID] * L.COUNTER_COUNT + counter] += amount


@jit
def fail(w, error, where):
    """Stop the engine with an error of names.ERRORS; the first one is kept."""
    if w[L.ERROR] == 0:
        w[L.ERROR] = error
        w[L.ERROR_AT] = where
