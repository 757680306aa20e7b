"""Run.explain: the pieces are the fault's time to the picosecond, and who is named did hold what is said."""

from __future__ import annotations

import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from made_up import make_run
from oracle.cases import THEMES, scenarios

import kvmpfn as kp
from kvmpfn.core import events, lines
from kvmpfn.core import layout as L
from kvmpfn.core.engine import prepare
from kvmpfn.core.jit import kernel
from kvmpfn.core.names import COUNTERS, PARTS, STEPS
from kvmpfn.explain import Explanation
from kvmpfn.explain.actors import CALLED, GUEST, OPERATIONS, PHASES, STEP_LINES, Actors
from kvmpfn.explain.fault import Fault
from kvmpfn.explain.retries import entry_changed
from kvmpfn.explain.watch import _Watch
from kvmpfn.results import Run
from kvmpfn.scenario import Scenario
from kvmpfn.simulator import ACTIONS, _World

histogram_bucket, rmw_add = kernel(events.histogram_bucket), kernel(lines.rmw_add)

ALL = 100_000
NOBODY = {"", "wake-up", "memory_bandwidth"}
"""What is no wait, or a wait that nobody else is the cause of."""

NO_LINE = {
    L.PC_HANDLE, L.PC_GOT, L.PC_PRECHECK, L.PC_MM_FAULT, L.PC_ALLOC, L.PC_FILL, L.PC_COW_LOCK, L.PC_INSTALLED,
    L.PC_LRU_ADD, L.PC_FOLLOW_LOCK, L.PC_REMAP, L.PC_REMAPPED, L.PC_SPLIT_STATS, L.PC_FREEZE_STATS,
    L.PC_UNLINK_COUNT, L.PC_UNLINK_STATS, L.PC_STATS, L.PC_READ_LOCK, L.PC_WRITE_LOCK, L.PC_QUEUE_HEAD,
    L.PC_WRITE_GRANT, L.PC_READ_UNLOCK, L.PC_WRITE_UNLOCK, L.PC_MMAP_LOCK, L.PC_OWNER_LOAD, L.PC_OWNER_STORE,
    L.PC_MMAP_UNLOCK, L.PC_HOST_FLUSH, L.PC_START, L.PC_START_LOCKED, L.PC_YIELD, L.PC_RELOCK, L.PC_RESUME,
    L.PC_FLUSHED, L.PC_STARTED, L.PC_END, L.PC_END_LOCKED, L.PC_ENDED,
}  # fmt: skip
"""Steps of a fault that ask for no line, or for one that has its name by its address."""


def storm(action: str = "madvise", **fields: object) -> kp.Storm:
    """A storm that comes as fast as it can over the first 256 KiB."""
    given = {"arrival": "closed_loop", "think": "5us", "offset": 0, "span": "256KiB", "hold": "3us"}
    return kp.Storm(**(given | {"action": action} | fields))


def explained(**fields: object) -> tuple[Run, Explanation]:
    """Simulate, and explain every fault."""
    run = kp.simulate(Scenario(**({"memory": "1MiB"} | fields)), log=200_000)
    return run, run.explain(ALL)


