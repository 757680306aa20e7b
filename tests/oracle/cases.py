"""Random scenarios, small enough for the oracle and the reader, that reach every corner of the model."""

from __future__ import annotations

from typing import Any, get_args

from hypothesis import strategies as st

from kvmpfn.fault_path import PRESETS, FaultPath
from kvmpfn.hosts import Host
from kvmpfn.scenario import BACKINGS, Region, Scenario
from kvmpfn.storms import Storm
from kvmpfn.workloads import Workload, demand_paging, replay, snapshot_restore, uniform

MECHANISMS = {
    name: (False, True) if "Literal" not in str(field.annotation) else get_args(field.annotation)
    for name, field in FaultPath.model_fields.items()
    if name not in ("preset", "name", "put_batch")
} | {"put_batch": (2, 3, 31)}
"""Every mechanism and its values."""

SMALL = ("16KiB", "16KiB", "64KiB", "256KiB")
LARGE = ("2MiB", "4MiB")


def changed(path: FaultPath) -> st.SearchStrategy[FaultPath]:
    """A path with one mechanism more that differs."""
    return st.sampled_from(list(MECHANISMS)).flatmap(
        lambda name: st.sampled_from(MECHANISMS[name]).map(lambda value: path.replace(**{name: value}))
    )


presets = st.sampled_from(list(PRESETS)).map(FaultPath)
paths = st.one_of(presets, presets.flatmap(changed), presets.flatmap(changed).flatmap(changed))


@st.composite
def hosts(draw: Any) -> Host:
    """A host, perhaps with a batch or a step of another length: what is rare otherwise is then frequent."""
    host = Host.load(draw(st.sampled_from(["icelake_sp_2s", "skylake_sp_2s", "milan_2s", "zen4_desktop"])))
    for name in ("zone_lock_batch", "lru_batch"):
        if draw(st.booleans()):
            host = host.with_cost(name, draw(st.integers(1, 4)))
    name = draw(st.sampled_from(["", "handler_lock", "handler_map", "table_alloc", "gup_fast"]))
    return host.with_cost(name, 5000) if name else host


@st.composite
def regions(draw: Any, backings: tuple[str, ...]) -> Region:
    """A region of one of the backings."""
    backing = draw(st.sampled_from(backings))
    fields: dict[str, Any] = {"backing": backing}
    fields["populated"] = draw(st.booleans())
    fields["congruent"] = draw(st.sampled_from([True, True, False]))
    # A mapped 1G page in 4K leaves has too many for a small case.
    if backing != "hugetlb_1g" or fields["congruent"]:
        fields["mapped"] = draw(st.booleans())
    fields["writable"] = draw(st.sampled_from([True, True, True, False]))
    if backing == "page_cache":
        fields["folio_order"] = draw(st.integers(0, 2))
        fields["mapping"] = draw(st.sampled_from(["private", "shared"]))
        fields["fault_around"] = draw(st.sampled_from(["4KiB", "16KiB", "64KiB"]))
    if backing in ("dax", "pfnmap"):
        fields["folio_order"] = draw(st.sampled_from([0, 9]))
    if backing in ("page_cache", "dax", "ksm"):
        fields["shared_between_vms"] = draw(st.sampled_from([None, False, True]))
    if backing == "hugetlb_1g":
        return Region("1GiB", **fields)
    large = backing in ("thp", "hugetlb_2m") or fields.get("folio_order") == 9
    return Region(draw(st.sampled_from(LARGE if large else SMALL)), **fields)


@st.composite
def storms(draw: Any, actions: tuple[str, ...], pages: int, vms: int, ended: bool) -> Storm:
    """A storm over memory of that many pages."""
    arrival = draw(
        st.sampled_from(
            [
                {"arrival": "periodic", "rate": "100k/s"},
                {"arrival": "poisson", "rate": "200k/s"},
                {"arrival": "closed_loop", "think": "0ns"},
                {"arrival": "closed_loop", "think": "3us"},
                {"arrival": "bursts", "rate": "1000k/s", "on": "5us", "off": "20us"},
            ]
        )
    )
    span = min(draw(st.sampled_from([1, 2, 5, 16, 64, 600])), pages)
    fields: dict[str, Any] = {"span": span * 4096}
    place = draw(st.sampled_from(["offset", "random", "scan"]))
    if place == "offset":
        fields["offset"] = draw(st.integers(0, min(pages - span, 700))) * 4096
    else:
        fields["place"] = place
    fields["hold"] = draw(st.sampled_from(["0ns", "300ns", "2us", "15us"]))
    fields["action"] = draw(st.sampled_from(actions))
    # Some storms without an end would keep a fault in the handler for ever.
    fields["limit"] = draw(st.one_of(st.integers(1, 8), st.just(40) if ended else st.integers(1, 8)))
    if draw(st.integers(0, 5)) == 5:
        fields["vm"] = draw(st.integers(0, vms - 1))
        fields["cpu"] = draw(st.sampled_from([0, 3, 9, 15]))
    return Storm(**arrival, **fields)


