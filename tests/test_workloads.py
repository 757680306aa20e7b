"""What the engine draws for each kind of workload: its pages, their distribution, its kinds, and its end."""

from __future__ import annotations

import hashlib
from collections import Counter
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import kvmpfn as kp
from kvmpfn import workloads as work
from kvmpfn.core import layout as L
from kvmpfn.core.jit import kernel
from kvmpfn.core.workload import draw_access
from kvmpfn.scenario import Scenario
from kvmpfn.simulator import _World
from kvmpfn.units import InputError, format_size
from kvmpfn.workloads.zipf_table import alias_table, rank_bins

READ, WRITE, EXECUTE = range(3)
Accesses = NDArray[np.int64]


@kernel
def draw_all(w, a, found):  # type: ignore[no-untyped-def]
    """Fill rows of page, kind and think time, and return how many accesses there were."""
    for n in range(len(found)):
        if not draw_access(w, a):
            return n
        found[n] = w[a + L.V_GFN], w[a + L.V_KIND], w[a + L.V_THINK]
        w[a + L.V_N] += 1
    return len(found)


def drawn(workload: Any, pages: int, *, vcpus: int = 1, most: int = 20_000, **fields: Any) -> list[Accesses]:
    """Draw, as the engine does, the accesses of each vCPU of a VM of one region: page, kind, think time."""
    fields = {"until": "1ms", "memory": pages * 4096, "vcpus": vcpus, "workload": workload} | fields
    world = _World(Scenario(**fields), 0, False, 2)
    found = []
    for a in world.vcpu_at:
        rows = np.zeros((most, 3), dtype=np.int64)
        found.append(rows[: draw_all(world.words, a, rows)])
    return found


def pages_of(workload: Any, pages: int, **fields: Any) -> list[list[int]]:
    """Only the pages of `drawn`."""
    return [rows[:, 0].tolist() for rows in drawn(workload, pages, **fields)]


def fits(seen: Any, probability: Any) -> bool:
    """Chi squared within five standard deviations of its mean; cells are merged up to 10 expected."""
    seen, expected = np.asarray(seen, dtype=float), np.asarray(probability) * np.sum(seen)
    assert len(seen) == len(expected)
    cells = np.floor(np.cumsum(expected) / 10).clip(max=np.floor(expected.sum() / 10) - 1).astype(int)
    _, cells = np.unique(cells, return_inverse=True)
    seen, expected = np.bincount(cells, seen), np.bincount(cells, expected)
    chi2, freedom = ((seen - expected) ** 2 / expected).sum(), len(seen) - 1
    return bool(chi2 <= freedom + 5 * (2 * freedom) ** 0.5)


def zipf_law(exponent: float, count: int) -> NDArray[np.float64]:
    weights = np.arange(1.0, count + 1) ** -exponent
    return weights / weights.sum()


SMALL = {
    "demand_paging": work.demand_paging(order="random", think="1ns"),
    "strided": work.strided(stride="12KiB", writes=0.3, execs=0.3),
    "uniform": work.uniform(accesses=300, writes=0.2, execs=0.4),
    "zipf": work.zipf(accesses=300, think="2ns", think_dist="exponential"),
    "hot_cold": work.hot_cold(accesses=300, drift="8KiB", drift_every=40),
    "pointer_chase": work.pointer_chase(accesses=300, footprint="128KiB"),
    "snapshot_restore": work.snapshot_restore(working_set="160KiB"),
    "replay": work.replay(vcpus=[[[5, 2, 7], [0, 0, 0]], [[63, 1, 1]]]),
    "phases": work.phases(["demand_paging", work.zipf(accesses=50), work.sequential()], repeat=2),
}


@pytest.mark.parametrize("kind", work.KINDS)
def test_a_run_accesses_what_is_drawn(kind: str) -> None:
    """On memory that is mapped every access hits, and the log has the page of each: the one drawn."""
    workload = SMALL[kind]
    scenario = Scenario(memory=[kp.Region("256KiB", mapped=True)], vcpus=2, workload=workload)
    run = kp.simulate(scenario, log=10_000)
    assert run.counters["pf_taken"] == 0
    for actor, rows in enumerate(drawn(workload, 64, vcpus=2, until=None)):
        steps = run.events[run.events["actor"] == actor]
        # An access is one step, or two with think time before it; the gfn is that of the one drawn last.
        expected = [page for page, _, think in rows.tolist() for _ in range(2 if think else 1)]
        assert steps["a"].tolist()[1:] == expected
        assert run.vcpus["accesses"][actor] == len(rows) > 0


