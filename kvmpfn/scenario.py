"""What to simulate: a host, its VMs and their memory, what guests touch and who invalidates."""

from __future__ import annotations

import hashlib
import json
import operator
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field

from kvmpfn.fault_path import FaultPath
from kvmpfn.hosts import Host, Placement
from kvmpfn.records import Flag, Record, Size, Whole, each
from kvmpfn.storms import Storm
from kvmpfn.units import PAGE, InputError, format_size, nearest, parse_size, parse_time
from kvmpfn.workloads import (
    KINDS,
    DemandPaging,
    Phase,
    PointerChase,
    Replay,
    SnapshotRestore,
    Strided,
    Uniform,
    Workload,
    of_kind,
    phases_of,
)

__all__ = ["BACKINGS", "Region", "Scenario", "parse_until"]

BACKINGS = {
    "anon": PAGE,
    "ksm": PAGE,
    "zero_page": PAGE,
    "thp": 1 << 21,
    "hugetlb_2m": 1 << 21,
    "hugetlb_1g": 1 << 30,
    "page_cache": PAGE,
    "dax": PAGE,
    "pfnmap": PAGE,
    "pfnmap_struct_page": PAGE,
    "tail_pages": PAGE,
}
"""What memory can be in the host, and the bytes of which its size is a multiple."""

Backing = Literal[
    "anon",
    "ksm",
    "zero_page",
    "thp",
    "hugetlb_2m",
    "hugetlb_1g",
    "page_cache",
    "dax",
    "pfnmap",
    "pfnmap_struct_page",
    "tail_pages",
]
HOST_LEVEL = {"thp": 2, "hugetlb_2m": 2, "hugetlb_1g": 3}
KSM_SHARERS = 256
"""Pages that share one merged page at most: ksm_max_page_sharing's default (mm/ksm.c)."""
HAVE_ORDER = ("anon", "page_cache", "dax", "pfnmap")

SCHEMA = 1
SEED_LIMIT = 1 << 64


class Region(Record):
    """A part of guest memory: one memslot and one VMA.

    Attributes
    ----------
    size : str
        Its size, such as ``"16GiB"``; the first argument.
    backing : str
        What it is in the host, one of `BACKINGS`. ``ksm`` and ``zero_page`` are anonymous memory that KSM has
        merged, or that was only read so far; ``dax`` is a file in persistent memory; ``pfnmap`` has no struct
        page, ``pfnmap_struct_page`` one with a count, ``tail_pages`` one whose count is zero.
    populated : bool
        Whether the host has its pages in place at the start.
    mapped : bool
        Whether KVM maps it at the start too.
    folio_order : int
        Pages of a folio, as a power of two (page_cache); for dax and pfnmap 0 or 9, how the host maps it.
    mapping : {"private", "shared"}
        How page cache is mapped.
    fault_around : str
        What a fault on page cache maps of the neighbourhood that is in the cache.
    shared_between_vms : bool or None
        Whether all VMs map the same pages (page_cache, dax, ksm); None is yes for page_cache only.
    writable : bool
        Whether the memslot is.
    congruent : bool
        Whether guest and host addresses have the same offset in a huge page; if not, KVM maps 4K only.
    """

    size: Size
    backing: Backing = "anon"
    populated: Flag = False
    mapped: Flag = False
    folio_order: Annotated[Whole, Field(ge=0, le=9)] = 0
    mapping: Literal["private", "shared"] = "private"
    fault_around: Size = "64KiB"
    shared_between_vms: Flag | None = None
    writable: Flag = True
    congruent: Flag = True

    def __init__(self, size: int | str = "1GiB", **fields: Any) -> None:
        if fields.get("mapped") is True:
            fields["populated"] = True
        super().__init__(size=size, **fields)

    def model_post_init(self, context: Any, /) -> None:
        """Hold sizes to pages."""
        unit = max(BACKINGS[self.backing], PAGE << self.folio_order)
        if not self.size_bytes or self.size_bytes % unit:
            near = format_size(max(1, round(self.size_bytes / unit)) * unit)
            what = f"is not a multiple of {format_size(unit)} ({self.backing})"
            raise InputError(f"{self.size!r} {what}; nearest is {near!r}", "size")
        if self.folio_order and self.backing not in HAVE_ORDER:
            raise InputError(
                f"{self.folio_order}: backing {self.backing!r} has its own; nearest is 0", "folio_order"
            )
        if self.folio_order and self.backing == "anon":
            what = "large anon folios are 'thp' (with congruent=False mapped at 4K)"
            raise InputError(f"{what}; nearest is 0", "folio_order")
        if self.backing in ("dax", "pfnmap") and self.folio_order not in (0, 9):
            what = f"{self.folio_order}: {self.backing} is mapped at 4K (0) or 2M (9)"
            raise InputError(f"{what}; nearest is {0 if self.folio_order < 5 else 9}", "folio_order")
        around = self.fault_around_bytes
        if around < PAGE or around & (around - 1):
            near = format_size(max(PAGE, 1 << (max(around, 1).bit_length() - 1)))
            what = "is not a power of two of at least 4KiB"
            raise InputError(f"{self.fault_around!r} {what}; nearest is {near!r}", "fault_around")

    @property
    def size_bytes(self) -> int:
        """Its size in bytes."""
        return parse_size(self.size)

    @property
    def pages(self) -> int:
        """Its size in 4K pages."""
        return self.size_bytes // PAGE

    @property
    def host_level(self) -> int:
        """The level at which the host maps it, to begin with: 1 is 4K, 2 is 2M, 3 is 1G."""
        large = self.backing in ("dax", "pfnmap") and self.folio_order == 9
        return 2 if large else HOST_LEVEL.get(self.backing, 1)

    @property
    def is_shared_file(self) -> bool:
        """Whether writes go to the file itself."""
        return self.backing == "dax" or (self.backing == "page_cache" and self.mapping == "shared")

    @property
    def fault_around_bytes(self) -> int:
        """The neighbourhood that a fault on page cache maps, in bytes."""
        return parse_size(self.fault_around)

    @property
    def fault_around_pages(self) -> int:
        """The neighbourhood that a fault on page cache maps, in 4K pages."""
        return self.fault_around_bytes // PAGE

    @property
    def shared(self) -> bool:
        """Whether all VMs map the same pages."""
        return self.backing == "page_cache" if self.shared_between_vms is None else self.shared_between_vms


