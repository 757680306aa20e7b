"""SPIN says the same of the core protocol, state for state.

fault.pml was written apart from `kvmpfn.protocol`. Under sequential consistency both count one state for each
difference in the shared words or in what a thread knows and will still use, so the numbers are equal but for
one: SPIN counts the state before `init` has set the counts of frame 0. Of what is unsafe only the verdicts,
and the lengths of the shortest counterexamples, are compared: a search that stops early has no number of its
own. The lengths are those of SPIN's breadth-first search, less the steps of `init`, the same for all.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kvmpfn.fault_path import FaultPath
from kvmpfn.protocol import Verdict, check_protocol

MODEL = Path(__file__).with_name("fault.pml")

HELD = {"REFERENCE": 1, "MARK": 1}
NO_REF = {"REFERENCE": 0, "MARK": 0}

if not shutil.which("spin") or not shutil.which("gcc"):
    pytest.skip(
        "SPIN is compared with where it and gcc are installed (Debian: spin, gcc)", allow_module_level=True
    )


def spin(folder: Path, search: str, *flags: str, **macros: object) -> str:
    """Generate, compile and run SPIN's verifier, and return what it prints."""
    defines = [f"-D{name}={value}" for name, value in ({"VCPUS": 2, "CLIENTS": 1} | macros).items()]
    generate = ["spin", "-a", *defines, str(MODEL)]
    compile_ = ["gcc", "-O0", "-w", "-DNOREDUCE", *search.split(), "-o", "pan", "pan.c"]
    for command in (generate, compile_, ["./pan", "-m1000000", "-n", *flags]):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def errors(printed: str) -> int:
    return int(re.search(r"errors: (\d+)", printed)[1])


def states(printed: str) -> int:
    return int(re.search(r"(\d+) states, stored", printed)[1])


def same_number(folder: Path, verdict: Verdict, **macros: object) -> None:
    printed = spin(folder, "-DSAFETY", **macros)
    assert verdict.safe and errors(printed) == 0
    assert states(printed) == verdict.states + 1


@pytest.mark.parametrize("vcpus", [1, 2])
@pytest.mark.parametrize("clients", [1, 2])
@pytest.mark.parametrize(("preset", "macros"), [("v6.1", HELD), ("no_ref", NO_REF)])
def test_presets_are_safe_and_as_large(preset, macros, vcpus, clients, tmp_path):
    if preset == "v6.1" and vcpus == clients == 2:
        pytest.skip("601,092 states, equal too, but slow here")
    verdict = check_protocol(preset, vcpus=vcpus, invalidations=clients, reduced=False)
    same_number(tmp_path, verdict, **macros, VCPUS=vcpus, CLIENTS=clients)


@pytest.mark.parametrize(("preset", "macros"), [("v6.1", HELD), ("no_ref", NO_REF)])
def test_swapped_stores_are_safe_and_as_large(preset, macros, tmp_path):
    verdict = check_protocol(preset, mutate="end_stores_swapped", reduced=False)
    same_number(tmp_path, verdict, **macros, SWAPPED=1)


UNSAFE = {
    "NO_CHECK": (FaultPath("v6.1", seq_checked=False), "", HELD),
    "RANGE_ALONE": (FaultPath("v6.1"), "range_alone", HELD),
    "SEQ_ALONE": (FaultPath("v6.1"), "seq_alone", HELD),
    "LATE_SNAPSHOT": (FaultPath("v6.1"), "snapshot_after_gup", HELD),
    "UNGUARDED": (FaultPath("no_ref", guarded=False), "", NO_REF),
    "NO_FLUSH": (FaultPath("v6.1"), "no_flush", HELD),
    "NO_UNLOCK": (FaultPath("v6.1"), "end_forgets_unlock", HELD),
    "V7": (FaultPath("v7_series"), "", {"REFERENCE": 2, "MARK": 1}),
}


def test_wrong_ways_are_unsafe_and_as_long(tmp_path):
    more = {}
    for macro, (path, mutant, macros) in UNSAFE.items():
        folder = tmp_path / macro
        folder.mkdir()
        printed = spin(folder, "-DSAFETY -DBFS", **macros, **{macro: 1})
        verdict = check_protocol(path, mutate=mutant)
        assert not verdict.safe and errors(printed) == 1
        assert (verdict.violated == "deadlock") == ("pan:1: invalid end state" in printed)
        more[macro] = int(re.search(r"at depth (\d+)", printed)[1]) - len(verdict.counterexample)
    # A deadlock is seen one step later than a step that fails, and the client takes one more to its end.
    assert more.pop("NO_UNLOCK") == more["NO_CHECK"] + 2
    assert len(set(more.values())) == 1, more


@pytest.mark.parametrize(
    ("macros", "safe"), [(HELD, True), (NO_REF, True), (NO_REF | {"NO_DECREMENT": 1}, False)]
)
def test_completion_under_weak_fairness(macros, safe, tmp_path):
    """As a formula of linear time logic there, as the absence of cycles here."""
    printed = spin(tmp_path, "-DNFAIR=3", "-a", "-f", COMPLETION=1, **macros)
    assert (errors(printed) == 0) == safe
    mutate = "end_forgets_decrement" if "NO_DECREMENT" in macros else ""
    verdict = check_protocol("v6.1" if macros["REFERENCE"] else "no_ref", mutate=mutate)
    assert verdict.safe == safe and verdict.violated in (None, "completion")
