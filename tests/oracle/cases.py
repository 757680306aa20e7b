"""Random scenarios, small enough for the oracle and the reader, that reach every corner of the model."""

from __future__ import annotations

from typing import Any, NamedTuple, get_args

from hypothesis import strategies as st

from kvmpfn.fault_path import PRESETS, FaultPath
from kvmpfn.hosts import Host
from kvmpfn.scenario import BACKINGS, Region, Scenario
from kvmpfn.storms import Storm, closed_loop, periodic
from kvmpfn.workloads import (
    Phase,
    Workload,
    demand_paging,
    hot_cold,
    phases,
    phases_of,
    pointer_chase,
    replay,
    snapshot_restore,
    strided,
    uniform,
    zipf,
)

MECHANISMS = {
    name: (False, True) if "Literal" not in str(field.annotation) else get_args(field.annotation)
    for name, field in FaultPath.model_fields.items()
    if name not in ("preset", "name", "put_batch")
}
"""Every mechanism and its values."""


def changed(path: FaultPath) -> st.SearchStrategy[FaultPath]:
    """A path with one mechanism more that differs."""
    return st.sampled_from(list(MECHANISMS)).flatmap(
        lambda name: st.sampled_from(MECHANISMS[name]).map(lambda value: path.replace(**{name: value}))
    )


presets = st.tuples(st.sampled_from(list(PRESETS)), st.sampled_from([1, 1, 1, 2, 3, 31])).map(
    lambda chosen: FaultPath(chosen[0], put_batch=chosen[1])
)
paths = st.one_of(presets, presets.flatmap(changed), presets.flatmap(changed).flatmap(changed))


@st.composite
def hosts(draw: Any) -> Host:
    """A host, perhaps with a batch or a step of another length: what is rare otherwise is then frequent."""
    host = Host.load(draw(st.sampled_from(["icelake_sp_2s", "skylake_sp_2s", "milan_2s", "zen4_desktop"])))
    for name in ("zone_lock_batch", "lru_batch"):
        if draw(st.booleans()):
            host = host.with_cost(name, draw(st.integers(1, 4)))
    names = ["", "handler_lock", "handler_map", "table_alloc", "gup_fast", "copy_4k", "zero_4k", "swap_in"]
    name = draw(st.sampled_from(names))
    return host.with_cost(name, 5000) if name else host


class Theme(NamedTuple):
    """What one family of scenarios draws from.

    Attributes
    ----------
    backings, actions : tuple of str
        Of memory and of storms; no action: all that the memory allows.
    sizes : tuple of str
        Of memory of 4K pages.
    logging : tuple of bool
        Whether writes are logged.
    mapped : tuple of bool
        Whether KVM maps memory at the start.
    always : tuple of str
        Actions of which there is one storm each.
    kinds : tuple of str
        Of workloads; none: all that the memory's size allows.
    few_places : bool
        Whether guests and storms keep to the first pages, and guests take their time.
    """

    backings: tuple[str, ...]
    actions: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ("16KiB", "16KiB", "64KiB", "256KiB")
    logging: tuple[bool, ...] = (False, True)
    mapped: tuple[bool, ...] = (False, True)
    always: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    few_places: bool = False


@st.composite
def regions(draw: Any, theme: Theme) -> Region:
    """A region of one of the backings."""
    backing = draw(st.sampled_from(theme.backings))
    fields: dict[str, Any] = {"backing": backing}
    fields["populated"] = draw(st.booleans())
    fields["congruent"] = draw(st.sampled_from([True, True, False]))
    # A mapped 1G page in 4K leaves has too many for a small case.
    if backing != "hugetlb_1g" or fields["congruent"]:
        fields["mapped"] = draw(st.sampled_from(theme.mapped))
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
    return Region(draw(st.sampled_from(("2MiB", "4MiB") if large else theme.sizes)), **fields)


@st.composite
def storms(draw: Any, theme: Theme, actions: tuple[str, ...], pages: int, vms: int, ended: bool) -> Storm:
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
    place = draw(st.sampled_from(["offset"] if theme.few_places else ["offset", "random", "scan"]))
    if place == "offset":
        fields["offset"] = draw(st.integers(0, min(pages - span, 3 if theme.few_places else 700))) * 4096
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


