"""The clean case of every backing under every preset: the atomics of a page's first fault, by line.

The figures are counted from the kernel's source (docs/model.md names what each step takes), and are not taken
from the engine; every run is uncontended, with `lru="off"`.
"""

from typing import Any

import pytest
from test_rmw_table import PAGES, run

from kvmpfn.fault_path import PRESETS
from kvmpfn.scenario import BACKINGS, Region
from kvmpfn.workloads import demand_paging, replay

FAST = {"mmu_lock": 2, "stat_pages": 1, "spte": 1}
"""A fault whose fast GUP hits, its page apart."""

SLOW = FAST | {"mmap_lock": 2, "ptl": 1}
"""A fault that slow GUP follows to a present entry."""

REMAPPED = FAST | {"mmap_lock": 4, "ptl": 1}
"""A fault on VM_PFNMAP: slow GUP is refused, follow_pte takes both locks again."""

KERNELS = {
    "held": ("v6.1", "v6.8", "v7_series", "v11_series"), "moved": ("v6.13", "v6.16"), "none": ("no_ref",),
}  # fmt: skip
"""Presets that mark the page dirty at the zap, at the map, and that take no reference."""


def folio(preset: str, held: int, moved: int) -> dict[str, int]:
    """The folio's line by preset."""
    count = {"held": held, "moved": moved, "none": 0}[
        next(k for k, names in KERNELS.items() if preset in names)
    ]
    return {"folio": count} if count else {}


CASES: dict[str, tuple[Region, str, dict[str, int], tuple[int, int]]] = {
    # get, PG_referenced, put; since v6.13 PG_dirty too
    "anon": (Region("2MiB", populated=True), "write", FAST, (3, 4)),
    "thp": (Region("1GiB", backing="thp", populated=True), "write", FAST, (3, 4)),
    "hugetlb_2m": (Region("1GiB", backing="hugetlb_2m", populated=True), "write", FAST, (3, 4)),
    "hugetlb_1g": (Region("4GiB", backing="hugetlb_1g", populated=True), "write", FAST, (3, 4)),
    "page_cache": (Region("2MiB", backing="page_cache", populated=True), "read", SLOW, (2, 2)),
    "shared page_cache": (
        Region("2MiB", backing="page_cache", populated=True, mapping="shared"), "write", FAST, (3, 4),
    ),
    # read-only: no PG_referenced of fast GUP's, never dirty
    "ksm": (Region("2MiB", backing="ksm"), "read", SLOW, (2, 2)),
    "zero_page": (Region("2MiB", backing="zero_page"), "read", SLOW, (2, 2)),
    # PG_reserved: never marked dirty by KVM
    "dax": (Region("2MiB", backing="dax", populated=True), "write", FAST, (3, 3)),
    "2M dax": (Region("1GiB", backing="dax", folio_order=9, populated=True), "write", FAST, (3, 3)),
    "pfnmap": (Region("2MiB", backing="pfnmap"), "write", REMAPPED, (0, 0)),
    "2M pfnmap": (Region("1GiB", backing="pfnmap", folio_order=9), "write", REMAPPED, (0, 0)),
    "pfnmap_struct_page": (Region("2MiB", backing="pfnmap_struct_page"), "write", REMAPPED, (2, 0)),
    "tail_pages": (Region("2MiB", backing="tail_pages"), "write", REMAPPED, (0, 0)),
}  # fmt: skip


def lines(counters: Any, context: str, pages: int) -> dict[str, float]:
    """RMWs a page by line, without tables and what stays on the CPU."""
    prefix = f"rmw.{context}."
    found = {name.removeprefix(prefix): counters[name] for name in counters.index if name.startswith(prefix)}
    return {name: n / pages for name, n in found.items() if n and name not in ("local", "page_table", "host")}


def test_no_backing_is_left_out() -> None:
    assert {name.split(" ")[-1] for name in CASES} == set(BACKINGS)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("case", CASES)
def test_first_fault(case: str, preset: str) -> None:
    region, access, expected, (held, moved) = CASES[case]
    result = run(region, preset, workload=demand_paging(access=access))
    c = result.counters
    if case == "tail_pages" and preset in ("v6.1", "v6.8"):
        assert c["pf_error"] == 1 == c["pf_taken"]  # count zero: refused
        return
    leaves = c["pages_4k"] + c["pages_2m"] + c["pages_1g"]
    assert leaves * (1 << 9 * (region.host_level - 1)) == region.pages
    assert c["pf_fixed"] == leaves == c["pf_taken"]
    assert lines(c, "fault", leaves) == expected | folio(preset, held, moved)
    assert c["rmw.zap.mmu_lock"] == 0


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("backing", ["ksm", "zero_page"])
def test_a_first_write_to_a_shared_page_stales_itself(backing: str, preset: str) -> None:
    """wp_page_copy runs a notifier of its own inside GUP, after the snapshot: the fault retries, once."""
    result = run(Region("2MiB", backing=backing), preset, workload=demand_paging(access="write"))
    c = result.counters
    assert c["cow_breaks"] == PAGES == c["invalidations.self"] == c["retry"] == c["pf_fixed"]
    checked = PRESETS[preset].prechecks
    assert c["retry.post_gup.seq" if checked else "retry.locked.seq"] == PAGES
    # The first attempt: mmap_lock, three page-table locks, get and put; mmu_lock to see that it is stale.
    # The second: the copy is there, fast GUP hits.
    expected = FAST | {"mmap_lock": 2, "ptl": 3, "mmu_lock": 2 if checked else 4}
    assert lines(c, "fault", PAGES) == expected | folio(preset, 2 + 3, 2 + 4)
    # Nothing was mapped: no flush. Start and end take mmu_lock for writing, and count themselves in and out.
    assert lines(c, "zap", PAGES) == {"mmu_lock": 2, "mn_lock": 2}


def test_a_write_after_a_read_zaps_the_shared_page() -> None:
    """The leaf that the read left is read-only: its zap flushes, and marks the page if it was used."""
    work = replay(vcpus=[[[0, 0, 0], [0, 1, 0]]])
    c = run(Region("2MiB", backing="zero_page"), workload=work).counters
    assert c["zapped"] == 1 == c["remote_tlb_flush_requests"] and c["pf_taken"] == 3
    assert c["rmw.zap.folio"] == 0  # neither written, nor, with lru off, marked accessed


@pytest.mark.parametrize("preset", PRESETS)
def test_ksm_shares_a_folio_256_ways(preset: str) -> None:
    """Its line comes from memory twice for 512 pages, not 512 times, and each mapping is counted on it."""
    shared = run(Region("2MiB", backing="ksm"), preset, workload=demand_paging(access="read")).counters
    own = run(Region("2MiB", populated=True), preset, workload=demand_paging(access="read")).counters
    saved = own["transfers.memory"] - shared["transfers.memory"]
    assert saved > PAGES - 8 or preset == "no_ref"
    assert shared["gets"] == shared["puts"] == (0 if preset == "no_ref" else PAGES)
