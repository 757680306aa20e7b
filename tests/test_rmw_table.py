"""The atomic read-modify-writes of a fault and of a zap, row by row, preset by preset (docs/model.md).

The figures are counted from the kernel's source; every run here is uncontended, with `lru="off"`.
"""

import pytest

from kvmpfn.fault_path import PRESETS, FaultPath
from kvmpfn.scenario import Region, Scenario
from kvmpfn.simulator import simulate
from kvmpfn.storms import closed_loop
from kvmpfn.workloads import demand_paging, replay

PAGES = 512
FOLIO = {
    "v6.1": 3, "v6.8": 3, "v7_series": 3, "v11_series": 3, "v6.13": 4, "v6.16": 4, "no_ref": 0,
}  # fmt: skip
"""Folio RMWs of a FIXED fault whose GUP-fast hits: get, PG_referenced, put, and PG_dirty from v6.13."""


def run(region, fault_path="v6.1", **fields):
    fields.setdefault("workload", demand_paging())
    return simulate(Scenario(memory=[region], fault_path=fault_path, lru="off", **fields), check=True)


def per_fault(result, context="fault"):
    """RMWs a fault by line, and nothing that the machine itself does beside (local barriers)."""
    counters = result.counters
    prefix = f"rmw.{context}."
    return {
        name.removeprefix(prefix): counters[name] / counters["pf_taken"]
        for name in counters.index
        if name.startswith(prefix) and counters[name] and not name.endswith(".local")
    }


def tables(n=3, faults=PAGES):
    """Each of n new tables: the parent's cmpxchg and the table count."""
    return {"page_table": 2 * n / faults}


@pytest.mark.parametrize("preset", PRESETS)
def test_fixed_by_fast_gup(preset):
    result = run(Region("2MiB", populated=True), preset)
    expected = {"mmu_lock": 2, "stat_pages": 1, "spte": 1, **tables()}
    if FOLIO[preset]:
        expected["folio"] = FOLIO[preset]
    assert per_fault(result) == expected
    assert result.counters["pf_fixed"] == PAGES == result.counters["installs"]
    assert result.counters["rmw.fault.local"] == 3 * PAGES


@pytest.mark.parametrize("preset", PRESETS)
def test_slow_gup_of_an_absent_page(preset):
    lines = per_fault(run(Region("2MiB"), preset))
    assert lines["mmap_lock"] == 2
    assert lines["ptl"] == 3  # looked at, installed, followed
    # Slow GUP does not set PG_referenced: get and put, and PG_dirty from v6.13.
    assert lines.get("folio", 0) == max(0, FOLIO[preset] - 1)
    assert lines["mmu_lock"] == 2 and lines["spte"] == 1 and lines["stat_pages"] == 1


@pytest.mark.parametrize("preset", PRESETS)
def test_slow_gup_of_a_present_page(preset):
    """A read of privately mapped page cache: fast GUP asks for write permission and misses."""
    result = run(
        Region("2MiB", backing="page_cache", populated=True), preset, workload=demand_paging(access="read")
    )
    lines = per_fault(result)
    assert lines["mmap_lock"] == 2
    assert lines["ptl"] == 1
    assert lines.get("folio", 0) == (0 if preset == "no_ref" else 2)  # read-only: never marked dirty
    assert result.counters["gup_fast_miss"] == PAGES
    assert result.counters["host_faults"] == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_pfnmap_is_nine(preset):
    lines = per_fault(run(Region("2MiB", backing="pfnmap"), preset))
    assert lines == {"mmap_lock": 4, "ptl": 1, "mmu_lock": 2, "stat_pages": 1, "spte": 1, **tables()}


@pytest.mark.parametrize("preset", PRESETS)
def test_pfnmap_with_a_counted_struct_page(preset):
    """Up to v6.12 KVM guesses that the page is counted and takes a reference: 11; since then 9."""
    lines = per_fault(run(Region("2MiB", backing="pfnmap_struct_page"), preset))
    expected = {"mmap_lock": 4, "ptl": 1, "mmu_lock": 2, "stat_pages": 1, "spte": 1, **tables()}
    if PRESETS[preset].pfnmap_reference:
        expected["folio"] = 2
    assert lines == expected


def test_a_table_is_counted_or_listed():
    """6.1 takes a lock for each new table, later kernels add to a count: one RMW either way, not one cost."""
    listed, counted = (
        run(Region("2MiB", populated=True), FaultPath("v6.1", table_list_lock=flag)) for flag in (True, False)
    )
    assert listed.counters["rmw.fault.page_table"] == counted.counters["rmw.fault.page_table"] == 6
    machine = listed.scenario.machine
    extra = 2 * (machine.cost_ps("own_cas") - machine.cost_ps("own_add"))
    assert listed.parts["walk"] - counted.parts["walk"] == extra


