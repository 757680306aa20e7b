"""From one recorded storm to another: its phases are the input, retries are what is predicted.

A fault is stale if an invalidation ends between its snapshot of the sequence and the check. How often that
happens follows from how long the phases last **on average** (a point falls into a window in proportion to its
length, so a median is the wrong summary of a skewed phase), and from the phases of fault and invalidation
being out of step. Costs of the engine are constants, and two constant cycles lock in step: all of an
invalidation's ends then meet the fault at the same phase, or none do. So a prediction is an average over
replicas, each with the phases of one recorded fault and of one recorded invalidation, drawn at random, and
the guest's pauses between two faults vary within a replica as the recorded ones do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kvmpfn import workloads
from kvmpfn.hosts import Host
from kvmpfn.scenario import Scenario
from kvmpfn.simulator import simulate
from kvmpfn.storms import Storm
from kvmpfn.traces.pace import zapped_leaves
from kvmpfn.traces.trace import PHASES
from kvmpfn.units import InputError
from kvmpfn.validation.ratios import CELLS

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from numpy.typing import NDArray

    from kvmpfn.traces import Trace

__all__ = ["TRIES", "Pace", "predict", "recorded_tries"]

TRIES = ("tries.1", "tries.2", "tries.3", "tries.4")
"""Accesses resolved at the first try, the second, the third, and later."""

STEPS = {
    "entry_to_gup": "handler_entry",
    "stale_check": "handler_lock",
    "map": "handler_map",
    "return": "handler_return",
}
"""Phases of a fault and the host's cost that stands for each; GUP's is split."""

MANY = 48
"""Leaves of a call that is one of many: three quarters of what the recorder invalidates at a time."""

RESOLUTION_US = 1.0
"""Recorded times are whole microseconds; a drawn phase is spread over its own."""

LEAST_US = 0.2


@dataclass(frozen=True)
class Pace:
    """What a recorded storm's steps took, in microseconds, as samples.

    Attributes
    ----------
    faults : DataFrame
        Phases of `kvmpfn.traces.trace.PHASES` (less ``total``) of faults fixed at the first try: the page was
        absent.
    again : ndarray
        GUP of faults tried again, whose page is in place: fast GUP.
    gaps : ndarray
        From a fault's return to the next fault, on the next page: one entry, one exit, one guest loop.
    hit : float
        Mean time of a guest's access that does not fault.
    calls : DataFrame
        `start`, `hold` and `end` of invalidations that zapped nothing, and the `pause` after each.
    leaf, page : float
        What a zapped leaf adds to a start, and a host page dropped to a hold.
    spread : bool
        Whether a drawn phase is spread over the recording's resolution.
    """

    faults: pd.DataFrame
    again: NDArray[np.float64]
    gaps: NDArray[np.float64]
    hit: float
    calls: pd.DataFrame
    leaf: float
    page: float
    spread: bool = True

    @classmethod
    def of(cls, trace: Trace) -> Pace:
        """Measure a recording.

        Parameters
        ----------
        trace : Trace
            A storm's recording with all probes.

        Returns
        -------
        Pace
            Its samples. `leaf` and `page` are NaN if no call zapped many leaves (a storm that leaves nothing
            to zap).

        Raises
        ------
        InputError
            The recording lacks a probe, or has no invalidation that found nothing.
        """
        import pandas as pd

        faults, calls = trace.faults, trace.invalidations
        phases = pd.DataFrame(
            {name: _us(faults[end]) - _us(faults[begin]) for name, (begin, end) in PHASES.items()}
        )[[*STEPS, "gup"]]
        fixed = faults["outcome"] == "FIXED"
        again = (faults["gfn"] == faults["gfn"].shift()) & (faults["outcome"].shift() == "RETRY")
        first = phases[fixed & ~again].dropna()
        pause = _us(faults["time_ps"].shift(-1)) - _us(faults["end_ps"])
        step = faults["gfn"].shift(-1) - faults["gfn"]
        gaps = pause[fixed & (step == 1)].dropna()
        over = fixed & (step > 1)
        zapped = zapped_leaves(trace)
        times = pd.DataFrame(
            {
                "start": _us(calls["start_ret_ps"]) - _us(calls["start_ps"]),
                "hold": _us(calls["end_ps"]) - _us(calls["start_ret_ps"]),
                "end": _us(calls["end_ret_ps"]) - _us(calls["end_ps"]),
                "pause": _us(calls["start_ps"].shift(-1)) - _us(calls["end_ret_ps"]),
            }
        ).dropna()
        zapped = zapped.loc[times.index]
        empty, full = times[zapped == 0], times[zapped >= MANY]
        if first.empty or empty.empty:
            lacking = "fault with all probes" if first.empty else "invalidation that zapped nothing"
            raise InputError(f"{trace.name}: no {lacking}; nearest valid: a storm's st-*.trace.gz")
        leaves = zapped[zapped >= MANY].mean()
        leaf, page = ((full[name].mean() - empty[name].mean()) / leaves for name in ("start", "hold"))
        fast = phases["gup"][again].dropna()
        return cls(
            faults=first.reset_index(drop=True),
            again=np.asarray(fast[fast < first["gup"].mean() / 2], dtype="float64"),
            gaps=np.asarray(gaps, dtype="float64"),
            hit=float((pause[over] - gaps.mean()).sum() / (step[over] - 1).sum()) if over.any() else 0.0,
            calls=empty.reset_index(drop=True),
            leaf=float(leaf),
            page=float(page),
        )

    def constant(self, how: str) -> Pace:
        """Return the pace with one value for each step: what a replay with constants takes.

        Parameters
        ----------
        how : {"median", "mean"}
            Which one.
        """
        import pandas as pd

        def one(samples: pd.DataFrame) -> pd.DataFrame:
            return samples.agg([how])

        def alone(samples: NDArray[np.float64]) -> NDArray[np.float64]:
            return one(pd.DataFrame({"": samples})).to_numpy(dtype="float64").ravel()

        return replace(
            self, faults=one(self.faults), again=alone(self.again), gaps=alone(self.gaps),
            calls=one(self.calls), spread=False,
        )  # fmt: skip

    def draw(
        self, rng: np.random.Generator, at: tuple[float, float], calls: Pace, host: Host, lead: float = 0.0
    ) -> tuple[Host, str]:
        """Draw one replica's costs.

        Parameters
        ----------
        rng : Generator
            Where from.
        at : tuple of float
            Which fault, in order of its window, and which invalidation, in order of its length; 0 to 1.
        calls : Pace
            Whose invalidations: this pace's own, or another's.
        host : Host
            Whose remaining costs hold.
        lead : float
            How long before GUP's probe the sequence is read, in microseconds.

        Returns
        -------
        host : Host
            With the phases of one fault.
        hold : str
            From start's return to end's call, without the pages that are dropped.
        """

        def jittered(value: float) -> float:
            return max(LEAST_US, value + self.spread * rng.uniform(-RESOLUTION_US / 2, RESOLUTION_US / 2))

        fault = _ranked(self.faults, ("gup", "stale_check"), at[0])
        call = _ranked(calls.calls, ("start", "hold", "end"), at[1])
        costs = {cost: jittered(fault[phase]) for phase, cost in STEPS.items()}
        start, hold, end = (jittered(call[name]) for name in ("start", "hold", "end"))
        costs["handler_entry"] = max(LEAST_US, costs["handler_entry"] - lead)
        page, leaf = max(0.0, self.page), max(0.0, self.leaf)
        # The phase holds both tries of GUP, and the host's own fault between them.
        inside = sum(host.cost_ps(name) for name in ("gup_slow", "zero_4k")) / 1e6 + page
        room = max(2 * LEAST_US, jittered(fault["gup"]) - inside)
        fast = jittered(float(rng.choice(self.again))) if len(self.again) else room / 2
        fast = min(fast, room - LEAST_US)
        costs |= {"gup_fast": fast + lead, "host_fault": room - fast}
        costs |= {"exit": self.gaps.min() / 2, "entry": self.gaps.min() / 2, "access": max(self.hit, 0.001)}
        costs |= {"notifier_call": end, "zap_leaf": leaf, "host_pte": page}
        for name, value in costs.items():
            host = host.with_cost(name, round(1000 * float(value), 3), "drawn from those recorded")
        # What a start takes more than an end passes before the sequence moves: in the hold, for the model.
        return host, f"{round(1000 * (hold + max(0.0, start - end)))}ns"

    def workload(self, rng: np.random.Generator, pages: int, accesses: int) -> workloads.Workload:
        """Sweep over the pages again and again, with the recorded spread of pauses between accesses."""
        spare = self.gaps - self.gaps.min()
        pauses = np.rint(1e6 * rng.choice(spare, accesses)).astype("int64").tolist()
        touched: Any = [[(number % pages, 1, pause) for number, pause in enumerate(pauses)]]
        return workloads.replay(vcpus=touched)


def predict(
    pace: Pace,
    trace: Trace,
    *,
    replicas: int,
    span_us: int,
    calls: Pace | None = None,
    lead: float = 0.0,
    host: str | Host = "milan_2s",
    progress: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Predict another recording's storm from one's pace.

    Parameters
    ----------
    pace : Pace
        Of the recording that is the input.
    trace : Trace
        The recording to be predicted. Only what its run was asked for is used: kernel, memory, the rate of
        its CONFIG line and the pages an invalidation covers; for a storm back to back also the pause from one
        madvise() to the next, in which KVM has no part.
    replicas : int
        How many draws of phases.
    span_us : int
        How long each replica is; it begins with no page in place, as the recordings do.
    calls : Pace, optional
        Whose empty invalidations to use; `pace`'s own if not given.
    lead : float
        How long before GUP's probe the sequence is read, in microseconds.
    host : str or Host
        Whose remaining costs hold.
    progress : callable, optional
        Told the number of each replica that is done.

    Returns
    -------
    DataFrame
        A row a replica, columns as of `kvmpfn.validation.recorded.recorded_blocks`, and those of `TRIES`.
    """
    import pandas as pd

    config = trace.config
    rate, pages = float(config["rate"]), int(config["mib"]) << 8
    span = f"{int(config['inv_pages']) * 4}KiB"
    base = host if isinstance(host, Host) else Host.load(host)
    own = calls or pace
    pauses = Pace.of(trace).calls["pause"].to_numpy() if rate < 0 else np.zeros(1)
    rows = []
    # One replica in each stratum of faults and of invalidations (a Latin hypercube): fewer will do.
    ranks = np.random.Generator(np.random.PCG64([replicas, span_us])).permutation(replicas)
    for number in range(replicas):
        rng = np.random.Generator(np.random.PCG64([number, replicas, span_us]))
        at = (number + rng.random()) / replicas, (int(ranks[number]) + rng.random()) / replicas
        paced, hold = pace.draw(rng, at, own, base, lead)
        fields: dict[str, Any] = {"span": span, "hold": hold, "action": "madvise"}
        if rate < 0:
            pause = max(LEAST_US, float(rng.choice(pauses)) + rng.uniform(-0.5, 0.5))
            storm = Storm(arrival="closed_loop", think=f"{round(1000 * pause)}ns", **fields)
        else:
            storm = Storm(arrival="periodic", rate=f"{rate:g}/s", **fields)
        run = simulate(
            Scenario(
                host=paced,
                vcpus=1,
                memory=f"{pages * 4}KiB",
                mmu="npt",
                workload=pace.workload(rng, pages, max(2 * pages, span_us // 20)),
                storms=[storm],
                fault_path=f"v{trace.kernel}",
                seed=number,
            ),
            until=f"{span_us}us",
            progress=False,
        )
        counters = run.counters
        row = {"faults": counters["pf_taken"], "resolved": counters["pf_taken"] - counters["retry"]}
        row |= {name: counters[name] for name in ("retry", *CELLS, "invalidations", "zapped")}
        row |= {name: counts for name, counts in zip(TRIES, _tries(run.tries), strict=True)}
        rows.append(row)
        if progress is not None:
            progress(number)
    return pd.DataFrame(rows).astype("int64")


def recorded_tries(trace: Trace) -> pd.Series[int]:
    """Return how many recorded accesses were resolved at each try of `TRIES`."""
    import pandas as pd

    resolved = trace.accesses[~trace.accesses["outcome"].isin(["RETRY", "unfinished"])]
    counts = _tries(resolved["tries"].value_counts())
    return pd.Series(counts, index=list(TRIES), dtype="int64")


def _ranked(samples: pd.DataFrame, by: tuple[str, ...], at: float) -> pd.Series[float]:
    """Return the row at a quantile of the sum of some columns."""
    order = np.argsort(samples[list(by)].sum(axis=1).to_numpy(), kind="stable")
    return samples.iloc[int(order[int(at * len(order))])]


def _tries(counts: pd.Series[int]) -> list[int]:
    """Count by number of tries, all from the fourth on together."""
    return [int(counts[counts.index == n].sum()) for n in (1, 2, 3)] + [int(counts[counts.index > 3].sum())]


def _us(times: pd.Series[Any]) -> pd.Series[float]:
    """Turn picoseconds, some of them missing, into microseconds."""
    return times.astype("Float64").astype("float64") / 1e6