@pytest.mark.parametrize("theme", THEMES)
def test_nothing_is_left_out_of_any_fault(theme: str) -> None:
    """In random scenarios the pieces of all faults are the run's own sums."""
    seen = 0

    @settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(scenarios(THEMES[theme]))
    def complete(scenario: Scenario) -> None:
        nonlocal seen
        run = kp.simulate(scenario)
        told = run.explain(ALL)
        frame, attempts, pieces = told.frame, told.attempts, told.pieces
        seen += len(frame)
        assert list(frame["latency"]) == sorted(frame["latency"], reverse=True)
        buckets = Counter(histogram_bucket(ps) for ps in frame["latency"])
        assert buckets == {i: n for i, n in enumerate(run.arrays["hist"].tolist()) if n}
        assert pieces.groupby("fault")["ps"].sum().to_dict() == frame["latency"].to_dict()
        by_attempt = pieces.groupby(["fault", "attempt"])["ps"].sum()
        assert by_attempt.to_dict() == attempts.set_index(["fault", "attempt"])["ps"].to_dict()
        outcomes = Counter(attempts["outcome"])
        for outcome in ("fixed", "spurious", "emulate", "error"):
            assert outcomes.pop(outcome, 0) == run.counters[f"pf_{outcome}"]
        # What was retried when the run ended is no resolved fault's.
        assert all(name in COUNTERS and n <= run.counters[name] for name, n in outcomes.items())
        last = pieces["attempt"] == pieces["fault"].map(frame["attempts"])
        parts = pieces[last].groupby("part")["ps"].sum()
        assert {name: parts.get(name, 0) for name in PARTS[:-1]} == run.parts[:-1].to_dict()
        assert pieces[~last]["ps"].sum() <= run.parts["wasted"]
        waits = pieces[pieces["part"].str.endswith("_wait")]
        assert (waits["waited_for"] != "").all()
        assert ((pieces["holder"] == "") == pieces["waited_for"].isin(NOBODY)).all()
        retried = attempts["outcome"].str.startswith("retry.") & (attempts["outcome"] != "retry.other")
        assert ((attempts["holder"] != "") == retried).all()
        assert told.holders["ps"].sum() <= frame["latency"].sum()

    complete()
    assert seen > 100


def test_every_step_and_action_has_words() -> None:
    steps = set(range(len(STEPS)))
    faults = set(range(L.PC_ACCESS, L.PC_IDLE))
    assert set(STEP_LINES) | NO_LINE == faults - {L.PC_ACCESS}
    assert not set(STEP_LINES) & NO_LINE
    assert set(PHASES) | CALLED | set(range(L.PC_ACCESS, L.PC_FINISH + 1)) == steps
    assert set(OPERATIONS) == set(ACTIONS)
    world = _World(Scenario(memory="1MiB", storms=[storm()]), 0, False, 2)
    w, actors = world.words.data, Actors(world.scenario, world.words.data)
    client, vcpu = actors.pointers
    w[client + L.N_START], w[client + L.N_END] = 3, 5
    w[client + L.S_START], w[client + L.S_END] = 2, 7
    w[vcpu + L.V_GFN] = 9
    for action, words in OPERATIONS.items():
        actors.actions = [action]
        for step in set(PHASES) | CALLED:
            for after in set(PHASES) - CALLED if step in CALLED else [0]:
                w[client + L.PC], w[client + L.AFTER] = step, after
                text = actors.doing(client).removeprefix("asking for mmu_lock, then ")
                phase = PHASES[after if step in CALLED else step]
                assert text == (f"{phase} [3..5)" if phase else f"{words} [2..7)")
    for step in faults:
        w[vcpu + L.PC], w[vcpu + L.AFTER] = step, L.PC_MAPPED
        assert actors.doing(vcpu).endswith("access to gfn 9" if step in GUEST else "fault on gfn 9")


def test_one_storm_holds_mmu_lock() -> None:
    """One vCPU, one client: whatever it waits for mmu_lock, it waits for the client."""
    run, told = explained(workload=kp.workloads.uniform(writes=1.0, accesses=1000), storms=[storm()])
    waits = told.pieces[told.pieces["waited_for"] == "mmu_lock"]
    assert set(waits["holder"]) == {"storm 0 (madvise)"}
    # A spinning reader sees the lock's release after a transfer more, which the counter leaves out.
    transfers, rest = divmod(
        waits["ps"].sum() - run.counters["lock_wait.mmu_lock.read"],
        run.scenario.machine.cost_ps("socket_latency"),
    )
    assert rest == 0 and 0 < transfers <= (run.events["step"] == "queue_head").sum()
    assert "zapping [0..64)" in set(waits["doing"])
    assert len(told.frame) == run.latency.count


