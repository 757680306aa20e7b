"""A recording as a whole: its events, its faults, its invalidations, and the workload and storms in it."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import fields
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import median_high
from typing import TYPE_CHECKING, Any

from kvmpfn import storms as storm_models
from kvmpfn import workloads
from kvmpfn.traces.bpftrace import is_preset, read_bpftrace
from kvmpfn.traces.counters import PAGE_SHIFT, Counters
from kvmpfn.traces.faults import OUTCOMES, Assembly, Fault, Invalidation, assemble
from kvmpfn.traces.read import read_records
from kvmpfn.traces.records import ABSENT, CODE, EVENT_FIELDS, EVENTS, Records
from kvmpfn.traces.tables import read_counters
from kvmpfn.units import InputError, format_size, format_time, nearest

if TYPE_CHECKING:
    import pandas as pd

PHASES = {
    "entry_to_gup": ("time_ps", "gup_ps"),
    "gup": ("gup_ps", "faultin_ps"),
    "stale_check": ("faultin_ps", "stale_ps"),
    "map": ("stale_ps", "map_ps"),
    "return": ("map_ps", "end_ps"),
    "total": ("time_ps", "end_ps"),
}
"""The phases of a fault, each between two of its times."""

ACCESS_KIND = {"read": 0, "write": 1, "exec": 2, "unknown": 0}
SIGNED_FIELDS = ("vcpu", "gfn", "level", "ret", "spurious", "fixed")
ORDER = (
    "vcpu", "rip", "address", "error_code", "gfn", "pfn", "level", "ret", "old_spte", "new_spte",
    "start", "end", "spurious", "fixed",
)  # fmt: skip
NPT_ONLY = 32
EPT_GVA_VALID = 7
MMU_PRESENT = 11
EVEN = 0.5
"""Times whose middle nine tenths spread over less than this share of their mean count as even."""


class Trace:
    """A recording of KVM's faults and of the invalidations beside them.

    Made by `read_trace`. Times are int64 picoseconds of the recording's clock.

    Attributes
    ----------
    name : str
        Name of the file.
    kernel : str
        ``"6.1"`` or ``"6.16"``: whose numbers RET_PF_* have (6.16's hold from 6.12 on).
    statistics : Counters or None
        Configuration and KVM's counters, if the text file was beside the recording.
    skipped : dict of str to int
        Lines that were not used, by reason.
    lost : int
        Events known to be lost or overwritten; `lost_unknown` counts losses of unknown size.
    """

    def __init__(self, name: str, kernel: str, lines: Records, statistics: Counters | None) -> None:
        self.name = name
        self.kernel = kernel
        self.statistics = statistics
        self._lines = lines
        self._slot = statistics.slot if statistics else None

    def __repr__(self) -> str:
        ended = ", ".join(f"{number:,d} {name}" for name, number in self._outcomes.items())
        return (
            f"Trace {self.name!r}: {len(self._lines):,d} events of a kernel like {self.kernel}, "
            f"{len(self._assembly.invalidations):,d} invalidations, faults: {ended or 'none'}"
        )

    @property
    def skipped(self) -> dict[str, int]:
        """Lines that were not used, by reason."""
        return dict(self._lines.skipped)

    @property
    def lost(self) -> int:
        """Events known to be lost or overwritten."""
        return self._lines.lost

    @property
    def lost_unknown(self) -> int:
        """Losses of unknown size."""
        return self._lines.lost_unknown

    @property
    def config(self) -> dict[str, str]:
        """The run's CONFIG line; empty without the text file."""
        return dict(self.statistics.config) if self.statistics else {}

    @property
    def whole(self) -> bool:
        """Whether the recording holds the run from its first mark to its last, with nothing lost."""
        marks = self._lines.marks
        ends = bool(marks) and marks[0].endswith("_go") and marks[-1].endswith("_done")
        return ends and not self.lost and not self.lost_unknown

    @property
    def mmu(self) -> str:
        """What error codes mean: ``"npt"``, ``"ept"`` or ``"unknown"``; a guess from the codes seen."""
        codes = {fault.error_code for fault in self._assembly.faults}
        if any(code >> NPT_ONLY for code in codes):
            return "npt"
        return "ept" if any(code >> EPT_GVA_VALID & 1 for code in codes) else "unknown"

    @cached_property
    def _assembly(self) -> Assembly:
        return assemble(self._lines, self.kernel, self._slot)

    @property
    def _outcomes(self) -> Counter[str]:
        return Counter(fault.outcome for fault in self._assembly.faults if fault.outcome != "unfinished")

    @cached_property
    def events(self) -> pd.DataFrame:
        """All events that were read, a row each, in the order of the file."""
        import numpy as np
        import pandas as pd

        lines = self._lines
        event = lines.event
        frame = pd.DataFrame({"time_ps": lines.time_ps})
        pids = pd.Series(lines.pid)
        frame["task"] = pids.map(lines.tasks).astype("category")
        frame["pid"] = pids
        frame["cpu"] = lines.cpu.astype("i8")
        frame["event"] = pd.Categorical.from_codes(event.astype("i1"), categories=pd.Index(EVENTS))
        words = (lines.a, lines.b, lines.c, lines.d)
        for name in ORDER:
            values, known = np.zeros(len(event), "u8"), np.zeros(len(event), bool)
            for code, names in enumerate(EVENT_FIELDS.values()):
                if name in names:
                    rows = event == code
                    values[rows] = words[names.index(name)][rows]
                    known |= rows
            known &= values != ABSENT if name in ("vcpu", "rip") else True
            kind = values.view("i8") if name in SIGNED_FIELDS else values
            frame[name] = pd.arrays.IntegerArray(kind, ~known)
        frame.attrs["units"] = {"time_ps": "ps"}
        return frame

    @cached_property
    def faults(self) -> pd.DataFrame:
        """All faults, a row each, in the order they began.

        Columns: `time_ps` and `end_ps` (entry and return), `task`, `pid`, `vcpu`, `gfn`, `kind` (read, write,
        exec, unknown), `error_code`, `outcome` (RET_PF_* less its prefix, ERROR, or ``unfinished`` where the
        recording ends inside), `inferred`, `where` and `why` (for RETRY; see `kvmpfn.traces.faults`),
        `level`, and the times of the probes. `why` is ``range``, ``false_range`` or ``seq``: whether the gfn
        lay at the failed check in a range being invalidated, in the gap between two, or in neither.
        """
        import pandas as pd

        frame = _frame(self._assembly.faults, Fault).drop(columns="evidence")
        frame.insert(2, "task", frame["pid"].map(self._lines.tasks).astype("category"))
        kinds = [_access_kind(code, self.mmu) for code in set(frame["error_code"])]
        kind_of = dict(zip(set(frame["error_code"]), kinds, strict=True))
        frame.insert(6, "kind", pd.Series(frame["error_code"].map(kind_of), dtype="category"))
        for name in ("outcome", "where", "why"):
            frame[name] = frame[name].astype("category")
        frame.attrs["units"] = {name: "ps" for name in frame.columns if name.endswith("_ps")}
        return frame

    @cached_property
    def invalidations(self) -> pd.DataFrame:
        """All notifier calls, a row each.

        Columns: `start_ps` (the start call), `start_ret_ps` (its return), `end_ps` (the end call), `seq_ps`
        (sequence number about to move; kernels that inline it have none), `end_ret_ps`, the thread, the range
        in host addresses, and in gfns where it meets the data slot of the CONFIG line.
        """
        frame = _frame(self._assembly.invalidations, Invalidation)
        frame.insert(1, "task", frame["pid"].map(self._lines.tasks).astype("category"))
        frame.attrs["units"] = {
            name: "ps" if name.endswith("_ps") else "B"
            for name in frame.columns
            if "_ps" in name or "hva" in name
        }
        return frame

    @cached_property
    def accesses(self) -> pd.DataFrame:
        """What the guest asked for: consecutive faults of one vCPU on one gfn, until not RETRY, are one row.

        A gfn that faults again after it was resolved is another access. `think_ps` is the time from the
        handler's return for one access to the first fault of the next, so it holds the entry, the guest and
        the exit.
        """
        import pandas as pd

        rows: list[dict[str, Any]] = []
        last: dict[int, dict[str, Any]] = {}
        mmu = self.mmu
        for fault in self._assembly.faults:
            row = last.get(fault.vcpu)
            if row is None or row["outcome"] != "RETRY" or row["gfn"] != fault.gfn:
                think = 0 if row is None or row["end_ps"] < 0 else fault.time_ps - row["end_ps"]
                row = {
                    "time_ps": fault.time_ps,
                    "end_ps": -1,
                    "vcpu": fault.vcpu,
                    "gfn": fault.gfn,
                    "kind": _access_kind(fault.error_code, mmu),
                    "think_ps": think,
                    "tries": 0,
                    "outcome": "",
                }
                rows.append(row)
                last[fault.vcpu] = row
            row["end_ps"], row["outcome"] = fault.end_ps, fault.outcome
            row["tries"] += 1
        names = ["time_ps", "end_ps", "vcpu", "gfn", "kind", "think_ps", "tries", "outcome"]
        frame = pd.DataFrame(rows, columns=names)
        frame["end_ps"] = frame["end_ps"].astype("Int64").where(frame["end_ps"] >= 0)
        frame.attrs["units"] = {name: "ps" for name in names if name.endswith("_ps")}
        return frame

    def counters(self) -> pd.Series[int]:
        """Return KVM's own statistics of the whole run, after minus before, summed over vCPUs."""
        if self.statistics is None:
            raise InputError(f"{self.name}: no counters; nearest valid: the run's .txt beside the recording")
        return self.statistics.counters()

    def outcomes(self) -> pd.Series[int]:
        """Return how many of the recorded faults ended in each outcome, most frequent first."""
        import pandas as pd

        return pd.Series(dict(self._outcomes.most_common()), dtype="int64", name="outcomes")

    def phases(self, outcome: str = "FIXED") -> pd.DataFrame:
        """Return how long the phases of the faults with one outcome took.

        Parameters
        ----------
        outcome : str
            Which faults.

        Returns
        -------
        DataFrame
            One row a phase of `PHASES`: `count`, and `median`, `mean` and `p90` in microseconds.
        """
        import pandas as pd

        faults = self.faults[self.faults["outcome"] == outcome]
        rows = {}
        for phase, (begin, end) in PHASES.items():
            spent = (faults[end] - faults[begin]).dropna().astype("float64") / 1e6
            rows[phase] = [len(spent), spent.median(), spent.mean(), spent.quantile(0.9)]
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=["count", "median", "mean", "p90"])
        frame.attrs["units"] = dict.fromkeys(("median", "mean", "p90"), "us")
        return frame

    def replay_gfns(self) -> dict[int, int]:
        """Return where each recorded gfn lies in the memory of a replay.

        The data slot comes first, page for page; pages outside it (the guest's code and page tables) follow
        in the order of their addresses. Without a CONFIG line gfns stay as they are.
        """
        gfns = sorted({fault.gfn for fault in self._assembly.faults})
        if self._slot is None:
            return {gfn: gfn for gfn in gfns}
        first, _, pages = self._slot
        places = {gfn: gfn - first for gfn in gfns if first <= gfn < first + pages}
        outside = [gfn for gfn in gfns if gfn not in places]
        return places | {gfn: pages + place for place, gfn in enumerate(outside)}

    @property
    def replay_bytes(self) -> int:
        """Memory that a scenario needs for `workload`."""
        last = max(self.replay_gfns().values(), default=-1) + 1
        pages = self._slot[2] if self._slot else 0
        return max(last, pages) << PAGE_SHIFT

    def workload(self, *, think: bool = True) -> workloads.Workload:
        """Return the recorded accesses as a workload.

        Retries are outcomes of the recorded kernel, not input: see `accesses`. Gfns are those of
        `replay_gfns`, and the scenario's memory must have `replay_bytes`.

        Parameters
        ----------
        think : bool
            Whether the times between accesses are replayed too; they hold the recording's own entries and
            exits, in the recording's clock.
        """
        places = self.replay_gfns()
        frame = self.accesses
        vcpus: dict[int, list[tuple[int, int, int]]] = {vcpu: [] for vcpu in sorted(frame["vcpu"].unique())}
        columns = (frame[name].tolist() for name in ("vcpu", "gfn", "kind", "think_ps"))
        for vcpu, gfn, kind, pause in zip(*columns, strict=True):
            vcpus[vcpu].append((places[gfn], ACCESS_KIND[kind], pause if think else 0))
        return workloads.replay(vcpus=tuple(tuple(accesses) for accesses in vcpus.values()))

    def storms(self) -> list[storm_models.Storm]:
        """Return a fitted storm for each thread that invalidated the data slot at least three times.

        The CONFIG line tells a periodic storm from a closed loop. Without it the times do: even pauses
        between an end and the next start make a closed loop, even gaps between starts a periodic storm; else
        arrivals are Poisson. Span and hold are medians; a hold runs from the start's return to the end call.
        """
        threads: dict[int, list[Invalidation]] = {}
        for one in self._assembly.invalidations:
            if one.gfn_start >= 0 or self._slot is None:
                threads.setdefault(one.pid, []).append(one)
        return [self._fit(calls) for calls in threads.values() if len(calls) >= 3]

    def _fit(self, calls: list[Invalidation]) -> storm_models.Storm:
        """Fit one thread's invalidations."""
        span = format_size(median_high(one.hva_end - one.hva_start for one in calls))
        held = [one.end_ps - one.start_ret_ps for one in calls if one.end_ps >= 0 <= one.start_ret_ps]
        hold = format_time(median_high(held) if held else 0)
        gaps = [after.start_ps - before.start_ps for before, after in pairwise(calls)]
        pauses = [
            after.start_ps - before.end_ret_ps for before, after in pairwise(calls) if before.end_ret_ps >= 0
        ]
        asked = float(self.config.get("rate", 0))
        even_pauses = bool(pauses) and _width(pauses) < min(_width(gaps), EVEN * sum(pauses) / len(pauses))
        if asked < 0 or (not asked and even_pauses):
            think = format_time(max(0, median_high(pauses)))
            return storm_models.closed_loop(think=think, span=span, hold=hold, action="madvise")
        mean = sum(gaps) / len(gaps)
        even = asked > 0 or _width(gaps) < EVEN * mean
        shape = storm_models.periodic if even else storm_models.poisson
        return shape(rate=f"{1e12 / mean:.3f}/s", span=span, hold=hold, action="madvise")


