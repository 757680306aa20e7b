"""Rounds of runs, and the tables made of them.

A machine's speed wanders, all the more if it is shared. So what is compared runs once in each round, one
after the other, and ratios are taken round by round; what is reported is the median with the least and the
greatest.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kvmpfn.bench.cases import QUICK, STORMS, Plan, bench_16g, case
from kvmpfn.bench.programs import Floor, Sample, Unavailable, engine, fresh_python, oracle, update_rate
from kvmpfn.bench.report import Report
from kvmpfn.scenario import Region, Scenario
from kvmpfn.simulator import InvariantError, simulate
from kvmpfn.study import sweep

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["measure"]

BYTES_A_PAGE = 64
"""More than the engine takes for a page of guest memory with all its tables, and a loop of updates again."""

FIRST_SIMULATE = """
import json, sys, time
began = time.perf_counter()
import kvmpfn
imported = time.perf_counter()
kvmpfn.simulate(kvmpfn.Scenario.from_json(sys.argv[1]), progress=False)
print(json.dumps([imported - began, time.perf_counter() - began]))
"""

SMALL = "8 vCPUs, 256MiB"
"""The scenario that the oracle can run."""

Note = Callable[[str], None]


class Spread(NamedTuple):
    """A median with the least and the greatest value."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum values up."""
        return cls(statistics.median(values), min(values), max(values))


def measure(plan: Plan = QUICK, progress: Note = lambda text: None) -> Report:
    """Measure all that a plan asks for.

    Parameters
    ----------
    plan : Plan
        How much.
    progress : callable
        Is told what is measured next, in a few words.

    Returns
    -------
    Report
        The tables, and a note for everything that was left out.

    Raises
    ------
    InvariantError
        Runs in threads found something else than runs one after the other.
    """
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="kvmpfn-bench-") as scratch:
        progress("compiling")
        engine(case(1, "4MiB", storms=False, faults=1))
        update_rate(1)
        try:
            floor = Floor(Path(scratch))
        except Unavailable as reason:
            floor = None
            notes.append(str(reason))
        tables = {
            "yardsticks": _yardsticks(plan, floor, notes, progress),
            "sizes": _sizes(plan, floor, notes, progress),
            "presets": _presets(plan, progress),
            "footprint": _footprint(progress),
            "parallel": _parallel(plan, floor, progress),
        }
        if plan.start:
            tables["start"] = _start(plan, Path(scratch), notes, progress)
    return Report.now(tables, notes)


def _rounds(
    programs: Mapping[str, Callable[[], Any]], repetitions: int, progress: Note, what: str
) -> dict[str, list[Any]]:
    """Run every program once a round, and collect what each returns, round by round."""
    found: dict[str, list[Any]] = {name: [] for name in programs}
    for number in range(repetitions):
        for name, program in programs.items():
            progress(f"{what}: {name}, round {number + 1} of {repetitions}")
            found[name].append(program())
    return found


def _rate_row(samples: Sequence[Sample]) -> dict[str, float]:
    """Sum up runs of one program."""
    rate = Spread.of([sample.rate for sample in samples])
    return {
        "taken_per_s": rate.median,
        "low": rate.low,
        "high": rate.high,
        "events_per_s": statistics.median(sample.event_rate for sample in samples),
        "retry_share": samples[0].retry_share,
        "events_per_fault": samples[0].events / samples[0].taken,
    }


def _yardsticks(plan: Plan, floor: Floor | None, notes: list[str], progress: Note) -> pd.DataFrame:
    """Time other programs on the engine's scenario: the one in C, and on a smaller one the oracle."""
    standard, small = bench_16g(plan.bench_faults), case(8, "256MiB", faults=plan.oracle_faults)
    programs = {"bench-16g": {"engine": _engine_runner(standard)}, SMALL: {"engine": _engine_runner(small)}}
    if floor:
        window = floor.window_for(standard, engine(standard).retry_share)
        programs["bench-16g"] |= {
            "C": _floor_runner(floor, standard, window, prefetch=False),
            "C, prefetching": _floor_runner(floor, standard, window, prefetch=True),
        }
    try:
        oracle(small.replace(until=1))
        programs[SMALL]["oracle"] = lambda: oracle(small)
    except Unavailable as reason:
        notes.append(str(reason))
    rows = []
    for title, others in programs.items():
        found = _rounds(others, plan.repetitions, progress, title)
        for name, samples in found.items():
            ratio = Spread.of([b.rate / a.rate for a, b in zip(found["engine"], samples, strict=True)])
            rows.append(
                {
                    "scenario": title,
                    "program": name,
                    **_rate_row(samples),
                    "handoffs_per_fault": samples[0].handoffs / samples[0].taken or math.nan,
                    "of_engine": ratio.median,
                    "of_engine_low": ratio.low,
                    "of_engine_high": ratio.high,
                }
            )
    return _frame(rows, of_engine="1", of_engine_low="1", of_engine_high="1")