def test_each_storm_is_blamed_for_what_it_held() -> None:
    """The step log says how long each storm held mmu_lock from when the vCPU asked until it had it.

    Asking takes less than 0.3 us of that, and being told that the lock is free less than that again.
    """
    run, told = explained(
        memory=[kp.Region("1MiB", populated=True)],
        workload=kp.workloads.uniform(writes=1.0, accesses=1500, think="100ns"),
        storms=[storm(hold="0ns"), storm(offset="512KiB", think="12us", span="128KiB", hold="0ns")],
        preempt="none",  # a zap does not yield to who waits
    )
    log = run.events
    assert len(log) == run.meta["log_seen"]
    waits, holds = [], {0: [], 1: []}
    at = {}
    for t, actor, step in zip(log["time"], log["actor"], log["step"], strict=True):
        if step in ("read_lock", "start_locked", "end_locked"):
            at[actor] = t
        elif step == "queue_head" and actor == 2:
            waits.append((at[2], t))
        elif step == "mapped" and waits and waits[-1][0] == at[2]:
            waits[-1] = (at[2], t)
        elif step == "write_unlock":
            holds[actor].append((at[actor], t))
    blamed = told.pieces[told.pieces["waited_for"] == "mmu_lock"].groupby("holder")["ps"].sum()
    for i in (0, 1):
        for asking in (0, 300_000):
            both = [(max(a + asking, c), min(b, d)) for a, b in waits for c, d in holds[i]]
            held = sum(max(0, stop - begin) for begin, stop in both)
            assert held > 0
            excess = blamed[f"storm {i} (madvise)"] - held
            assert excess >= 0 if asking else excess <= 300_000 * len(waits)


def test_an_invalidation_in_progress_is_the_one_that_covers_the_page() -> None:
    """Storm 0 is elsewhere; only storm 1 covers the pages that are touched."""
    workload = kp.workloads.replay(vcpus=[[[i % 16, 1, 100_000] for i in range(400)]])
    far = storm(offset="512KiB", think="1us")
    run, told = explained(workload=workload, storms=[far, storm()])
    attempts = told.attempts
    in_range = attempts[attempts["outcome"] == "retry.locked.range"]
    assert set(in_range["holder"]) == {"storm 1 (madvise)"}
    assert set(in_range["because"]) == {"invalidates [0..64)"}
    false_range = attempts[attempts["outcome"] == "retry.locked.false_range"]
    assert set(false_range["holder"]) <= {"storm 0 (madvise)"}
    assert run.counters["retry.locked.range"] > 0


def test_an_invalidation_that_ended_is_the_first_since_the_snapshot() -> None:
    """The step log says so too: the first end_locked after the attempt's snapshot."""
    run, told = explained(
        vcpus=2,
        workload=kp.workloads.uniform(writes=1.0, accesses=200),
        storms=[storm(offset="512KiB"), storm()],
    )
    log = run.events
    assert len(log) == run.meta["log_seen"]
    attempts = told.attempts.merge(told.frame[["vcpu"]], left_on="fault", right_index=True)
    stale = attempts[attempts["outcome"] == "retry.locked.seq"]
    assert {"storm 0 (madvise)", "storm 1 (madvise)"} == set(stale["holder"])
    for row in stale.itertuples():
        own = log[(log["actor"] == 2 + row.vcpu) & (log["time"] >= row.start)]
        snapshot = own.index[own["step"] == "handle"][0]
        ends = log.loc[snapshot:]
        first = ends[ends["step"] == "end_locked"].iloc[0]
        assert row.holder == f"storm {first['actor']} (madvise)"
        assert row.because == f"had invalidated [{first['b']}..{first['b'] + 64}) meanwhile"


def test_who_replaces_a_table_changes_its_entries() -> None:
    """A huge leaf in the place of a table makes the faults retry that are on their way to its entries."""
    world = _World(Scenario(vcpus=2, memory="2MiB"), 0, False, 2)
    w, actors = world.words.data, Actors(world.scenario, world.words.data)
    other, table = actors.pointers[1], 1000
    w[other + L.V_UNLINK] = table
    for step, entry, changed in (
        (L.PC_UNLINK, table, True),
        (L.PC_UNLINK, table + 511, True),
        (L.PC_UNLINK, table + 512, False),
        (L.PC_STATS, table, False),
    ):
        w[other + L.PC] = step
        fault = Fault(0, 0, 0, 0, entry=entry, remembered=w[entry])
        assert entry_changed(actors, fault, other) is changed
        fault.remembered += 1
        assert entry_changed(actors, fault, other)