@given(pages=st.integers(1, 90), stride=st.integers(1, 90), vcpus=st.integers(1, 5), passes=st.integers(1, 2))
@settings(max_examples=40)
def test_strides_come_to_each_page_once_a_pass(pages: int, stride: int, vcpus: int, passes: int) -> None:
    stride = min(stride, pages)
    workload = work.strided(stride=stride * 4096, passes=passes)
    for index, found in enumerate(pages_of(workload, pages, vcpus=vcpus)):
        base, end = index * pages // vcpus, (index + 1) * pages // vcpus
        lanes = [range(base + lane, end, stride) for lane in range(min(stride, end - base))]
        assert found == [page for lane in lanes for page in lane] * passes


def test_ends_of_strides() -> None:
    assert pages_of(work.sequential(share="overlapping"), 5, vcpus=2) == [[0, 1, 2, 3, 4]] * 2
    assert pages_of(work.strided(stride="8KiB", accesses=7), 5) == [[0, 2, 4, 1, 3, 0, 2]]
    assert pages_of(work.strided(stride="4KiB", accesses=3), 1, vcpus=2) == [[], [0, 0, 0]]


@given(footprint=st.integers(1, 70), vcpus=st.integers(1, 5), seed=st.integers(0, 2**64 - 1))
@settings(max_examples=30)
def test_a_chase_is_one_cycle_that_vcpus_enter_at_even_distances(
    footprint: int, vcpus: int, seed: int
) -> None:
    workload = work.pointer_chase(footprint=footprint * 4096, accesses=2 * footprint)
    chases = pages_of(workload, 70, vcpus=vcpus, seed=seed)
    cycle = chases[0][:footprint]
    assert sorted(cycle) == list(range(footprint))
    for index, chase in enumerate(chases):
        start = index * footprint // vcpus
        assert chase == (cycle[start:] + cycle[:start]) * 2


def test_a_chase_jumps() -> None:
    """Steps from page to page are as far as those of a random order: a third of memory on average."""
    (chase,) = pages_of(work.pointer_chase(accesses=4096), 4096)
    far = np.abs(np.diff(chase)).mean() / 4096
    assert far == pytest.approx(1 / 3, abs=5 * (1 / 18 / 4095) ** 0.5)


def test_uniform_pages() -> None:
    (found,) = pages_of(work.uniform(), 97)
    assert fits(np.bincount(found, minlength=97), np.full(97, 1 / 97))
    assert not fits(np.bincount(found, minlength=97), zipf_law(0.1, 97))


@pytest.mark.parametrize("exponent", [0, 0.5, 0.99, 1, 2.5])
@pytest.mark.parametrize("pages", [1, 300, 4096, 60_000])
def test_zipf_ranks(exponent: float, pages: int) -> None:
    (found,) = pages_of(work.zipf(exponent=exponent, order="sequential"), pages)
    seen = np.bincount(found, minlength=pages)
    assert fits(seen, zipf_law(exponent, pages))
    if pages > 1:
        assert not fits(seen, zipf_law(exponent + 0.3, pages))


def test_zipf_scatters_its_ranks_alike_for_all_vcpus() -> None:
    """The same draws give a page each; the places of ranks are one permutation, whoever asks."""
    ranks = pages_of(work.zipf(order="sequential"), 200, vcpus=2)
    pages = pages_of(work.zipf(), 200, vcpus=2)
    places = dict(zip(ranks[0] + ranks[1], pages[0] + pages[1], strict=True))
    assert [[places[rank] for rank in one] for one in ranks] == pages
    assert sorted(places.values()) == list(range(200)) and places != {rank: rank for rank in range(200)}
    assert ranks[0] != ranks[1]


