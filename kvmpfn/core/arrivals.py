"""What a storm client does between its operations: when the next one comes, and how one ends."""

from . import layout as L
from .draws import GAP, exponential
from .events import count, schedule
from .jit import jit
from .lines import private


@jit
def next_arrival(w, a, t):
    """Advance the arrival process; a client that is late starts at once."""
    w[a + L.S_K] += 1
    arrival = w[a + L.S_ARRIVAL]
    gap = w[a + L.S_GAP]
    if arrival == L.ARR_CLOSED:
        w[a + L.S_NOMINAL] = t + gap
    elif arrival == L.ARR_PERIODIC:
        w[a + L.S_NOMINAL] += gap
    elif arrival == L.ARR_POISSON:
        w[a + L.S_NOMINAL] += exponential(w, w[a + L.ID], GAP, w[a + L.S_K], gap)
    else:  # a Poisson process on a clock that runs only in the bursts
        w[a + L.S_BURST_T] += exponential(w, w[a + L.ID], GAP, w[a + L.S_K], gap)
        on = w[a + L.S_ON]
        bursts = w[a + L.S_BURST_T] // on
        w[a + L.S_NOMINAL] = w[a + L.T_START] + bursts * (on + w[a + L.S_OFF]) + w[a + L.S_BURST_T] % on
    schedule(w, a, L.PC_IDLE, max(t, w[a + L.S_NOMINAL]))


@jit
def count_skipped(w, a):
    """The operation is not done this time: its lock is not to be had, or it has nothing to do."""
    w[a + L.S_SKIPPED] += 1
    count(w, a, L.K_STORM_SKIPPED, 1)


@jit
def skip(w, a, t):
    """Skip the operation before it has begun."""
    count_skipped(w, a)
    next_arrival(w, a, t + max(1, private(w, a, L.PART_WALK, w[L.C_ZAP_SKIP])))


@jit
def over(w, a, t):
    """The operation is over: mmap_lock is dropped, where it is held."""
    if w[a + L.HELD_MMAP]:
        w[a + L.AFTER_MMAP] = L.PC_DONE
        schedule(w, a, L.PC_MMAP_UNLOCK, t)
    else:
        done(w, a, t)


@jit
def done(w, a, t):
    """Nothing is held any more: the next operation is awaited."""
    w[a + L.S_DONE] += 1
    w[a + L.S_BUSY] += t - w[a + L.S_BUSY_T0]
    count(w, a, L.K_STORM_DONE, 1)
    next_arrival(w, a, t)