def test_a_copy_on_write_makes_its_own_fault_stale() -> None:
    region = kp.Region("1MiB", backing="page_cache", mapping="private", populated=True)
    _, told = explained(memory=[region], workload=kp.workloads.replay(vcpus=[[[5, 1, 0]]]))
    first, second = told.attempts.itertuples()
    assert (first.outcome, first.holder) == ("retry.locked.seq", "itself")
    assert first.because == "had invalidated [5..6) meanwhile"
    assert (second.outcome, second.holder) == ("fixed", "")


def test_a_migration_is_slept_through() -> None:
    run, told = explained(
        memory=[kp.Region("1MiB", populated=True)],
        vcpus=2,
        workload=kp.workloads.uniform(writes=1.0, accesses=500),
        storms=[storm("migration", limit=40)],
    )
    waits = told.pieces[told.pieces["waited_for"] == "migration"]
    assert set(waits["holder"]) == {"storm 0 (migration)"}
    assert set(waits["doing"]) == {"migration of [0..64)"}
    slept = told.pieces[(told.pieces["waited_for"] == "wake-up") & (told.pieces["step"] == "mm_fault")]
    assert set(slept["ps"]) == {run.scenario.machine.cost_ps("sleep_wake")}
    assert len(slept) == len(waits) > 0


def test_a_fork_holds_mmap_lock() -> None:
    run, told = explained(workload=kp.workloads.uniform(writes=1.0, accesses=500), storms=[storm("fork")])
    waits = told.pieces[told.pieces["waited_for"] == "mmap_lock"]
    assert set(waits["holder"]) == {"storm 0 (fork)"}
    assert set(waits["doing"]) == {"fork of [0..64)"}
    woken = told.pieces[(told.pieces["waited_for"] == "wake-up") & (told.pieces["part"] == "mmap_wait")]
    assert set(woken["ps"]) == {run.scenario.machine.cost_ps("sleep_wake")}
    assert waits["ps"].sum() + woken["ps"].sum() == run.counters["lock_wait.mmap_lock.read"]


def test_a_swapped_page_is_slept_for() -> None:
    """Reclaim has its entries back as soon as the notifier has returned."""
    run, told = explained(
        memory=[kp.Region("1MiB", populated=True)],
        vcpus=2,
        workload=kp.workloads.uniform(writes=1.0, accesses=500),
        storms=[storm("reclaim", limit=40)],
    )
    waits = told.pieces[told.pieces["waited_for"] == "migration"]
    assert set(waits["holder"]) == {"storm 0 (reclaim)"}
    assert set(waits["doing"]) == {"swapping out [0..64)"}
    slept = told.pieces[(told.pieces["waited_for"] == "wake-up") & (told.pieces["step"] == "mm_fault")]
    assert set(slept["ps"]) == {run.scenario.machine.cost_ps("sleep_wake")}
    assert len(slept) == len(waits) > 0


def test_a_full_batch_of_puts_is_drained() -> None:
    """Every second fault pays for two puts, of folios whose lines its own gets have brought."""
    run, told = explained(
        memory=[kp.Region("1MiB", populated=True)],
        workload=kp.workloads.replay(vcpus=[[[i, 1, 0] for i in range(5)]]),
        fault_path=kp.FaultPath("v6.16").replace(put_batch=2),
    )
    drained = told.pieces[told.pieces["step"] == "drain_puts"].merge(
        told.frame[["gfn"]], left_on="fault", right_index=True
    )
    assert sorted(drained["gfn"]) == [1, 1, 3, 3]
    assert set(drained["part"]) == {"folio"}
    assert set(drained["ps"]) == {run.scenario.machine.cost_ps("own_add")}
    assert run.counters["puts"] == 5  # the last one outside of any fault


def test_khugepaged_holds_mmap_lock() -> None:
    """madvise has the huge page split, once; khugepaged copies all of it to make it whole again."""
    run, told = explained(
        memory=[kp.Region("2MiB", backing="thp", populated=True)],
        workload=kp.workloads.uniform(writes=1.0, accesses=1000),
        storms=[storm(limit=1), storm("khugepaged", think="20us")],
    )
    assert run.counters["thp_collapses"] == 1
    (wait,) = told.pieces[told.pieces["waited_for"] == "mmap_lock"].itertuples()
    assert (wait.holder, wait.doing) == ("storm 1 (khugepaged)", "collapsing [0..512)")
    wake = run.scenario.machine.cost_ps("sleep_wake")
    assert wait.ps + wake == run.counters["lock_wait.mmap_lock.read"]
    assert wait.ps > 256 * run.scenario.machine.cost_ps("copy_4k")


