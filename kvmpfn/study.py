"""Many simulations that differ in one thing or several: replicas, paired differences, sweeps.

The replicas of all cells share their seeds, and a draw does not depend on what is being compared, so that
cells meet the same accesses and the same storms: differences between them are taken replica by replica.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kvmpfn.fault_path import FaultPath
from kvmpfn.records import Record
from kvmpfn.results import Run, SchemaError, check_metric, load
from kvmpfn.units import InputError, nearest

if TYPE_CHECKING:
    import pandas as pd

    from kvmpfn.scenario import Scenario

__all__ = ["METRICS", "Study", "compare", "replica_seed", "sweep", "t_quantile"]

METRICS = (
    "faults",
    "faults_per_second",
    "retry",
    "retry_share",
    "latency.mean",
    "latency.p50",
    "latency.p99",
    "rmw.fault.folio/fault",
    "rmw.fault.mmu_lock/fault",
    "time_ps",
)
"""The columns of `Study.frame` unless others are asked for; `Run.metric` knows the names."""

T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""The 97.5 % quantile of Student's t for 1, 2, ... degrees of freedom."""

T_975_BEYOND = ((120, 1.980), (60, 2.000), (40, 2.021), (30, 2.042))
"""The same for at least so many degrees of freedom: the next smaller row of the table, so never too small."""

Progress = Callable[[int, int], object]


class Executor(Protocol):
    """What runs simulations elsewhere: a `concurrent.futures.Executor`, a Dask `Client`, or alike."""

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Any:
        """Start a call, and return a future with a `result` method."""


