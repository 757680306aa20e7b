"""Parts of the simulator by pytest-benchmark, to hold one commit against another.

`pytest benchmarks --benchmark-enable --benchmark-autosave`, and after a change the same with
`--benchmark-compare`. Without `--benchmark-enable` each runs once and is a test like any other. How fast the
whole is, and beside what, is `kvmpfn bench`'s to say.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from kvmpfn.bench import case
from kvmpfn.fault_path import PRESETS
from kvmpfn.scenario import Scenario
from kvmpfn.simulator import simulate
from kvmpfn.study import sweep
from kvmpfn.traces.events.read import convert, read_blocks

FAULTS = 20_000
LINES = 1_000_000
RECORDING = Path(__file__).parents[1] / "data" / "recordings" / "6.1" / "st-v1-r1000.trace.gz"
EXIT = "reason EPT_VIOLATION rip 0xffffffffa0360413 info"
INFOS = "info1 0x0000000000000d82 info2 0x0000000000000000 intr_info 0x00000000 error_code 0x00000000"
TEXTS = {
    "ftrace": "       CPU 3/KVM-4145    [002] d..1.  {}: kvm_exit: vcpu 3 " + f"{EXIT[:-5]} {INFOS}",
    "report": "       CPU 3/KVM-4145  [002]  {}: kvm_exit:             " + f"{EXIT} d82 0",
    "script": "       CPU 3/KVM  4145 [002]  {}:    kvm:kvm_exit: vcpu 3 " + f"{EXIT[:-5]} {INFOS}",
    "trace": " {} CPU 3/KVM/4145 kvm:kvm_exit(exit_reason: 48, guest_rip: 7, isa: 1, info1: 2, vcpu_id: 3)",
    "quoted": ">       CPU 3/KVM-4145  [002]  {}: kvm_exit:             " + f"{EXIT} d82 0",
}
"""An exit as ftrace, trace-cmd report, perf script and perf trace write it, and in an answer to a mail."""


def run(benchmark, scenario: Scenario) -> None:
    """Time a simulation; how much it simulated stands beside the times."""
    found = benchmark(simulate, scenario, progress=False)
    benchmark.extra_info |= {"taken": int(found.metric("pf_taken")), "events": found.meta["events"]}
    assert 0 <= found.metric("pf_taken") - scenario.until_faults < scenario.vcpus  # those on their way


@pytest.mark.parametrize("storms", [True, False], ids=["storms", "calm"])
@pytest.mark.parametrize("preset", PRESETS)
def test_fault_path(benchmark, preset, storms):
    run(benchmark, case(16, "256MiB", preset=preset, storms=storms, faults=FAULTS))


@pytest.mark.parametrize("memory", ["4GiB", "64GiB"])
@pytest.mark.parametrize("vcpus", [8, 64, 512])
def test_size(benchmark, vcpus, memory):
    run(benchmark, case(vcpus, memory, faults=FAULTS))


def test_one_fault(benchmark):
    """What a run costs before and after its faults."""
    run(benchmark, case(64, "16GiB", faults=1))


def test_scenario_from_json(benchmark):
    scenario = case(64, "16GiB")
    assert benchmark(Scenario.from_json, scenario.to_json()) == scenario


@pytest.mark.parametrize("executor", ["serial", "local"])
def test_replicas(benchmark, executor):
    scenario = case(16, "256MiB", faults=FAULTS)
    study = benchmark(sweep, scenario, {"vcpus": [16]}, replicas=4, executor=executor)
    digests = [one.digest for one in study.runs[0]]
    assert digests == [simulate(one.scenario, progress=False).digest for one in study.runs[0]]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lines of a recorded storm, over and over."""
    text = gzip.decompress(RECORDING.read_bytes())
    path = tmp_path_factory.mktemp("recordings") / "recording"
    path.write_bytes(text * -(-LINES // text.count(b"\n")))
    return path


def read(path: Path) -> int:
    return sum(block.lines for block in read_blocks(path, progress=False))


def test_recording(benchmark, recording):
    assert benchmark(read, recording) >= LINES


def test_recording_into_parquet(benchmark, recording, tmp_path):
    assert benchmark(convert, recording, tmp_path / "out.parquet", progress=False).lines >= LINES


@pytest.mark.parametrize("tool", TEXTS)
def test_text(benchmark, tmp_path, tool):
    lines = LINES // (20 if tool == "quoted" else 4)
    path = tmp_path / "text"
    path.write_text("".join(f"{TEXTS[tool].format(f'{86 + n / 1000:.3f}')}\n" for n in range(lines)))
    assert benchmark(read, path) == lines
