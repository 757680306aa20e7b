"""A run's events in other tools' formats: read back, they are the run's own faults, retries and times."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from oracle.cases import THEMES, scenarios

import kvmpfn as kp
from kvmpfn.cli import main
from kvmpfn.export.dat import Dat
from kvmpfn.export.ftrace import Task
from kvmpfn.results import Run
from kvmpfn.scenario import Scenario
from kvmpfn.traces import Trace
from kvmpfn.units import InputError

ROWS = 400_000
PLACES = ("pre_gup", "post_gup", "locked")
REASONS = ("range", "false_range", "seq")


def storm(action: str = "madvise", **fields: Any) -> kp.Storm:
    """A storm that comes as fast as it can over the first 128 KiB."""
    given = {"arrival": "closed_loop", "think": "5us", "offset": 0, "span": "128KiB", "hold": "3us"}
    return kp.Storm(**(given | {"action": action} | fields))


def scenario(**fields: Any) -> Scenario:
    return Scenario(**({"memory": "1MiB", "vcpus": 4, "storms": [storm()]} | fields))


CASES = {
    "v6.1": scenario(fault_path="v6.1"),
    "v6.8": scenario(fault_path="v6.8", storms=[storm(), storm(offset="512KiB")]),
    "v6.16": scenario(
        fault_path="v6.16", host="milan_2s", mmu="npt", storms=[storm(), storm("numa_balancing")]
    ),
    "no_ref": scenario(fault_path="no_ref", storms=[storm(), storm("mprotect", offset="512KiB")]),
    "thp": scenario(fault_path="v6.13", memory=kp.Region("8MiB", backing="thp"), storms=[storm(span="1MiB")]),
    "dirty": scenario(
        memory=kp.Region("1MiB", populated=True, mapped=True),
        dirty_logging=True,
        pml=False,
        storms=[storm("clear_dirty_log", span="1MiB")],
        workload=kp.workloads.uniform(accesses=1000, writes=0.5),
    ),
    "cow": scenario(memory=kp.Region("1MiB", backing="zero_page"), fault_path="v6.8"),
}
"""Presets and storms that differ in what they do to a fault."""


def simulated(case: Scenario) -> Run:
    run = kp.simulate(case, log=ROWS)
    assert len(run.arrays["log"]) == run.meta["log_seen"]
    return run


def kernel_of(run: Run) -> str:
    """Whose numbers a run's recording has."""
    return "6.16" if run.scenario.mechanisms.preset in ("v6.13", "v6.16") else "6.1"


def round_trip(run: Run, folder: Path, name: str = "run.trace") -> Trace:
    run.write_events(folder / name)
    return kp.read_trace(folder / name, kernel=kernel_of(run))