def mass_of(table: NDArray[np.int64]) -> list[int]:
    """The mass that an alias table gives to each bin, of 2**48 times as many in all as there are bins."""
    mass = [0] * len(table)
    for row, (threshold, alias) in enumerate(table.tolist()):
        mass[row] += threshold
        mass[alias] += (1 << 48) - threshold
    return mass


@pytest.mark.parametrize("exponent", [0, 0.75, 1, 3])
@pytest.mark.parametrize("count", [1, 2, 4097, 100_000])
def test_the_alias_table_is_within_its_stated_bounds(exponent: float, count: int) -> None:
    """Each rank's probability is Zipf's times something between (512/513)**s and (512/511)**s."""
    bins, table = rank_bins(count), alias_table(float(exponent), count)
    assert [first for first, _ in bins] == [0, *np.cumsum([size for _, size in bins])[:-1]]
    assert sum(size for _, size in bins) == count and len(bins) == len(table)
    sizes = np.array([size for _, size in bins])
    probability = np.repeat(np.array(mass_of(table)) / len(table) / 2.0**48 / sizes, sizes)
    law, rounding = zipf_law(exponent, count), 1e-6 * max(1, exponent * (exponent + 1)) + 1e-9
    significant = law > 1e-6 * law.max()
    ratio = (probability / law)[significant]
    assert ((512 / 513) ** exponent * (1 - rounding) <= ratio).all()
    assert (ratio <= (512 / 511) ** exponent * (1 + rounding)).all()
    assert np.abs(probability - law).sum() / 2 <= exponent / 2048 + 1e-6


def test_the_alias_table_is_the_same_on_every_machine() -> None:
    """A terabyte of pages takes few bins, and these are known by their hash."""
    table = alias_table(0.99, 1 << 28)
    assert table.shape == (8192, 2)
    found = hashlib.sha256(table.astype("<i8").tobytes()).hexdigest()
    assert found == "7ae3a721738b86a4240ce5700244a22a7d968c574938b766afbd29ae22b8d51f"


def test_hot_and_cold_pages() -> None:
    (found,) = pages_of(work.hot_cold(hot_memory=0.29, hot_accesses=0.7), 100)
    law = np.where(np.arange(100) < 29, 0.7 / 29, 0.3 / 71)
    assert fits(np.bincount(found, minlength=100), law)
    assert not fits(np.bincount(found, minlength=100), np.where(np.arange(100) < 28, 0.7 / 28, 0.3 / 72))