def accesses(theme: Theme, pages: int) -> st.SearchStrategy[list[list[int]]]:
    """Accesses of a replay: page, kind (0 read, 1 write, 2 execute), think time in ps."""
    near = st.integers(0, min(pages - 1, 3))
    page = near if theme.few_places else st.one_of(near, near, st.integers(0, pages - 1))
    think = st.sampled_from(
        [0, 100_000, 7_000_000, 60_000_000] if theme.few_places else [0, 0, 100_000, 7_000_000]
    )
    return st.lists(st.tuples(page, st.integers(0, 2), think).map(list), min_size=1, max_size=14)


@st.composite
def one_phase(draw: Any, theme: Theme, pages: int, vcpus: int, timed: bool, last: bool) -> Phase:
    """A workload of one kind over memory of that many pages; the last phase may have no end."""
    fields: dict[str, Any] = {}
    kinds = ["replay", "uniform", "zipf", "hot_cold", "pointer_chase", "snapshot_restore", "strided"]
    # What touches every page has too many steps on a large memory; so has what computes nothing meanwhile.
    if pages <= 128:
        kinds += ["endless", "demand_paging"]
    kind = draw(st.sampled_from(theme.kinds or kinds))
    endless = kind == "endless" and last
    if kind == "endless":
        open_ended = ["uniform", "zipf", "hot_cold", "pointer_chase"]
        kind = draw(st.sampled_from(open_ended if timed else ["uniform"]))
    if endless or draw(st.booleans()):
        fields["think"] = draw(st.sampled_from(["300ns", "2us"]))
        fields["think_dist"] = draw(st.sampled_from(["fixed", "exponential"]))
    if kind == "replay":
        every = draw(st.lists(accesses(theme, pages), min_size=vcpus, max_size=vcpus))
        return replay(vcpus=every, **fields)
    if kind == "demand_paging":
        return demand_paging(
            order=draw(st.sampled_from(["sequential", "random"])),
            share=draw(st.sampled_from(["partitioned", "overlapping"])),
            access=draw(st.sampled_from(["write", "read"])),
            passes=draw(st.integers(1, 2)),
            **fields,
        )
    fields["writes"], fields["execs"] = draw(
        st.sampled_from([(0.0, 0.0), (0.3, 0.0), (1.0, 0.0), (0.3, 0.4)])
    )
    order = draw(st.sampled_from(["random", "sequential"]))
    if kind == "snapshot_restore":
        working_set = draw(st.integers(1, min(pages, 64))) * 4096
        return snapshot_restore(working_set=working_set, order=order, **fields)
    fields["accesses"] = (
        None if endless else draw(st.sampled_from([4, 20, 60 if "4MiB" not in theme.sizes else 700]))
    )
    if kind == "uniform":
        return uniform(**fields)
    if kind == "zipf":
        return zipf(exponent=draw(st.sampled_from([0.0, 0.5, 0.99, 3.0])), order=order, **fields)
    if kind == "hot_cold":
        fields["hot_memory"] = 0.0 if theme.few_places else draw(st.sampled_from([0.0, 0.1, 0.7, 1.0]))
        drift = draw(st.sampled_from(["0B", "4KiB", "2MiB"]))
        return hot_cold(drift=drift, drift_every=draw(st.sampled_from([1, 3, 10])), **fields)
    if kind == "pointer_chase":
        footprint = draw(st.one_of(st.none(), st.integers(1, min(pages, 64)).map(lambda n: n * 4096)))
        return pointer_chase(footprint=footprint, **fields)
    share = draw(st.sampled_from(["partitioned", "overlapping"]))
    stride = draw(st.one_of(st.just(1), st.integers(1, min(pages, 600)))) * 4096
    return strided(stride=stride, share=share, **fields)


@st.composite
def workloads(draw: Any, theme: Theme, pages: int, vcpus: int, timed: bool) -> Workload:
    """A workload, perhaps of some phases."""
    if draw(st.integers(0, 3)) < 3:
        return draw(one_phase(theme, pages, vcpus, timed, last=True))
    repeat = draw(st.integers(1, 2))
    each = draw(st.lists(one_phase(theme, pages, vcpus, timed, last=False), max_size=2))
    return phases([*each, draw(one_phase(theme, pages, vcpus, timed, last=repeat == 1))], repeat=repeat)


