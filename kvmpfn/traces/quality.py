"""How much a replay and a fitted generator are like the recording: the same quantities of all three.

Of a simulation the faults are read from its step log, and then treated as recorded ones are: a fault runs
from its handler's entry to its return, in times as coarse as the recording's, and consecutive ones of a vCPU
on one page are one access.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kvmpfn.core.names import STEPS
from kvmpfn.simulator import simulate
from kvmpfn.traces.locality import run_lengths
from kvmpfn.traces.replay import replay
from kvmpfn.traces.trace import retries_known
from kvmpfn.units import PAGE

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from kvmpfn.scenario import Scenario
    from kvmpfn.traces.fit import Fit

    Words = NDArray[np.int64]

__all__ = ["quality"]

LOG = 1 << 22
"""Rows of the step log that are kept; a fault takes some 35."""


@dataclass(frozen=True)
class Measured:
    """What one recording or simulation shows.

    Attributes
    ----------
    numbers : dict of str to float
        By the name of the quantity; NaN where it cannot be known.
    runs : ndarray of int64
        For each access the length of the sequential run that it is in.
    between : ndarray of int64
        Times from one access's last return to the next one's first fault, in ps.
    """

    numbers: dict[str, float]
    runs: Words
    between: Words


UNITS = {
    "faults a vCPU": "1/s",
    "retries": "% of faults",
    "retries an invalidation": "1",
    "invalidations": "1/s",
    "pages that faulted": "1",
    "run an access is in, mean": "accesses",
    "run an access is in, distance": "KS",
    "between faults, p10": "us",
    "between faults, median": "us",
    "between faults, p90": "us",
    "between faults, distance": "KS",
    "in the handler, median": "us",
    "span of an invalidation, median": "pages",
    "hold of an invalidation, median": "us",
}
"""The quantities, and their units."""


def quality(fit: Fit, replicas: int = 3, most: int = 20_000) -> pd.DataFrame:
    """Compare a recording, its replay access by access, and its generator.

    Parameters
    ----------
    fit : Fit
        The generator, and the recording.
    replicas : int
        Simulations of each, with seeds from 1 on; numbers are their means, distances are of all of them
        together.
    most : int
        Faults that a simulation ends after.

    Returns
    -------
    DataFrame
        A row a quantity: its `unit`, its value `recorded`, `replayed` and `fitted`, and how far the latter
        two are off, `replayed_error` and `fitted_error`, in percent. For the two distances (Kolmogorov and
        Smirnov's: the largest difference of the shares below any value) 0 is like the recording and 1 nothing
        like it, and errors are missing, as they are where the recording does not tell the quantity. What a
        storm has by its own parameters, its span and hold, is compared too.
    """
    import pandas as pd

    recorded = _recorded(fit)
    stride = fit.places.stride if fit.places.pattern == "sweep" else 1
    columns = {"recorded": recorded.numbers}
    tick = int(np.gcd.reduce(fit.trace.faults["time_ps"].to_numpy())) or 1
    scenarios = {"replayed": replay(fit.trace, vm=fit.vm, host=fit.host), "fitted": fit.scenario()}
    for name, scenario in scenarios.items():
        every = [
            _simulated(scenario.replace(seed=seed), stride, most, tick) for seed in range(1, replicas + 1)
        ]
        numbers = {key: float(np.mean([one.numbers[key] for one in every])) for key in every[0].numbers}
        for key, part in (("run an access is in", "runs"), ("between faults", "between")):
            together = np.concatenate([getattr(one, part) for one in every])
            numbers[f"{key}, distance"] = _distance(getattr(recorded, part), together)
        columns[name] = numbers
    frame = pd.DataFrame({"unit": UNITS} | columns).loc[list(UNITS)]
    for name in scenarios:
        off = 100 * (frame[name] / frame["recorded"].where(frame["recorded"] != 0) - 1)
        frame[f"{name}_error"] = off.where(frame["unit"] != "KS")
    return frame.rename_axis("quantity")


def _recorded(fit: Fit) -> Measured:
    """Measure the recording."""
    trace = fit.trace
    faults = trace.faults[trace.faults["vm"] == fit.vm]
    place = faults["gfn"].map(trace.replay_gfns(fit.vm))
    faults = faults[place.notna()]
    ended = faults["end_ps"].fillna(-1).to_numpy(dtype=np.int64)
    left = np.where(ended >= 0, ended, faults["entry_ps"].fillna(-1).to_numpy(dtype=np.int64))
    time = faults["time_ps"].to_numpy(dtype=np.int64)
    page = np.array(place.dropna().tolist(), dtype=np.int64)
    stride = fit.places.stride if fit.places.pattern == "sweep" else 1
    calls = trace.guest_calls()
    retries = int((faults["outcome"] == "RETRY").sum()) if retries_known(faults) else np.nan
    measured = _measure(
        faults["vcpu"].to_numpy(), page, time, np.where(left >= 0, left, time), stride, retries,
        len(calls), trace.duration_ps,
    )  # fmt: skip
    handler = (ended - time)[ended >= 0]
    measured.numbers["in the handler, median"] = _median(handler)
    measured.numbers["span of an invalidation, median"] = float(calls["span"].median()) / PAGE
    measured.numbers["hold of an invalidation, median"] = _median(calls["hold_ps"].dropna().to_numpy("int64"))
    return measured


def _simulated(scenario: Scenario, stride: int, most: int, tick: int) -> Measured:
    """Simulate, and measure; times are rounded down to ticks."""
    run = simulate(scenario, until=f"{most} faults", log=LOG, progress=False)
    log = run.arrays["log"]
    clients = len(run.clients)
    log = log[log[:, 1] >= clients]
    began = log[log[:, 2] == STEPS.index("handle")]
    ended = log[log[:, 2] == STEPS.index("finish")]
    began, ended = (rows[np.lexsort((rows[:, 0], rows[:, 1]))] for rows in (began, ended))
    # A vCPU whose last fault has no end in the log loses that one.
    both = [
        (first[: len(last)], last)
        for first, last in (
            (began[began[:, 1] == actor], ended[ended[:, 1] == actor]) for actor in np.unique(began[:, 1])
        )
    ]
    first, last = (np.concatenate([pair[place] for pair in both]) if both else began[:0] for place in (0, 1))
    order = np.argsort(first[:, 0], kind="stable")
    first, last = first[order], last[order]
    # The steps lie after the handler's way in and before its way out.
    begin = (first[:, 0] - scenario.machine.cost_ps("handler_entry")) // tick * tick
    end = (last[:, 0] + scenario.machine.cost_ps("handler_return")) // tick * tick
    counters = run.counters
    measured = _measure(
        first[:, 1], first[:, 3], begin, end, stride, int(counters["retry"]),
        int(counters["invalidations"]), run.time_ps,
    )  # fmt: skip
    storms = scenario.storms
    numbers = measured.numbers
    numbers["in the handler, median"] = _median(end - begin)
    weights = [1e12 / max(1, storm.gap_ps) for storm in storms]
    numbers["span of an invalidation, median"] = _middle([storm.span_pages for storm in storms], weights)
    numbers["hold of an invalidation, median"] = _middle([storm.hold_ps / 1e6 for storm in storms], weights)
    return measured


def _measure(
    vcpu: Words, page: Words, begin: Words, end: Words, stride: int, retries: float, calls: int, time: int
) -> Measured:
    """Measure faults, in the order in which they began."""
    order = np.lexsort((np.arange(len(vcpu)), vcpu))
    vcpu, page, begin, end = vcpu[order], page[order], begin[order], end[order]
    same = vcpu[1:] == vcpu[:-1]
    new = np.ones(len(vcpu), dtype=np.bool_)
    new[1:] = ~same | (page[1:] != page[:-1])
    between = (begin[1:] - end[:-1])[same & new[1:]]
    sequences = [page[new & (vcpu == one)] for one in np.unique(vcpu)]
    runs = run_lengths(sequences, stride)
    runs = np.repeat(runs, runs)
    seconds = max(1, time) / 1e12
    p10, middle, p90 = np.quantile(between, (0.1, 0.5, 0.9)) / 1e6 if len(between) else (np.nan,) * 3
    return Measured(
        {
            "faults a vCPU": len(vcpu) / max(1, len(sequences)) / seconds,
            "retries": 100 * retries / max(1, len(vcpu)),
            "retries an invalidation": retries / calls if calls else np.nan,
            "invalidations": calls / seconds,
            "pages that faulted": float(len(np.unique(page))),
            "run an access is in, mean": float(runs.mean()) if len(runs) else np.nan,
            "run an access is in, distance": 0.0,
            "between faults, p10": float(p10),
            "between faults, median": float(middle),
            "between faults, p90": float(p90),
            "between faults, distance": 0.0,
        },
        runs,
        between,
    )


def _median(times: Words) -> float:
    """Return the median of times, in microseconds."""
    return float(np.median(times)) / 1e6 if len(times) else float("nan")


def _middle(values: list[float], weights: list[float]) -> float:
    """Return the weighted median."""
    if not values:
        return float("nan")
    order = np.argsort(values)
    below = np.cumsum(np.array(weights)[order])
    return float(np.array(values)[order][np.searchsorted(below, below[-1] / 2)])


def _distance(one: Words, other: Words) -> float:
    """Return Kolmogorov and Smirnov's distance of two samples."""
    if not len(one) or not len(other):
        return float("nan")
    at = np.concatenate([one, other])
    shares = (np.searchsorted(np.sort(sample), at, side="right") / len(sample) for sample in (one, other))
    return float(np.abs(np.subtract(*shares)).max())