def test_fast_gup_puts_the_page_whose_entry_changed():
    """gup_pte_range looks at the entry again after its get; the page taken in vain is put at once."""
    result = run(
        Region("1MiB", populated=True),
        vcpus=8,
        workload=demand_paging(share="overlapping", passes=40),
        storms=[closed_loop(think="15us", span="1MiB", offset="0B", hold="20us")],
        until="20000 faults",
        seed=3,
    )
    c = result.counters
    assert c["gets"] == c["puts"] > c["pf_taken"]


@pytest.mark.parametrize("preset", PRESETS)
def test_tail_pages_are_refused_or_mapped(preset):
    result = run(Region("2MiB", backing="tail_pages"), preset)
    if preset in ("v6.1", "v6.8"):
        assert per_fault(result) == {"mmap_lock": 4, "ptl": 1}
        assert result.counters["pf_error"] == 1 == result.counters["pf_taken"]
        assert result.meta["died"] == [0]
    else:
        lines = {"mmap_lock": 4, "ptl": 1, "mmu_lock": 2, "stat_pages": 1, "spte": 1, **tables()}
        assert per_fault(result) == lines
        assert result.counters["pf_fixed"] == PAGES


@pytest.mark.parametrize("preset", PRESETS)
def test_exclusive_mmu_lock(preset):
    """A write lock is one RMW and its unlock a store; the SPTE is a plain store under it."""
    lines = per_fault(run(Region("2MiB", populated=True), FaultPath(preset, mmu_lock="exclusive")))
    expected = {"mmu_lock": 1, "stat_pages": 1, **tables()}
    if FOLIO[preset]:
        expected["folio"] = FOLIO[preset]
    assert lines == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_fast_page_fault_restores_write(preset):
    result = run(Region("2MiB", mapped=True), preset, dirty_logging=True, pml=False)
    assert per_fault(result) == {"spte": 1, "dirty_bitmap": 1}
    assert result.counters["pf_fast"] == PAGES == result.counters["pf_fixed"]
    assert result.counters["installs"] == 0


def test_page_modification_logging_takes_no_fault():
    assert run(Region("2MiB", mapped=True), dirty_logging=True, pml=True).counters["pf_taken"] == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_dirty_logging_adds_the_bitmap(preset):
    assert per_fault(run(Region("2MiB", populated=True), preset, dirty_logging=True))["dirty_bitmap"] == 1


@pytest.mark.parametrize("preset", PRESETS)
def test_retry_by_where_it_is_caught(preset):
    """Page 511 is the last whose host entry goes; until then its faults hit fast GUP and are stale."""
    result = run(
        Region("2MiB", populated=True),
        preset,
        workload=replay(vcpus=[[[511, 1, 20_000_000]]]),
        storms=[closed_loop(think="1s", span="2MiB", offset="0B", hold="400us", limit=1)],
    )
    c = result.counters
    assert c["retry"] > 100 and c["lock_wait.mmu_lock.read"] == 0
    slow = c["gup_fast_miss"]
    if PRESETS[preset].prechecks:
        # Caught before GUP: nothing taken, no page line, no lock.
        assert c["retry.pre_gup.range"] >= c["retry"] - 2
        tried = c["pf_taken"] - c["retry.pre_gup.range"]
    else:
        # Caught under the lock: page 3 and lock 2, whatever the preset does with the page later.
        assert c["retry.locked.range"] >= c["retry"] - 2
        tried = c["pf_taken"]
    assert c["rmw.fault.mmu_lock"] == 2 * (tried - c["retry.post_gup.range"] - c["retry.post_gup.seq"])
    dirty = (PRESETS[preset].dirty_marking == "at_map") * c["pf_fixed"]
    taken = 0 if preset == "no_ref" else 3 * (tried - slow) + 2 * slow + dirty
    assert c["rmw.fault.folio"] == taken
    assert c["rmw.fault.spte"] == 1


