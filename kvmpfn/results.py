"""What a simulation found: counters, time by part, latencies, time lines; as text, tables and Parquet."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import re
from collections.abc import Mapping
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kvmpfn.core.names import (
    CLIENT_FIELDS,
    COUNTERS,
    DISTANCES,
    HIST_SUB_BITS,
    LOG_FIELDS,
    PARTS,
    RMW_CONTEXTS,
    RMW_LINES,
    STEPS,
    TIMELINE,
    VCPU_FIELDS,
)
from kvmpfn.files import written
from kvmpfn.units import InputError, nearest

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from kvmpfn.explain import Explanation
    from kvmpfn.scenario import Scenario

__all__ = ["Latency", "Run", "SchemaError", "bucket_bounds", "check_metric", "load"]

EventFormat = Literal["parquet", "ftrace", "trace.dat", "chrome"]

ARRAYS = (
    "counters", "rmw", "transfers", "parts", "hist", "tries", "vcpus", "clients", "timeline", "memory", "log",
)  # fmt: skip

DIGESTED = ARRAYS[:-1]
"""The arrays that the digest covers, in its order: all but the event log, which one may keep or not."""

COLUMNS = {
    "counters": COUNTERS,
    "rmw": RMW_LINES,
    "transfers": DISTANCES,
    "parts": PARTS,
    "vcpus": VCPU_FIELDS,
    "clients": CLIENT_FIELDS,
    "timeline": TIMELINE,
    "log": LOG_FIELDS,
}
"""What the last axis of an array means."""

RETRY_SUMS = {
    "retry": ("retry.",),
    "retry_precheck": ("retry.pre_gup.", "retry.post_gup."),
    "retry_in_progress": (".range", ".false_range"),
    "retry_seq": (".seq",),
    "retry_race": ("retry.race.",),
    "retry_false_range": (".false_range",),
}
"""Sums over the disjoint `retry.*` counters whose name starts or ends so."""

METRICS = (
    "faults",
    *COUNTERS,
    *RETRY_SUMS,
    "reference_hold_ns",
    *(f"rmw.{context}.{line}" for context in RMW_CONTEXTS for line in RMW_LINES),
    *(f"transfers.{distance}" for distance in DISTANCES),
    *(f"parts.{part}" for part in PARTS),
    "latency.mean",
    "latency.max",
    "latency.p50",
    "latency.p99",
    "faults_per_second",
    "retry_share",
    "time_ps",
)
"""Names of numbers that every run has; `Run.metric` looks them up."""

SCHEMA = 1
"""Version of the Parquet layout, which every file names."""


class SchemaError(InputError):
    """A run is in a layout that this version does not know: it is another version's, and no damage."""