@given(pages=st.integers(1, 80), hot=st.floats(0, 1), drift=st.integers(0, 200), every=st.integers(1, 50))
@settings(max_examples=30)
def test_the_hot_window_drifts(pages: int, hot: float, drift: int, every: int) -> None:
    """With all accesses hot the window is all one sees, and with none all one does not."""
    fields = {"hot_memory": hot, "drift": drift * 4096, "drift_every": every}
    window = max(1, int(work.hot_cold(**fields).hot_pages(pages)))
    for share in (0, 1):
        (found,) = pages_of(work.hot_cold(hot_accesses=share, **fields), pages, most=400)
        place = [(page - n // every * drift) % pages for n, page in enumerate(found)]
        assert all((at < window) == (share == 1 or window == pages) for at in place)


@pytest.mark.parametrize(("hot", "pages", "window"), [(0.29, 100, 29), (0, 5, 1), (1, 5, 5), (0.1, 30, 3)])
def test_the_hot_window_is_the_share_that_was_written(hot: float, pages: int, window: int) -> None:
    assert work.hot_cold(hot_memory=hot).hot_pages(pages) == window


@pytest.mark.parametrize("kind", ["uniform", "strided", "zipf", "hot_cold", "pointer_chase"])
def test_kinds(kind: str) -> None:
    """One draw an access decides, whatever the kind of workload; retries of it are the same access."""
    fields: dict[str, Any] = {"accesses": 20_000, "writes": 0.25, "execs": 0.6}
    (rows,) = drawn(work.KINDS[kind](**fields), 512)
    assert fits(np.bincount(rows[:, 1], minlength=3), [0.15, 0.25, 0.6])
    assert not fits(np.bincount(rows[:, 1], minlength=3), [0.13, 0.27, 0.6])
    (other,) = drawn(work.uniform(**fields), 512)
    assert rows[:, 1].tolist() == other[:, 1].tolist()
    writes_alone = drawn(work.uniform(accesses=20_000, writes=0.25), 512)[0]
    assert ((rows[:, 1] == WRITE) == (writes_alone[:, 1] == WRITE)).all()
    for name, one in (("writes", WRITE), ("execs", EXECUTE)):
        only = {"writes": 0, "execs": 0} | {name: 1}
        assert set(drawn(work.KINDS[kind](accesses=99, **only), 512)[0][:, 1]) == {one}


@given(
    parts=st.lists(
        st.sampled_from(["demand_paging", "strided", "pointer_chase", "snapshot_restore", "replay"]),
        min_size=1,
        max_size=4,
    ),
    repeat=st.integers(1, 3),
)
@settings(max_examples=25)
def test_phases_are_a_concatenation(parts: list[str], repeat: int) -> None:
    """Pages that follow from the access's number in the phase are those of the workloads alone."""
    alone = [pages_of(SMALL[part], 64, vcpus=2) for part in parts]
    found = pages_of(work.phases([SMALL[part] for part in parts], repeat=repeat), 64, vcpus=2)
    for index in range(2):
        assert found[index] == [page for one in alone for page in one[index]] * repeat


def test_phases_draw_on() -> None:
    """A draw has the number of the access among all: a phase goes on where a longer workload would be."""
    long = drawn(work.uniform(accesses=500, writes=0.3, think="9ns", think_dist="exponential"), 64)[0]
    first = work.replay(vcpus=[[[0, 1, 0]] * 120])
    rest = {"writes": 0.3, "think": "9ns", "think_dist": "exponential"}
    parts = [first, work.uniform(accesses=180, **rest), work.uniform(accesses=200, **rest)]
    found = drawn(work.phases(parts), 64)[0]
    assert (found[120:] == long[120:]).all()
    twice = drawn(work.phases([work.uniform(accesses=250, **rest)], repeat=2), 64)[0]
    assert (twice == long).all() and (twice[:250, 0] != twice[250:, 0]).any()


def test_drift_begins_anew_with_the_phase() -> None:
    hot = {"hot_memory": 0.1, "hot_accesses": 1, "drift": "40KiB", "drift_every": 10}
    (found,) = pages_of(work.phases([work.hot_cold(accesses=25, **hot)], repeat=2), 100)
    assert [page // 10 for page in found] == ([0] * 10 + [1] * 10 + [2] * 5) * 2


def test_a_phase_without_an_access_is_passed_over() -> None:
    nothing = work.replay(vcpus=[[], [[0, 1, 0]]])
    found = pages_of(work.phases([nothing, work.sequential(), nothing], repeat=2), 4, vcpus=2)
    assert found == [[0, 1, 0, 1], [0, 2, 3, 0, 0, 2, 3, 0]]
    assert pages_of(work.phases([nothing, nothing]), 4, vcpus=2) == [[], [0, 0]]


@pytest.mark.parametrize("kind", work.PHASE_KINDS)
def test_one_phase_is_the_workload_itself(kind: str) -> None:
    scenario = Scenario(memory="256KiB", vcpus=2, workload=SMALL[kind])
    run, phase = kp.simulate(scenario), kp.simulate(scenario.replace(workload=work.phases([SMALL[kind]])))
    assert run.digest == phase.digest
    assert run.counters["pf_taken"] > 0


def test_huge_pages_without_execute_are_split_by_execution() -> None:
    """Under nx_huge_pages a page is mapped small where it is executed, and only there."""
    scenario = Scenario(
        memory=[kp.Region("8MiB", backing="thp", mapped=True)],
        vcpus=2,
        nx_huge_pages=True,
        workload=work.uniform(accesses=500, writes=0.5),
    )
    runs = [kp.simulate(scenario.replace(**{"workload.execs": execs})) for execs in (0.0, 0.25)]
    assert [run.counters["huge_splits"] > 0 for run in runs] == [False, True]
    assert runs[0].counters["pf_taken"] == 0 and runs[1].counters["pages_4k"] > 0


def test_uniform_executions_end_when_each_page_can_be_executed() -> None:
    """The end that an endless workload finds is one at which nothing could fault."""
    for execs, small in ((0.0, 0), (0.5, 512)):
        run = kp.simulate(
            Scenario(
                memory=[kp.Region("2MiB", backing="thp", mapped=True)],
                nx_huge_pages=True,
                workload=work.uniform(writes=0.25, execs=execs),
                until="100000 faults",
            )
        )
        assert run.counters["pages_4k"] == small


def scan(vcpu: int, vcpus: int, pages: int) -> Any:
    """Every other page downwards, each vCPU from a place of its own."""
    return [[(pages - 2 * k - vcpu) % pages, k % 3, 10 * k] for k in range(pages // vcpus)]


@numba.njit
def compiled_scan(vcpu, vcpus, pages):  # type: ignore[no-untyped-def]
    found = np.empty((pages // vcpus, 3), dtype=np.int64)
    for k in range(pages // vcpus):
        found[k] = (pages - 2 * k - vcpu) % pages, k % 3, 10 * k
    return found


FORMS = {
    "list": scan,
    "generator": lambda *numbers: (tuple(row) for row in scan(*numbers)),
    "array": lambda *numbers: np.array(scan(*numbers), dtype=np.int32),
    "columns": lambda *numbers: tuple(np.array(scan(*numbers)).T),
    "compiled": compiled_scan,
}


@pytest.mark.parametrize("form", FORMS)
def test_what_is_generated_is_a_replay(form: str) -> None:
    found = work.generated(FORMS[form], vcpus=3, pages=64)
    assert found == work.replay(vcpus=[scan(vcpu, 3, 64) for vcpu in range(3)])
    scenario = Scenario(memory="256KiB", vcpus=3, workload=found)
    assert Scenario.from_json(scenario.to_json()) == scenario


def test_generated_accesses_may_leave_out_kind_and_think_time() -> None:
    assert work.generated(lambda *_: range(2), vcpus=1, pages=2).vcpus == (((0, 1, 0), (1, 1, 0)),)
    assert work.generated(lambda *_: [(1, 2)], vcpus=1, pages=2, think="1ns").vcpus == (((1, 2, 0),),)
    assert work.generated(lambda *_: iter(()), vcpus=2, pages=2).vcpus == ((), ())
    assert work.generated(lambda *_: [], vcpus=1, pages=2, think="3ns").think_ps == 3000


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([0, 64], "f(0, 1, 64): access 1: page 64 is not from 0 to 63; nearest is 63"),
        ([[3, -1]], "f(0, 1, 64): access 0: kind -1 is not from 0 to 2; nearest is 0"),
        ([[3, 1, 1 << 60]], "f(0, 1, 64): access 0: think_ps"),
        ([0.5], "f(0, 1, 64): gave float64 values; nearest are whole numbers"),
        (None, "f(0, 1, 64): gave NoneType that is not pages"),
        ([[1], [1, 2]], "f(0, 1, 64): gave list that is not pages"),
        (np.zeros((2, 4), dtype=int), "f(0, 1, 64): gave an array of shape (2, 4), not pages"),
        ((np.zeros(2, dtype=int), np.zeros(3, dtype=int)), "f(0, 1, 64): gave tuple that is not pages"),
    ],
)
def test_what_is_no_list_of_accesses_is_said_in_a_line(given: Any, message: str) -> None:
    def f(vcpu: int, vcpus: int, pages: int) -> Any:
        return given

    with pytest.raises(InputError) as raised:
        work.generated(f, vcpus=1, pages=64)
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)


def test_a_mistake_in_the_function_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        work.generated(lambda *_: [1 // 0], vcpus=1, pages=64)


def in_scenario(**fields: Any) -> Scenario:
    return Scenario(memory="4MiB", vcpus=2, **fields)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: work.uniform(writes=0.75, execs=0.5), "execs: 0.5 beside writes=0.75 is more than all"),
        (lambda: work.strided(stride="3KiB"), "stride: '3KiB' is not a multiple of 4KiB; nearest is '4KiB'"),
        (lambda: work.strided(stride=0), "stride: 0 is not a multiple of 4KiB; nearest is '4KiB'"),
        (lambda: work.strided(passes=2, accesses=3), "passes: 2 beside accesses=3; nearest is 1"),
        (lambda: work.zipf(exponent=9), "exponent: 9 is out of range; nearest is 8"),
        (lambda: work.zipf(exponent="1"), "exponent: '1' is not a number"),
        (lambda: work.hot_cold(hot=0.1), "HotCold: unknown key 'hot'; nearest is 'hot_memory'"),
        (lambda: work.hot_cold(drift="1KiB"), "drift: '1KiB' is not a multiple of 4KiB; nearest is '0B'"),
        (lambda: work.pointer_chase(footprint="0B"), "footprint: '0B' is not a multiple of 4KiB; nearest"),
        (lambda: work.phases([]), "phases: no phase; nearest is"),
        (lambda: work.phases(["uniform", "strided"]), "phases.0.accesses: missing: 'uniform' without"),
        (lambda: work.phases([SMALL["phases"]]), "phases.0.kind: 'phases' in phases; nearest is"),
        (lambda: work.phases(["strided", {"kind": "zip"}]), "phases.1.kind: 'zip' is not one of demand_"),
        (lambda: work.phases(["strided", "uniform"], repeat=2), "repeat: 2, but the last phase never ends"),
        (lambda: work.generated(scan, vcpus=0, pages=2), "vcpus: 0 is not a whole number of at least 1"),
        (lambda: in_scenario(workload="zipf"), "until: missing: workload 'zipf' without accesses never ends"),
        (lambda: in_scenario(workload="zipf", until=7), "until: 7: workload 'zipf' without accesses may"),
        (lambda: in_scenario(workload=work.strided(stride="8MiB")), "workload.stride: '8MiB' is more than"),
        (
            lambda: in_scenario(workload=work.pointer_chase(footprint="8MiB"), until="1ms"),
            "workload.footprint: '8MiB' is more than there is memory; nearest is '4MiB'",
        ),
        (
            lambda: in_scenario(workload=work.phases(["strided", work.strided(stride="8MiB")])),
            "workload.phases.1.stride: '8MiB' is more than there is memory",
        ),
        (
            lambda: in_scenario(workload=SMALL["phases"]).with_path("workload.phases.1.exponet", 1),
            "workload.phases.1: unknown key 'exponet'; nearest is 'exponent'",
        ),
    ],
)
def test_mistakes_say_what_where_and_the_nearest(make: Any, message: str) -> None:
    with pytest.raises(InputError) as raised:
        make()
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)


MANY = 1 << 80


@pytest.mark.parametrize(
    "workload",
    [
        work.strided(stride="8KiB", passes=MANY),
        work.uniform(accesses=MANY),
        work.hot_cold(accesses=MANY, drift="4KiB", drift_every=MANY),
    ],
    ids=lambda workload: workload.kind,
)
def test_more_accesses_than_any_run_has(workload: work.Workload) -> None:
    """A number that no machine word holds is as good as no end."""
    found = kp.simulate(Scenario(memory="64KiB", workload=workload, until="100us"))
    assert found.counters["accesses"] > 100


def test_what_older_files_say_is_written_as_before() -> None:
    """A scenario in which nothing executes keeps its digest: `execs` is not written."""
    assert "execs" not in Scenario(workload=work.uniform(accesses=1)).to_json()
    assert '"execs":0.5' in Scenario(workload=work.uniform(accesses=1, execs=0.5)).to_json()


def test_every_seed_has_an_order_of_its_own() -> None:
    """Scattered orders differ by seed; neighbours in them are no neighbours in memory."""
    found = [tuple(pages_of(SMALL["pointer_chase"], 64, seed=seed)[0]) for seed in (1, 2)]
    assert len(set(found)) == 2
    steps = Counter(after - before for before, after in pairwise(found[0]))
    assert steps.most_common(1)[0][1] < len(found[0]) / 3
    assert format_size(4096) == work.sequential().stride
