"""A generator that behaves like a recording, and can be made larger: more vCPUs, more invalidations.

Workloads and storms are the package's own (`kvmpfn.workloads`, `kvmpfn.storms`), with parameters fitted by
`kvmpfn.traces.locality` and `kvmpfn.traces.storm_fit`. What these cannot express is left out, and
`Fit.quality` measures what that costs: the recording beside its replay access by access and beside the
generator's simulation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kvmpfn import workloads
from kvmpfn.hosts import Host
from kvmpfn.scenario import Scenario
from kvmpfn.storms import Storm
from kvmpfn.traces.locality import Locality, locality, times_away
from kvmpfn.traces.replay import HUGE, huge, memory, mmu, own_host, own_time
from kvmpfn.traces.trace import Trace
from kvmpfn.units import PAGE, PAGE_SHIFT, InputError, format_size, format_time, parse_size

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    Words = NDArray[np.int64]

__all__ = ["Fit", "fit"]

LEAST = 16
"""Accesses from which there is something to fit."""

EVEN = 0.5
"""Deviation of the guest's own times, as a share of their mean, from which they count as exponential."""


@dataclass(frozen=True)
class Fit:
    """Fitted generators of one VM's accesses and of the invalidations beside them.

    Attributes
    ----------
    trace : Trace
        The recording.
    vm : int
        Its VM.
    host : Host
        Of a recording with all probes at the recording's pace.
    vcpus : int
        vCPUs that faulted.
    pages : int
        4K pages of the generator's memory: of a sweep that did not come to its end all memslots; else those
        from the first that faulted to the last if at least half of them did, else as many as did.
    backing : {"anon", "thp"}
        Small pages or huge ones, as most faults mapped.
    places : Locality
        How the guest goes through them.
    writes, execs : float
        Shares of the accesses whose kind is known.
    think_ps : int
        The guest's own time before each access, hits included.
    think_dist : {"fixed", "exponential"}
        How it spreads.
    clients : tuple of Storm
        Who invalidates.
    """

    trace: Trace
    vm: int
    host: Host
    vcpus: int
    pages: int
    backing: str
    places: Locality
    writes: float
    execs: float
    think_ps: int
    think_dist: Any
    clients: tuple[Storm, ...]

    def workload(self) -> workloads.Workload:
        """Return the generator of accesses; its size follows from the scenario's vCPUs and memory."""
        where = self.places
        times: dict[str, Any] = {"think": format_time(self.think_ps), "think_dist": self.think_dist}
        share: Any = "overlapping" if where.shared else "partitioned"
        if where.pattern == "once":
            access: Any = "write" if self.writes >= 0.5 else "read"
            return workloads.demand_paging(order="random", share=share, access=access, **times)
        mix: dict[str, Any] = {"writes": self.writes, "execs": self.execs}
        accesses = max(1, round(where.accesses / self.vcpus))
        if where.pattern == "sweep":
            stride = format_size(where.stride * PAGE)
            return workloads.strided(stride=stride, share=share, accesses=accesses, **mix, **times)
        fields: dict[str, Any] = {"accesses": accesses, **mix, **times}
        if where.pattern == "hot_cold":
            return workloads.hot_cold(hot_memory=where.hot_memory, hot_accesses=where.hot_accesses, **fields)
        if where.pattern == "zipf":
            return workloads.zipf(exponent=where.exponent, **fields)
        return workloads.uniform(**fields)

    def storms(self, rate: float | str = 1) -> list[Storm]:
        """Return the storms, so many times as frequent.

        Parameters
        ----------
        rate : float or str
            A factor, such as ``10`` or ``"10x"``. A closed loop's thinking time is divided by it, which makes
            it less than so many times as frequent, since what an invalidation takes stays.
        """
        factor = _factor(rate, "storm")
        return [_faster(storm, factor) for storm in self.clients]

    def scenario(self, vcpus: int | str | None = None, storm: float | str = 1, **fields: Any) -> Scenario:
        """Return the fitted scenario, as large as wanted.

        Parameters
        ----------
        vcpus : int or str, optional
            vCPUs, or ``"4x"`` as many as recorded. Where each has pages of its own, memory grows with them.
        storm : float or str
            As `storms` takes it.
        **fields
            Other fields of `Scenario`.
        """
        count = self.vcpus if vcpus is None else vcpus
        if isinstance(count, str):
            count = round(self.vcpus * _factor(count, "vcpus"))
        if type(count) is not int or count < 1:
            raise InputError(f"{vcpus!r} is not a number of vCPUs; nearest is 1", "vcpus")
        own = not self.places.shared and self.places.pattern in ("sweep", "once")
        pages = -(-self.pages * count // self.vcpus) if own else self.pages
        given: dict[str, Any] = {
            "host": self.host,
            "vcpus": count,
            "memory": (memory(pages << PAGE_SHIFT, self.backing == "thp"),),
            "mmu": mmu(self.trace),
            "workload": self.workload(),
            "storms": tuple(self.storms(storm)),
            "fault_path": f"v{self.trace.kernel}",
        }
        return Scenario(**given | fields)

    def quality(self, replicas: int = 3, most: int = 20_000) -> pd.DataFrame:
        """Compare the recording, its replay and this generator; see `kvmpfn.traces.quality`.

        Parameters
        ----------
        replicas : int
            Simulations of each, with seeds from 1 on; numbers are their means.
        most : int
            Faults that a simulation ends after.
        """
        from kvmpfn.traces.quality import quality

        return quality(self, replicas, most)

    def __repr__(self) -> str:
        size = format_size(self.pages << PAGE_SHIFT)
        head = f"Fit of {self.trace.name!r}, VM {self.vm}: {self.vcpus} vCPUs, {size} ({self.backing})"
        return "\n".join([head, f"  {self.workload()!r}", *(f"  {storm!r}" for storm in self.clients)])


def fit(trace: Trace, *, vm: int = 0, host: str | Host | None = None) -> Fit:
    """Fit generators to a recording.

    Parameters
    ----------
    trace : Trace
        The recording.
    vm : int
        Which VM; 0 is the one with most faults.
    host : str or Host, optional
        Whose costs hold where the recording does not tell its own; if not given, one of its make.

    Returns
    -------
    Fit
        The generators.

    Raises
    ------
    InputError
        The VM has too few faults.
    """
    frame = own_time(trace, vm, host)
    slots = trace.memslots
    if slots is not None and (frame["page"] < slots.total).any():
        frame = frame[frame["page"] < slots.total]
    if len(frame) < LEAST:
        raise InputError(
            f"{trace.name}: {len(frame)} accesses of VM {vm}, too few to fit; nearest is {LEAST}"
        )
    thp = huge(trace, vm)
    unit = HUGE if thp else 1
    page, pages, base = _compact(frame["page"].to_numpy(), unit)
    vcpu = frame["vcpu"].to_numpy()
    sequences = [page[vcpu == one] for one in np.unique(vcpu)]
    share = _share(trace, pages * unit, base * unit)
    away = _away(trace, frame, page, pages, base) if unit == 1 and base >= 0 else None
    where = locality(sequences, pages, away, max(1, trace.duration_ps))
    if where.pattern == "sweep" and where.passes == 1 and slots is not None:
        # It did not get further: the rest of memory is there, and is invalidated.
        pages, base, share = -(-slots.total // unit), 0, 1.0
    if thp:
        where = Locality(where.pattern, where.accesses, where.shared, where.stride * unit, where.passes,
                         where.exponent, where.hot_memory, where.hot_accesses)  # fmt: skip
    rest = frame["think_ps"].to_numpy()
    own = rest[rest > 0]
    spread = float(own.std() / own.mean()) if len(own) else 0.0
    kinds = trace.accesses.loc[frame.index, "kind"]
    known = kinds[kinds != "unknown"]
    size = (pages * unit) << PAGE_SHIFT
    return Fit(
        trace=trace,
        vm=vm,
        host=own_host(trace, host),
        vcpus=len(sequences),
        pages=pages * unit,
        backing="thp" if thp else "anon",
        places=where,
        writes=round(float((known == "write").mean()), 4) if len(known) else 1.0,
        execs=round(float((known == "exec").mean()), 4) if len(known) else 0.0,
        think_ps=round(float(rest.sum()) / max(where.accesses, 1.0)),
        think_dist="exponential" if spread >= EVEN else "fixed",
        clients=tuple(_within(storm, size, base * unit, share) for storm in trace.storms()),
    )


def _compact(page: Words, unit: int) -> tuple[Words, int, int]:
    """Give pages numbers from 0, in units: as they lie if half faulted, else without the others.

    Returns the numbers, how many there are, and which unit the first is (-1: pages were left out).
    """
    places = page // unit
    touched = np.unique(places)
    first, count = int(touched[0]), int(touched[-1] - touched[0]) + 1
    if 2 * len(touched) >= count:
        return places - first, count, first
    return np.searchsorted(touched, places), len(touched), -1


def _share(trace: Trace, pages: int, base: int) -> float:
    """Return the share of the invalidated pages that are in the generator's memory.

    Where pages were left out, invalidations are taken to be spread over all memslots.
    """
    slots = trace.memslots
    if slots is None:
        return 1.0
    if base < 0:
        return min(1.0, pages / slots.total)
    begin, end, _ = _placed(trace)
    inside = np.clip(np.minimum(end, base + pages) - np.maximum(begin, base), 0, None)
    return float(inside.sum() / max(1, (end - begin).sum()))


def _placed(trace: Trace) -> tuple[Words, Words, Words]:
    """Return first and last page plus one of a replay that each invalidation took away, and when."""
    slots = trace.memslots
    assert slots is not None
    calls = trace.invalidations.dropna(subset=["gfn_start"])
    begin = slots.place(calls["gfn_start"].to_numpy(dtype=np.int64))
    end = slots.place(calls["gfn_end"].to_numpy(dtype=np.int64) - 1) + 1
    done = calls["start_ret_ps"].fillna(calls["start_ps"]).to_numpy(dtype=np.int64)
    return begin, end, done


def _away(
    trace: Trace, frame: pd.DataFrame, page: Words, pages: int, base: int
) -> tuple[Words, Words] | None:
    """Return how often each page faulted after it was taken away, and how long it was; None if unknown."""
    if trace.memslots is None or trace.invalidations.empty:
        return None
    begin, end, done = _placed(trace)
    times = trace.accesses.loc[frame.index, "time_ps"].to_numpy()
    begin, end = (np.clip(edge - base, 0, pages) for edge in (begin, end))
    time = np.concatenate([done, times])
    order = np.argsort(time, kind="stable")
    first = np.concatenate([begin, page])[order]
    last = np.concatenate([end, np.full(len(page), -1)])[order]
    faults, away, since = (np.full(pages, value, dtype=np.int64) for value in (0, 0, -1))
    tick = int(np.gcd.reduce(times)) or 1
    times_away(time[order], first, last, tick, int(time.max()), faults, away, since)
    return faults, away


def _within(storm: Storm, size: int, base: int, share: float) -> Storm:
    """Put a storm into the generator's memory: as many invalidations, each with as many of its pages."""
    pages = max(1, round(min(storm.span_pages * share, size / PAGE)))
    changes: dict[str, Any] = {"span": format_size(pages * PAGE)}
    if storm.offset is not None:
        offset = parse_size(storm.offset) - (base << PAGE_SHIFT)
        fits = base >= 0 and 0 <= offset <= size - pages * PAGE
        changes["offset"] = format_size(offset) if fits else None
    return storm.replace(**changes)


def _faster(storm: Storm, factor: float) -> Storm:
    if storm.rate is None:
        return storm.replace(think=format_time(round(storm.think_ps / factor)))
    return storm.replace(rate=f"{1e12 / storm.gap_ps * factor:.3f}/s")


def _factor(value: Any, where: str) -> float:
    """Read a factor: a number, or one with an x behind it."""
    text = f"{value}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*x?\s*", text)
    if found is None or float(found[1]) <= 0:
        raise InputError(f"{value!r} is not a factor; nearest is '1x'", where)
    return float(found[1])