def accesses(pages: int) -> st.SearchStrategy[list[list[int]]]:
    """Accesses of a replay: page, kind (0 read, 1 write, 2 execute), think time in ps."""
    near = st.integers(0, min(pages - 1, 3))
    page = st.one_of(near, near, st.integers(0, pages - 1))
    think = st.sampled_from([0, 0, 100_000, 7_000_000])
    return st.lists(st.tuples(page, st.integers(0, 2), think).map(list), min_size=1, max_size=14)


@st.composite
def workloads(draw: Any, pages: int, vcpus: int) -> Workload:
    """A workload over memory of that many pages."""
    fields: dict[str, Any] = {}
    kinds = ["replay", "uniform", "endless", "snapshot_restore", "demand_paging"]
    # What touches every page has too many steps on a large memory; so has what computes nothing meanwhile.
    kind = draw(st.sampled_from(kinds if pages <= 128 else ["replay", "uniform", "snapshot_restore"]))
    if kind == "endless" or draw(st.booleans()):
        fields["think"] = draw(st.sampled_from(["300ns", "2us"]))
        fields["think_dist"] = draw(st.sampled_from(["fixed", "exponential"]))
    if kind == "replay":
        every = draw(st.lists(accesses(pages), min_size=vcpus, max_size=vcpus))
        return replay(vcpus=every, **fields)
    if kind == "demand_paging":
        return demand_paging(
            order=draw(st.sampled_from(["sequential", "random"])),
            share=draw(st.sampled_from(["partitioned", "overlapping"])),
            access=draw(st.sampled_from(["write", "read"])),
            passes=draw(st.integers(1, 2)),
            **fields,
        )
    writes = draw(st.sampled_from([0.0, 0.3, 1.0]))
    if kind in ("uniform", "endless"):
        fields["accesses"] = None if kind == "endless" else draw(st.sampled_from([4, 20, 60]))
        return uniform(writes=writes, **fields)
    working_set = draw(st.integers(1, min(pages, 64))) * 4096
    order = draw(st.sampled_from(["random", "sequential"]))
    return snapshot_restore(working_set=working_set, writes=writes, order=order, **fields)


THEMES: dict[str, tuple[str, ...]] = {
    "anonymous": ("anon",),
    "huge": ("thp", "hugetlb_2m", "hugetlb_1g"),
    "transparent": ("thp",),
    "files": ("page_cache", "dax"),
    "few folios": ("ksm", "zero_page", "dax"),
    "pfnmap": ("pfnmap", "pfnmap_struct_page", "tail_pages"),
    "mixed": tuple(BACKINGS),
}
"""Backings that one family of scenarios draws from."""


@st.composite
def scenarios(draw: Any, backings: tuple[str, ...]) -> Scenario:
    """A scenario over memory of those backings."""
    vms = draw(st.integers(1, 2))
    vcpus = draw(st.integers(1, 8 if vms == 1 else 4))
    memory = draw(st.lists(regions(backings), min_size=1, max_size=2))
    pages = sum(region.pages for region in memory)
    workload = draw(workloads(pages, vcpus))
    ended = getattr(workload, "accesses", 1) is not None and pages <= 128
    logging = draw(st.booleans())
    actions = ["madvise", "numa_balancing", "age", "mprotect"]
    backed = {region.backing for region in memory}
    if backed <= {"anon", "ksm", "zero_page", "thp"}:
        actions += ["migration", "reclaim", "ksm"]
    if backed == {"thp"}:
        actions += ["khugepaged", "khugepaged"]
    if logging:
        actions += ["clear_dirty_log", "clear_dirty_log"]
    # A huge page that a fork has made read-only would have to be copied.
    small = {"anon", "ksm", "zero_page", "page_cache"}
    if backed <= small and not any(region.is_shared_file for region in memory):
        actions += ["fork"]
    wanted = draw(st.lists(storms(tuple(actions), pages, vms, ended), max_size=3))
    pinned = [storm.cpu for storm in wanted if storm.cpu is not None]
    if len(pinned) != len(set(pinned)):
        wanted = [storm.replace(cpu=None) for storm in wanted]
    # Splitting a mapped 1G page into 4K leaves at the start makes too many for a small case.
    giant = any(region.backing == "hugetlb_1g" and region.mapped for region in memory)
    return Scenario(
        host=draw(hosts()),
        vms=vms,
        vcpus=vcpus,
        memory=memory,
        fault_path=draw(paths),
        workload=workload,
        storms=wanted,
        mmu=draw(st.sampled_from(["ept", "npt"])),
        levels=draw(st.sampled_from([4, 5])),
        dirty_logging=logging,
        eager_page_split=draw(st.booleans()) and not (logging and giant),
        initially_all_set=draw(st.booleans()),
        pml=draw(st.sampled_from(["auto", True, False])),
        nx_huge_pages=draw(st.sampled_from(["auto", True, False])),
        preempt=draw(st.sampled_from(["voluntary", "none", "full"])),
        lru=draw(st.sampled_from(["classic", "mglru", "off"])),
        placement=draw(st.sampled_from(["cores", "spread", "smt"])),
        until=draw(st.sampled_from(["100 faults", "25 faults", "150us"])),
        seed=draw(st.integers(0, 2**64 - 1)),
    )