class Study:
    """Runs of a grid of cells, each with the same replicas.

    Parameters
    ----------
    axes : mapping of str to sequence
        What was varied: the scenario's field (or dotted path) and its values.
    cells : sequence of mapping
        The value of every axis, as it is labelled in tables, one mapping a cell.
    runs : sequence of sequence of Run
        The replicas of each cell, in the order of `cells`.
    metrics : sequence of str
        The columns of `frame`.
    """

    def __init__(
        self,
        axes: Mapping[str, Sequence[Any]],
        cells: Sequence[Mapping[str, Any]],
        runs: Sequence[Sequence[Run]],
        metrics: Sequence[str] = METRICS,
    ) -> None:
        self.axes = {name: list(values) for name, values in axes.items()}
        self.cells = [dict(cell) for cell in cells]
        self.runs = [list(replicas) for replicas in runs]
        self.metrics = tuple(metrics)

    @property
    def replicas(self) -> int:
        """Number of replicas of each cell."""
        return len(self.runs[0])

    @property
    def frame(self) -> pd.DataFrame:
        """One row a cell and replica: the axes, `replica`, `seed`, the metrics and the run's `digest`."""
        import pandas as pd

        rows = [
            {
                **cell,
                "replica": number,
                "seed": run.seed,
                **{name: run.metric(name) for name in self.metrics},
                "digest": run.digest,
            }
            for cell, replicas in zip(self.cells, self.runs, strict=True)
            for number, run in enumerate(replicas)
        ]
        frame = pd.DataFrame(rows)
        frame.attrs["units"] = {name: _unit(name) for name in self.metrics}
        return frame

    def summary(self, metric: str | None = None) -> pd.DataFrame:
        """Mean of each cell's replicas, with its 95 % interval.

        Parameters
        ----------
        metric : str, optional
            One metric; all of the study's if not given.

        Returns
        -------
        DataFrame
            The axes, `metric`, `unit`, `mean`, `low`, `high` and `replicas`; the interval is NaN for one
            replica.
        """
        import pandas as pd

        rows = []
        for cell, replicas in zip(self.cells, self.runs, strict=True):
            for name in (metric,) if metric else self.metrics:
                mean, half = _interval([run.metric(name) for run in replicas])
                rows.append(
                    {
                        **cell,
                        "metric": name,
                        "unit": _unit(name),
                        "mean": mean,
                        "low": mean - half,
                        "high": mean + half,
                        "replicas": len(replicas),
                    }
                )
        frame = pd.DataFrame(rows)
        frame.attrs["units"] = {name: _unit(name) for name in ([metric] if metric else self.metrics)}
        return frame

    def paired(self, baseline: Any = None, metric: str = "faults_per_second") -> pd.DataFrame:
        """Compare every cell with a baseline, replica by replica.

        Parameters
        ----------
        baseline : optional
            A value of the study's only axis (its first one if not given), or a mapping of axes to values:
            each cell is then compared with the cell that differs from it in those axes alone.
        metric : str
            What to compare, by a name that `Run.metric` knows.

        Returns
        -------
        DataFrame
            A row a cell other than the baseline: the axes, `metric`, `unit`, `baseline` (mean),
            `mean`, `difference` with its 95 % interval `low` to `high`, `relative` (difference by
            the baseline's mean) and `replicas`.
        """
        import pandas as pd

        fixed = self._baseline(baseline)
        at = {_key(cell): replicas for cell, replicas in zip(self.cells, self.runs, strict=True)}
        rows = []
        for cell, replicas in zip(self.cells, self.runs, strict=True):
            other = {**cell, **fixed}
            if other == cell:
                continue
            before = [run.metric(metric) for run in at[_key(other)]]
            after = [run.metric(metric) for run in replicas]
            difference, half = _interval([b - a for a, b in zip(before, after, strict=True)])
            base = math.fsum(before) / len(before)
            rows.append(
                {
                    **cell,
                    "metric": metric,
                    "unit": _unit(metric),
                    "baseline": base,
                    "mean": math.fsum(after) / len(after),
                    "difference": difference,
                    "low": difference - half,
                    "high": difference + half,
                    "relative": difference / base if base else math.nan,
                    "replicas": len(after),
                }
            )
        columns = ["metric", "unit", "baseline", "mean", "difference", "low", "high", "relative", "replicas"]
        frame = pd.DataFrame(rows, columns=[*self.axes, *columns])
        unit = _unit(metric)
        frame.attrs["units"] = dict.fromkeys(("baseline", "mean", "difference", "low", "high"), unit)
        frame.attrs["units"]["relative"] = "1"
        return frame

    def __repr__(self) -> str:
        axes = ", ".join(f"{name} ({len(values)})" for name, values in self.axes.items())
        return f"<Study of {axes}: {len(self.cells)} cells, {self.replicas} replicas each>"

    def _repr_html_(self) -> str:
        # pandas escapes what it shows.
        return str(self.summary().to_html(index=False))

    def _baseline(self, baseline: Any) -> dict[str, Any]:
        """Turn a baseline into the labels of some axes."""
        if not isinstance(baseline, Mapping):
            if len(self.axes) != 1:
                example = next(iter(self.axes))
                raise InputError(
                    f"baseline: a study of {len(self.axes)} axes needs them named, "
                    f"for instance {{{example!r}: {self.cells[0][example]!r}}}"
                )
            (axis,) = self.axes
            baseline = {axis: self.cells[0][axis] if baseline is None else baseline}
        fixed = {}
        for axis, value in baseline.items():
            if axis not in self.axes:
                raise InputError(f"baseline: no axis {axis!r}; nearest is {nearest(axis, self.axes)!r}")
            labels = list(dict.fromkeys(cell[axis] for cell in self.cells))
            if value not in labels:
                value = _label(value)
            if value not in labels:
                near = _nearest(value, labels)
                raise InputError(f"baseline: {axis} was never {value!r}; nearest is {near!r}")
            fixed[axis] = value
        return fixed


def compare(
    scenario: Scenario,
    *,
    replicas: int = 8,
    executor: str | int | Executor = "local",
    store: str | os.PathLike[str] | None = None,
    progress: bool | Progress | None = None,
    until: int | str | None = None,
    metrics: Sequence[str] = METRICS,
    **alternatives: Sequence[Any],
) -> Study:
    """Simulate alternatives under the same draws.

    Parameters
    ----------
    scenario : Scenario
        What stays the same.
    replicas : int
        Simulations of each alternative, with seeds derived from the scenario's.
    executor, store, progress, until, metrics
        As for `sweep`.
    **alternatives : sequence
        One field of the scenario and its values; the first is `Study.paired`'s baseline.

    Returns
    -------
    Study
        The runs; `Study.paired` has the differences.

    Examples
    --------
    >>> study = compare(scenario, fault_path=["v6.1", "v6.13"])  # doctest: +SKIP
    >>> study.paired(metric="latency.mean")  # doctest: +SKIP
    """
    if len(alternatives) != 1:
        raise InputError(
            f"compare: varies one field, such as fault_path=[...], and was given {len(alternatives)}; "
            "nearest is sweep, which varies several"
        )
    return sweep(
        scenario,
        alternatives,
        replicas=replicas,
        executor=executor,
        store=store,
        progress=progress,
        until=until,
        metrics=metrics,
    )