def test_who_clears_the_dirty_log_holds_mmu_lock() -> None:
    """All 512 pages are cleared under one hold of mmu_lock, for which the vCPU waits once."""
    run, told = explained(
        memory=[kp.Region("2MiB", populated=True, mapped=True), kp.Region("1MiB", populated=True)],
        workload=kp.workloads.replay(vcpus=[[[512 + i, 1, 0] for i in range(256)]]),
        dirty_logging=True,
        initially_all_set=True,
        storms=[storm("clear_dirty_log", span="2MiB", limit=1)],
    )
    waits = told.pieces[told.pieces["waited_for"] == "mmu_lock"]
    assert set(waits["holder"]) == {"storm 0 (clear_dirty_log)"}
    assert set(waits["doing"]) == {"clearing the dirty log of [0..512)"}
    waited = run.counters["lock_wait.mmu_lock.read"]
    assert waits["ps"].sum() - waited == run.scenario.machine.cost_ps("socket_latency")
    log = run.events
    held = log[log["step"].isin(["clear_dirty", "write_unlock"]) & (log["actor"] == 0)]["time"]
    assert 0 < waited < held.max() - held.min()


def test_an_exit_flushes_the_pml_buffer() -> None:
    """Four pages were written since the last exit: one atomic takes the bitmap's line, three ride."""
    first, second = (kp.Region("1MiB", populated=True, mapped=mapped) for mapped in (True, False))
    run, told = explained(
        memory=[first, second],
        workload=kp.workloads.replay(vcpus=[[*([i, 1, 0] for i in range(4)), [256, 1, 0]]]),
        dirty_logging=True,
        pml=True,
    )
    (flush,) = told.pieces[told.pieces["step"] == "pml_flush"].itertuples()
    c = run.scenario.machine.cost_ps
    assert (flush.fault, flush.part) == (1, "dirty_log")
    assert flush.ps == c("memory_latency") + 3 * c("own_add")
    assert list(told.frame["gfn"]) == [1 << 18]


def test_a_page_table_lock_is_another_vcpus() -> None:
    run, told = explained(vcpus=3, workload=kp.workloads.demand_paging(share="overlapping"))
    owners = told.pieces.merge(told.frame[["vcpu"]], left_on="fault", right_index=True)
    waits = owners[owners["waited_for"] == "ptl"]
    # Each wait ends with a transfer, which the counter leaves out; it has attempts that led to no fault, too.
    transfers = len(waits) * run.scenario.machine.cost_ps("llc_latency")
    assert 0 < waits["ps"].sum() - transfers <= run.counters["lock_wait.ptl.exclusive"]
    assert set(waits["holder"]) == {"vCPU 0", "vCPU 1", "vCPU 2"}
    assert (waits["holder"] != "vCPU " + waits["vcpu"].astype(str)).all()


def test_a_flush_waits_for_who_is_in_the_guest() -> None:
    """vCPU 0 splits a huge page as 6.1 does; vCPU 1 computes, and is interrupted."""
    run, told = explained(
        memory=[kp.Region("2MiB", backing="thp", populated=True, mapped=True)],
        vcpus=2,
        dirty_logging=True,
        eager_page_split=False,
        workload=kp.workloads.replay(vcpus=[[[0, 1, 0]], [[1, 0, 10**9]]]),
    )
    (wait,) = told.pieces[told.pieces["waited_for"] == "ipi"].itertuples()
    assert (wait.holder, wait.step, wait.part) == ("vCPU 1", "flush", "flush")
    assert wait.ps == run.scenario.machine.cost_ps("ipi_socket")


