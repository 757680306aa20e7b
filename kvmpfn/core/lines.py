"""Shared words: what an atomic, a store or a load of one costs (docs/model.md, "Cost of shared words").

Each function takes the time an access is asked for and returns the time it is done. A step asks for one
line, at its own time, so lines are granted in the order of the times at which they are asked for; what else
the step does to that line rides. The time goes to the actor's current part; RMWs are counted by line and
context.
"""

from . import layout as L
from .events import count
from .jit import jit
from .notes import note_wait


@jit
def distance(w, cpu, owner):
    """How far the owner of a line (cpu + 1, or 0 for memory) is from a CPU: an index of names.DISTANCES."""
    if owner == 0:
        return L.D_MEMORY
    if owner == cpu + 1:
        return L.D_OWN
    differs = w[w[L.CPU_PLACE] + cpu] ^ w[w[L.CPU_PLACE] + owner - 1]
    if differs == 0:
        return L.D_CORE
    if differs >> L.PLACE_BITS == 0:
        return L.D_LLC
    return L.D_SOCKET if differs >> 2 * L.PLACE_BITS == 0 else L.D_REMOTE


@jit
def charge(w, a, part, ps):
    """Book time to a part of the attempt the actor is in."""
    if w[a + L.PART_AS] >= 0:
        part = w[a + L.PART_AS]
    w[a + L.V_PARTS + part] += ps


@jit
def outside_fault(w, a, part, ps):
    """Take time that a vCPU was just charged out of the parts: it is in no fault, but not in the guest."""
    w[a + L.V_PARTS + part] -= ps
    w[a + L.V_KICKED] += ps


@jit
def private(w, a, part, ps):
    """Work that touches nothing shared; slower while the SMT sibling is busy. Returns its duration."""
    if w[a + L.SMT] != 100:
        ps = ps * w[a + L.SMT] // 100
    charge(w, a, part, ps)
    return ps


@jit
def write_line(w, a, line, own, factor, t):
    """Bring a line to the actor's CPU for writing: grant, occupy, own. Returns when it is done."""
    word = w[line]
    busy = word >> L.OWNER_BITS
    cpu = w[a + L.CPU]
    d = distance(w, cpu, word & L.OWNER_MASK)
    grant = max(t, busy)
    if busy > t:
        note_wait(w, a, line, word & L.OWNER_MASK, t, busy)
    if d == L.D_OWN:
        done = grant + own
        busy = done
    else:
        occupancy = w[L.C_OCCUPANCY_CORE - 1 + d]
        if busy > t:
            occupancy *= factor  # a CAS loop fails and repeats while others queue; counted once
        done = grant + w[L.C_LATENCY_CORE - 1 + d]
        busy = grant + occupancy
    w[line] = (busy << L.OWNER_BITS) | (cpu + 1)
    w[w[a + L.TRANSFERS_AT] + d] += 1
    return done


@jit
def ride_line(w, a, line, own, t):
    """Write once more to the line that this step was granted: it stays for the instruction beside."""
    w[line] += own << L.OWNER_BITS
    w[w[a + L.TRANSFERS_AT] + L.D_OWN] += 1
    return t + own


@jit
def tally(w, a, kind, n):
    """Count atomic read-modify-writes of a kind of line (names.RMW_LINES) in the actor's context."""
    w[w[a + L.RMW_AT] + w[a + L.CONTEXT] * L.LINE_COUNT + kind] += n


@jit
def rmw_add(w, a, line, kind, part, t):
    """A locked add, or, xadd: one RMW."""
    tally(w, a, kind, 1)
    done = write_line(w, a, line, w[L.C_OWN_ADD], 1, t)
    charge(w, a, part, done - t)
    return done


@jit
def ride_add(w, a, line, kind, part, t):
    """A locked add right after another write to the same line: one RMW."""
    tally(w, a, kind, 1)
    done = ride_line(w, a, line, w[L.C_OWN_ADD], t)
    charge(w, a, part, done - t)
    return done


@jit
def rmw_cas(w, a, line, kind, part, t):
    """A single cmpxchg: one RMW, won or lost."""
    tally(w, a, kind, 1)
    done = write_line(w, a, line, w[L.C_OWN_CAS], 1, t)
    charge(w, a, part, done - t)
    return done


@jit
def rmw_cas_loop(w, a, line, kind, part, t):
    """A cmpxchg loop (`atomic_add_unless`): counted once, occupies the line longer while others queue."""
    tally(w, a, kind, 1)
    done = write_line(w, a, line, w[L.C_OWN_CAS], w[L.C_CAS_FACTOR], t)
    charge(w, a, part, done - t)
    return done


@jit
def store(w, a, line, part, t):
    """A plain store to a shared word: moves the line, is no RMW; free for the owner."""
    done = write_line(w, a, line, 0, 1, t)
    charge(w, a, part, done - t)
    return done


@jit
def load(w, a, line, part, t):
    """A load of a written word: waits for the line, pays a transfer unless this CPU wrote it last."""
    word = w[line]
    owner = word & L.OWNER_MASK
    if owner == 0 or owner == w[a + L.CPU] + 1:
        return t
    if word >> L.OWNER_BITS > t:
        note_wait(w, a, line, owner, t, word >> L.OWNER_BITS)
    d = distance(w, w[a + L.CPU], owner)
    done = max(t, word >> L.OWNER_BITS) + w[L.C_LATENCY_CORE - 1 + d]
    w[w[a + L.TRANSFERS_AT] + d] += 1
    charge(w, a, part, done - t)
    return done


@jit
def local_barrier(w, a, n, part, t):
    """RMWs and full barriers on a word of the CPU's own (SRCU, vcpu->mode): own cost, no line."""
    tally(w, a, L.X_LOCAL, n)
    ps = n * w[L.C_OWN_ADD]
    charge(w, a, part, ps)
    return t + ps


@jit
def load_seq_line(w, a, t):
    """Read mmu_invalidate_seq, in_progress and the range: one line, dirtied by each invalidation."""
    vm = w[a + L.VM]
    if w[a + L.V_SEEN] != w[vm + L.SEQ_VERSION]:
        w[a + L.V_SEEN] = w[vm + L.SEQ_VERSION]
        t = load(w, a, vm + L.SEQ_LINE, L.PART_SEQ_LINE, t)
    return t


@jit
def waited(w, a, counter, part, since, until):
    """Book a wait for a lock."""
    count(w, a, counter, until - since)
    charge(w, a, part, until - since)