def parse_until(until: int | str | None) -> tuple[int | None, int | None]:
    """Split an end into a number of faults taken and a time in ps, of which one at most is given.

    Parameters
    ----------
    until : int, str or None
        ``"3000000 faults"`` (or the number alone), ``"10ms"``, or None for the end of the workload.

    Returns
    -------
    faults : int or None
        Faults taken.
    time : int or None
        Virtual time in ps.
    """
    if until is None:
        return None, None
    if (
        isinstance(until, str)
        and not until.strip().removesuffix("faults").replace("_", "").strip().isdecimal()
    ):
        time = parse_time(until)
        if not time:
            raise InputError(f"{until!r} ends before it starts; nearest is '1ps'")
        return None, time
    try:
        count = int(until.strip().removesuffix("faults")) if isinstance(until, str) else operator.index(until)
    except TypeError:
        count = 0
    if isinstance(until, bool) or count < 1:
        raise InputError(f"{until!r} is neither a number of faults nor a time; nearest is '1 faults'")
    return count, None


def _until(value: Any) -> Any:
    """Check an end, and keep it as it was written."""
    parse_until(value)
    return value if value is None or isinstance(value, str) else int(value)


def _host(value: Any) -> Any:
    """Take a host, or what a file says of one; the name is enough if nothing was changed."""
    host = Host.from_plain(value)
    plain = host.plain()
    return plain if isinstance(plain, str) else host


def _fault_path(value: Any) -> Any:
    """Take a fault path, or what a file says of one; the name is enough if nothing was changed."""
    if isinstance(value, dict):
        value = FaultPath(**value)
    path = value if isinstance(value, FaultPath) else FaultPath(str(value))
    plain = path.plain()
    return plain if isinstance(plain, str) else path


def _memory(value: Any) -> Any:
    """Take one region or more, or the size of one."""
    regions = list(value) if isinstance(value, list | tuple) else [value]
    return tuple(each(regions, lambda one: one if isinstance(one, Region) else _record(Region, one, "size")))


def _storms(value: Any) -> Any:
    """Take storms, or what a file says of them."""
    storms = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    return tuple(each(storms, lambda one: one if isinstance(one, Storm) else _record(Storm, one, "arrival")))


def _record(cls: Any, value: Any, first: str) -> Any:
    """Make a record of a dict, or of its first field."""
    if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
        raise InputError("has keys that are not names")
    return cls(**value) if isinstance(value, dict) else cls(**{first: value})