THEMES: dict[str, Theme] = {
    "anonymous": Theme(("anon",)),
    "huge": Theme(("thp", "hugetlb_2m", "hugetlb_1g")),
    "transparent": Theme(("thp",)),
    "split and collapsed": Theme(
        ("thp",),
        ("khugepaged", "madvise", "mprotect", "reclaim", "ksm", "migration"),
        logging=(False,),
        always=("khugepaged", "madvise"),
        kinds=("replay",),
        few_places=True,
    ),
    "files": Theme(("page_cache", "dax")),
    "few folios": Theme(("ksm", "zero_page", "dax")),
    "swapped and merged": Theme(
        ("anon", "ksm", "zero_page", "thp"),
        ("reclaim", "ksm"),
        kinds=("replay", "hot_cold"),
        few_places=True,
    ),
    "pfnmap": Theme(("pfnmap", "pfnmap_struct_page", "tail_pages")),
    "logged": Theme(
        ("anon", "thp", "page_cache"),
        ("clear_dirty_log", "madvise", "age"),
        sizes=("64KiB", "4MiB"),
        logging=(True,),
        mapped=(True, True, False),
        kinds=("strided", "strided", "uniform", "replay"),
    ),
    "mixed": Theme(tuple(BACKINGS)),
}


def allowed(memory: list[Region], logging: bool) -> tuple[str, ...]:
    """Return the actions that some memory allows; some come more often."""
    actions = ["madvise", "numa_balancing", "age", "mprotect"]
    backings = {region.backing for region in memory}
    small = {"anon", "ksm", "zero_page"}
    if backings <= small | {"thp"}:
        actions += ["migration", "reclaim", "ksm"]
    if backings == {"thp"}:
        actions += ["khugepaged", "khugepaged"]
    if logging:
        actions += ["clear_dirty_log", "clear_dirty_log"]
    # A huge page that a fork has made read-only would have to be copied.
    if backings <= small | {"page_cache"} and not any(region.is_shared_file for region in memory):
        actions += ["fork"]
    return tuple(actions)


@st.composite
def scenarios(draw: Any, theme: Theme) -> Scenario:
    """A scenario of a theme."""
    vms = draw(st.integers(1, 2))
    vcpus = draw(st.integers(1, 8 if vms == 1 else 4))
    memory = draw(st.lists(regions(theme), min_size=1, max_size=2))
    pages = sum(region.pages for region in memory)
    until = draw(st.sampled_from(["100 faults", "25 faults", "150us"]))
    workload = draw(workloads(theme, pages, vcpus, timed=until == "150us"))
    last = phases_of(workload)[0][-1]
    ended = not last.endless and pages <= 128
    logging = draw(st.sampled_from(theme.logging))
    actions = allowed(memory, logging)
    actions = tuple(action for action in theme.actions or actions if action in actions)
    wanted = [draw(storms(theme, (action,), pages, vms, ended)) for action in theme.always]
    wanted += draw(st.lists(storms(theme, actions, pages, vms, ended), max_size=3 - len(wanted)))
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
        until=until,
        seed=draw(st.integers(0, 2**64 - 1)),
    )


CORNERS = {
    # More pages written without an exit than the buffer holds.
    "pml_full": Scenario(
        memory=[Region("4MiB", mapped=True)],
        workload=strided(stride="4KiB", writes=1.0),
        dirty_logging=True,
        storms=[periodic(rate="1k/s", span="64KiB", action="clear_dirty_log", place="scan")],
    ),
    # Forty small leaves below what khugepaged makes huge again.
    "tables_freed": Scenario(
        memory=[Region("4MiB", backing="thp", mapped=True)],
        workload=replay(vcpus=[[[page, 0, 0] for page in range(40)] + [[3, 1, 400_000_000], [700, 1, 0]]]),
        storms=[
            closed_loop(think="1s", span="4KiB", offset="1MiB", hold="0ns", limit=1),
            periodic(rate="10k/s", span="4KiB", offset="0B", action="khugepaged", limit=3),
        ],
    ),
    # A span over the end of a GiB: one call for some, two for others.
    "invalidations": Scenario(
        memory=[Region("1028MiB", populated=True)],
        workload=uniform(accesses=20),
        storms=[
            closed_loop(think="5us", span="32KiB", offset="1048560KiB", action=action, limit=2)
            for action in ("mprotect", "numa_balancing", "madvise")
        ],
    ),
}
"""Scenarios by the counter that they move: what random ones hardly ever come to."""