def _width(values: list[int]) -> int:
    """Return the distance between the 5th and the 95th percentile."""
    cut = len(values) // 20
    middle = sorted(values)[cut : len(values) - cut]
    return middle[-1] - middle[0]


def read_trace(
    path: str | os.PathLike[str] | Records, *, kernel: str | None = None, clock_hz: float | None = None
) -> Trace:
    """Read a recording: ftrace text, plain or gzip, and the run's text file beside it if there is one.

    Parameters
    ----------
    path : path-like or Records
        The recording, for instance ``NAME.trace.gz``; ``NAME.txt`` beside it tells the set-up and counters.
        Or events that were read, as by `kvmpfn.read_bpftrace` with a pattern of the user's.
    kernel : str, optional
        Kernel version recorded, such as ``"6.1"``; found from the entries' empty value, else from the name of
        the folder, if not given.
    clock_hz : float, optional
        Rate of the recording's clock, for times in ticks.

    Returns
    -------
    Trace
        The recording.
    """
    if isinstance(path, Records):
        return Trace("records", _kernel(kernel, path, Path("records")), path, None)
    file = Path(path)
    if not file.is_file():
        there = [one.name for one in sorted(file.parent.glob("*.trace*"))] if file.parent.is_dir() else []
        near = nearest(file.name, there) if there else "none"
        raise InputError(f"{file.name}: no such recording; nearest valid: {near}")
    lines = read_bpftrace(file) if is_preset(file) else read_records(file, clock_hz=clock_hz)
    if not len(lines):
        raise InputError(f"{file.name}: no event of KVM in it; nearest valid: text of the ftrace buffer")
    text = file.with_name(re.sub(r"(\.trace)?(\.txt|\.dat)?(\.gz)?$", "", file.name, count=1) + ".txt")
    statistics = _summary(text) if text.is_file() and text != file else None
    return Trace(file.name, _kernel(kernel, lines, file), lines, statistics)


