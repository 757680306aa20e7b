"""The programs that are timed: the engine, the oracle, a yardstick in C, and a loop that misses caches."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kvmpfn.core.jit import kernel
from kvmpfn.simulator import simulate

if TYPE_CHECKING:
    from kvmpfn.scenario import Scenario

__all__ = ["Floor", "Sample", "Unavailable", "engine", "fresh_python", "oracle", "update_rate"]

CHECKOUT = Path(__file__).resolve().parents[2]
"""Where benchmarks/ and tests/ stand, unless the package was installed without them."""

UPDATES = 1 << 21
WORDS_A_LINE = 8

HANDOFFS = ("core", "llc", "socket", "remote")
"""How far a line can come from another processor of the model."""

WINDOW_STEPS = 6
"""Runs of the C program that bring its share of retries to that of another."""

ORACLE = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import oracle
from kvmpfn.scenario import Scenario
scenario = Scenario.from_json(sys.stdin.read())
began = time.thread_time()
found = oracle.simulate(scenario)
seconds = time.thread_time() - began
retry = sum(n for vm in found.vms for name, n in vm.counters.items() if name.startswith("retry."))
taken, events = found.total("pf_taken"), len(found.log)
print(json.dumps({"seconds": seconds, "taken": taken, "events": events, "retry": retry}))
"""


class Unavailable(RuntimeError):
    """A program cannot be run here; one line says why."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of a program.

    Attributes
    ----------
    seconds : float
        CPU time, that for its memory included: what other programs take of a shared machine is left out.
    taken, events, retry : int
        Faults taken, events, and faults that ended in RETRY.
    simulator_bytes : int
        Memory that the engine laid out; 0 for the others.
    handoffs : int
        Cache lines of the model that one of its processors took from another; 0 for the others.
    """

    seconds: float
    taken: int
    events: int
    retry: int
    simulator_bytes: int = 0
    handoffs: int = 0

    @property
    def rate(self) -> float:
        """Faults taken a second of one processor."""
        return self.taken / self.seconds

    @property
    def event_rate(self) -> float:
        """Events a second of one processor."""
        return self.events / self.seconds

    @property
    def retry_share(self) -> float:
        """RETRY by faults taken."""
        return self.retry / self.taken


def engine(scenario: Scenario) -> Sample:
    """Time `simulate`, from the scenario to the Run."""
    began = time.thread_time()
    run = simulate(scenario, progress=False)
    seconds = time.thread_time() - began
    return Sample(
        seconds,
        taken=int(run.metric("pf_taken")),
        events=run.meta["events"],
        retry=int(run.metric("retry")),
        simulator_bytes=int(run.metric("memory.simulator_bytes")),
        handoffs=sum(int(run.metric(f"transfers.{distance}")) for distance in HANDOFFS),
    )


def fresh_python(code: str, *arguments: str, stdin: str = "", **environment: str) -> Any:
    """Run Python code in a process of its own that imports this package, and return the JSON it prints.

    Parameters
    ----------
    code : str
        What to run.
    *arguments : str
        Its ``sys.argv[1:]``.
    stdin : str
        Its standard input.
    **environment : str
        Variables to change.
    """
    path = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        input=stdin,
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def oracle(scenario: Scenario) -> Sample:
    """Time the oracle of tests/oracle, in a process of its own, without its imports.

    Raises
    ------
    Unavailable
        There is no checkout, or no SimPy.
    """
    tests = CHECKOUT / "tests"
    if not (tests / "oracle").is_dir():
        raise Unavailable("oracle: left out; the package is not in a checkout with tests/oracle")
    if importlib.util.find_spec("simpy") is None:
        raise Unavailable("oracle: left out; SimPy is not installed (the extra 'dev' has it)")
    return Sample(**fresh_python(ORACLE, str(tests), stdin=scenario.to_json()))