class Run:
    """The result of one simulation.

    Times are stored as whole picoseconds. Everything is summed over virtual machines unless a name says
    otherwise. A run cannot be changed: tables are made anew whenever they are asked for.

    Parameters
    ----------
    scenario : Scenario
        What was simulated.
    arrays : mapping of str to ndarray
        The engine's result arrays, by the names of `ARRAYS`; the log may be missing.
    meta : mapping
        ``end_ps``, ``timeline_bin_ps``, ``log_seen``, ``events``, ``assumed`` (names of the costs without
        a source that were used), ``died`` (virtual machines that ended in an error) and ``memory_names``.
    version : str, optional
        The version of kvmpfn that made the run; this one if not given.
    """

    def __init__(
        self,
        scenario: Scenario,
        arrays: Mapping[str, NDArray[np.int64]],
        meta: Mapping[str, Any],
        version: str | None = None,
    ) -> None:
        self.scenario = scenario
        self.version = version or importlib.metadata.version("kvmpfn")
        self._arrays: dict[str, NDArray[np.int64]] = {}
        for name in ARRAYS:
            array = np.array(arrays.get(name, np.empty((0, len(LOG_FIELDS)))), dtype=np.int64, order="C")
            array.setflags(write=False)
            self._arrays[name] = array
        self.meta: dict[str, Any] = json.loads(json.dumps(dict(meta), default=_plain))

    @property
    def arrays(self) -> dict[str, NDArray[np.int64]]:
        """The engine's arrays, read-only; `kvmpfn.core.names` names their columns."""
        return dict(self._arrays)

    @property
    def seed(self) -> int:
        """The seed that every draw came from."""
        return int(self.scenario.seed)

    @property
    def time_ps(self) -> int:
        """Simulated time, in ps."""
        return int(self.meta["end_ps"])

    @property
    def faults(self) -> int:
        """Faults that installed an entry (``pf_fixed``)."""
        return self._counts["pf_fixed"]

    @property
    def faults_per_second(self) -> float:
        """Faults that installed an entry, a second of simulated time."""
        return self.faults * 1e12 / self.time_ps if self.time_ps else math.nan

    @property
    def retry_share(self) -> float:
        """The part of the faults taken that ended in RETRY."""
        taken = self._counts["pf_taken"]
        return self._counts["retry"] / taken if taken else math.nan

    @property
    def assumed(self) -> tuple[str, ...]:
        """Names of the costs in use for which there is no source."""
        return tuple(self.meta.get("assumed", ()))

    @property
    def died(self) -> tuple[int, ...]:
        """Virtual machines that a refused fault (``pf_error``) ended."""
        return tuple(self.meta.get("died", ()))

    @property
    def counters(self) -> pd.Series[int]:
        """All counters, atomics by line (``rmw.*``) and line transfers, summed over virtual machines."""
        import pandas as pd

        series = pd.Series(self._counts, dtype="int64", name="counters")
        series.attrs["units"] = _units(series.index)
        return series

    @property
    def vm_counters(self) -> pd.DataFrame:
        """The same counters, one row a virtual machine."""
        import pandas as pd

        rows = [self._count(vm) for vm in range(len(self._arrays["counters"]))]
        frame = pd.DataFrame(rows, index=pd.RangeIndex(len(rows), name="vm"), dtype="int64")
        frame.attrs["units"] = _units(frame.columns)
        return frame

    @property
    def parts(self) -> pd.Series[int]:
        """Time spent in faults, by part, in ps; the sum is the total, exactly."""
        import pandas as pd

        series = pd.Series(self._parts, dtype="int64", name="parts")
        series.attrs["units"] = dict.fromkeys(PARTS, "ps")
        return series

    @property
    def latency(self) -> Latency:
        """Time from a fault's first exit until the access could go on, retries included."""
        longest = self._arrays["vcpus"][:, VCPU_FIELDS.index("latency_max")]
        return Latency(self._arrays["hist"], int(longest.max(initial=0)))

    @property
    def tries(self) -> pd.Series[int]:
        """Resolved faults by the number of attempts they took; the last row holds all larger numbers."""
        import pandas as pd

        counts = self._arrays["tries"]
        used = np.flatnonzero(counts)
        index = pd.Index(used, name="attempts")
        return pd.Series(counts[used], index=index, name="faults", dtype="int64")

    @property
    def timeline(self) -> pd.DataFrame:
        """What happened in each stretch of time; `time` is a stretch's start."""
        frame = _frame(self._arrays["timeline"], TIMELINE, {"wasted_ps": "ps"})
        frame.insert(0, "time", np.arange(len(frame), dtype=np.int64) * int(self.meta["timeline_bin_ps"]))
        frame.attrs["units"]["time"] = "ps"
        return frame

    @property
    def vcpus(self) -> pd.DataFrame:
        """One row a vCPU: its time in the guest, in faults and in kicks, and what it met."""
        times = dict.fromkeys(("start", "end", "guest", "faults", "kicked", "latency_max"), "ps")
        frame = _frame(self._arrays["vcpus"], VCPU_FIELDS, times)
        per_vm = max(1, len(frame) // max(1, len(self._arrays["counters"])))
        number = np.arange(len(frame), dtype=np.int64)
        frame.insert(0, "vm", number // per_vm)
        frame.insert(1, "vcpu", number % per_vm)
        return frame

    @property
    def clients(self) -> pd.DataFrame:
        """One row a storm client: what it was asked to do, did, and how late."""
        times = dict.fromkeys(("late_ps", "late_max_ps", "busy_ps"), "ps")
        return _frame(self._arrays["clients"], CLIENT_FIELDS, times)

    @property
    def memory(self) -> pd.Series[int]:
        """What mapping the guests took, by structure, at the end of the run: bytes, or tables."""
        import pandas as pd

        series = pd.Series(self._memory, dtype="int64", name="memory")
        series.attrs["units"] = {name: "B" if name.endswith("_bytes") else "1" for name in self._memory}
        return series

    @property
    def events(self) -> pd.DataFrame:
        """The event log, if one was kept; ``run.meta["log_seen"]`` tells how many rows there would be."""
        import pandas as pd

        frame = _frame(self._arrays["log"], LOG_FIELDS, {"time": "ps"})
        units = frame.attrs["units"]
        codes = self._arrays["log"][:, LOG_FIELDS.index("step")]
        frame["step"] = pd.Categorical.from_codes(codes, categories=pd.Index(STEPS))
        frame.attrs["units"] = units
        return frame

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the result arrays: equal if and only if two runs found the same.

        What the simulator itself took is left out, as the event log is: it depends on what one kept.
        """
        found = [not name.startswith("simulator_") for name in self.meta["memory_names"]]
        return _hash(self._arrays | {"memory": self._arrays["memory"][found]}, DIGESTED)

    def metric(self, name: str) -> float:
        """One number of this run by its name.

        Parameters
        ----------
        name : str
            A counter; ``parts.<part>``; ``memory.<structure>``; ``latency.mean``, ``latency.max`` or a
            percentile such as ``latency.p99`` or ``latency.p99.9``; ``faults_per_second``, ``retry_share``
            or ``time_ps``. A counter or part followed by ``/fault`` is divided by `faults`.

        Returns
        -------
        float or int
            Its value; times are in ps, except ``reference_hold_ns``.
        """
        check_metric(name)
        if name.endswith("/fault"):
            return self.metric(name.removesuffix("/fault")) / self.faults if self.faults else math.nan
        if name in self._counts:
            return self._counts[name]
        group, _, rest = name.partition(".")
        if group == "parts":
            return self._parts[rest]
        if group == "memory":
            if rest not in self._memory:
                near = nearest(rest, self._memory or ["none"])
                raise InputError(f"metric: no {name!r}; nearest is {f'memory.{near}'!r}")
            return self._memory[rest]
        if group == "latency" and rest not in ("mean", "max"):
            return self.latency.quantile(float(rest[1:]) / 100)
        value: float = getattr(self.latency, rest) if group == "latency" else getattr(self, name)
        return value

    def summary(self) -> str:
        """Where the time of all faults went, why they were retried, and which locks were waited for."""
        return "\n".join(self._summary())

    def explain(self, n: int = 10) -> Explanation:
        """Where the time of the slowest faults went, and who held the line or the lock.

        The scenario is simulated twice more: to find the faults, and to follow each from its first exit to
        its last entry, event by event.

        Parameters
        ----------
        n : int
            How many faults.

        Returns
        -------
        Explanation
            It prints; its tables are `frame`, `attempts`, `pieces` and `holders`.

        Raises
        ------
        InputError
            `n` is not a whole number of at least 1, or the same scenario gives another run now.
        """
        from kvmpfn.explain import explain

        return explain(self, n)

    def to_dict(self) -> dict[str, Any]:
        """Everything but arrays and tables, fit for JSON."""
        latency = self.latency
        return {
            "version": self.version,
            "scenario": json.loads(self.scenario.to_json()),
            "scenario_digest": self.scenario.digest(),
            "digest": self.digest,
            "time_ps": self.time_ps,
            "faults": self.faults,
            "faults_per_second": _or_none(self.faults_per_second),
            "retry_share": _or_none(self.retry_share),
            "latency_ps": {
                "mean": _or_none(latency.mean),
                **{f"p{100 * q:g}": _or_none(latency.quantile(q)) for q in (0.5, 0.9, 0.99, 0.999)},
                "max": latency.max,
            },
            "counters": dict(self._counts),
            "parts_ps": dict(self._parts),
            "memory": dict(self._memory),
            "assumed": list(self.assumed),
            "died": list(self.died),
        }

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write the run to one Parquet file, which appears whole or not at all.

        The table has one row an array (name, shape, values); the scenario, the seed, the version, the
        digest and the names of the columns are in the schema's metadata.

        Parameters
        ----------
        path : path
            The file; an older one is replaced.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        scenario, meta = self.scenario.to_json(), json.dumps(self.meta, sort_keys=True)
        metadata = {
            "kvmpfn.schema": str(SCHEMA),
            "kvmpfn.version": self.version,
            "kvmpfn.scenario": scenario,
            "kvmpfn.seed": str(self.seed),
            "kvmpfn.digest": self.digest,
            "kvmpfn.meta": meta,
            "kvmpfn.columns": json.dumps(COLUMNS),
            "kvmpfn.checksum": _hash(self._arrays, ARRAYS, scenario, meta),
        }
        lists = pa.list_(pa.int64())
        table = pa.table(
            {
                "array": pa.array(ARRAYS, pa.string()),
                "shape": pa.array([list(self._arrays[name].shape) for name in ARRAYS], lists),
                "values": pa.array([self._arrays[name].ravel() for name in ARRAYS], lists),
            }
        ).replace_schema_metadata(metadata)
        path = Path(path)
        with written(path) as (part,):
            pq.write_table(table, part)

    def write_events(self, path: str | os.PathLike[str], format: EventFormat | None = None) -> None:
        """Write the kept events to a file that other tools open; it appears whole or not at all.

        ``parquet`` is the table of `events`. For the others the scenario is simulated once more as far as
        the log goes, and what a step's row does not hold is read then. ``ftrace`` is text as in the file
        ``trace`` of tracefs, which `kvmpfn.read_trace` reads back; ``trace.dat`` holds the same events for
        trace-cmd and KernelShark. The memory map is written beside these two, as ``NAME.txt``. ``chrome`` is
        JSON for the Perfetto UI. See docs/exporting.md.

        Parameters
        ----------
        path : path
            The file; an older one is replaced.
        format : {"parquet", "ftrace", "trace.dat", "chrome"}, optional
            If not given, by the suffix: ``.parquet``, ``.trace``, ``.dat``, ``.json``; text and JSON may be
            packed, ``.trace.gz`` and ``.json.gz``.

        Raises
        ------
        InputError
            No events were kept, no format has that suffix, the file cannot be written, or the same scenario
            takes other steps now.
        """
        from kvmpfn.export import write_events

        write_events(self, path, format)

    def __repr__(self) -> str:
        rate = f"{self.faults_per_second:,.0f}" if self.time_ps else "0"
        text = (
            f"<Run {_title(self.scenario)}: {self.faults:,d} faults in {_time(self.time_ps)}, "
            f"{rate} a second, {_percent(self.retry_share)} retried, digest {self.digest[:12]}"
        )
        if self.died:
            text += f", {len(self.died)} of {len(self._arrays['counters'])} VMs died"
        return text + ">"

    def _repr_html_(self) -> str:
        latency, counts = self.latency, self._counts
        rows = [
            ("simulated time", _time(self.time_ps)),
            ("faults taken", f"{counts['pf_taken']:,d}"),
            ("faults fixed", f"{self.faults:,d}"),
            ("fixed a second", f"{self.faults_per_second:,.0f}"),
            ("retried", _percent(self.retry_share)),
            ("latency, mean", _time(latency.mean)),
            ("latency, 99 %", _time(latency.quantile(0.99))),
            ("latency, longest", _time(latency.max)),
            ("digest", self.digest[:16]),
        ]
        if self.died:
            rows.append(("VMs that died", ", ".join(map(str, self.died))))
        if self.assumed:
            rows.append(("assumed costs", ", ".join(self.assumed)))
        cells = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th>"
            f"<td style='text-align:left'>{escape(value)}</td></tr>"
            for name, value in rows
        )
        return f"<table><caption>{escape(_title(self.scenario))}</caption><tbody>{cells}</tbody></table>"

    @cached_property
    def _counts(self) -> dict[str, int]:
        return self._count(slice(None))

    @cached_property
    def _parts(self) -> dict[str, int]:
        return dict(zip(PARTS, self._arrays["parts"].sum(axis=0).tolist(), strict=True))

    @cached_property
    def _memory(self) -> dict[str, int]:
        return dict(zip(self.meta["memory_names"], self._arrays["memory"].ravel().tolist(), strict=True))

    def _count(self, vms: int | slice) -> dict[str, int]:
        """Counters of some virtual machines, with the sums and the atomics, in the order they are shown."""
        chosen = {
            name: array[vms] if isinstance(vms, slice) else array[vms : vms + 1]
            for name, array in self._arrays.items()
            if name in ("counters", "rmw", "transfers")
        }
        raw = dict(zip(COUNTERS, chosen["counters"].sum(axis=0).tolist(), strict=True))
        counts = {"faults": raw["pf_fixed"], **raw}
        cells = [name for name in COUNTERS if name.startswith("retry.")]
        for total, edges in RETRY_SUMS.items():
            counts[total] = sum(raw[name] for name in cells if name.startswith(edges) or name.endswith(edges))
        counts["reference_hold_ns"] = (raw["reference_hold_ps"] + 500) // 1000
        for context, row in zip(RMW_CONTEXTS, chosen["rmw"].sum(axis=0).tolist(), strict=True):
            counts.update((f"rmw.{context}.{line}", n) for line, n in zip(RMW_LINES, row, strict=True))
        transfers = chosen["transfers"].sum(axis=0).tolist()
        counts.update((f"transfers.{name}", n) for name, n in zip(DISTANCES, transfers, strict=True))
        return counts

    def _summary(self) -> list[str]:
        counts, latency = self._counts, self.latency
        lines = [
            f"{_title(self.scenario)}: {_time(self.time_ps)} simulated",
            f"faults: {counts['pf_taken']:,d} taken, {self.faults:,d} fixed, "
            f"{counts['pf_spurious']:,d} spurious, {counts['retry']:,d} retried "
            f"({_percent(self.retry_share)} of those taken)",
        ]
        if counts["retry"]:
            causes = {
                "an invalidation of the page in progress": sum(
                    n for name, n in counts.items() if name.startswith("retry.") and name.endswith(".range")
                ),
                "the collapsed range, though not the page": counts["retry_false_range"],
                "an invalidation that had ended, anywhere": counts["retry_seq"],
                "losing a race for an entry": counts["retry_race"],
                "something else": counts["retry.other"],
            }
            lines.append(f"retried for: {_shares(causes)}")
            lines.append(f"found before the lock: {_percent(counts['retry_precheck'] / counts['retry'])}")
        total = sum(self._parts.values())
        if total:
            lines.append(f"time in faults went to: {_shares(self._parts)}")
        waits = {
            name.removeprefix("lock_wait.").replace(".", " for "): n
            for name, n in counts.items()
            if name.startswith("lock_wait.")
        }
        if any(waits.values()):
            named = (f"{name} {_time(n)}" for name, n in _largest(waits))
            lines.append(f"waited for locks: {', '.join(named)}")
        atomics = {name.removeprefix("rmw."): n for name, n in counts.items() if name.startswith("rmw.")}
        if self.faults and any(atomics.values()):
            named = (f"{name} {n / self.faults:.2f}" for name, n in _largest(atomics))
            lines.append(f"atomics for each fault fixed: {', '.join(named)}")
        if latency.count:
            vcpus = self._arrays["vcpus"]
            slowest = int(vcpus[:, VCPU_FIELDS.index("latency_max")].argmax())
            most = int(vcpus[:, VCPU_FIELDS.index("tries_max")].max())
            half, nearly_all = _time(latency.quantile(0.5)), _time(latency.quantile(0.99))
            lines.append(
                f"latency: mean {_time(latency.mean)}, half within {half}, 99 % within {nearly_all}, "
                f"longest {_time(latency.max)} (vCPU {slowest}); most attempts {most}"
            )
        if counts["stale_uses"] or counts["freed_uses"]:
            lines.append(
                f"unsafe: {counts['stale_uses']:,d} accesses to pages the host had taken back, "
                f"{counts['freed_uses']:,d} of them to pages that were someone else's by then"
            )
        if self.died:
            lines.append(f"VMs that a refused fault ended: {', '.join(map(str, self.died))}")
        if self.assumed:
            lines.append(f"assumed costs: {', '.join(self.assumed)}")
        return lines


class Latency:
    """A distribution of times, kept in buckets whose middle is within 0.8 % of every time in them.

    Parameters
    ----------
    counts : ndarray of int64
        Number of times in each bucket.
    longest : int
        The longest time, exactly, in ps.
    """

    def __init__(self, counts: NDArray[np.int64], longest: int) -> None:
        self._counts = counts
        self.max = longest
        """The longest time, exactly, in ps."""

    @property
    def count(self) -> int:
        """How many times there are."""
        return int(self._counts.sum())

    @property
    def mean(self) -> float:
        """The mean of the buckets' middles, in ps; NaN without any time."""
        used = np.flatnonzero(self._counts).tolist()
        total = sum(int(self._counts[i]) * self._middle(i) for i in used)
        return total / self.count if used else math.nan

    def quantile(self, q: float) -> float:
        """Find the time that a share `q` of all times do not exceed, to 0.8 %.

        Parameters
        ----------
        q : float
            Between 0 and 1.

        Returns
        -------
        float or int
            In ps; NaN without any time.
        """
        if not 0 <= q <= 1:
            raise InputError(f"quantile: {q!r} is not between 0 and 1; nearest is {min(max(q, 0), 1)}")
        if not self.count:
            return math.nan
        rank = max(1, math.ceil(q * self.count))
        return self._middle(int(np.searchsorted(self._counts.cumsum(), rank)))

    def histogram(self) -> pd.DataFrame:
        """List the buckets that hold a time: `low` (inclusive), `high` (exclusive) and `count`."""
        used = np.flatnonzero(self._counts)
        bounds = np.array([bucket_bounds(i) for i in used.tolist()], dtype=np.int64).reshape(-1, 2)
        rows = np.column_stack((bounds, self._counts[used]))
        return _frame(rows, ("low", "high", "count"), {"low": "ps", "high": "ps"})

    def __repr__(self) -> str:
        if not self.count:
            return "<Latency of no fault>"
        return (
            f"<Latency of {self.count:,d} faults: mean {_time(self.mean)}, "
            f"median {_time(self.quantile(0.5))}, longest {_time(self.max)}>"
        )

    def _middle(self, bucket: int) -> int:
        low, high = bucket_bounds(bucket)
        return min((low + high - 1) // 2, self.max) if self.max >= low else (low + high - 1) // 2


def bucket_bounds(bucket: int) -> tuple[int, int]:
    """Which times a latency bucket holds.

    Parameters
    ----------
    bucket : int
        Its index. Times below twice ``2**HIST_SUB_BITS`` have a bucket each; from there on every factor of
        two is cut in ``2**HIST_SUB_BITS`` buckets of one width.

    Returns
    -------
    low, high : int
        The first time, and the first time after it, in ps.
    """
    shift = max(0, (bucket >> HIST_SUB_BITS) - 1)
    low = (bucket - (shift << HIST_SUB_BITS)) << shift
    return low, low + (1 << shift)


def check_metric(name: str) -> None:
    """Refuse a name that `Run.metric` would not know; which structures have memory is known to runs only.

    Parameters
    ----------
    name : str
        The name of a number.
    """
    base = name.removesuffix("/fault")
    percentile = re.fullmatch(r"latency\.p(\d+(?:\.\d+)?)", base)
    if base in METRICS or base.startswith("memory.") or (percentile and float(percentile[1]) <= 100):
        return
    raise InputError(f"metric: no {name!r}; nearest is {nearest(base, METRICS)!r}")


def load(path: str | os.PathLike[str]) -> Run:
    """Read a run that `Run.to_parquet` wrote, and verify that it is whole.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    Run
        The run, equal to the one written.

    Raises
    ------
    SchemaError
        The file's layout has another version than this one's.
    InputError
        There is no such file, or no run in it, or it is damaged, or it counted other things.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from kvmpfn.scenario import Scenario

    try:
        table = pq.read_table(os.fspath(path), partitioning=None)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path}: not a Parquet file that can be read: {reason}") from None
    stored = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    if "kvmpfn.version" not in stored:
        raise InputError(f"{path}: a Parquet file, but not a run of kvmpfn")
    version, schema = stored["kvmpfn.version"], stored.get("kvmpfn.schema")
    if schema is None:
        raise InputError(f"{path}: written by kvmpfn {version} without a schema; simulate again")
    if schema != str(SCHEMA):
        raise SchemaError(
            f"{path}: schema: {schema}, written by kvmpfn {version}, is not known to this version; "
            f"nearest is {SCHEMA}"
        )
    if json.loads(stored["kvmpfn.columns"]) != json.loads(json.dumps(COLUMNS)):
        raise InputError(f"{path}: written by kvmpfn {version}, which counted other things; simulate again")
    arrays = {
        name: values.values.to_numpy().reshape(shape)
        for name, shape, values in zip(
            table["array"].to_pylist(), table["shape"].to_pylist(), table["values"], strict=True
        )
    }
    try:
        scenario = Scenario.from_json(stored["kvmpfn.scenario"])
    except InputError as error:
        raise InputError(str(error), f"{path}") from None
    run = Run(scenario, arrays, json.loads(stored["kvmpfn.meta"]), version)
    checksum = _hash(run._arrays, ARRAYS, stored["kvmpfn.scenario"], stored["kvmpfn.meta"])
    if run.digest != stored["kvmpfn.digest"] or checksum != stored["kvmpfn.checksum"]:
        raise InputError(f"{path}: damaged: its contents do not have the digest stored beside them")
    return run


def _hash(arrays: Mapping[str, NDArray[np.int64]], names: tuple[str, ...], *texts: str) -> str:
    """SHA-256 over arrays as little-endian bytes, each after its name and shape, and over texts."""
    sha = hashlib.sha256()
    for name in names:
        array = arrays[name]
        sha.update(f"{name} {list(array.shape)}\n".encode())
        sha.update(array.astype("<i8", copy=False).tobytes())
    for text in texts:
        sha.update(text.encode() + b"\0")
    return sha.hexdigest()


def _plain(value: Any) -> Any:
    """Turn a numpy value into what JSON knows."""
    return value.tolist()


def _frame(array: NDArray[np.int64], columns: tuple[str, ...], units: dict[str, str]) -> pd.DataFrame:
    """Make a table of an array, with the units of its columns; what is not a measure is a count."""
    import pandas as pd

    frame = pd.DataFrame(np.array(array).reshape(-1, len(columns)), columns=list(columns))
    frame.attrs["units"] = {name: units.get(name, "1") for name in columns}
    return frame


def _units(names: pd.Index[str]) -> dict[str, str]:
    """Units of counters: most are counts."""
    special = {"reference_hold_ns": "ns", "reference_hold_ps": "ps"}
    return {name: special.get(name, "ps" if name.startswith("lock_wait.") else "1") for name in names}


def _title(scenario: Scenario) -> str:
    """Name a scenario in a few words."""
    host = scenario.machine
    vms = "" if scenario.vms == 1 else f"{scenario.vms} VMs of "
    plural = "s" if scenario.vcpus > 1 else ""
    extrapolated = " (extrapolated)" if host.extrapolated else ""
    return f"{vms}{scenario.vcpus} vCPU{plural}, {scenario.mechanisms.name}, on {host.name}{extrapolated}"


def _time(ps: float) -> str:
    """Print a time in the largest unit that leaves it at least one."""
    if math.isnan(ps):
        return "none"
    for size, unit in ((1e12, "s"), (1e9, "ms"), (1e6, "µs"), (1e3, "ns")):
        if ps >= size:
            return f"{ps / size:.4g} {unit}"
    return f"{ps:.4g} ps"


def _percent(share: float) -> str:
    return "none" if math.isnan(share) else f"{100 * share:.3g} %"


def _largest(amounts: Mapping[str, int], count: int = 6) -> list[tuple[str, int]]:
    """Return the largest amounts, largest first; those of nothing are left out."""
    ordered = sorted(amounts.items(), key=lambda item: -item[1])
    return [item for item in ordered if item[1]][:count]


def _shares(amounts: Mapping[str, int]) -> str:
    total = sum(amounts.values())
    return ", ".join(f"{name} {_percent(n / total)}" for name, n in _largest(amounts))


def _or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
