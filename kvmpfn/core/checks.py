"""Invariants looked at after every event, when asked for (docs/model.md, "Invariants")."""

from . import layout as L
from .events import fail
from .jit import jit


@jit
def check_vm(w, vm):
    """Locks, the sequence protocol and references of one VM are consistent now."""
    readers = w[vm + L.MMU_READERS]
    if readers < 0 or (w[vm + L.MMU_HEAD] == 0) != (w[vm + L.MMU_TAIL] == 0):
        fail(w, 2, 10)
    if w[vm + L.MMU_WRITER] != 0 and readers > 1:
        fail(w, 2, 11)  # one reader may have announced itself at the queue's head; none else
    if w[vm + L.MMAP_READERS] < 0 or (w[vm + L.MMAP_WRITER] != 0 and w[vm + L.MMAP_READERS] > 0):
        fail(w, 2, 12)
    active = 0
    other = w[vm + L.ACTIVE_HEAD]
    while other != 0:
        active += 1
        if w[other + L.N_START] < w[vm + L.RANGE_START] or w[other + L.N_END] > w[vm + L.RANGE_END]:
            fail(w, 2, 13)  # invariant 9: the collapsed range contains every active one
        other = w[other + L.N_ACTIVE_NEXT]
    if active != w[vm + L.IN_PROGRESS] or active > w[vm + L.MN_ACTIVE]:
        fail(w, 2, 14)  # invariant 8
    counters = w[L.COUNTERS] + w[vm + L.VM_ID] * L.COUNTER_COUNT
    if w[vm + L.SEQ] != w[counters + L.K_INVALIDATIONS]:
        fail(w, 2, 15)  # invariant 7: seq grows by one per completed overlapping invalidation
    in_flight = w[counters + L.K_GETS] - w[counters + L.K_PUTS]
    batch = w[L.M_PUT_BATCH] if w[L.M_PUT_BATCH] > 1 else 0
    if in_flight < 0 or in_flight > w[vm + L.VCPU_TOTAL] * (1 + batch):
        fail(w, 2, 16)  # invariant 12
    if w[counters + L.K_PAGES_4K] < 0 or w[counters + L.K_PAGES_2M] < 0 or w[counters + L.K_PAGES_1G] < 0:
        fail(w, 2, 17)
