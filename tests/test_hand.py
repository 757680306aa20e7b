"""One fault reckoned by hand from docs/model.md, part by part, to the picosecond."""

from __future__ import annotations

import kvmpfn as kp


def test_first_write_to_anonymous_memory() -> None:
    """A single vCPU writes a page that neither the host nor KVM has: every line comes from memory."""
    scenario = kp.Scenario(memory="4MiB", workload=kp.workloads.replay(vcpus=[[[0, 1, 0]]]))
    c = scenario.machine.cost_ps
    memory, add, cas = c("memory_latency"), c("own_add"), c("own_cas")
    loads = 1 + 2 + 3 + 4  # the walk starts over after each of three tables linked
    expected = {
        "exit_entry": c("exit") + c("entry"),
        "handler": 3 * add + sum(c(f"handler_{step}") for step in ("entry", "lock", "map", "return")),
        "gup": c("gup_fast") + c("gup_slow"),
        "mmap_lock": memory + add,
        "host_fault": c("host_fault") + c("zero_4k") + memory + c("host_pte"),
        "ptl": memory + 2 * cas,  # to follow, to install, to follow again
        "folio": 5 * add,  # get, touched, activated (two) after unlock, put: the allocation brought the line
        "mmu_lock": memory + add,
        "walk": loads * c("table_load") + 3 * c("table_alloc") + 3 * memory + memory + 2 * cas,
        "spte": memory,
        "stat_pages": memory,
    }
    run = kp.simulate(scenario)
    parts = {name: int(ps) for name, ps in run.parts.items() if ps}
    assert parts == expected
    assert run.latency.max == sum(expected.values())