class Floor:
    """The yardstick, benchmarks/floor.c, compiled by the system's C compiler.

    Parameters
    ----------
    folder : Path
        Where the binary goes.

    Raises
    ------
    Unavailable
        There is no checkout, no compiler, or it fails.
    """

    def __init__(self, folder: Path) -> None:
        source = CHECKOUT / "benchmarks" / "floor.c"
        compiler = shutil.which("cc")
        if not source.is_file():
            raise Unavailable("floor: left out; the package is not in a checkout with benchmarks/floor.c")
        if compiler is None:
            raise Unavailable("floor: left out; there is no C compiler 'cc'")
        self.binary = folder / "floor"
        done = subprocess.run(
            [compiler, "-O2", "-o", str(self.binary), str(source), "-lm"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            first = next(iter(done.stderr.splitlines()), f"exit code {done.returncode}")
            raise Unavailable(f"floor: left out; cc: {first}")

    def numbers(self, scenario: Scenario, window_ps: int, prefetch: bool) -> dict[str, Any]:
        """Run the program on a scenario made by `case`, and return all that it prints.

        Parameters
        ----------
        scenario : Scenario
            Where pages, vCPUs, faults, seed and the storms' numbers are taken from.
        window_ps : int
            From a fault's snapshot of the sequence to its check, in ps.
        prefetch : bool
            Whether the record of the next page is asked for ahead.
        """
        done = subprocess.run(
            self.command(scenario, window_ps, prefetch), stdout=subprocess.PIPE, text=True, check=True
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def command(self, scenario: Scenario, window_ps: int, prefetch: bool) -> list[str]:
        """Return the program's command line; see `numbers`."""
        storm = scenario.storms[0] if scenario.storms else None
        numbers = (
            scenario.pages,
            scenario.vcpus,
            scenario.until_faults,
            scenario.seed,
            storm.gap_ps if storm else 0,
            storm.span_pages if storm else 1,
            storm.hold_ps if storm else 0,
            window_ps,
            int(prefetch),
        )
        return [str(self.binary), *map(str, numbers)]

    def at_once(self, scenario: Scenario, window_ps: int, processes: int) -> float:
        """Run the program in so many processes at once, and return the seconds until the last is done."""
        command = self.command(scenario, window_ps, prefetch=True)
        began = time.perf_counter()
        running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(processes)]
        failed = [process.wait() for process in running]
        if any(failed):
            raise subprocess.CalledProcessError(max(failed), command)
        return time.perf_counter() - began

    def run(self, scenario: Scenario, window_ps: int, prefetch: bool) -> Sample:
        """Time the program; see `numbers`."""
        found = self.numbers(scenario, window_ps, prefetch)
        return Sample(**{name: found[name] for name in ("seconds", "taken", "events", "retry")})

    def window_for(self, scenario: Scenario, share: float) -> int:
        """Return the window, in ps, at which as large a share of faults is retried.

        If invalidations end at a rate L, independently of faults, a window W sees none with probability
        exp(-L W). The true L is a little less than the arrivals', so that W is corrected a few times.
        """
        if not scenario.storms or not 0 < share < 1:
            return 1_000_000
        wanted = -math.log1p(-share)
        window = wanted * scenario.storms[0].gap_ps / len(scenario.storms)
        for _ in range(WINDOW_STEPS):
            found = self.run(scenario, round(window), prefetch=True).retry_share
            if not 0 < found < 1:
                break
            window *= wanted / -math.log1p(-found)
        return round(window)


@kernel
def update_lines(words, count):  # type: ignore[no-untyped-def]  # numba infers them
    """Add one to a word of `count` random cache lines; no update waits for the one before.

    Parameters
    ----------
    words : ndarray of int64, shape (8 * lines,)
        The memory, fewer than 2**31 lines of it.
    count : int
        How often.
    """
    lines = len(words) // WORDS_A_LINE
    x = 1
    for _ in range(count):
        x = x * 6364136223846793005 + 1442695040888963407  # Knuth's MMIX
        words[(((x >> 32) & 0xFFFFFFFF) * lines >> 32) * WORDS_A_LINE] += 1


def update_rate(size: int) -> float:
    """Time updates of random cache lines, and return how many a second of CPU time.

    Parameters
    ----------
    size : int
        The memory's size in bytes; it is all there before the clock starts.
    """
    words = np.zeros(max(1, size // (8 * WORDS_A_LINE)) * WORDS_A_LINE, dtype=np.int64)
    words.fill(1)
    update_lines(words, 1)
    began = time.thread_time()
    update_lines(words, UPDATES)
    return UPDATES / (time.thread_time() - began)