def test_a_line_is_waited_for_owner_by_owner() -> None:
    """Three threads of a socket ask for one line at 0, 1 and 2 ps; the third waits for both others."""
    scenario = Scenario(vcpus=3, memory="2MiB")
    c = scenario.machine.cost_ps
    world = _World(scenario, 0, False, 2, waits=8)
    w = world.words
    prepare(w)
    line = world.vm_at[0] + L.STAT_LINE
    for t, a in enumerate(world.vcpu_at):
        rmw_add(w, a, line, L.X_STAT_PAGES, L.PART_STAT_PAGES, t)
    assert w[L.WAITS_SEEN] == 2
    at = int(w[L.WAITS]) + 5
    asker, what, who, start, until = w[at : at + 5].tolist()
    first, second = c("memory_occupancy"), c("memory_occupancy") + c("socket_occupancy")
    assert (asker, what, start, until) == (2, line, 2, second)
    cpus = [int(w[a + L.CPU]) + 1 for a in world.vcpu_at]
    assert who == cpus[1]
    owners = list(_Watch(world).chain(1, what, who, start, until))
    assert owners == [(cpus[1], second - first), (cpus[0], first - 2)]


def test_a_shared_folio_is_waited_for() -> None:
    """Many vCPUs read pages of one large folio of the page cache."""
    region = kp.Region("2MiB", backing="page_cache", folio_order=9, mapping="shared", populated=True)
    _, told = explained(
        vcpus=16, memory=[region], workload=kp.workloads.demand_paging(access="read"), fault_path="v6.16"
    )
    waits = told.pieces[told.pieces["waited_for"] == "folio line"]
    assert set(waits["part"]) == {"folio"}
    assert set(waits["holder"]) - {"itself"} == {f"vCPU {i}" for i in range(16)}
    costs = told.holders.set_index(["waited_for", "holder"])["ps"]
    assert costs["folio line"].sum() == waits["ps"].sum()


def test_the_slowest_are_the_slowest() -> None:
    run, told = explained(vcpus=4, workload=kp.workloads.uniform(accesses=100), storms=[storm()])
    few = run.explain(3)
    assert few.frame.equals(told.frame.iloc[:3])
    assert few.frame["latency"].iloc[0] == run.latency.max
    assert few.pieces.equals(told.pieces[told.pieces["fault"] <= 3])


def test_a_loaded_run_is_explained(tmp_path: Path) -> None:
    scenario = Scenario(memory="1MiB", vcpus=2, vms=2, storms=[storm()])
    run = kp.simulate(scenario, until="200 faults", timeline_bins=8)
    run.to_parquet(tmp_path / "run.parquet")
    told = kp.load(tmp_path / "run.parquet").explain(2)
    assert told.pieces.equals(run.explain(2).pieces)
    assert "VM " in repr(told) and "storm 0 (madvise) of VM " in repr(run.explain(ALL))


def test_what_cannot_be_explained_is_one_line() -> None:
    run = make_run(Scenario(memory="1MiB"))
    with pytest.raises(kp.InputError, match="gives another run now"):
        run.explain()
    run.version = "0.0.1"
    with pytest.raises(kp.InputError, match=r"is of kvmpfn 0\.0\.1"):
        run.explain()
    for n in (0, -1, True, 2.5, "3"):
        with pytest.raises(kp.InputError, match=r"explain: n: .* nearest is 1"):
            run.explain(n)


def test_it_tells_prints_and_travels() -> None:
    run, told = explained(vcpus=4, workload=kp.workloads.uniform(accesses=100), storms=[storm()])
    text = repr(run.explain(2))
    assert text.startswith("the 2 slowest of ")
    for words in ("1. vCPU ", " attempts, from ", "RETRY (locked.", "waited ", "who was in the way, of "):
        assert words in text
    assert max(map(len, text.splitlines())) < 160
    seen: list[str] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            seen.append(tag)

    Tags().feed(run.explain(2)._repr_html_())
    assert seen.count("table") == 2
    found = json.loads(json.dumps(told.to_dict(), allow_nan=False))
    assert [fault["latency"] for fault in found["faults"]] == told.frame["latency"].tolist()
    assert sum(piece["ps"] for piece in found["faults"][0]["pieces"]) == run.latency.max
    for frame in (told.frame, told.attempts, told.pieces, told.holders):
        assert set(frame.attrs["units"]) == set(frame.columns)


def test_a_run_without_faults_says_so() -> None:
    run = kp.simulate(Scenario(memory="1MiB", workload=kp.workloads.replay(vcpus=[[]])))
    told = run.explain()
    assert repr(told).endswith("no fault was resolved") and told._repr_html_()
    assert told.frame.empty and told.pieces.empty and told.holders.empty
