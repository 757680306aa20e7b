"""Recordings of a real KVM: what is read agrees with what the kernel counted."""

from __future__ import annotations

import gzip
from itertools import pairwise
from pathlib import Path

import pytest

from kvmpfn.traces import Trace, read_counters, read_trace
from kvmpfn.units import InputError

KERNELS = ("6.1", "6.16")
PREFIX = "CPU 5/KVM-1234    [003] d..1. "
OTHER = "  vhost-150742-77 (  77) [001] .....11"


@pytest.fixture(scope="module", params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def data(repo_root: Path, kernel: str) -> Path:
    return repo_root / "data" / "recordings" / kernel


@pytest.fixture(scope="module")
def demand(data: Path) -> Trace:
    return read_trace(data / "dt2-v1.trace.gz")


@pytest.fixture(scope="module")
def storm(data: Path) -> Trace:
    return read_trace(data / "st-v1-r1000.trace.gz")


def written(folder: Path, *lines: str) -> Path:
    path = folder / "one.trace"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_the_kernel_is_found_in_the_recording(demand: Trace, storm: Trace, kernel: str) -> None:
    assert demand.kernel == storm.kernel == kernel
    assert demand.mmu == storm.mmu == "npt"


def test_every_line_is_used_or_counted(data: Path, storm: Trace) -> None:
    with gzip.open(data / "st-v1-r1000.trace.gz", "rt") as stream:
        total = sum(1 for _ in stream)
    assert storm.skipped == {"comment": 6}
    assert len(storm.events) == total - 6
    assert storm.lost == storm.lost_unknown == 0


def test_a_whole_trace_agrees_with_the_counters(demand: Trace) -> None:
    assert demand.whole
    outcomes, counters = demand.outcomes(), demand.counters()
    assert outcomes.sum() == counters["pf_taken"] == 16 * 256 + 5
    assert outcomes["FIXED"] == counters["pf_fixed"] == counters["pages_4k"]
    assert set(outcomes.index) == {"FIXED"}
    assert demand.storms() == []


def test_a_cut_trace_says_so_and_ends_inside_a_fault(storm: Trace) -> None:
    assert not storm.whole
    assert (storm.faults["outcome"] == "unfinished").sum() == 1
    assert storm.outcomes().sum() == len(storm.faults) - 1
    assert storm.outcomes().sum() < storm.counters()["pf_taken"]


def test_outcomes_are_the_returns(storm: Trace, kernel: str) -> None:
    returns = storm.events.loc[storm.events["event"] == "pf_ret", "ret"].value_counts()
    fixed = {"6.1": 4, "6.16": 5}[kernel]
    assert storm.outcomes().to_dict() == {"FIXED": returns[fixed], "RETRY": returns[1]}


def test_where_retries_are_caught(storm: Trace, kernel: str) -> None:
    retries = storm.faults[storm.faults["outcome"] == "RETRY"]
    places = retries["where"].value_counts()
    assert {name: count for name, count in places.items() if count} == {
        "6.1": {"locked": 314},
        "6.16": {"post_gup": 128, "locked": 27, "pre_gup": 19},
    }[kernel]
    assert (retries["why"] == "seq").mean() > 0.85
    early = retries[retries["where"] == "pre_gup"]
    assert early["gup_ps"].isna().all() and early["stale_ps"].isna().all()
    assert retries.loc[retries["where"] == "locked", "stale_ps"].notna().all()


def test_probes_stand_in_order(storm: Trace) -> None:
    fixed = storm.faults[storm.faults["outcome"] == "FIXED"]
    times = ["time_ps", "gup_ps", "faultin_ps", "stale_ps", "map_ps", "end_ps"]
    for before, after in pairwise(times):
        assert (fixed[before] <= fixed[after]).all()
    assert (fixed["level"] == 1).all()
    assert (fixed["kind"] == "write").mean() > 0.99
    assert set(fixed["kind"]) == {"write", "exec"}
    phases = storm.phases()
    assert phases.loc["entry_to_gup", "median"] == 6
    assert phases.loc["total", "median"] == {"6.1": 40, "6.16": 33}[storm.kernel]
    assert phases.attrs["units"]["median"] == "us"


def test_invalidations_of_the_storm(storm: Trace) -> None:
    calls = storm.invalidations
    assert len(calls) == {"6.1": 700, "6.16": 555}[storm.kernel]
    assert (calls["hva_end"] - calls["hva_start"] == 64 * 4096).all()
    assert (calls["gfn_end"] - calls["gfn_start"] == 64).all()
    assert calls["gfn_start"].min() >= 0x40000
    assert calls["gfn_end"].max() <= 0x40000 + 16 * 256
    assert (calls["start_ps"] <= calls["start_ret_ps"]).all()
    assert (calls["start_ret_ps"] <= calls["end_ps"]).all()
    assert (calls["end_ps"] <= calls["end_ret_ps"]).all()
    assert calls["seq_ps"].isna().all() == (storm.kernel == "6.1")


def test_a_storm_is_fitted(storm: Trace) -> None:
    (fitted,) = storm.storms()
    assert fitted.arrival == "periodic"
    assert fitted.gap_ps == pytest.approx(10**9, rel=1e-3)
    assert fitted.span_bytes == 256 << 10
    assert fitted.hold_ps == {"6.1": 14, "6.16": 6}[storm.kernel] * 10**6


def test_a_storm_is_fitted_without_its_configuration(storm: Trace, data: Path, tmp_path: Path) -> None:
    alone = tmp_path / "st-v1-r1000.trace.gz"
    alone.write_bytes((data / alone.name).read_bytes())
    trace = read_trace(alone)
    assert trace.statistics is None
    assert trace.config == {}
    assert trace.storms() == storm.storms()
    assert trace.outcomes().equals(storm.outcomes())
    retries = trace.faults[trace.faults["outcome"] == "RETRY"]
    assert set(retries["why"]) == {"unknown"}
    assert trace.replay_bytes == (512 + 16 * 256) * 4096
    with pytest.raises(InputError, match="no counters"):
        trace.counters()


def test_a_retry_is_no_access_of_its_own(storm: Trace) -> None:
    accesses = storm.accesses
    assert accesses["tries"].sum() == len(storm.faults)
    retries = (storm.faults["outcome"] == "RETRY").sum()
    assert len(accesses) == len(storm.faults) - retries
    assert (accesses["outcome"].iloc[:-1] == "FIXED").all()


def test_the_workload_is_the_accesses(demand: Trace) -> None:
    workload = demand.workload(think=False)
    (accesses,) = workload.vcpus
    assert len(accesses) == 4101
    gfns = [access[0] for access in accesses]
    assert sorted(gfns) == list(range(4096 + 5))
    slot = [gfn for gfn in gfns if gfn < 4096]
    assert slot == list(range(4096))
    assert demand.replay_bytes == (4096 + 5) * 4096
    assert {access[2] for access in accesses} == {0}
    (thinking,) = demand.workload().vcpus
    assert all(access[2] > 0 for access in list(thinking)[1:])


def test_counters_of_runs_that_were_not_traced(data: Path, kernel: str) -> None:
    first = read_counters(data / "d-v1.1.txt")
    assert first.counters()["pf_taken"] == first.counters()["pf_fixed"] == 64 * 256 + 5
    assert first.slot is not None and first.slot[0] == 0x40000 and first.slot[2] == 64 * 256
    shared = read_counters(data / "d-v4s.1.txt").counters()
    over = shared["pf_fixed"] > 2 * 16389 - 1000
    assert over == (kernel == "6.1")
    assert read_counters(data / "dh-v1.txt").counters()["pages_2m"] == 32


def test_the_long_recordings_agree_too(recordings: Path, kernel: str) -> None:
    folder = recordings / "npt" / f"five{kernel.replace('.', '')}"
    for name in ("dt-v4p", "dt-v4s"):
        trace = read_trace(folder / f"{name}.trace.gz")
        outcomes, counters = trace.outcomes(), trace.counters()
        assert trace.whole
        assert outcomes.sum() == counters["pf_taken"]
        assert outcomes["FIXED"] == counters["pf_fixed"]
        assert outcomes.get("SPURIOUS", 0) == counters.get("pf_spurious", 0)
        retries = trace.faults[trace.faults["outcome"] == "RETRY"]
        assert (retries["where"] == "race").all()
        assert len(trace.workload().vcpus) == 4


def test_busy_recordings_are_closed_loops(recordings: Path, kernel: str) -> None:
    trace = read_trace(recordings / "npt" / f"two{kernel.replace('.', '')}" / "st-v1-r-1.trace.gz")
    (fitted,) = trace.storms()
    assert fitted.arrival == "closed_loop"
    assert fitted.think_ps in (2 * 10**6, 3 * 10**6)
    assert trace.outcomes()["RETRY"] == {"6.1": 1644, "6.16": 2131}[kernel]


def test_awkward_lines(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "# entries-in-buffer/entries-written: 5/12   #P:8",
        "CPU:2 [LOST 3 EVENTS]",
        "CPU:1 [LOST EVENTS]",
        f"{PREFIX}1.000001: kvm_page_fault: address 12345000 error_code 182",
        f"{PREFIX}1.000002: kvm_mmu_spte_requested: gfn 12345 pfn 99 level 1",
        f"{PREFIX}1.000003: kvm_tdp_mmu_spte_changed: as id 0 gfn 12345 level 1 old_spte 0 new_spte 99e37",
        f"{PREFIX}1.000004: kvm_entry: vcpu 5, rip 0xffff",
        f"{OTHER} 1.000005000: kvm:kvm_page_fault: vcpu 1 rip 0x1 address 0x1000 error_code 0x181",
        f"{OTHER} 1.000006000: kvm:kvm_entry: vcpu 1, rip 0x1",
        f"{PREFIX}1.000007: kvm_unmap_hva_range: mmu notifier unmap range: 0x7f00000000 -- 0x7f00001000",
        f"{PREFIX}1.000008: kvm_page_fault: garbled",
        f"{PREFIX}1.000009: kvm_fpu: load",
        " => some_symbol",
        "",
    )
    trace = read_trace(path)
    assert (trace.lost, trace.lost_unknown) == (7 + 3, 1)
    assert trace.skipped == {
        "comment": 1,
        "lost events": 2,
        "fields not understood: kvm_page_fault": 1,
        "event not used: kvm_fpu": 1,
        "not an event": 1,
        "blank": 1,
    }
    assert trace.mmu == "ept"
    assert trace.kernel == "6.1"
    faults = trace.faults
    assert list(faults["outcome"]) == ["FIXED", "RETRY"]
    assert faults["inferred"].all()
    assert list(faults["where"]) == ["", "unknown"]
    assert list(faults["kind"]) == ["write", "read"]
    assert list(faults["task"]) == ["CPU 5/KVM", "vhost-150742"]
    assert list(faults["gfn"]) == [0x12345, 1]
    assert list(faults["time_ps"]) == [1_000_001_000_000, 1_000_005_000_000]
    assert trace.invalidations["gfn_start"].isna().all()
    assert trace.storms() == []
    assert "2 events" in repr(trace) or "FIXED" in repr(trace)
    with pytest.raises(InputError, match="no counters"):
        trace.counters()


def test_a_failed_fault_is_an_error(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        f"{PREFIX}1.000001: kvm_page_fault: vcpu 0 rip 0x1 address 0x1000 error_code 0x100000006",
        f"{PREFIX}1.000002: pf_ret: (handler+0x10/0x20 <- kvm_tdp_page_fault) ret=-14",
    )
    trace = read_trace(path, kernel="6.12.3")
    assert trace.kernel == "6.16"
    assert trace.outcomes().to_dict() == {"ERROR": 1}
    assert trace.events["ret"].iloc[1] == -14
    with pytest.raises(InputError, match="kernel unknown"):
        read_trace(path)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("hello", "no event of KVM"),
        (f"{PREFIX}123456789: kvm_entry: vcpu 0, rip 0x1", "clock ticks"),
        ("# qemu latency trace v1.1.5", "latency-format"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as raised:
        read_trace(written(tmp_path, line))
    assert "\n" not in str(raised.value)


def test_a_missing_file_names_the_nearest(data: Path) -> None:
    with pytest.raises(InputError, match=r"dt2-v1\.trace\.gz"):
        read_trace(data / "dt2-v9.trace.gz")
    with pytest.raises(InputError, match="not a version"):
        read_trace(data / "dt2-v1.trace.gz", kernel="new")
