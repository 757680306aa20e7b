"""Random scenarios keep every invariant after every event, and give the same bytes each time."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmpfn.core.names import COUNTERS
from kvmpfn.fault_path import PRESETS, FaultPath
from kvmpfn.scenario import Region, Scenario
from kvmpfn.simulator import simulate
from kvmpfn.storms import Storm
from kvmpfn.workloads import demand_paging, snapshot_restore, uniform

BACKINGS = {
    "anon": "1MiB", "thp": "4MiB", "hugetlb_2m": "4MiB", "hugetlb_1g": "1GiB",
    "page_cache": "1MiB", "pfnmap": "1MiB", "pfnmap_struct_page": "1MiB", "tail_pages": "1MiB",
}  # fmt: skip

regions = st.sampled_from(sorted(BACKINGS)).flatmap(
    lambda backing: st.builds(
        Region,
        st.just(BACKINGS[backing]),
        backing=st.just(backing),
        populated=st.booleans(),
        mapped=st.booleans(),
        mapping=st.sampled_from(["private", "shared"]),
        congruent=st.booleans(),
    )
)
storms = st.builds(
    lambda arrival, **fields: Storm(**arrival, **fields),
    st.sampled_from(
        [
            {"arrival": "poisson", "rate": "100k/s"},
            {"arrival": "periodic", "rate": "50k/s"},
            {"arrival": "closed_loop", "think": "2us"},
            {"arrival": "bursts", "rate": "500k/s", "on": "20us", "off": "60us"},
        ]
    ),
    span=st.sampled_from(["4KiB", "16KiB", "64KiB", "1MiB"]),
    hold=st.sampled_from(["0ns", "500ns", "4us", "40us"]),
    action=st.sampled_from(["madvise", "numa_balancing", "migration", "fork", "age"]),
    limit=st.integers(1, 40),
)
workloads = st.one_of(
    st.builds(
        demand_paging,
        order=st.sampled_from(["sequential", "random"]),
        share=st.sampled_from(["partitioned", "overlapping"]),
        access=st.sampled_from(["write", "read"]),
        passes=st.integers(1, 2),
    ),
    st.builds(uniform, writes=st.sampled_from([0.0, 0.3, 1.0]), accesses=st.integers(1, 120)),
    st.builds(snapshot_restore, working_set=st.just("256KiB"), writes=st.sampled_from([0.0, 0.2])),
)


@st.composite
def scenarios(draw):
    memory = draw(st.lists(regions, min_size=1, max_size=2))
    fits = {
        "migration": all(region.backing in ("anon", "thp") for region in memory),
        "fork": all(
            r.backing == "anon" or (r.backing, r.mapping) == ("page_cache", "private") for r in memory
        ),
    }
    wanted = draw(st.lists(storms, max_size=3))
    return Scenario(
        vms=draw(st.integers(1, 2)),
        vcpus=draw(st.integers(1, 6)),
        memory=memory,
        fault_path=FaultPath(
            draw(st.sampled_from(sorted(PRESETS))), mmu_lock=draw(st.sampled_from(["read", "exclusive"]))
        ),
        workload=draw(workloads),
        storms=[s if fits.get(s.action, True) else s.replace(action="madvise") for s in wanted],
        mmu=draw(st.sampled_from(["ept", "npt"])),
        levels=draw(st.sampled_from([4, 5])),
        dirty_logging=draw(st.booleans()),
        eager_page_split=draw(st.booleans()),
        preempt=draw(st.sampled_from(["none", "voluntary", "full"])),
        lru=draw(st.sampled_from(["off", "classic", "mglru"])),
        placement=draw(st.sampled_from(["cores", "spread", "smt"])),
        until="4000 faults",
        seed=draw(st.integers(0, 2**64 - 1)),
    )


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(scenarios())
def test_invariants_hold_after_every_event(scenario):
    """simulate(check=True) raises on the first broken invariant; identities are held at the end."""
    run = simulate(scenario, check=True)
    c = run.counters
    assert c["stale_uses"] == 0 == c["freed_uses"]
    assert c["pf_taken"] == c["pf_fixed"] + c["pf_spurious"] + c["pf_emulate"] + c["retry"] + c["pf_error"]
    assert c["pf_fast"] <= c["pf_fixed"] + c["pf_spurious"]
    assert c["rmw.fault.spte"] >= c["installs"] * (scenario.mechanisms.mmu_lock == "read")
    hist = run.arrays["hist"].sum()
    assert hist == c["pf_taken"] - c["retry"]
    assert run.arrays["tries"].sum() == hist
    assert run.parts.sum() == run.arrays["vcpus"][:, 3].sum()
    timeline = run.arrays["timeline"].sum(axis=0)
    assert timeline[0] == c["pf_taken"] and timeline[2] == c["retry"]


@pytest.mark.parametrize("seed", range(8))
def test_same_final_mappings(seed):
    """Invariant 22: without invalidations, every preset leaves the same leaves on refcounted memory."""
    leaves = set()
    for preset in PRESETS:
        s = Scenario(
            vcpus=4, memory="4MiB", fault_path=preset, seed=seed, workload=uniform(writes=1.0, accesses=600)
        )
        c = simulate(s, check=True).counters
        leaves.add((c["pages_4k"], c["installs"], c["tables_built"]))
    assert len(leaves) == 1


def test_a_storm_cannot_keep_a_fault_past_the_end_of_the_run():
    """Three scans protect the page again before GUP gets to it: its fault gives up once the run is over."""
    scan = Storm(
        arrival="closed_loop", think="0ns", span="4KiB", offset="0B", hold="2us", action="numa_balancing"
    )
    s = Scenario(
        vcpus=4,
        memory=[Region("16KiB", backing="page_cache")],
        workload=uniform(writes=0.3),
        storms=[scan] * 3,
        until="200us",
    )
    run = simulate(s, check=True)
    assert run.counters["retry.other"] > 0
    assert run.time_ps < 400_000_000


def test_a_list_of_ranges_spares_the_gap_and_is_safe():
    """What the one collapsed interval costs; check=True holds that nothing stale is mapped without it."""
    s = Scenario(
        vcpus=4,
        memory=[Region("64MiB", populated=True)],
        workload=uniform(writes=1.0, accesses=600),
        storms=[Storm(arrival="poisson", rate="50k/s", span="64KiB", hold="20us")] * 2,
    )
    collapsed, ranges = (
        simulate(s.replace(fault_path=FaultPath("v6.1", invalidate_ranges=how)), check=True).counters
        for how in ("collapsed", "list")
    )
    assert ranges["retry_false_range"] == 0 < collapsed["retry_false_range"]
    assert 0 < ranges["retry"] < collapsed["retry"] / 2


UNSAFE = [
    ("seq_checked", {"seq_checked": False}),
    ("guarded", {"guarded": False}),
]


@pytest.mark.parametrize(("name", "changes"), UNSAFE)
def test_a_caller_that_forgets_uses_freed_pages(name, changes):
    """Without the check, or without the guard, the guest uses pages that are no longer the host's to give."""
    s = Scenario(
        vcpus=8,
        memory="4MiB",
        fault_path=FaultPath("v6.1", **changes),
        workload=uniform(writes=1.0, accesses=4000),
        storms=[Storm(arrival="closed_loop", think="1us", span="64KiB", hold="2us")],
    )
    c = simulate(s).counters
    assert c["stale_uses"] >= c["freed_uses"] > 0