def _engine_runner(scenario: Scenario) -> Callable[[], Sample]:
    return lambda: engine(scenario)


def _floor_runner(floor: Floor, scenario: Scenario, window: int, prefetch: bool) -> Callable[[], Sample]:
    return lambda: floor.run(scenario, window, prefetch)


def _updates_runner(size: int) -> Callable[[], float]:
    return lambda: update_rate(size)


def _sizes(plan: Plan, floor: Floor | None, notes: list[str], progress: Note) -> pd.DataFrame:
    """Time the grid of sizes; beside each size the C program, and cache misses over as much memory."""
    rows = []
    for memory in plan.memory:
        sizes = [(vcpus, case(vcpus, memory, faults=plan.faults)) for vcpus in plan.vcpus]
        need, free = sizes[0][1].pages * BYTES_A_PAGE, _memory_available()
        if need > free:
            notes.append(f"{memory}: left out; takes up to {need >> 20} MiB of memory, {free >> 20} are free")
            continue
        programs: dict[str, Callable[[], Any]] = {}
        footprint = 0
        for vcpus, scenario in sizes:
            first = engine(scenario)
            footprint = max(footprint, first.simulator_bytes)
            programs[f"engine, {vcpus} vCPUs"] = _engine_runner(scenario)
            if floor:
                window = floor.window_for(scenario, first.retry_share)
                programs[f"C, {vcpus} vCPUs"] = _floor_runner(floor, scenario, window, prefetch=True)
        programs["updates"] = _updates_runner(footprint)
        found = _rounds(programs, plan.repetitions, progress, memory)
        for vcpus, scenario in sizes:
            samples = found[f"engine, {vcpus} vCPUs"]
            beside = found.get(f"C, {vcpus} vCPUs", [])
            shares = [a.rate / b.rate for a, b in zip(samples, beside, strict=False)]
            rows.append(
                {
                    "memory": memory,
                    "vcpus": vcpus,
                    **_rate_row(samples),
                    "bytes_per_page": samples[0].simulator_bytes / scenario.pages,
                    "c_per_s": statistics.median(b.rate for b in beside) if beside else math.nan,
                    "of_c": statistics.median(shares) if shares else math.nan,
                    "updates_per_s": statistics.median(found["updates"]),
                }
            )
    return _frame(rows, bytes_per_page="B", c_per_s="1/s", of_c="1", updates_per_s="1/s")


def _presets(plan: Plan, progress: Note) -> pd.DataFrame:
    """Time `bench_16g` under fault paths, with and without its storms."""
    variants = {
        f"{preset}{'' if storms else ' without storms'}": (preset, storms)
        for preset in plan.presets
        for storms in (True, False)
    }
    programs = {
        name: _engine_runner(case(64, "16GiB", preset=preset, storms=storms, faults=plan.faults))
        for name, (preset, storms) in variants.items()
    }
    found = _rounds(programs, plan.repetitions, progress, "presets")
    return _frame(
        [
            {"preset": preset, "storms": STORMS if storms else 0, **_rate_row(found[name])}
            for name, (preset, storms) in variants.items()
        ]
    )