def _summary(text: Path) -> Counters | None:
    """Read the run's text file; another file may have its name, such as a recording's text."""
    try:
        return read_counters(text)
    except InputError:
        return None


def _kernel(given: str | None, lines: Records, file: Path) -> str:
    """Say whose numbers the returns have: told, seen in the first entry made, or in the folder's name."""
    if given is not None:
        found = re.fullmatch(r"v?(\d+)\.(\d+)(?:\..*)?", given)
        if found is None or int(found[1]) < 6:
            raise InputError(f"kernel={given!r}: not a version; nearest valid: {' or '.join(OUTCOMES)}")
        return "6.1" if (int(found[1]), int(found[2])) < (6, 12) else "6.16"
    changed = lines.c[lines.event == CODE["kvm_tdp_mmu_spte_changed"]].tolist()
    empty = next((old for old in changed if not old >> MMU_PRESENT & 1), None)
    if empty is not None:
        return "6.16" if empty >> 63 else "6.1"
    folder = file.resolve().parent.name
    for name in reversed(OUTCOMES):
        if folder.endswith((name, name.replace(".", ""))):
            return name
    if not (lines.event == CODE["pf_ret"]).any():
        return "6.16"
    raise InputError(f"{file.name}: kernel unknown; nearest valid: kernel='6.1' or kernel='6.16'")


def _access_kind(code: int, mmu: str) -> str:
    """Read the kind of access from an error code."""
    if mmu == "npt":
        return "exec" if code >> 4 & 1 else "write" if code >> 1 & 1 else "read"
    if mmu == "ept":
        return "exec" if code >> 2 & 1 else "write" if code >> 1 & 1 else "read"
    return "unknown"


def _frame(rows: list[Any], kind: type) -> pd.DataFrame:
    """Make a table of records; numbers of -1 mean that nothing told them."""
    import pandas as pd

    frame = pd.DataFrame({one.name: [getattr(row, one.name) for row in rows] for one in fields(kind)})
    for name in ("gup_ps", "faultin_ps", "stale_ps", "map_ps", "end_ps", "level"):
        _optional(frame, name)
    for name in ("start_ret_ps", "seq_ps", "end_ret_ps", "gfn_start", "gfn_end"):
        _optional(frame, name)
    return frame


def _optional(frame: pd.DataFrame, name: str) -> None:
    """Turn -1 into a missing value."""
    if name in frame.columns:
        column = frame[name].astype("Int64")
        frame[name] = column.mask(column < 0)
