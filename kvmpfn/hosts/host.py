"""A host: what its hardware threads share, and what things cost on it."""

from __future__ import annotations

import tomllib
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from kvmpfn.records import Flag, Record, Whole
from kvmpfn.units import InputError, nearest, round_half_even

__all__ = ["COSTS", "Cost", "Host", "Placement"]

FOLDER = Path(__file__).parent

Placement = Literal["cores", "spread", "smt"]

_DISTANCES = ("core", "llc", "socket", "remote", "memory")
COSTS = (
    "own_add", "own_cas",
    *(f"{distance}_latency" for distance in _DISTANCES),
    *(f"{distance}_occupancy" for distance in _DISTANCES),
    "cas_factor", "exit", "entry",
    "handler_entry", "handler_lock", "handler_map", "handler_return",
    "gup_fast", "gup_slow", "follow_pfn", "host_fault", "zero_4k", "zero_bandwidth_4k",
    "zone_lock_batch", "zone_lock_hold", "lru_batch", "lru_lock_hold", "copy_4k", "numa_hint", "cow_break",
    "table_alloc", "table_load", "access", "zap_leaf", "zap_skip", "notifier_call", "flush_tlb",
    "ipi_socket", "ipi_remote", "ipi_send", "sleep_wake", "host_pte", "migrate_busy_retry", "swap_in",
    "smt_percent",
)  # fmt: skip
"""Names of all costs, in the order of the engine's table; smt_percent comes last."""

FACTORS = ("cas_factor", "zone_lock_batch", "lru_batch", "smt_percent")
"""Costs that are plain numbers, not times."""