def _parallel(plan: Plan, floor: Floor | None, progress: Note) -> pd.DataFrame:
    """Time replicas one after the other, and in a thread for each processor.

    A machine that is shared may not let threads have more of it than one had: see what they *got*, their CPU
    time by the clock's, and how many times faster than one after the other as many processes of the C program
    are, which share nothing at all.
    """
    workers = _processors()
    scenario = case(16, "1GiB", faults=plan.faults)
    replicas = 2 * workers
    digests: dict[str, list[str]] = {}

    def run(executor: str | int) -> tuple[float, float]:
        began, used = time.perf_counter(), time.process_time()
        study = sweep(scenario, {"vcpus": [16]}, replicas=replicas, executor=executor)
        seconds, used = time.perf_counter() - began, time.process_time() - used
        digests[str(executor)] = [one.digest for one in study.runs[0]]
        return seconds, used / seconds

    programs: dict[str, Callable[[], Any]] = {
        "serial": lambda: run("serial"),
        "threads": lambda: run(workers),
    }
    if floor:
        standard = bench_16g(plan.bench_faults)
        programs["C once"] = lambda: floor.at_once(standard, 1_000_000, 1)
        programs["C at once"] = lambda: floor.at_once(standard, 1_000_000, workers)
    found = _rounds(programs, plan.repetitions, progress, "replicas")
    if digests["serial"] != digests[str(workers)]:
        raise InvariantError("runs in threads found something else than runs one after the other")
    speedup = Spread.of([a / b for (a, _), (b, _) in zip(found["serial"], found["threads"], strict=True)])
    row: dict[str, float] = {"threads": workers, "replicas": replicas}
    for name in ("serial", "threads"):
        row[f"{name}_s"] = statistics.median(seconds for seconds, _ in found[name])
        row[f"{name}_got"] = statistics.median(processors for _, processors in found[name])
    row |= {"speedup": speedup.median, "low": speedup.low, "high": speedup.high}
    row["efficiency"] = speedup.median / workers
    apart = [
        workers * a / b for a, b in zip(found.get("C once", []), found.get("C at once", []), strict=True)
    ]
    row["c_speedup"] = statistics.median(apart) if apart else math.nan
    ratios = ("serial_got", "threads_got", "speedup", "low", "high", "efficiency", "c_speedup")
    return _frame([row], serial_s="s", threads_s="s", **dict.fromkeys(ratios, "1"))


def _wall(scenario: Scenario) -> float:
    """Seconds that a user waits for a run."""
    began = time.perf_counter()
    engine(scenario)
    return time.perf_counter() - began


def _footprint(progress: Note) -> pd.DataFrame:
    """Take the simulator's memory once all of a guest's is mapped: no run of its size needs more."""
    progress("memory")
    region = Region("1GiB", mapped=True)
    scenario = case(1, "1GiB", storms=False).replace(memory=[region], until="1us")
    run = simulate(scenario, progress=False)
    size = int(run.metric("memory.simulator_bytes"))
    row = {"memory": region.size, "simulator_bytes": size, "bytes_per_page": size / scenario.pages}
    return _frame([row], simulator_bytes="B", bytes_per_page="B")


def _start(plan: Plan, scratch: Path, notes: list[str], progress: Note) -> pd.DataFrame:
    """Time what one waits for: imports, the first run of a process, a compilation, a small run."""
    first, small = case(1, "4MiB", storms=False, faults=100).to_json(), case(16, "1GiB", faults=100_000)
    cold: list[float] = []
    environment = {}
    if plan.cold:
        # Once: it takes minutes on a busy machine. The processes after it find what it compiled.
        progress("start: cold compile")
        environment["KVMPFN_CACHE_DIR"] = str(scratch / "cache")
        cold.append(fresh_python(FIRST_SIMULATE, first, **environment)[1])
    else:
        notes.append("cold compile: measured by the full benchmark only")
    programs: dict[str, Callable[[], Any]] = {
        "fresh process": lambda: fresh_python(FIRST_SIMULATE, first, **environment),
        "100,000 faults": lambda: _wall(small),
    }
    found = _rounds(programs, plan.repetitions, progress, "start")
    times = {
        "import kvmpfn": [imported for imported, _ in found["fresh process"]],
        "first simulate of a process, imports included": [total for _, total in found["fresh process"]],
        "the same with nothing compiled yet": cold,
        "100,000 faults of 16 vCPUs, 1GiB, two storms": found["100,000 faults"],
    }
    spreads = [(what, Spread.of(seconds)) for what, seconds in times.items() if seconds]
    rows = [{"what": what, "seconds": s.median, "low": s.low, "high": s.high} for what, s in spreads]
    return _frame(rows, seconds="s", low="s", high="s")


def _frame(rows: Sequence[Mapping[str, Any]], **units: str) -> pd.DataFrame:
    """Make a table of rows, with its columns' units."""
    import pandas as pd

    frame = pd.DataFrame(list(rows))
    rates = dict.fromkeys(("taken_per_s", "low", "high", "events_per_s"), "1/s")
    rates |= dict.fromkeys(("retry_share", "events_per_fault", "handoffs_per_fault"), "1")
    frame.attrs["units"] = {name: unit for name, unit in (rates | units).items() if name in frame}
    return frame


def _processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_available() -> int:
    """Bytes of memory that can be had without swapping; all there is where Linux does not say."""
    info = Path("/proc/meminfo")
    for line in info.read_text(encoding="ascii").splitlines() if info.is_file() else ():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) << 10
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
