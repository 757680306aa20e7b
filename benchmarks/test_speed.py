"""Parts of the simulator by pytest-benchmark, to hold one commit against another.

`pytest benchmarks --benchmark-enable --benchmark-autosave`, and after a change the same with
`--benchmark-compare`. Without `--benchmark-enable` each runs once and is a test like any other. How fast the
whole is, and beside what, is `kvmpfn bench`'s to say.
"""

from __future__ import annotations

import pytest

from kvmpfn.bench import case
from kvmpfn.fault_path import PRESETS
from kvmpfn.scenario import Scenario
from kvmpfn.simulator import simulate
from kvmpfn.study import sweep

FAULTS = 20_000


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
