"""The ledger against the tables that simulated faults built: the same numbers, exactly."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvmpfn as kp
from kvmpfn.memory import Ledger, memory_ledger, scenario_ledger

WRITE_ALL = kp.workloads.demand_paging(share="overlapping", order="random")
STORM = kp.storms.poisson(rate="50k/s", span="4KiB", hold="4us")
UNIT = {"thp": "2MiB", "hugetlb_2m": "2MiB", "hugetlb_1g": "1GiB"}
BACKINGS = (
    "anon",
    "ksm",
    "zero_page",
    "dax",
    "thp",
    "hugetlb_2m",
    "page_cache",
    "pfnmap",
    "pfnmap_struct_page",
    "tail_pages",
)


def predicted(ledger: Ledger) -> dict[str, int]:
    """The ledger's rows under the names of what a run allocated."""
    return {
        "kvm_table_bytes": ledger["stage-2 tables"] + ledger["stage-2 upper tables"],
        "kvm_header_bytes": ledger["table headers"],
        "host_table_bytes": ledger["host PTE tables"],
    }


def built(scenario: kp.Scenario) -> dict[str, int]:
    """What a run of the scenario allocated."""
    run = kp.simulate(scenario)
    assert not run.died
    memory = {str(name): int(value) for name, value in run.memory.items()}
    # A storm that cuts a huge page gives it a table.
    memory["host_table_bytes"] -= 4096 * int(run.counters["thp_splits"] - run.counters["thp_collapses"])
    assert memory["kvm_table_bytes"] == 4096 * memory["kvm_tables"]
    return {name: memory[name] for name in predicted(scenario_ledger(scenario))}


@st.composite
def regions(draw: st.DrawFn) -> kp.Region:
    backing = draw(st.sampled_from(BACKINGS))
    size = f"{2 * draw(st.integers(1, 4))}MiB" if backing in UNIT else f"{4 * draw(st.integers(1, 1300))}KiB"
    mapped = draw(st.booleans())
    populated = mapped or draw(st.booleans())
    shared: dict[str, Any] = {"mapping": draw(st.sampled_from(("private", "shared")))}
    if backing in ("dax", "pfnmap") and draw(st.booleans()):
        size, shared = f"{2 * draw(st.integers(1, 4))}MiB", {"folio_order": 9}
    return kp.Region(
        size,
        backing=backing,
        congruent=draw(st.booleans()),
        populated=populated,
        mapped=mapped,
        **shared if backing == "page_cache" or "folio_order" in shared else {},
    )


@settings(max_examples=80)
@given(
    memory=st.lists(regions(), min_size=1, max_size=3),
    levels=st.sampled_from((4, 5)),
    mmu=st.sampled_from(("ept", "npt")),
    logging=st.booleans(),
    eager=st.booleans(),
    vms=st.integers(1, 2),
    preset=st.sampled_from(("v6.13", "v6.16", "no_ref")),
    storm=st.booleans(),
)
def test_predicted_is_simulated(
    memory: list[kp.Region],
    levels: int,
    mmu: str,
    logging: bool,
    eager: bool,
    vms: int,
    preset: str,
    storm: bool,
) -> None:
    """Whatever backs it, split or not, stormed or not: tables are the formula's, and zaps leave them."""
    scenario = kp.Scenario(
        host="milan_2s" if mmu == "npt" else "icelake_sp_2s",
        vms=vms,
        vcpus=2,
        memory=memory,
        levels=levels,
        mmu=mmu,
        dirty_logging=logging,
        eager_page_split=eager,
        fault_path=preset,
        workload=WRITE_ALL,
        storms=[STORM] if storm else [],
    )
    assert built(scenario) == predicted(scenario_ledger(scenario))


@pytest.mark.parametrize(("congruent", "logging"), [(True, False), (False, False), (True, True)])
def test_pages_of_one_gib(congruent: bool, logging: bool) -> None:
    scenario = kp.Scenario(
        memory=[kp.Region("1GiB", backing="hugetlb_1g", congruent=congruent), kp.Region("2MiB")],
        dirty_logging=logging,
        workload=WRITE_ALL,
        vcpus=2,
    )
    ledger = scenario_ledger(scenario)
    huge = congruent and not logging
    assert ledger["stage-2 tables"] == 4096 * (2 if huge else 512 + 1 + 2)
    assert built(scenario) == predicted(ledger)


