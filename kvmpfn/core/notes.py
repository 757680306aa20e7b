"""What is noted, where room was made for it, of the waits that no lock has and of the slowest faults.

`Run.explain` makes the room. Notes change no result.
"""

from . import layout as L
from .jit import jit


@jit
def note_wait(w, a, what, who, since, until):
    """Write a wait into the ring of waits: asker, what for, who has it, from when, until when.

    `what` is a line or a socket's resource, or 0 for another CPU's answer; `who` is the CPU + 1, as in a
    line, or 0 for a resource, which keeps no owner.
    """
    if w[L.WAITS_CAP] > 0:
        at = w[L.WAITS] + 5 * (w[L.WAITS_SEEN] % w[L.WAITS_CAP])
        w[L.WAITS_SEEN] += 1
        w[at] = w[a + L.ID]
        w[at + 1] = what
        w[at + 2] = who
        w[at + 3] = since
        w[at + 4] = until


@jit
def note_slow(w, a):
    """Keep a resolved fault if it is among the slowest: latency, vCPU, its first and its last event.

    They stand with the longest first; of equals the earlier one goes first.
    """
    if w[L.SLOWEST_CAP] == 0:
        return
    base = w[L.SLOWEST]
    latency = w[a + L.V_CHAIN]
    at = base + 4 * (w[L.SLOWEST_CAP] - 1)
    if latency <= w[at]:
        return
    while at > base and w[at - 4] < latency:
        for i in range(4):
            w[at + i] = w[at - 4 + i]
        at -= 4
    w[at] = latency
    w[at + 1] = w[a + L.ID]
    w[at + 2] = w[a + L.V_FIRST_EVENT]
    w[at + 3] = w[L.EVENTS]
