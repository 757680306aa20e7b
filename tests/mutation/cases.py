"""A few scenarios that between them go everywhere: what a fault breaks shows in one of them."""

from __future__ import annotations

from typing import Any

from kvmpfn.fault_path import FaultPath
from kvmpfn.hosts import Host
from kvmpfn.scenario import Region, Scenario
from kvmpfn.storms import Storm, closed_loop, periodic, poisson
from kvmpfn.workloads import demand_paging, hot_cold, phases, replay, sequential, strided, uniform, zipf

HOST = Host.load("icelake_sp_2s").with_cost("zone_lock_batch", 3).with_cost("lru_batch", 4)


def _case(memory: Any, path: Any, workload: Any, *storms: Storm, **fields: Any) -> Scenario:
    """A scenario with small batches of the allocator, and a bound."""
    regions = [memory] if isinstance(memory, Region) else memory
    settings = {"host": HOST, "until": "150 faults", "seed": 7} | fields
    return Scenario(memory=regions, fault_path=path, workload=workload, storms=storms, **settings)


CASES: dict[str, Scenario] = {
    "crowd": _case(
        Region("64KiB"),
        "v6.1",
        uniform(writes=0.5, accesses=30),
        closed_loop(think="2us", span="16KiB", hold="3us", limit=8),
        vcpus=8,
    ),
    "two storms": _case(
        Region("64KiB", populated=True),
        "v6.13",
        uniform(writes=0.5, accesses=30),
        poisson(rate="150k/s", span="8KiB", hold="6us"),
        periodic(rate="120k/s", span="16KiB", hold="6us", limit=10, action="numa_balancing"),
        vcpus=6,
        lru="mglru",
    ),
    "kept in the host": _case(
        Region("16KiB", backing="page_cache"),
        "v6.1",
        uniform(writes=0.3),
        *[closed_loop(think="0ns", span="4KiB", offset="0B", hold="2us", action="numa_balancing")] * 3,
        host="icelake_sp_2s",
        vcpus=4,
        until="200us",
        seed=1,
    ),
    "yield": _case(
        Region("256KiB", mapped=True),
        "v6.1",
        uniform(writes=1.0, accesses=30, think="200ns"),
        closed_loop(think="1us", span="128KiB", hold="1us", limit=4),
        closed_loop(think="1us", span="64KiB", hold="0ns", limit=6),
        vcpus=6,
    ),
    "aged": _case(
        Region("64KiB", mapped=True),
        "v6.8",
        uniform(writes=0.3, accesses=40, think="1us"),
        closed_loop(think="3us", span="64KiB", action="age", limit=5),
        closed_loop(think="4us", span="32KiB", hold="2us", limit=5),
        vcpus=4,
    ),
    "zero page": _case(
        Region("64KiB"),
        "v6.1",
        uniform(writes=0.3, accesses=30),
        closed_loop(think="2us", span="64KiB", hold="1us", action="numa_balancing", limit=8),
        closed_loop(think="3us", span="16KiB", hold="1us", limit=8),
        vcpus=6,
        placement="smt",
    ),
    "fork": _case(
        Region("64KiB", populated=True),
        "v6.1",
        uniform(writes=0.6, accesses=30),
        closed_loop(think="2us", span="64KiB", hold="2us", action="fork", limit=6),
        closed_loop(think="2us", span="32KiB", hold="2us", limit=6),
        vcpus=6,
    ),
    "image": _case(
        Region("256KiB", backing="page_cache", folio_order=2, populated=True, fault_around="16KiB"),
        "v6.1",
        demand_paging(order="random", share="overlapping", access="read"),
        vms=2,
        vcpus=4,
    ),
    "file writes": _case(
        Region("64KiB", backing="page_cache", folio_order=1, fault_around="16KiB"),
        "v6.8",
        uniform(writes=0.4, accesses=30),
        closed_loop(think="4us", span="16KiB", hold="1us", limit=6),
        vcpus=5,
    ),
    "shared image": _case(
        Region("64KiB", backing="page_cache", folio_order=4, populated=True, mapping="shared"),
        "v6.1",
        demand_paging(share="overlapping"),
        vms=2,
        vcpus=4,
    ),
    "huge, logged": _case(
        Region("2MiB", backing="thp", mapped=True),
        "v6.1",
        replay(vcpus=[[[i, 1, 0], [i + 8, 1, 0]] for i in range(6)]),
        vcpus=6,
        dirty_logging=True,
        eager_page_split=False,
    ),
    "huge, split in place": _case(
        Region("2MiB", backing="thp", mapped=True),
        "v6.13",
        replay(vcpus=[[[i % 2, 2, 300_000 * i], [i, 1, 0], [i, 2, 0]] for i in range(6)]),
        closed_loop(think="1us", span="4KiB", hold="1us", limit=1),
        vcpus=6,
        nx_huge_pages=True,
    ),
    "huge, zapped": _case(
        Region("2MiB", backing="thp", mapped=True),
        "v7_series",
        uniform(writes=0.5, accesses=12, think="2us"),
        closed_loop(think="4us", span="4KiB", hold="1us", limit=4),
        vcpus=4,
    ),
    "migration": _case(
        Region("2MiB", backing="thp", populated=True),
        FaultPath("v6.1", mmu_lock="exclusive"),
        uniform(writes=0.5, accesses=20),
        closed_loop(think="2us", span="4KiB", hold="0ns", action="migration", limit=6),
        vcpus=6,
        host=HOST.with_cost("handler_lock", 5000),
    ),
    "pfnmap": _case(
        [Region("64KiB", backing="pfnmap_struct_page"), Region("16KiB", backing="tail_pages")],
        "v7_series",
        uniform(writes=0.5, accesses=20),
        closed_loop(think="3us", span="16KiB", hold="1us", limit=6),
        vcpus=4,
    ),
    "write-protected": _case(
        Region("64KiB", mapped=True),
        FaultPath("v6.1", accessed_marking="none"),
        uniform(writes=0.7, accesses=30, think="500ns"),
        closed_loop(think="3us", span="16KiB", hold="1us", limit=6),
        vcpus=4,
        dirty_logging=True,
        pml=False,
    ),
    "refused": _case(
        [Region("16KiB", backing="pfnmap"), Region("16KiB", backing="tail_pages")],
        "v6.1",
        demand_paging(),
        vms=2,
    ),
    "read-only slot": _case(
        [Region("16KiB", mapped=True, writable=False), Region("16KiB", populated=True, writable=False)],
        "v6.13",
        uniform(writes=0.5, accesses=10),
        vcpus=3,
    ),
    "unguarded": _case(
        [Region("32KiB", mapped=True), Region("16KiB", backing="page_cache", mapped=True)],
        FaultPath("v6.1", guarded=False),
        uniform(writes=0.5, accesses=60, think="200ns"),
        closed_loop(think="1us", span="16KiB", hold="1us", limit=8),
        vcpus=4,
    ),
    "giant": _case(
        Region("1GiB", backing="hugetlb_1g", populated=True),
        "v6.16",
        uniform(writes=0.5, accesses=8),
        vcpus=6,
        levels=5,
        placement="smt",
    ),
    "skipped": _case(
        Region("64KiB", populated=True),
        FaultPath("v6.1", seq_checked=False),
        uniform(writes=0.5, accesses=40, think="1us"),
        closed_loop(think="1us", span="64KiB", hold="5us", action="fork", limit=8),
        periodic(rate="200k/s", span="8KiB", hold="2us", action="numa_balancing", limit=12),
        closed_loop(think="2us", span="4KiB", offset="60KiB", hold="4us", limit=12),
        closed_loop(think="2us", span="4KiB", offset="0B", hold="4us", limit=12),
        vcpus=6,
        placement="spread",
        host=Host.load("milan_2s"),
    ),
    "far apart": _case(
        Region("64KiB", populated=True),
        "v6.8",
        uniform(writes=0.5, accesses=40, think="1us"),
        closed_loop(think="5us", span="4KiB", offset="60KiB", hold="14us", limit=8),
        closed_loop(think="4us", span="4KiB", offset="0B", hold="12us", limit=8),
        until="300 faults",
        vcpus=12,
        host=Host.load("milan_2s").with_cost("gup_fast", 3000),
    ),
    "batched puts": _case(
        Region("64KiB", backing="page_cache", folio_order=2, populated=True, mapping="shared"),
        FaultPath("v6.1", put_batch=4),
        uniform(writes=0.5, accesses=30),
        closed_loop(think="3us", span="16KiB", hold="1us", limit=8),
        vcpus=4,
    ),
    "batched under the lock": _case(
        Region("64KiB", populated=True),
        FaultPath("v6.13", put_batch=3),
        uniform(writes=0.5, accesses=20),
        closed_loop(think="3us", span="4KiB", hold="0ns", action="migration", limit=8),
        vcpus=4,
    ),
    "merged": _case(
        Region("64KiB", backing="ksm"),
        "v6.1",
        uniform(writes=0.4, accesses=30),
        closed_loop(think="1us", span="4KiB", hold="0ns", action="ksm", place="scan", limit=30),
        closed_loop(think="9us", span="64KiB", hold="1us", action="numa_balancing", limit=8),
        vcpus=4,
    ),
    "swapped": _case(
        Region("64KiB", populated=True),
        "v6.1",
        uniform(writes=0.5, accesses=40, think="1us"),
        closed_loop(think="1us", span="8KiB", hold="1us", action="reclaim", limit=30),
        vcpus=4,
        host=HOST.with_cost("swap_in", 3000),
    ),
    "protected": _case(
        Region("64KiB", populated=True),
        "v6.8",
        uniform(writes=0.5, accesses=30),
        closed_loop(think="3us", span="16KiB", hold="1us", action="mprotect", place="scan", limit=8),
        vcpus=4,
    ),
    "split and collapsed": _case(
        Region("4MiB", backing="thp", populated=True),
        "v6.1",
        uniform(writes=0.5, accesses=60, think="2us"),
        closed_loop(think="5us", span="4KiB", hold="0ns", limit=12),
        closed_loop(think="50us", span="2MiB", hold="0ns", action="khugepaged", place="scan", limit=12),
        vcpus=4,
        until="400 faults",
        host=HOST.with_cost("copy_4k", 20).with_cost("zero_4k", 10),
    ),
    "split and swapped": _case(
        Region("2MiB", backing="thp", populated=True),
        FaultPath("v6.1", reference="held"),
        uniform(writes=0.5, accesses=30, think="1us"),
        closed_loop(think="6us", span="4KiB", hold="0ns", action="reclaim", limit=6),
        closed_loop(think="20us", span="2MiB", hold="0ns", action="khugepaged", limit=6),
        vcpus=4,
        host=HOST.with_cost("swap_in", 3000),
    ),
    "an NX table": _case(
        Region("2MiB", backing="hugetlb_2m", populated=True),
        "v6.13",
        uniform(writes=0.4, execs=0.2, accesses=30, think="500ns"),
        closed_loop(think="3us", span="2MiB", hold="0ns", limit=8),
        vcpus=3,
        nx_huge_pages=True,
    ),
    "logged by hardware": _case(
        Region("3MiB", mapped=True),
        "v6.1",
        phases(
            [sequential(share="overlapping", writes=1.0, accesses=700), uniform(accesses=40, think="1us")]
        ),
        closed_loop(think="200us", span="1MiB", action="clear_dirty_log", place="scan", limit=9),
        closed_loop(think="9us", span="16KiB", hold="1us", limit=2),
        vcpus=2,
        dirty_logging=True,
    ),
    "all set at first": _case(
        Region("2MiB", backing="thp", mapped=True),
        "v6.8",
        uniform(writes=0.8, accesses=40, think="1us"),
        closed_loop(think="20us", span="512KiB", action="clear_dirty_log", place="scan", limit=9),
        vcpus=2,
        dirty_logging=True,
        initially_all_set=True,
    ),
    "persistent memory": _case(
        Region("64KiB", backing="dax"),
        "v6.13",
        zipf(writes=0.5, accesses=40),
        closed_loop(think="4us", span="16KiB", hold="1us", limit=8),
        vcpus=3,
    ),
    "phases": _case(
        Region("96KiB"),
        "v6.1",
        phases(
            [
                strided(stride="20KiB", passes=1),
                hot_cold(hot_memory=0.2, hot_accesses=0.8, drift="4KiB", drift_every=7, accesses=30),
                uniform(writes=0.2, execs=0.3, accesses=12),
            ]
        ),
        closed_loop(think="5us", span="16KiB", hold="1us", limit=8),
        vcpus=3,
    ),
    "collapsed, unguarded": _case(
        Region("2MiB", backing="thp", populated=True),
        FaultPath("v6.1", guarded=False),
        replay(vcpus=[[[8 + i, 1, 60_000_000], [40 + i, 0, 0], [99 + i, i, 400_000_000]] for i in range(2)]),
        closed_loop(think="3us", span="16KiB", offset="0B", hold="0ns", limit=1),
        closed_loop(think="200us", span="2MiB", hold="0ns", action="khugepaged", limit=3),
        vcpus=2,
        host=HOST.with_cost("copy_4k", 20).with_cost("zero_4k", 10),
    ),
}