def sweep(
    scenario: Scenario,
    axes: Mapping[str, Sequence[Any]],
    *,
    replicas: int = 8,
    executor: str | int | Executor = "local",
    store: str | os.PathLike[str] | None = None,
    progress: bool | Progress | None = None,
    until: int | str | None = None,
    metrics: Sequence[str] = METRICS,
) -> Study:
    """Simulate every combination of some values.

    Parameters
    ----------
    scenario : Scenario
        What stays the same.
    axes : mapping of str to sequence
        Fields of the scenario, or dotted paths into it such as ``"storms.0.rate"``, and their values.
    replicas : int
        Simulations of each combination. The first has the scenario's own seed, the others seeds derived
        from it, the same in every cell.
    executor : "local", "serial", int or object with ``submit``
        A thread for each processor, none, so many threads, or an executor such as a Dask client. Results
        do not depend on it.
    store : path, optional
        A folder in which finished runs are kept; runs found there are not simulated again. One whose
        schema is not this version's is an error.
    progress : bool or callable
        Show a bar, or call ``progress(done, total)`` after each run.
    until : optional
        When runs end, in place of the scenario's own ``until``.
    metrics : sequence of str
        The columns of `Study.frame`.

    Returns
    -------
    Study
        The runs, whatever order they finished in, in the order of the axes.
    """
    if type(replicas) is not int or replicas < 1:
        raise InputError(f"replicas: {replicas!r} is not a positive whole number; nearest is 1")
    if not axes:
        raise InputError("sweep: nothing to vary; name a field, such as fault_path")
    if until is not None:
        scenario = scenario.replace(until=until)
    for name in metrics:
        check_metric(name)
    axes = {name: _values(name, values) for name, values in axes.items()}
    labels = {name: _labels(name, values) for name, values in axes.items()}
    points = [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]
    cells = [dict(zip(axes, point, strict=True)) for point in itertools.product(*labels.values())]
    jobs = []
    for point in points:
        cell = scenario.replace(**point)
        jobs += [cell.replace(seed=replica_seed(cell.seed, number)) for number in range(replicas)]
    folder = None if store is None else _folder(store)
    with _reporter(progress, len(jobs)) as report:
        runs = _execute(jobs, executor, folder, report)
    grouped = [runs[first : first + replicas] for first in range(0, len(runs), replicas)]
    return Study(axes, cells, grouped, metrics)


def replica_seed(seed: int, replica: int) -> int:
    """Derive the seed of a replica; replica 0 keeps the scenario's own.

    Parameters
    ----------
    seed : int
        The scenario's seed, from 0 to 2**64 - 1.
    replica : int
        The replica's number.

    Returns
    -------
    int
        An output of the SplitMix64 generator, whose sequences for two seeds do not run into each other in
        practice.
    """
    if replica == 0:
        return seed
    mask = (1 << 64) - 1
    x = _mix64((_mix64(seed) + replica * 0x9E3779B97F4A7C15) & mask)
    return x & mask


def t_quantile(degrees: int) -> float:
    """Look up the factor of a 95 % interval; it is never too small.

    Parameters
    ----------
    degrees : int
        Degrees of freedom: replicas less one.

    Returns
    -------
    float
        The 97.5 % quantile of Student's t; NaN for less than one degree.
    """
    if degrees < 1:
        return math.nan
    if degrees <= len(T_975):
        return T_975[degrees - 1]
    return next(value for least, value in T_975_BEYOND if degrees >= least)


def _mix64(x: int) -> int:
    """SplitMix64's finalizer: a bijection of 64-bit integers that spreads every bit."""
    mask = (1 << 64) - 1
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def _simulate(scenario: Scenario) -> Run:
    """Run one job; a function of this module, so that it can be sent to another process."""
    from kvmpfn.simulator import simulate

    return simulate(scenario, progress=False)


def _job(scenario: Scenario, folder: Path | None) -> Run:
    """Take a run from the store, or simulate and store it."""
    if folder is None:
        return _simulate(scenario)
    path = folder / f"{scenario.digest()}.parquet"
    if path.exists():
        # A damaged run, or one of another version, is made again; one in a layout that is not known here
        # is not ours to replace.
        try:
            run = load(path)
            if run.version == importlib.metadata.version("kvmpfn"):
                return run
        except SchemaError:
            raise
        except InputError:
            pass
    run = _simulate(scenario)
    run.to_parquet(path)
    return run


