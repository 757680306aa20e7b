"""Every fault that is planted in the engine is caught (tests/mutation)."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import oracle
import pytest
from mutation.cases import CASES
from mutation.faults import FAULTS
from mutation.run import look, plant

from kvmpfn.core.names import COUNTERS, DISTANCES, PARTS, RMW_CONTEXTS, RMW_LINES, STEPS

NEVER = {
    "stopped",  # no step: what an actor is when it takes none
    "retry.pre_gup.seq",  # the sequence is noted and tested in the same step
    "fault.mn_lock",  # a notifier's own line
}  # fmt: skip
"""What no run can count."""


@pytest.fixture(scope="module")
def caught():
    """What caught each fault; None is the engine as it is. The processes run side by side."""
    every = [None, *FAULTS]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(every, pool.map(look, every), strict=True))


def test_cases_go_everywhere():
    """Every step is taken, everything that can be counted is: else a fault could hide there."""
    seen = set()
    for scenario in CASES.values():
        found = oracle.simulate(scenario)
        seen |= {step for _, _, step, _, _ in found.log}
        for vm in found.vms:
            for counted in (vm.counters, vm.parts, vm.transfers):
                seen |= set(+counted)
            seen |= {f"{context}.{line}" for context, lines in vm.rmw.items() for line in +lines}
    rmw = {f"{context}.{line}" for context in RMW_CONTEXTS for line in RMW_LINES}
    assert {*STEPS, *COUNTERS, *PARTS, *DISTANCES, *rmw} - seen == NEVER


def test_there_are_enough():
    assert len(FAULTS) >= 25
    assert len({fault.what for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.file}: {fault.what}")
def test_a_fault_is_planted_once(fault, tmp_path):
    """The text that it replaces stands in the engine exactly once: a quick test, so that edits notice."""
    plant(fault, tmp_path)


@pytest.mark.slow
def test_the_engine_as_it_is_passes(caught):
    assert caught[None] == ""


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.file}: {fault.what}")
def test_every_fault_is_caught(fault, caught):
    assert caught[fault], f"survives: {fault.what}"
