"""What a vCPU accesses next (docs/model.md, "Workloads"), and when it has no more.

A vCPU is in a phase of its workload, a record of L.PHASE_WORDS words; n counts all its accesses, m those of
the phase. Places in a phase follow from m, draws from n.
"""

from . import layout as L
from .draws import CHOICE, GFN, KIND, THINK, below, chance, exponential, permute, split, word
from .host_mm import gfn_of_page
from .jit import jit
from .tdp_mmu import every_page_mapped


@jit
def draw_access(w, a):
    """The vCPU's n-th access: its gfn, kind and the compute time before it; False when there are no more."""
    n = w[a + L.V_N]
    phase = w[a + L.V_PHASE]
    m = n - w[a + L.V_PHASE_N]
    if m >= w[phase + L.PH_LIMIT]:
        if not next_phase(w, a):
            return False
        phase = w[a + L.V_PHASE]
        m = 0
    actor = w[a + L.ID]
    vm = w[a + L.VM]
    kind = w[phase + L.PH_KIND]
    count = w[phase + L.PH_COUNT]
    think = w[phase + L.PH_THINK]
    if w[phase + L.PH_THINK_EXP]:
        think = exponential(w, actor, THINK, n, think)
    if kind == L.W_REPLAY:
        row = w[phase + L.PH_TABLE] + 3 * m
        w[a + L.V_GFN] = gfn_of_page(w, vm, w[row])
        w[a + L.V_KIND] = w[row + 1]
        w[a + L.V_THINK] = think + w[row + 2]
        return True
    if kind == L.W_UNIFORM:
        page = below(w, actor, GFN, n, count)
    elif kind == L.W_SWEEP:
        page = (w[phase + L.PH_FIRST] + m) % count
    elif kind == L.W_STRIDED:
        page = strided(m % count, count, w[phase + L.PH_STRIDE])
    elif kind == L.W_ZIPF:
        page = draw_rank(w, phase, actor, n)
    else:
        page = hot_or_cold(w, phase, actor, m, n)
    order = w[phase + L.PH_ORDER]
    if order != L.ORDER_SEQUENTIAL:
        page = permute(w, actor if order == L.ORDER_OWN else L.NOBODY, page, count)
    page += w[phase + L.PH_BASE]
    w[a + L.V_GFN] = gfn_of_page(w, vm, page)
    w[a + L.V_KIND] = L.READ
    w[a + L.V_THINK] = think
    writes = w[phase + L.PH_WRITES]
    execs = w[phase + L.PH_EXECS]
    if writes >= 1 << L.ALL_BITS:
        w[a + L.V_KIND] = L.WRITE
    elif writes + execs > 0:
        high = word(w, actor, KIND, n)
        if high < writes:
            w[a + L.V_KIND] = L.WRITE
        elif high < writes + execs:
            w[a + L.V_KIND] = L.EXEC
    return True


@jit
def next_phase(w, a):
    """Go on to the next phase that has an access for this vCPU; False if there is none."""
    while w[a + L.V_PHASES_LEFT] > 1:
        w[a + L.V_PHASES_LEFT] -= 1
        w[a + L.V_PHASE] = w[w[a + L.V_PHASE] + L.PH_NEXT]
        w[a + L.V_PHASE_N] = w[a + L.V_N]
        if w[w[a + L.V_PHASE] + L.PH_LIMIT] > 0:
            return True
    return False


@jit
def strided(index, count, stride):
    """The page that comes index-th in strides over count pages; each wrap starts one page further on."""
    short = count // stride
    long_lanes = count % stride
    if index < long_lanes * (short + 1):
        return index // (short + 1) + stride * (index % (short + 1))
    index -= long_lanes * (short + 1)
    return long_lanes + index // short + stride * (index % short)


@jit
def draw_rank(w, phase, actor, n):
    """A rank by Zipf's law: a bin from the alias table, then a rank of that bin."""
    chosen, fraction = split(w, actor, CHOICE, n, w[phase + L.PH_BINS])
    row = w[phase + L.PH_TABLE] + L.ALIAS_WORDS * chosen
    if fraction >= w[row]:
        chosen = w[row + 1]
    beyond = chosen - (1 << L.ZIPF_SINGLE_BITS)
    if beyond < 0:
        return chosen
    shift = (beyond >> L.ZIPF_OCTAVE_BITS) + L.ZIPF_SINGLE_BITS - L.ZIPF_OCTAVE_BITS
    first = ((1 << L.ZIPF_OCTAVE_BITS) + (beyond & ((1 << L.ZIPF_OCTAVE_BITS) - 1))) << shift
    size = min(1 << shift, w[phase + L.PH_COUNT] - first)
    return first + below(w, actor, GFN, n, size)


@jit
def hot_or_cold(w, phase, actor, m, n):
    """A page of the hot window, or one of the rest; the window has drifted since the phase began."""
    count = w[phase + L.PH_COUNT]
    hot = w[phase + L.PH_HOT_PAGES]
    start = (m // w[phase + L.PH_DRIFT_EVERY]) % count * w[phase + L.PH_DRIFT] % count
    if hot == count or chance(w, actor, CHOICE, n, w[phase + L.PH_HOT_SHARE]):
        return (start + below(w, actor, GFN, n, hot)) % count
    return (start + hot + below(w, actor, GFN, n, count - hot)) % count


@jit
def look_for_end(w, a):
    """An endless workload ends when nothing can fault any more; looked at once for each P hits in a row."""
    vm = w[a + L.VM]
    w[a + L.V_HITS] += 1
    if w[a + L.V_HITS] < w[vm + L.PAGES]:
        return
    w[a + L.V_HITS] = 0
    for i in range(w[L.CLIENT_COUNT]):
        client = w[w[L.ACTOR_PTRS] + i]
        if w[client + L.VM] == vm and not w[client + L.FINISHED]:
            return
    phase = w[a + L.V_PHASE]
    writable = w[phase + L.PH_WRITES] == 0 or every_page_mapped(w, vm, L.WRITE)
    executable = w[phase + L.PH_EXECS] == 0 or every_page_mapped(w, vm, L.EXEC)
    if writable and executable and every_page_mapped(w, vm, L.READ):
        w[phase + L.PH_LIMIT] = w[a + L.V_N] - w[a + L.V_PHASE_N]
