"""The engine equals the oracle (tests/oracle): step for step, counter for counter, picosecond for picosecond.

The oracle itself is held to what was reckoned by hand from docs/model.md and counted in the kernel's source.
"""

from __future__ import annotations

import oracle
import pytest
import simpy
from hypothesis import HealthCheck, given, settings
from oracle.actor import Step
from oracle.cases import CORNERS, THEMES, scenarios
from oracle.compare import compare_logs, difference
from oracle.draws import philox

import kvmpfn as kp
from kvmpfn.fault_path import PRESETS

EXAMPLES = 420
"""Scenarios of each theme."""


@pytest.mark.parametrize("theme", THEMES)
def test_engine_equals_oracle(theme):
    """A difference shrinks to the smallest scenario, and both logs are printed around it."""
    seen = 0

    @settings(
        max_examples=EXAMPLES,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        report_multiple_bugs=False,
    )
    @given(scenarios(THEMES[theme]))
    def equal(scenario):
        nonlocal seen
        seen += 1
        differs = difference(scenario)
        assert not differs, f"{differs}{scenario.to_json()}"

    equal()
    assert seen >= EXAMPLES


@pytest.mark.parametrize("counter", CORNERS)
def test_engine_equals_oracle_in_the_corners(counter):
    assert oracle.simulate(CORNERS[counter]).total(counter)
    assert not difference(CORNERS[counter])


def test_first_write_to_anonymous_memory():
    """As tests/test_hand.py reckons it from the model's page, part by part."""
    s = kp.Scenario(memory="4MiB", workload=kp.workloads.replay(vcpus=[[[0, 1, 0]]]))
    c = s.machine.cost_ps
    memory, add, cas = c("memory_latency"), c("own_add"), c("own_cas")
    found = oracle.simulate(s)
    assert dict(found.vms[0].parts) == {
        "exit_entry": c("exit") + c("entry"),
        "handler": 3 * add + sum(c(f"handler_{step}") for step in ("entry", "lock", "map", "return")),
        "gup": c("gup_fast") + c("gup_slow"),
        "mmap_lock": memory + add,
        "host_fault": c("host_fault") + c("zero_4k") + memory + c("host_pte"),
        "ptl": memory + 2 * cas,
        "folio": 5 * add,  # get, touch, two bits, put: whoever made the page has its line
        "mmu_lock": memory + add,
        "walk": (1 + 2 + 3 + 4) * c("table_load") + 3 * c("table_alloc") + 3 * memory + memory + 2 * cas,
        "spte": memory,
        "stat_pages": memory,
    }


RMW = {"v6.1": 3, "v6.8": 3, "v7_series": 3, "v11_series": 3, "v6.13": 4, "v6.16": 4, "no_ref": 0}
"""Folio RMWs of a FIXED fault whose fast GUP hits, from kernel source (kernel-facts.md 1.4)."""


@pytest.mark.parametrize("preset", PRESETS)
def test_atomics_of_a_fixed_fault(preset):
    s = kp.Scenario(memory=[kp.Region("64KiB", populated=True)], fault_path=preset, lru="off")
    rmw = oracle.simulate(s).vms[0].rmw["fault"]
    lines = {name: n for name, n in rmw.items() if n}
    folio = {"folio": RMW[preset] * 16} if RMW[preset] else {}
    assert lines == folio | {"mmu_lock": 32, "stat_pages": 16, "spte": 16, "local": 48, "page_table": 6}


@pytest.mark.parametrize("preset", PRESETS)
def test_atomics_of_pfnmap(preset):
    """Nine without a struct page; eleven with one that counts, where KVM takes its reference."""
    rmw = {}
    for backing in ("pfnmap", "pfnmap_struct_page"):
        s = kp.Scenario(memory=[kp.Region("64KiB", backing=backing)], fault_path=preset, lru="off")
        rmw[backing] = dict(oracle.simulate(s).vms[0].rmw["fault"])
    expected = {"mmap_lock": 64, "ptl": 16, "mmu_lock": 32, "stat_pages": 16, "spte": 16}
    assert rmw["pfnmap"] == expected | {"local": 48, "page_table": 6}
    folio = {"folio": 32} if PRESETS[preset].pfnmap_reference else {}
    assert rmw["pfnmap_struct_page"] == rmw["pfnmap"] | folio


@pytest.mark.parametrize("preset", PRESETS)
def test_atomics_of_a_zap(preset):
    """kernel-facts.md 1.5: 16 mapped leaves under one madvise."""
    s = kp.Scenario(
        memory=[kp.Region("64KiB", mapped=True)],
        fault_path=preset,
        lru="off",
        workload=kp.workloads.replay(vcpus=[[[0, 1, 2_000_000_000]]]),
        storms=[kp.storms.closed_loop(think="1s", span="64KiB", offset=0, hold="1us", limit=1)],
    )
    found = oracle.simulate(s)
    rmw = {name: n for name, n in found.vms[0].rmw["zap"].items() if n}
    marks = {"folio": 16} if PRESETS[preset].zap_marks_page else {}
    lock = {"mn_lock": 2, "mmu_lock": 2, "vcpu_request": 1, "local": 1, "mmap_lock": 2, "ptl": 1}
    assert rmw == marks | lock | {"stat_pages": 16}
    assert found.total("zapped") == 16 and found.total("invalidations") == 1


def test_philox_against_its_published_answer():
    """Random123's known answer for a counter and a key of zeros."""
    assert philox(0, 0, 0, 0) == (0x6627E8D5, 0xE169C58D)


def test_events_come_by_time_then_actor():
    """SimPy orders steps by (time, priority), and the priority is the actor's number."""

    class World:
        env = simpy.Environment(0)

    order = []
    for time, actor in ((5, 3), (5, 1), (4, 9), (5, 2), (0, 1)):
        event = Step(World)
        event.callbacks.append(lambda _, it=(time, actor): order.append(it))
        World.env.schedule(event, priority=actor, delay=time)
    World.env.run()
    assert order == [(0, 1), (4, 9), (5, 1), (5, 2), (5, 3)]


def test_a_difference_is_printed_with_both_logs():
    """The report shows where the logs part, and what came before."""
    log = [(t, 0, "access", 0, 0) for t in range(30)]
    other = [*log[:20], (20, 0, "handle", 0, 0), *log[21:]]
    text = compare_logs(log, other)
    assert "step 20 differs" in text
    assert sum(line.startswith(">") for line in text.splitlines()) == 1
    assert compare_logs(log, log) == ""
    assert "the end" in compare_logs(log, log[:5])