@pytest.mark.parametrize("preset", PRESETS)
def test_post_gup_check_costs_three(preset):
    """A8 and later: stale between GUP and the lock is page 3 (get, PG_referenced, put), no lock."""
    result = run(
        Region("16MiB", populated=True),
        preset,
        vcpus=4,
        workload=demand_paging(order="random", passes=4),
        storms=[closed_loop(think="1us", span="64KiB", hold="1us")],
    )
    c = result.counters
    post = sum(c[f"retry.post_gup.{why}"] for why in ("range", "false_range", "seq"))
    pre = sum(c[f"retry.pre_gup.{why}"] for why in ("range", "false_range", "seq"))
    if not PRESETS[preset].prechecks:
        assert post == pre == 0
        return
    assert post > 0
    assert c["gets"] == c["pf_taken"] - pre - c["pf_fast"]


@pytest.mark.parametrize("preset", PRESETS)
def test_contended_words_add_up(preset):
    """Two vCPUs race for the same pages: every lost cmpxchg, rewrite and table is accounted for."""
    result = run(Region("8MiB", populated=True), preset, vcpus=2, workload=demand_paging(share="overlapping"))
    c = result.counters
    assert c["rmw.fault.spte"] == c["pf_fixed"] - c["pf_fast"] + c["retry.race.leaf"]
    assert c["rmw.fault.stat_pages"] == c["installs"] == 2048
    assert c["rmw.fault.page_table"] == 2 * c["tables_built"] + c["tables_lost"]
    assert c["tables_lost"] == c["retry.race.parent"]


def storm_over(region, preset, **fields):
    """One madvise over all of a mapped guest whose only vCPU computes meanwhile."""
    return run(
        region,
        preset,
        workload=replay(vcpus=[[[0, 1, 2_000_000_000]]]),
        storms=[closed_loop(think="1s", span=region.size, offset="0B", hold="1us", limit=1)],
        **fields,
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_zap_of_4k_leaves(preset):
    c = storm_over(Region("2MiB", mapped=True), preset).counters
    marks = preset in ("v6.1", "v6.8", "v7_series", "v11_series")
    assert c["zapped"] == PAGES
    assert c["rmw.zap.stat_pages"] == PAGES
    assert c["rmw.zap.spte"] == 0  # accessed, writable and dirty: no volatile bits, a plain store
    assert c["rmw.zap.folio"] == (PAGES if marks else 0)  # PG_dirty from SPTE.D
    assert c["rmw.zap.mn_lock"] == 2
    assert c["rmw.zap.mmu_lock"] == 2
    assert c["rmw.zap.vcpu_request"] == 1 == c["remote_tlb_flush_requests"]


@pytest.mark.parametrize(
    ("preset", "marks"), [("v6.1", 1), ("v7_series", 0), ("v11_series", 1), ("v6.13", 0)]
)
def test_v7_forgets_huge_pages(preset, marks):
    """v7 sets its refcounted bit on 4K SPTEs only, so a huge mapping's dirty bit is lost at the zap."""
    c = storm_over(Region("2MiB", backing="thp", mapped=True), preset).counters
    assert c["zapped"] == 1
    assert c["rmw.zap.folio"] == marks


@pytest.mark.parametrize("preset", PRESETS)
def test_write_protected_leaf_is_volatile(preset):
    c = storm_over(Region("2MiB", mapped=True), preset, dirty_logging=True, pml=False).counters
    assert c["rmw.zap.spte"] == PAGES


@pytest.mark.parametrize("lru", ["classic", "mglru"])
def test_the_put_alone_changes_no_count(lru):
    """Moving v6.1's put under mmu_lock moves when it happens, and no atomic more or fewer."""
    held, locked, early = (
        simulate(
            Scenario(
                memory=[Region("2MiB", populated=True)],
                workload=demand_paging(),
                fault_path=FaultPath("v6.1", reference=reference),
                lru=lru,
            )
        ).counters["rmw.fault.folio"]
        for reference in ("held", "locked_put", "early_put")
    )
    assert held == locked == early


def test_dirty_marking_stands_alone():
    path = FaultPath("v6.1", dirty_marking="at_map")
    assert per_fault(run(Region("2MiB", populated=True), path))["folio"] == 4


def test_a_read_only_slot_is_emulated():
    """Reads map it without write permission; each later write is emulated, never installed."""
    work = replay(vcpus=[[[0, 0, 0], [0, 1, 0], [0, 1, 0]]])
    c = run(Region("2MiB", populated=True, writable=False), workload=work).counters
    assert c["pf_fixed"] == 1 and c["pf_emulate"] == 2


def test_a_shared_file_mapping_breaks_no_copy_on_write():
    region = Region("2MiB", backing="page_cache", mapping="shared", populated=False)
    work = replay(vcpus=[[[0, 0, 0], [1, 1, 0], [1, 1, 0]]])
    c = run(region, workload=work).counters
    assert c["cow_breaks"] == 0 == c["invalidations.self"]