def check_faults(run: Run, trace: Trace) -> None:
    """Faults are those of the log, one for one, with the outcomes that were counted."""
    s, events = run.scenario, run.events
    handled = events[events["step"] == "handle"]
    faults, counters = trace.faults, run.counters
    assert faults["time_ps"].tolist() == (handled["time"] // 1000 * 1000).tolist()
    assert faults["gfn"].tolist() == handled["a"].tolist()
    assert faults["vcpu"].tolist() == [(n - len(s.clients)) % s.vcpus for n in handled["actor"]]
    finished = events[events["step"] == "finish"]
    assert sorted(faults["end_ps"].dropna()) == sorted(finished["time"] // 1000 * 1000)
    ended = Counter(faults["outcome"])
    for outcome in ("fixed", "spurious", "emulate", "error"):
        assert ended.pop(outcome.upper(), 0) == counters[f"pf_{outcome}"]
    assert ended.pop("RETRY", 0) == counters["retry"]
    assert not ended and not faults["inferred"].any()
    assert len(faults) == counters["pf_taken"]


def check_retries(run: Run, trace: Trace) -> None:
    """Each cell of `retry.*`, as far as probes tell them apart: of races and the rest, the sum."""
    counters = run.counters
    retried = trace.faults[trace.faults["outcome"] == "RETRY"]
    found = Counter(zip(retried["where"], retried["why"], strict=True))
    for where in PLACES:
        for why in REASONS:
            cell = f"retry.{where}.{why}"
            several = run.scenario.vms > 1  # one file has one memory map: reasons need the VM's own
            assert several or found.pop((where, why), 0) == counters[cell], cell
    places = Counter(retried["where"])
    for where in PLACES:
        assert places[where] == sum(counters[f"retry.{where}.{why}"] for why in REASONS), where
    assert places["race"] == counters["retry_race"]
    assert places["unknown"] == counters["retry.other"]


def check_invalidations(run: Run, trace: Trace) -> None:
    """Ranges and times are the log's; those of the second VM lie where the map of the first has nothing."""
    events = run.events
    calls = trace.invalidations
    for name, step in (
        ("start_ps", "start"), ("start_ret_ps", "started"), ("end_ps", "end"), ("seq_ps", "end_locked"),
        ("end_ret_ps", "ended"),
    ):  # fmt: skip
        expected = sorted(events.loc[events["step"] == step, "time"] // 1000 * 1000)
        assert sorted(calls[name].dropna()) == expected, name
    assert calls["seq_ps"].notna().sum() == run.counters["invalidations"]
    if run.scenario.vms == 1:
        starts = events.loc[events["step"] == "start", "b"]
        assert calls["gfn_start"].tolist() == starts.tolist()


def check_entries(run: Run, trace: Trace) -> None:
    """What was installed and zapped, and at which level, from the entries' changes."""
    changes = trace.events[trace.events["event"] == "kvm_tdp_mmu_spte_changed"]
    present = [
        (level, _is_leaf(old, level), _is_leaf(new, level))
        for level, old, new in zip(changes["level"], changes["old_spte"], changes["new_spte"], strict=True)
    ]
    counters, tdp = run.counters, run.scenario
    gone = sum(old and not new for _, old, new in present)
    come = sum(new and not old for _, old, new in present)
    if not any(region.mapped or region.backing != "anon" for region in tdp.memory):
        assert come == counters["installs"]
        assert gone == counters["zapped"]


def _is_leaf(entry: int, level: int) -> bool:
    return bool(entry >> 11 & 1) and (level == 1 or bool(entry >> 7 & 1))


@pytest.mark.parametrize("name", CASES)
def test_ftrace_text_is_read_back_as_the_run(name: str, tmp_path: Path) -> None:
    run = simulated(CASES[name])
    trace = round_trip(run, tmp_path)
    assert run.counters["pf_fast" if name == "dirty" else "retry"]
    assert run.counters["retry_false_range"] or name != "v6.8"
    assert trace.whole and set(trace.skipped) == {"comment"}
    check_faults(run, trace)
    check_retries(run, trace)
    check_invalidations(run, trace)
    check_entries(run, trace)
    assert trace.mmu == run.scenario.mmu
    for column in ("pf_taken", "pf_fixed", "pf_spurious"):
        assert trace.counters()[column] == run.counters[column]


@pytest.mark.parametrize("theme", THEMES)
def test_nothing_is_lost_of_random_runs(theme: str, tmp_path: Path) -> None:
    seen = 0

    @settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(scenarios(THEMES[theme]))
    def whole(case: Scenario) -> None:
        nonlocal seen
        run = kp.simulate(case, log=ROWS)
        if not run.counters["pf_taken"]:
            return
        seen += 1
        trace = round_trip(run, tmp_path)
        check_faults(run, trace)
        check_retries(run, trace)
        check_invalidations(run, trace)
        check_entries(run, trace)
        check_slices(run, chrome(run, tmp_path))

    whole()
    assert seen > 3


# trace.dat.


def report(file: Path) -> list[str]:
    """What trace-cmd prints of a file, without plugins, which have texts of their own; blanks as one."""
    tool = shutil.which("trace-cmd")
    if tool is None:
        pytest.skip("no trace-cmd")
    told = subprocess.run([tool, "report", "-t", "-N", file], capture_output=True, text=True, check=True)
    assert told.stderr == ""
    head, *lines = told.stdout.splitlines()
    assert head.startswith("cpus=")
    return [" ".join(line.split()) for line in lines]


@pytest.mark.parametrize("name", CASES)
def test_trace_cmd_prints_the_same_events(name: str, tmp_path: Path) -> None:
    run = simulated(CASES[name])
    run.write_events(tmp_path / "run.trace")
    run.write_events(tmp_path / "run.dat")
    lines = (tmp_path / "run.trace").read_text().splitlines()
    text = [line for line in lines if not line.startswith("#") and "tracing_mark_write" not in line]
    # The process is not in trace.dat; events of two CPUs within one ns have no order there.
    expected = [" ".join(re.sub(r"\( *\d+\) ", "", line).split()) for line in text]
    found = report(tmp_path / "run.dat")
    assert sorted(found) == sorted(expected)
    times = [re.findall(r"\] (\d+\.\d{9}):", line) for line in found]
    assert times == sorted(times)
    faults = kp.read_trace(tmp_path / "run.dat", kernel=kernel_of(run)).faults
    assert Counter(faults["outcome"]) == Counter(round_trip(run, tmp_path).faults["outcome"])


def test_pages_hold_long_gaps_and_many_events(tmp_path: Path) -> None:
    """A delta of more than 27 bits has an event of its own, wherever on a page it comes."""
    times = [n * 1000 + (n // 50) * 10**12 for n in range(2000)]
    task = Task("CPU 0/KVM", 4097, 4096, 3)
    with (tmp_path / "pages").open("w+b") as pages:
        packed = Dat(pages)
        for t in times:
            packed.event(t, task, "kvm_entry", (t % 7, t))
        with (tmp_path / "run.dat").open("wb") as out:
            packed.write(out, 8)
    found = report(tmp_path / "run.dat")
    assert found == [
        f"CPU 0/KVM-4097 [003] {t // 10**12}.{t // 1000 % 10**9:09d}: kvm_entry: vcpu {t % 7}, rip {t:#x}"
        for t in times
    ]


# JSON.


def chrome(run: Run, folder: Path, name: str = "run.json") -> dict[str, Any]:
    run.write_events(folder / name)
    opened = gzip.open if name.endswith(".gz") else open
    with opened(folder / name, "rt", encoding="utf-8") as stream:
        trace: dict[str, Any] = json.load(stream, parse_float=Decimal)
    return trace


def slices(trace: dict[str, Any]) -> pd.DataFrame:
    """One row a slice, its duration in ps; each track's slices are checked to nest, in the order of time."""
    open_on: dict[tuple[int, int], list[dict[str, Any]]] = {}
    last: dict[tuple[int, int], Decimal] = {}
    rows = []
    for event in trace["traceEvents"]:
        if event["ph"] not in "BE":
            continue
        track = event["pid"], event["tid"]
        assert event["ts"] >= last.get(track, 0)
        last[track] = event["ts"]
        stack = open_on.setdefault(track, [])
        if event["ph"] == "B":
            stack.append(event)
            continue
        begun = stack.pop()
        path = " > ".join(one["name"] for one in [*stack, begun])
        told = begun.get("args", {}) | event.get("args", {})
        rows.append((*track, path, int(begun["ts"] * 10**6), int((event["ts"] - begun["ts"]) * 10**6), told))
    assert not any(open_on.values())
    return pd.DataFrame(rows, columns=["pid", "tid", "path", "start", "ps", "args"])


FIELDS = {
    "M": {"name", "args"}, "B": {"ts", "name"}, "E": {"ts", "name"}, "C": {"ts", "name", "args"},
    "i": {"ts", "name", "s", "args"}, "s": {"ts", "name", "cat", "id"},
    "f": {"ts", "name", "cat", "id", "bp"},
}  # fmt: skip
"""What the Trace Event Format wants of an event, by its phase."""


def check_events(trace: dict[str, Any]) -> None:
    """Every event has what its phase needs, and nothing that the format does not know."""
    assert list(trace) == ["displayTimeUnit", "otherData", "traceEvents"]
    for event in trace["traceEvents"]:
        needed = FIELDS[event["ph"]] | {"ph", "pid", "tid"}
        assert needed <= event.keys() <= needed | {"args"}, event
        assert event.get("ts", 0) >= 0 and isinstance(event["pid"], int) and isinstance(event["tid"], int)
        if event["ph"] == "C":
            assert all(type(value) is int and value >= 0 for value in event["args"].values())
        if event["ph"] == "M":
            assert event["name"].startswith(("process_", "thread_"))


def check_slices(run: Run, trace: dict[str, Any]) -> None:
    """Slices take the time that the run has booked, to the picosecond; flows begin and end in slices."""
    check_events(trace)
    table, counters = slices(trace), run.counters
    time = table.groupby("path")["ps"].sum()
    faults = table[table["path"] == "fault"]
    assert faults["ps"].sum() == run.vcpus["faults"].sum() == run.parts.sum()
    assert len(faults) == counters["pf_taken"]
    outcomes = Counter(args["outcome"] for args in faults["args"])
    assert outcomes["RETRY"] == counters["retry"]
    assert outcomes["FIXED"] == counters["pf_fixed"]
    parts = {name: time.get(f"fault > {name}", 0) for name in ("gup", "mmu_lock wait", "entry", "exit")}
    assert sum(parts.values()) <= faults["ps"].sum()
    events = trace["traceEvents"]
    told = Counter(one["name"] for one in events if one["ph"] == "i")
    for cell in counters.index[counters.index.str.startswith("retry.")]:
        assert told[cell] == counters[cell], cell
    starts = {one["id"]: one for one in events if one["ph"] == "s"}
    ends = {one["id"]: one for one in events if one["ph"] == "f"}
    assert starts.keys() == ends.keys()
    assert all(starts[i]["ts"] <= ends[i]["ts"] for i in starts)
    tracks = {track: group for track, group in table.groupby(["pid", "tid"])}
    for one in [*starts.values(), *ends.values()][:: max(1, len(starts) // 50)]:
        at, group = int(one["ts"] * 10**6), tracks[one["pid"], one["tid"]]
        assert ((group["start"] <= at) & (at <= group["start"] + group["ps"])).any()
    last = {}
    for one in events:
        if one["ph"] == "C":
            last[one["pid"], one["name"]] = one["args"]
    assert all(not any(values.values()) for values in last.values())


@pytest.mark.parametrize("name", CASES)
def test_slices_take_the_time_that_was_booked(name: str, tmp_path: Path) -> None:
    run = simulated(CASES[name])
    trace = chrome(run, tmp_path)
    assert trace["displayTimeUnit"] == "ns"
    assert trace["otherData"]["digest"] == run.digest
    check_slices(run, trace)
    names = [one for one in trace["traceEvents"] if one["ph"] == "M" and one["name"] == "thread_name"]
    told = [one["args"]["name"] for one in names]
    assert [f"vCPU {i}" for i in range(4)] == told[:4]
    assert told[-2:] == ["mmu_lock (writer)", "mmap_lock (writer)"]
    assert len(told) == 4 + len(run.clients) + 2


def test_locks_are_waited_for_and_held_as_long_as_was_booked(tmp_path: Path) -> None:
    run = simulated(CASES["v6.8"])
    time = slices(chrome(run, tmp_path)).groupby("path")["ps"].sum()
    counters = run.counters
    waited = time["fault > mmu_lock wait"]
    assert waited > counters["lock_wait.mmu_lock.read"] > 0
    assert time["madvise > mmap_lock held > start > mmu_lock wait"] > 0
    assert time["madvise > mmap_lock held > hold"] >= 3_000_000 * run.clients["done"].sum()
    assert time["madvise"] == run.clients["busy_ps"].sum()
    writers = slices(chrome(run, tmp_path)).query("path.str.startswith('storm')")
    assert {"storm 0 (madvise)", "storm 1 (madvise)"} == set(writers["path"])


def test_arrows_come_from_who_made_a_fault_stale(tmp_path: Path) -> None:
    run = simulated(CASES["v6.8"])
    events = chrome(run, tmp_path)["traceEvents"]
    stale = sum(run.counters[f"retry.{where}.{why}"] for where in PLACES for why in REASONS)
    starts = [one for one in events if one["ph"] == "s"]
    assert len(starts) == stale > 0
    clients = {run.scenario.vcpus + 1 + 4096 + i for i in range(len(run.clients))}
    assert {one["tid"] for one in starts} <= clients
    reasons = [one["args"]["because"] for one in events if one["ph"] == "i" and one["args"]]
    assert len(reasons) == stale
    assert {reason.split(") ")[0] + ")" for reason in reasons} == {"storm 0 (madvise)", "storm 1 (madvise)"}


# All of them.


def test_parquet_is_the_table_of_events(tmp_path: Path) -> None:
    run = simulated(CASES["v6.1"])
    run.write_events(tmp_path / "run.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "run.parquet"), run.events)
    told = {
        key.decode(): value.decode()
        for key, value in pq.read_schema(tmp_path / "run.parquet").metadata.items()
    }
    assert told["kvmpfn.digest"] == run.digest
    assert Scenario.from_json(told["kvmpfn.scenario"]) == run.scenario
    assert json.loads(told["kvmpfn.units"]) == run.events.attrs["units"]
    assert json.loads(told["kvmpfn.actors"]) == ["storm 0 (madvise)", *(f"vCPU {i}" for i in range(4))]


@pytest.mark.parametrize(
    "name", ["run.trace", "run.trace.gz", "run.json", "run.json.gz", "run.parquet", "run.dat"]
)
def test_the_same_run_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    run = simulated(CASES["v6.16"])
    run.write_events(tmp_path / name)
    (tmp_path / "again").mkdir()
    simulated(CASES["v6.16"]).write_events(tmp_path / "again" / name)
    files = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    assert files == sorted([name] + ["run.txt"] * ("json" not in name and "parquet" not in name))
    for file in files:
        assert (tmp_path / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_packed_files_hold_the_same(tmp_path: Path) -> None:
    run = simulated(CASES["thp"])
    for name in ("run.trace", "run.json"):
        run.write_events(tmp_path / name)
        run.write_events(tmp_path / f"{name}.gz")
        assert gzip.decompress((tmp_path / f"{name}.gz").read_bytes()) == (tmp_path / name).read_bytes()


def test_a_cut_log_says_so(tmp_path: Path) -> None:
    run = kp.simulate(CASES["v6.8"], log=2_000)
    assert run.meta["log_seen"] > 2_000 == len(run.events)
    trace = round_trip(run, tmp_path)
    assert not trace.whole
    assert (
        f"# cut: the log held 2000 of the run's {run.meta['log_seen']} steps"
        in (tmp_path / "run.trace").read_text()
    )
    events = run.events
    assert len(trace.faults) == (events["step"] == "handle").sum() > 0
    assert (trace.faults["outcome"] != "unfinished").sum() == (events["step"] == "finish").sum()
    told = chrome(run, tmp_path)
    assert told["otherData"]["log_kept"] == "2000"
    assert told["otherData"]["log_seen"] == str(run.meta["log_seen"])
    assert slices(told)["start"].max() <= events["time"].max()
    whole = simulated(CASES["v6.8"])
    whole.write_events(tmp_path / "whole.trace")
    lines = [(tmp_path / name).read_text().splitlines() for name in ("run.trace", "whole.trace")]
    cut, full = ([line for line in text if not line.startswith("#")] for text in lines)
    assert full[: len(cut)] == cut


def test_two_machines_have_a_process_and_addresses_each(tmp_path: Path) -> None:
    run = simulated(scenario(vms=2, vcpus=2, fault_path="v6.8", storms=[storm(vm="each")]))
    trace = round_trip(run, tmp_path)
    check_faults(run, trace)
    check_retries(run, trace)
    check_invalidations(run, trace)
    ranges = trace.events.query("event == 'kvm_unmap_hva_range'").groupby("pid")["start"].agg(["min", "max"])
    assert len(ranges) == 2 and ranges["max"].iloc[0] < ranges["min"].iloc[1]
    text = (tmp_path / "run.trace").read_text()
    assert "       CPU 1/KVM-4098    (   4096) [" in text and "       CPU 1/KVM-8194    (   8192) [" in text
    maps = [line for line in (tmp_path / "run.txt").read_text().splitlines() if line.startswith("CONFIG")]
    assert [line.split()[1:3] for line in maps] == [["kvmpfn-vm0", "tgid=4096"], ["kvmpfn-vm1", "tgid=8192"]]
    told = chrome(run, tmp_path)
    check_slices(run, told)
    assert {one["pid"] for one in told["traceEvents"]} == {4096, 8192}
    per_vm = slices(told).query("path == 'fault'").groupby("pid").size()
    assert per_vm.tolist() == run.vm_counters["pf_taken"].tolist()


def test_an_entry_has_the_bits_of_its_mmu(tmp_path: Path) -> None:
    """6.1 on EPT: empty is 0, RWX WB IPAT A D present is b77. 6.16 on NPT: bit 63, and e67 as recorded."""
    for name, empty, table, leaf in (("v6.1", 0, 0x907, 0xB77), ("v6.16", 1 << 63, 0x827, 0xE67)):
        run = simulated(CASES[name].replace(storms=[], vcpus=1))
        changes = round_trip(run, tmp_path).events.query("event == 'kvm_tdp_mmu_spte_changed'")
        assert set(changes["old_spte"]) == {empty}
        low = changes["new_spte"] & 0xFFF
        assert set(low[changes["level"] == 1]) == {leaf}
        assert set(low[changes["level"] > 1]) == {table}
        assert (changes["level"] == 1).sum() == run.counters["pages_4k"] == 256


def test_huge_pages_are_mapped_and_split_at_their_level(tmp_path: Path) -> None:
    run = simulated(CASES["thp"])
    faults = round_trip(run, tmp_path).faults
    fixed = faults[faults["outcome"] == "FIXED"]
    assert set(fixed["level"]) == {1, 2}
    for level, backing, size in ((1, "anon", "1MiB"), (2, "hugetlb_2m", "8MiB"), (3, "hugetlb_1g", "2GiB")):
        work = kp.workloads.uniform(accesses=100, writes=1)
        run = simulated(scenario(memory=kp.Region(size, backing=backing), workload=work, vcpus=1, storms=[]))
        faults = round_trip(run, tmp_path).faults
        pages = [run.counters[f"pages_{size}"] for size in ("4k", "2m", "1g")]
        assert (faults["level"] == level).sum() == len(faults) == pages[level - 1] == sum(pages) > 0


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("run.jsn", None, "none of .parquet, .trace, .dat, .json, .trace.gz, .json.gz; nearest is run.json"),
        ("run", None, "nearest is run."),
        ("run.parquet.gz", None, "nearest is run.parquet"),
        ("run.json", "perfetto", "format: no 'perfetto'; nearest is"),
        ("run.txt", "ftrace", "run.txt: is needed for the memory map"),
        ("none/run.json", None, "cannot be written"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_one_line(name: str, format: Any, message: str, tmp_path: Path) -> None:
    run = simulated(scenario(vcpus=1, storms=[], memory="64KiB"))
    with pytest.raises(InputError) as error:
        run.write_events(tmp_path / name, format)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_events_says_how_to_keep_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="log="):
        kp.simulate(scenario(vcpus=1, memory="256KiB")).write_events(tmp_path / "run.json")


def test_nobody_elses_text_is_replaced(tmp_path: Path) -> None:
    run = simulated(scenario(vcpus=1, storms=[], memory="64KiB"))
    (tmp_path / "run.txt").write_text("mine")
    with pytest.raises(InputError, match=r"run\.txt: is needed for the memory map"):
        run.write_events(tmp_path / "run.trace")
    assert [path.name for path in tmp_path.iterdir()] == ["run.txt"]
    run.write_events(tmp_path / "other.trace")
    run.write_events(tmp_path / "other.trace")


def test_another_models_run_is_refused(tmp_path: Path) -> None:
    run = simulated(scenario(vcpus=2, memory="256KiB"))
    arrays = run.arrays
    arrays["log"] = arrays["log"].copy()
    arrays["log"][40, 0] += 1
    with pytest.raises(InputError, match="does not take the step"):
        Run(run.scenario, arrays, run.meta).write_events(tmp_path / "run.json")
    assert list(tmp_path.iterdir()) == []


def test_a_loaded_run_is_written_too(tmp_path: Path) -> None:
    run = simulated(scenario(vcpus=2, memory="256KiB"))
    run.to_parquet(tmp_path / "stored.parquet")
    run.write_events(tmp_path / "run.json")
    kp.load(tmp_path / "stored.parquet").write_events(tmp_path / "loaded.json")
    assert (tmp_path / "run.json").read_bytes() == (tmp_path / "loaded.json").read_bytes()


# The command line.


def call(*arguments: object) -> int:
    """Run the command line in this process, and return its exit code."""
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    code = exit.value.code
    assert isinstance(code, int)
    return code


def test_run_writes_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, events = tmp_path / "scenario.toml", tmp_path / "run.json"
    case = scenario(vcpus=2, memory="256KiB")
    file.write_text(case.to_toml())
    assert call("run", file, "--events", events) == 0
    assert "events:" not in capsys.readouterr().out
    simulated(case).write_events(tmp_path / "other.json")
    assert events.read_bytes() == (tmp_path / "other.json").read_bytes()
    assert call("run", file, "--events", tmp_path / "run.parquet", "--log", 100) == 0
    assert "events: the first 100 of " in capsys.readouterr().out
    assert len(pd.read_parquet(tmp_path / "run.parquet")) == 100


@pytest.mark.parametrize("name", ["run.csv", "none/run.json", "scenario.trace"])
def test_run_refuses_a_file_before_it_simulates(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scenario.toml").write_text(scenario(vcpus=2, memory="256KiB").to_toml())
    (tmp_path / "scenario.txt").write_text("mine")
    before = sorted(tmp_path.iterdir())
    assert call("run", tmp_path / "scenario.toml", "--events", tmp_path / name) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and name.split("/")[0].split(".")[0] in told.err
    assert sorted(tmp_path.iterdir()) == before


def test_rows_without_a_file_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "scenario.toml").write_text(scenario().to_toml())
    assert call("run", tmp_path / "scenario.toml", "--log", 10) == 2
    assert "--log: keeps rows for --events" in capsys.readouterr().err