def _execute(
    jobs: Sequence[Scenario], executor: str | int | Executor, folder: Path | None, report: Callable[[], None]
) -> list[Run]:
    """Run all jobs, and return their runs in the order of the jobs."""
    if executor == "serial" or executor == 1:
        runs = []
        for job in jobs:
            runs.append(_job(job, folder))
            report()
        return runs
    if executor == "local":
        executor = os.cpu_count() or 1
    if isinstance(executor, int) and not isinstance(executor, bool) and executor > 0:
        # Threads will do: the engine runs without the interpreter's lock.
        pool = ThreadPoolExecutor(min(executor, len(jobs)))
        try:
            return _collect(jobs, pool, folder, report)
        finally:
            pool.shutdown(cancel_futures=True)
    if not isinstance(executor, str | int) and hasattr(executor, "submit"):
        return _collect(jobs, executor, folder, report)
    raise InputError(
        f"executor: {executor!r} is not 'local', 'serial', a positive number of threads or an executor; "
        "nearest is 'local'"
    )


def _collect(
    jobs: Sequence[Scenario], executor: Executor, folder: Path | None, report: Callable[[], None]
) -> list[Run]:
    futures = [executor.submit(_job, job, folder) for job in jobs]
    runs = []
    for future in futures:
        runs.append(future.result())
        report()
    return runs


@contextlib.contextmanager
def _reporter(progress: bool | Progress | None, total: int) -> Iterator[Callable[[], None]]:
    """Yield what is called after each run."""
    if callable(progress):
        done = itertools.count(1)
        yield lambda: _ignore(progress(next(done), total))
    elif progress:
        from tqdm.auto import tqdm

        with tqdm(total=total, unit="run") as bar:
            yield lambda: _ignore(bar.update())
    else:
        yield lambda: None


def _ignore(_: object) -> None:
    """Drop what a callback returns."""


def _folder(store: str | os.PathLike[str]) -> Path:
    folder = Path(store)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"store: {folder} cannot be a folder: {error.strerror}") from None
    return folder


def _values(axis: str, values: Any) -> list[Any]:
    """List an axis' values: those of an array as plain numbers."""
    if isinstance(values, str | Mapping) or not hasattr(values, "__iter__"):
        raise InputError(f"{axis}: {values!r} is not a list of values; nearest is [{values!r}]")
    listed = list(values.tolist() if hasattr(values, "tolist") else values)
    if not listed:
        raise InputError(f"{axis}: no value to try; name one at least")
    return listed


def _labels(axis: str, values: Sequence[Any]) -> list[Any]:
    """Name an axis' values as tables show them, and see that no two have one name."""
    labels = [_label(value) for value in values]
    for value in labels:
        if labels.count(value) > 1:
            raise InputError(f"{axis}: {value!r} stands there twice; name every value once")
    return labels


def _label(value: Any) -> Any:
    """Name a value: itself if it is plain, a fault path's name, or its JSON."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, FaultPath):
        return value.name
    plain = _plain(value)
    return plain if isinstance(plain, str) else json.dumps(plain, separators=(",", ":"), default=str)


def _plain(value: Any) -> Any:
    """Turn a part of a scenario into what JSON knows."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.plain() if isinstance(value, Record) else value


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval (NaN for a single value)."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return mean, math.nan
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, t_quantile(count - 1) * math.sqrt(variance / count)


def _key(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(cell.values())


def _unit(metric: str) -> str:
    """Tell the unit of a metric."""
    name = metric.removesuffix("/fault")
    per = "/fault" if metric.endswith("/fault") else ""
    if name.startswith(("latency.", "parts.", "lock_wait.")) or name.endswith("_ps"):
        return "ps" + per
    if name.startswith("memory."):
        return ("B" if name.endswith("_bytes") else "1") + per
    return {"faults_per_second": "1/s", "reference_hold_ns": "ns"}.get(name, "1") + per


def _nearest(value: Any, labels: Sequence[Any]) -> Any:
    """Find the nearest of some labels: by value for numbers, by spelling for the rest."""
    if isinstance(value, int | float) and all(isinstance(label, int | float) for label in labels):
        return min(labels, key=lambda label: abs(label - value))
    return nearest(value, labels)