def test_a_region_is_a_slot_of_its_own() -> None:
    """One region is what `memory_ledger` says of one slot; regions share the upper tables, VMs nothing."""
    alone = scenario_ledger(kp.Scenario(memory="3GiB", vcpus=2, mmu="npt"))
    assert {row.name: row.bytes for row in alone} == {
        row.name: row.bytes for row in memory_ledger("3GiB", vcpus=2)
    }
    both = scenario_ledger(kp.Scenario(memory=["1GiB", "2GiB"], vcpus=2, mmu="npt"))
    assert {name for name in both.frame.index if both[name] != alone[name]} == {
        "memslots",
        "host upper tables",  # two mappings, which may lie anywhere
    }
    twice = scenario_ledger(kp.Scenario(vms=2, memory="3GiB", vcpus=2, mmu="npt"))
    assert all(twice[row.name] == 2 * row.bytes for row in alone)


def test_shared_page_cache_is_counted_once() -> None:
    image = kp.Region("64MiB", backing="page_cache", folio_order=4)
    one, many = (scenario_ledger(kp.Scenario(vms=vms, memory=[image])) for vms in (1, 8))
    assert many["struct page"] == one["struct page"] and many.backing_bytes == one.backing_bytes == 64 << 20
    assert many["page cache index"] == one["page cache index"] == 576 * (256 + 4 + 1)
    assert many["host PTE tables"] == 8 * one["host PTE tables"]
    large = scenario_ledger(kp.Scenario(memory=[image.replace(folio_order=9)]))
    assert large["page cache index"] == 576 * (4 + 1)


def test_the_logs_of_a_scenario() -> None:
    scenario = kp.Scenario(memory="1GiB", vcpus=4, dirty_logging=True)
    assert scenario_ledger(scenario)["PML buffers"] == 4 * 4096
    assert scenario_ledger(scenario)["dirty bitmaps"] == 65_536
    ring = scenario_ledger(scenario, dirty_ring=4096)
    assert (ring["dirty bitmaps"], ring["dirty rings"]) == (0, 4 * 65_536)
    assert scenario_ledger(scenario.replace(mmu="npt"))["PML buffers"] == 0
    huge = scenario.replace(memory=[kp.Region("1GiB", backing="hugetlb_2m"), kp.Region("1GiB")])
    assert scenario_ledger(huge, hvo=True)["struct page"] == (16 << 20) // 8 + (16 << 20)


def test_zaps_keep_tables() -> None:
    """Every leaf may go more than once; the tables are those of a guest that nobody disturbed."""
    calm = kp.Scenario(memory="8MiB", vcpus=4, workload=kp.workloads.demand_paging(passes=8))
    storm = kp.storms.closed_loop(think="2us", span="256KiB", hold="1us")
    run = kp.simulate(calm.replace(storms=[storm]))
    assert run.counters["zapped"] > calm.pages
    assert run.memory["kvm_tables"] == kp.simulate(calm).memory["kvm_tables"] == 4 + 1 + 1 + 1


def test_a_guest_that_only_reads_keeps_its_huge_mappings() -> None:
    """Logging without eager splitting: who writes splits; who reads leaves fewer tables than the ledger's."""
    scenario = kp.Scenario(
        memory=[kp.Region("16MiB", backing="thp", mapped=True)],
        dirty_logging=True,
        eager_page_split=False,
    )
    whole = scenario_ledger(scenario)
    assert built(scenario) == predicted(whole)
    reads = built(scenario.replace(workload=kp.workloads.demand_paging(access="read")))
    unlogged = scenario_ledger(scenario.replace(dirty_logging=False))
    assert reads == predicted(unlogged)
    assert reads["kvm_table_bytes"] < predicted(whole)["kvm_table_bytes"]


@settings(max_examples=40)
@given(
    backing=st.sampled_from(("anon", "thp", "page_cache")),
    mib=st.integers(1, 64),
    touched=st.integers(1, 300),
    congruent=st.booleans(),
    seed=st.integers(1, 1000),
)
def test_a_sparse_footprint_stays_within(
    backing: str, mib: int, touched: int, congruent: bool, seed: int
) -> None:
    """At least what the pages touched would need packed together, at most what all memory needs."""
    region = kp.Region(f"{2 * mib}MiB", backing=backing, congruent=congruent)
    scenario = kp.Scenario(
        memory=[region], workload=kp.workloads.uniform(writes=1.0, accesses=touched), seed=seed
    )
    run = kp.simulate(scenario)
    level = 2 if backing == "thp" and congruent else 1
    packed = sum(max(1, -(-run.faults // 512**depth)) for depth in range(1, 4 - level + 2))
    whole = scenario_ledger(scenario)
    most = (whole["stage-2 tables"] + whole["stage-2 upper tables"]) // 4096
    assert packed <= run.memory["kvm_tables"] <= most
    assert run.memory["host_table_bytes"] <= whole["host PTE tables"]
    assert run.memory["kvm_tables"] <= 1 + run.faults * (4 - level)