@pytest.mark.parametrize("path", ["v6.1", "v6.16", "no_ref"])
def test_an_endless_workload_ends_when_nothing_can_fault_any_more(path):
    """All is mapped long before so many faults are taken; reads first, so that zero pages are broken too."""
    s = Scenario(
        vcpus=3,
        memory="1MiB",
        fault_path=path,
        workload=uniform(writes=0.3),
        storms=[Storm(arrival="poisson", rate="50k/s", span="64KiB", hold="2us", limit=20)],
        until="1000000 faults",
    )
    run = simulate(s, check=True)
    assert run.counters["pages_4k"] == 256 and run.counters["storm_done"] == 20
    assert 256 <= run.faults < 20_000


def test_guests_sleep_while_a_fork_holds_mmap_lock():
    s = Scenario(
        vcpus=4,
        memory="4MiB",
        workload=uniform(writes=1.0, accesses=3000),
        storms=[Storm(arrival="periodic", rate="5k/s", span="1MiB", hold="100us", action="fork")],
    )
    c = simulate(s, check=True).counters
    assert c["lock_wait.mmap_lock.read"] > 0 and c["cow_breaks"] == c["invalidations.self"] > 0
    assert c["host_ipis"] >= 3 * c["cow_breaks"]


SMALL = Scenario(
    vms=2,
    vcpus=3,
    memory="1MiB",
    fault_path="v6.16",
    workload=uniform(writes=0.5, accesses=200, think="300ns", think_dist="exponential"),
    storms=[Storm(arrival="poisson", rate="80k/s", span="64KiB", hold="3us")],
    seed=7,
)


def test_same_bytes_from_runs_threads_processes_and_the_interpreter():
    """One digest: two runs, two threads, a fresh process, and one with the compiler off."""
    digest = simulate(SMALL).digest
    assert simulate(SMALL, check=True).digest == digest
    with ThreadPoolExecutor(2) as pool:
        assert {run.digest for run in pool.map(simulate, [SMALL] * 4)} == {digest}
    code = (
        "import sys; from kvmpfn.scenario import Scenario; from kvmpfn.simulator import simulate;"
        "print(simulate(Scenario.from_json(sys.argv[1])).digest)"
    )
    for environment in ({}, {"NUMBA_DISABLE_JIT": "1"}):
        out = subprocess.run(
            [sys.executable, "-c", code, SMALL.to_json()],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert out.stdout.strip() == digest


def test_common_random_numbers():
    """The draws do not depend on the fault path: the same pages are accessed in the same order."""
    seen = []
    for preset in ("v6.1", "no_ref"):
        run = simulate(SMALL.replace(fault_path=preset))
        seen.append(run.arrays["counters"][:, COUNTERS.index("accesses")])
    assert np.array_equal(*seen)


def test_timeline_folds_and_keeps_its_sums():
    few, many = (simulate(SMALL, timeline_bins=bins) for bins in (2, 1024))
    assert (few.arrays["timeline"].sum(axis=0) == many.arrays["timeline"].sum(axis=0)).all()