def _decimal(value: Any) -> Any:
    """Take a figure as it is written: 6.1 is 6.1, not the nearest float."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise InputError(f"{value!r} is not a number; nearest valid is 1")
    try:
        figure = Decimal(str(value).removesuffix("ns"))
    except InvalidOperation:
        raise InputError(f"{value!r} is not a number of ns; nearest valid is 1") from None
    if not figure.is_finite() or figure < 0:
        raise InputError(f"{value!r} is out of range; nearest is 0")
    return figure


Figure = Annotated[Decimal, BeforeValidator(_decimal)]


class Cost(Record):
    """One figure of a host.

    Attributes
    ----------
    value, low, high : Decimal
        The figure, and the range that it may lie in.
    unit : {"ns", "count", "percent"}
        Unit of all three.
    source : str
        Where it was read, or what it was derived from.
    status : {"read", "derived", "assumed"}
        How good it is.
    reason : str
        How it was derived, or why it was assumed.
    """

    value: Figure
    low: Figure
    high: Figure
    unit: Literal["ns", "count", "percent"] = "ns"
    source: str = ""
    status: Literal["read", "derived", "assumed"]
    reason: str = ""

    def model_post_init(self, context: Any, /) -> None:
        """Hold what a figure owes its reader."""
        if not self.low <= self.value <= self.high:
            raise InputError(f"{self.value} is not from low {self.low} to high {self.high}", "value")
        if self.unit != "ns" and self.value != int(self.value):
            raise InputError(f"{self.value} is not whole; nearest is {round_half_even(self.value)}", "value")
        if self.status != "assumed" and not self.source:
            raise InputError(f"status {self.status!r} needs one; nearest is status 'assumed'", "source")
        if self.status != "read" and not self.reason:
            raise InputError(f"status {self.status!r} needs one; say why", "reason")


class Host(Record):
    """A machine: topology, clock and cost table.

    Threads are numbered socket by socket, core by core: first one sibling of every core, then the other.

    Attributes
    ----------
    name : str
        Name of the data file it comes from.
    title : str
        The machine in words.
    sockets, llcs_per_socket, cores_per_llc, smt : int
        Topology; `smt` is the number of threads a core.
    ghz : float
        Clock that cycles were turned into times with.
    itlb_multihit : bool
        Whether the processor has the flaw for which KVM maps huge pages non-executable.
    costs : dict of str to Cost
        All of `COSTS`.
    extrapolated : bool
        Whether the topology is larger or smaller than the one the costs were measured on.

    Examples
    --------
    >>> Host.load("icelake_sp_2s").threads
    128
    """

    name: str
    title: str = ""
    sockets: Annotated[Whole, Field(ge=1)]
    llcs_per_socket: Annotated[Whole, Field(ge=1)]
    cores_per_llc: Annotated[Whole, Field(ge=1)]
    smt: Annotated[Whole, Field(ge=1, le=8)]
    ghz: float
    itlb_multihit: Flag = False
    costs: dict[str, Cost]
    extrapolated: Flag = False

    def model_post_init(self, context: Any, /) -> None:
        """Hold the table to be whole, with times where times belong."""
        for name in COSTS:
            if name not in self.costs:
                raise InputError(f"{self.name} has no {name!r}; every cost needs a figure", "costs")
            if (self.costs[name].unit == "ns") == (name in FACTORS):
                kind = "a plain number" if name in FACTORS else "a time in ns"
                raise InputError(f"is {kind}, not in {self.costs[name].unit}", f"costs.{name}")
        for name in self.costs:
            if name not in COSTS:
                raise InputError(f"unknown cost {name!r}; nearest is {nearest(name, COSTS)!r}", "costs")

    @staticmethod
    def names() -> tuple[str, ...]:
        """Names of the hosts there are data for."""
        return tuple(sorted(file.stem for file in FOLDER.glob("[!_]*.toml")))

    @staticmethod
    def load(name: str) -> Host:
        """Return the host of that name."""
        if name not in Host.names():
            near = nearest(name, Host.names())
            raise InputError(f"no host {name!r}; nearest is {near!r} of {', '.join(Host.names())}", "Host")
        return _load(name)

    @staticmethod
    def scaled(name: str, *, sockets: int | None = None, cores: int | None = None) -> Host:
        """Return a host with another topology and the same costs, marked as extrapolated.

        Parameters
        ----------
        name : str
            Host whose cost table is taken.
        sockets : int, optional
            Sockets; the host's own if not given.
        cores : int, optional
            Cores in a socket, in caches of the host's own size; the host's own if not given.
        """
        host = Host.load(name)
        changes: dict[str, Any] = {} if sockets is None else {"sockets": sockets}
        if cores is not None:
            own = host.cores_per_llc
            if cores > own and cores % own:
                raise InputError(
                    f"{cores} is not a multiple of {own}; nearest is {round(cores / own) * own}", "cores"
                )
            changes |= {"cores_per_llc": min(cores, own), "llcs_per_socket": max(1, cores // own)}
        scaled = host.replace(**changes)
        return host if scaled == host else scaled.replace(extrapolated=True)

    def with_cost(self, name: str, value: int | float | str | Decimal, reason: str = "set by hand") -> Host:
        """Return a copy in which one cost has another value (a time in ns, or a plain number), and why."""
        if name not in COSTS:
            raise InputError(f"unknown cost {name!r}; nearest is {nearest(name, COSTS)!r}", "costs")
        old = self.costs[name]
        try:
            fields: dict[str, Any] = {"value": value, "low": value, "high": value, "unit": old.unit}
            cost = Cost(**fields, status="assumed", reason=f"{reason}; the host's own is {old.value}")
        except InputError as error:
            raise InputError(error.message, f"costs.{name}") from None
        return self.replace(costs=self.costs | {name: cost})

    def with_path(self, path: str, value: Any) -> Host:
        """Return a copy with the field or the cost (``costs.NAME``) at a dotted path changed."""
        first, _, name = path.partition(".")
        return self.with_cost(name, value) if first == "costs" and name else super().with_path(path, value)

    def cost_ps(self, name: str) -> int:
        """Return a time in picoseconds, rounded half to even."""
        if name in FACTORS:
            raise InputError(f"{name!r} is not a time; ask for factor({name!r})", "costs")
        return round_half_even(self._cost(name).value * 1000)

    def factor(self, name: str) -> int:
        """Return a cost that is a plain number."""
        if name not in FACTORS:
            raise InputError(
                f"{name!r} is not a plain number; nearest is {nearest(name, FACTORS)!r}", "costs"
            )
        return int(self._cost(name).value)

    def _cost(self, name: str) -> Cost:
        """Return a cost by name."""
        if name not in self.costs:
            raise InputError(f"unknown cost {name!r}; nearest is {nearest(name, COSTS)!r}", "costs")
        return self.costs[name]

    @property
    def assumed(self) -> tuple[str, ...]:
        """Names of the costs that nobody measured."""
        return tuple(name for name in COSTS if self.costs[name].status == "assumed")

    @property
    def cores_per_socket(self) -> int:
        """Cores in one socket."""
        return self.llcs_per_socket * self.cores_per_llc

    @property
    def cores(self) -> int:
        """Cores of all sockets."""
        return self.sockets * self.cores_per_socket

    @property
    def threads(self) -> int:
        """Hardware threads of all sockets."""
        return self.cores * self.smt

    def topology(self) -> list[tuple[int, int, int]]:
        """Return each thread's core, last-level cache and socket."""
        places = [
            (core, core // self.cores_per_llc, core // self.cores_per_socket) for core in range(self.cores)
        ]
        return places * self.smt

    def place(self, placement: Placement, n: int) -> list[int]:
        """Return the first `n` threads that a placement uses.

        Parameters
        ----------
        placement : {"cores", "spread", "smt"}
            Cores of one socket before the next, siblings last; sockets in turn, siblings last; all
            siblings of a core before the next.
        n : int
            How many threads.
        """
        if n > self.threads:
            raise InputError(
                f"{n} threads asked for, {self.name} has {self.threads}; nearest is {self.threads}", "Host"
            )
        cores, width = self.cores, self.cores_per_socket
        if placement == "cores":
            order = list(range(self.threads))
        elif placement == "spread":
            turn = [socket * width + core for core in range(width) for socket in range(self.sockets)]
            order = [sibling * cores + core for sibling in range(self.smt) for core in turn]
        elif placement == "smt":
            order = [sibling * cores + core for core in range(cores) for sibling in range(self.smt)]
        else:
            near = nearest(placement, ("cores", "spread", "smt"))
            raise InputError(
                f"{placement!r} is not one of cores, spread, smt; nearest is {near!r}", "placement"
            )
        return order[:n]

    def plain(self) -> Any:
        """Return the name of a host with data of its own, or that and what differs from it."""
        if self.name not in Host.names():
            return _whole_table(self)
        own = Host.load(self.name)
        fields = [name for name in type(self).model_fields if name != "costs"]
        changed = {name: getattr(self, name) for name in fields if getattr(self, name) != getattr(own, name)}
        costs = {name: _cost(cost) for name, cost in self.costs.items() if cost != own.costs[name]}
        changed |= {"costs": costs} if costs else {}
        return {"name": self.name} | changed if changed else self.name

    @staticmethod
    def from_plain(value: Any) -> Host:
        """Return the host that `plain` made `value` of."""
        if isinstance(value, Host):
            return value
        if isinstance(value, str):
            return Host.load(value)
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            raise InputError(f"neither a name nor a host; nearest is {Host.names()[0]!r}")
        if value["name"] not in Host.names() and "sockets" in value:
            return Host(**value)
        host = Host.load(value["name"])
        for name, cost in value.get("costs", {}).items():
            if not isinstance(cost, dict):
                host = host.with_cost(name, cost)
            elif name in COSTS:
                host = host.replace(costs=host.costs | {name: Cost(**cost)})
            else:
                raise InputError(f"unknown cost {name!r}; nearest is {nearest(name, COSTS)!r}", "costs")
        return host.replace(**{key: field for key, field in value.items() if key != "costs"})


def _cost(cost: Cost) -> Any:
    """Return a cost as strings, whose figures are exact."""
    return {name: str(figure) for name, figure in cost.plain().items()}


def _whole_table(host: Host) -> dict[str, Any]:
    """Return a host of one's own in full."""
    fields = {name: getattr(host, name) for name in type(host).model_fields if name != "costs"}
    return fields | {"costs": {name: _cost(cost) for name, cost in host.costs.items()}}


@cache
def _load(name: str) -> Host:
    """Read a host's file over the costs that are the same on every host."""
    kernel, own = (
        tomllib.loads((FOLDER / f"{stem}.toml").read_text(encoding="utf-8"), parse_float=Decimal)
        for stem in ("_kernel", name)
    )
    return Host(**(own | {"name": name, "costs": kernel["costs"] | own["costs"]}))
