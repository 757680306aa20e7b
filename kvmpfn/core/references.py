"""References to folios: GUP's get, KVM's put, and puts that are saved up to be made together."""

from . import layout as L
from .events import count, schedule
from .host_mm import folio_add
from .jit import jit
from .lines import outside_fault, rmw_add, rmw_cas_loop


@jit
def got_reference(w, a, folio, t):
    """The fault holds a reference to the folio from `t` on."""
    w[a + L.V_FOLIO] = folio
    w[a + L.V_REF] = 1
    w[a + L.V_REF_T0] = t
    w[folio + L.FOLIO_STATE] += L.F_REF_ONE
    count(w, a, L.K_GETS, 1)


@jit
def try_get_folio(w, a, folio, t):
    """get_page_unless_zero, try_grab_folio: a reference by a cmpxchg loop."""
    t = rmw_cas_loop(w, a, folio + L.FOLIO_LINE, L.X_FOLIO, L.PART_FOLIO, t)
    got_reference(w, a, folio, t)
    return t


@jit
def put_page(w, a, t):
    """put_page at once: GUP's own."""
    folio = w[a + L.V_FOLIO]
    t = folio_add(w, a, folio, L.X_FOLIO, t)
    w[a + L.V_REF] = 0
    w[folio + L.FOLIO_STATE] -= L.F_REF_ONE
    count(w, a, L.K_PUTS, 1)
    count(w, a, L.K_REFERENCE_HOLD_PS, t - w[a + L.V_REF_T0])
    return t


@jit
def put_folio(w, a, t):
    """KVM's put, if the fault holds a reference: at once, or with `put_batch` later and together."""
    if w[a + L.V_REF] == 0:
        return t
    if w[L.M_PUT_BATCH] <= 1:
        return put_page(w, a, t)
    w[a + L.V_REF] = 0
    w[a + L.V_BATCH_REFS] += 1
    slot = w[a + L.V_BATCH]
    end = slot + w[a + L.V_BATCH_COUNT] * L.BATCH_WORDS
    while slot < end and w[slot + L.BATCH_FOLIO] != w[a + L.V_FOLIO]:
        slot += L.BATCH_WORDS
    if slot == end:
        w[a + L.V_BATCH_COUNT] += 1
        w[slot + L.BATCH_FOLIO] = w[a + L.V_FOLIO]
        w[slot + L.BATCH_REFS] = 0
        w[slot + L.BATCH_T0] = 0
    w[slot + L.BATCH_REFS] += 1
    w[slot + L.BATCH_T0] += w[a + L.V_REF_T0]
    return t


@jit
def drain_puts(w, a):
    """folio_put_refs for the oldest folio of the batch: one RMW, however many references."""
    slot = w[a + L.V_BATCH] + w[a + L.V_BATCH_NEXT] * L.BATCH_WORDS
    folio, refs = w[slot + L.BATCH_FOLIO], w[slot + L.BATCH_REFS]
    t = rmw_add(w, a, folio + L.FOLIO_LINE, L.X_FOLIO, L.PART_FOLIO, w[L.NOW])
    w[folio + L.FOLIO_STATE] -= refs * L.F_REF_ONE
    count(w, a, L.K_PUTS, refs)
    count(w, a, L.K_REFERENCE_HOLD_PS, refs * t - w[slot + L.BATCH_T0])
    stopping = w[a + L.AFTER] == L.PC_ACCESS
    if stopping:
        outside_fault(w, a, L.PART_FOLIO, t - w[L.NOW])
    w[a + L.V_BATCH_NEXT] += 1
    if w[a + L.V_BATCH_NEXT] < w[a + L.V_BATCH_COUNT]:
        schedule(w, a, L.PC_DRAIN_PUTS, t)
        return
    w[a + L.V_BATCH_COUNT] = 0
    w[a + L.V_BATCH_NEXT] = 0
    w[a + L.V_BATCH_REFS] = 0
    schedule(w, a, L.PC_ACCESS if stopping else L.PC_FINISH, t)