def _workload(value: Any) -> Any:
    """Take a workload, its kind, or what a file says of one."""
    return of_kind(value, KINDS)


class Scenario(Record):
    """One simulation: all that its result depends on.

    Attributes
    ----------
    host : str or Host
        The machine; `machine` is always the Host.
    vms, vcpus : int
        VMs on the host, and vCPUs of each.
    memory : tuple of Region
        Memory of each VM, in the order of guest addresses; ``"16GiB"`` is one region of anonymous memory.
    fault_path : str or FaultPath
        How KVM handles a fault; `mechanisms` is always the FaultPath.
    workload : Workload
        What the vCPUs touch.
    storms : tuple of Storm
        Who invalidates.
    mmu : {"ept", "npt"}
        Whose two-dimensional paging.
    levels : {4, 5}
        Depth of KVM's tables.
    dirty_logging : bool
        Whether writes are logged.
    eager_page_split : bool
        Whether enabling the log splits huge mappings at once.
    initially_all_set : bool
        Whether the log starts with all bits set, and enabling it touches no mapping.
    pml : bool or "auto"
        Whether hardware logs writes; auto is yes for EPT.
    nx_huge_pages : bool or "auto"
        Whether huge pages are mapped non-executable; auto is yes on hosts with the iTLB multihit flaw.
    preempt : {"voluntary", "none", "full"}
        The host kernel's preemption model.
    lru : {"classic", "mglru", "off"}
        How the host orders pages by use, which is what marking a page accessed costs.
    placement : {"cores", "spread", "smt"}
        Which hardware threads the vCPUs get.
    until : str, int or None
        Where the run ends: after faults taken (``"3000000 faults"``), at a time (``"10ms"``), else with the
        workload.
    seed : int
        What all random draws derive from.
    schema : int
        Version of the format, as an argument and in files: 1.

    Examples
    --------
    >>> Scenario(vcpus=4, memory="1GiB").replace(vcpus=8).vcpus
    8
    """

    host: Annotated[str | Host, BeforeValidator(_host)] = "icelake_sp_2s"
    vms: Annotated[Whole, Field(ge=1)] = 1
    vcpus: Annotated[Whole, Field(ge=1)] = 1
    memory: Annotated[tuple[Region, ...], BeforeValidator(_memory)] = (Region("1GiB"),)
    fault_path: Annotated[str | FaultPath, BeforeValidator(_fault_path)] = "v6.1"
    workload: Annotated[Workload, BeforeValidator(_workload)] = DemandPaging()
    storms: Annotated[tuple[Storm, ...], BeforeValidator(_storms)] = ()
    mmu: Literal["ept", "npt"] = "ept"
    levels: Literal[4, 5] = 4
    dirty_logging: Flag = False
    eager_page_split: Flag = True
    initially_all_set: Flag = False
    pml: Literal["auto", True, False] = "auto"
    nx_huge_pages: Literal["auto", True, False] = "auto"
    preempt: Literal["voluntary", "none", "full"] = "voluntary"
    lru: Literal["classic", "mglru", "off"] = "classic"
    placement: Placement = "cores"
    until: Annotated[str | int | None, BeforeValidator(_until)] = None
    seed: Whole = 1

    def __init__(self, *, schema: int = SCHEMA, **fields: Any) -> None:
        if type(schema) is not int or schema != SCHEMA:
            raise InputError(f"{schema!r} is not known to this version; nearest is {SCHEMA}", "schema")
        super().__init__(**fields)

    def model_post_init(self, context: Any, /) -> None:
        """Hold the parts to each other."""
        if not 0 <= self.seed < SEED_LIMIT:
            near = min(max(self.seed, 0), SEED_LIMIT - 1)
            raise InputError(f"{self.seed} is not from 0 to 2**64 - 1; nearest is {near}", "seed")
        if not self.memory:
            raise InputError("no region; nearest is '1GiB'", "memory")
        self._check_actors()
        for number, storm in enumerate(self.storms):
            self._check_storm(f"storms.{number}", storm)
        self._check_workload()

    @property
    def machine(self) -> Host:
        """The host, also where it was named only."""
        return self.host if isinstance(self.host, Host) else Host.load(self.host)

    @property
    def mechanisms(self) -> FaultPath:
        """The fault path, also where it was named only."""
        return self.fault_path if isinstance(self.fault_path, FaultPath) else FaultPath(self.fault_path)

    @property
    def memory_bytes(self) -> int:
        """Memory of one VM in bytes."""
        return sum(region.size_bytes for region in self.memory)

    @property
    def pages(self) -> int:
        """Memory of one VM in 4K pages."""
        return self.memory_bytes // PAGE

    @property
    def pml_on(self) -> bool:
        """Whether hardware logs writes."""
        return self.mmu == "ept" if self.pml == "auto" else self.pml

    @property
    def nx_huge_pages_on(self) -> bool:
        """Whether huge pages are mapped non-executable."""
        return self.machine.itlb_multihit if self.nx_huge_pages == "auto" else self.nx_huge_pages

    @property
    def until_faults(self) -> int | None:
        """Faults taken at which the run ends."""
        return parse_until(self.until)[0]

    @property
    def until_ps(self) -> int | None:
        """Time at which the run ends, in picoseconds."""
        return parse_until(self.until)[1]

    @property
    def clients(self) -> tuple[tuple[Storm, int], ...]:
        """Every storm client with the number of its VM, in order of declaration."""
        vms = range(self.vms)
        return tuple(
            (storm, vm) for storm in self.storms for vm in (vms if storm.vm == "each" else (storm.vm,))
        )

    def threads(self) -> tuple[list[int], list[int]]:
        """Return the hardware threads of all clients, and of all vCPUs VM by VM.

        The vCPUs get the first threads that no storm was pinned to, the other storms the next.
        """
        pinned = {storm.cpu for storm in self.storms if storm.cpu is not None}
        machine, vcpus = self.machine, self.vms * self.vcpus
        free = [cpu for cpu in machine.place(self.placement, machine.threads) if cpu not in pinned]
        others = iter(free[vcpus:])
        return [next(others) if storm.cpu is None else storm.cpu for storm, _ in self.clients], free[:vcpus]

    def with_path(self, path: str, value: Any) -> Self:
        """Return a copy with the value at a dotted path changed.

        Parameters
        ----------
        path : str
            Names of fields and numbers of list entries, such as ``storms.0.rate``; ``host.costs.NAME`` and
            ``fault_path.NAME`` work on named ones too.
        value : object
            What stands there in the copy.
        """
        return super().with_path(path, value)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed; names may be dotted paths, as for `with_path`."""
        plain = {name: value for name, value in changes.items() if "." not in name}
        scenario = super().replace(**plain)
        for path, value in changes.items():
            if path not in plain:
                scenario = scenario.with_path(path, value)
        return scenario

    def plain(self) -> Any:
        """Return the scenario as dicts, lists, strings and numbers; what is None is left out."""
        return {"schema": SCHEMA} | super().plain()

    def to_json(self) -> str:
        """Return the scenario as canonical JSON: sorted keys, no spaces."""
        return json.dumps(self.plain(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the scenario that some JSON describes."""
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise InputError(f"not JSON: {error}") from None
        return cls._of(fields)

    def to_toml(self) -> str:
        """Return the scenario as TOML."""
        import tomli_w

        return tomli_w.dumps(self.plain())

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """Return the scenario that some TOML describes."""
        try:
            fields = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"not TOML: {error}") from None
        return cls._of(fields)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a scenario from a file called .toml or .json."""
        file = Path(path)
        readers = {".toml": cls.from_toml, ".json": cls.from_json}
        if file.suffix not in readers:
            near = nearest(file.suffix, readers)
            raise InputError(f"a scenario file is .toml or .json; nearest is {file.stem}{near}", str(path))
        try:
            return readers[file.suffix](file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"cannot be read: {getattr(error, 'strerror', None) or error}", str(path)
            ) from None
        except InputError as error:
            raise InputError(str(error), str(path)) from None

    def digest(self) -> str:
        """Return the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def _of(cls, fields: Any) -> Self:
        """Make a scenario of a file's contents."""
        if not isinstance(fields, dict):
            raise InputError("a scenario is a table of fields; nearest is {}")
        return cls(**fields)

    def _part(self, name: str) -> Any:
        """Return the field that a dotted path goes on into."""
        return {"host": self.machine, "fault_path": self.mechanisms}.get(name, getattr(self, name))

    def _check_actors(self) -> None:
        """Hold the number of actors to the threads there are: the model has no scheduler."""
        for number, storm in enumerate(self.storms):
            if storm.vm != "each" and storm.vm >= self.vms:
                raise InputError(f"no VM {storm.vm}; nearest is {self.vms - 1}", f"storms.{number}.vm")
        machine, clients = self.machine, len(self.clients)
        actors = self.vms * self.vcpus + clients
        if actors <= machine.threads:
            return
        # Fewer vCPUs if one each fits, else fewer VMs, whose storms go with them.
        largest = (machine.threads - clients) // self.vms
        if largest >= 1:
            field = "vcpus"
        else:
            each = sum(storm.vm == "each" for storm in self.storms)
            room = machine.threads - (len(self.storms) - each)
            field, largest = "vms", room // (self.vcpus + each)
            if largest < 1:
                field, largest = "vcpus", machine.threads - len(self.storms)
            if largest < 1:
                raise InputError(
                    f"{clients} storm clients alone fill {machine.name}; leave some out", "storms"
                )
        have = f"{machine.name} has {machine.threads} hardware threads"
        need = f"{self.vms} x {self.vcpus} vCPUs and {clients} storm clients need {actors}"
        raise InputError(f"{need}, {have}; largest is {field}={largest}", field)

    def _check_storm(self, where: str, storm: Storm) -> None:
        """Hold a storm to the memory and the threads there are."""
        if storm.span_bytes > self.memory_bytes:
            most = format_size(self.memory_bytes)
            raise InputError(
                f"{storm.span!r} is more than there is memory; nearest is {most!r}", f"{where}.span"
            )
        room = self.memory_bytes - storm.span_bytes
        if storm.offset_bytes is not None and storm.offset_bytes > room:
            near = format_size(room)
            raise InputError(
                f"{storm.offset!r} puts the span past memory; nearest is {near!r}", f"{where}.offset"
            )
        if storm.cpu is None:
            return
        threads = self.machine.threads
        if storm.cpu >= threads:
            raise InputError(f"no thread {storm.cpu}; nearest is {threads - 1}", f"{where}.cpu")
        if sum(client.cpu == storm.cpu for client, _ in self.clients) > 1:
            free = next(cpu for cpu in range(threads) if all(cpu != other.cpu for other in self.storms))
            what = "is taken by more than one storm client"
            raise InputError(f"thread {storm.cpu} {what}; nearest free is {free}", f"{where}.cpu")

    def _check_workload(self) -> None:
        """Hold the workload to the memory and the vCPUs there are, and the run to an end."""
        phases, _ = phases_of(self.workload)
        for number, phase in enumerate(phases):
            alone = phase is self.workload
            self._check_phase("workload" if alone else f"workload.phases.{number}", phase)
        last = phases[-1]
        if last.endless and self.until is None:
            what = f"missing: workload {last.kind!r} without accesses never ends"
            near = "1000000 faults" if isinstance(last, Uniform) else "10ms"
            raise InputError(f"{what}; nearest is {near!r}", "until")
        if last.endless and not isinstance(last, Uniform) and self.until_ps is None:
            what = f"workload {last.kind!r} without accesses may never take so many"
            raise InputError(f"{self.until!r}: {what}; nearest is a time, such as '10ms'", "until")

    def _check_phase(self, where: str, work: Phase) -> None:
        """Hold one phase of the workload to the memory and the vCPUs there are."""
        most = format_size(self.memory_bytes)
        if isinstance(work, Strided) and work.stride_pages > self.pages:
            what = f"{work.stride!r} is more than there is memory"
            raise InputError(f"{what}; nearest is {most!r}", f"{where}.stride")
        if isinstance(work, PointerChase) and (work.footprint_bytes or 0) > self.memory_bytes:
            what = f"{work.footprint!r} is more than there is memory"
            raise InputError(f"{what}; nearest is {most!r}", f"{where}.footprint")
        if isinstance(work, SnapshotRestore) and not 0 < work.working_set_bytes <= self.memory_bytes:
            what = f"{work.working_set!r} is nothing, or more than there is memory"
            raise InputError(f"{what}; nearest is {most!r}", f"{where}.working_set")
        if isinstance(work, Replay):
            if len(work.vcpus) != self.vcpus:
                what = f"a replay of {len(work.vcpus)} vCPUs"
                raise InputError(f"{self.vcpus} for {what}; nearest is {len(work.vcpus)}", "vcpus")
            if work.pages > self.pages:
                near = format_size(work.pages * PAGE)
                raise InputError(f"{most} is less than the replay touches; nearest is {near!r}", "memory")
