"""What a recording means: who faulted, on what, and how it ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces_made_up import PROBES, SLOT, US, columns, fault, line, recorded, without

import kvmpfn as kp
from kvmpfn.traces import Trace, read_trace
from kvmpfn.traces.events.records import ABSENT, CODE, Records
from kvmpfn.traces.faults import Faults
from kvmpfn.traces.machines import KINDS, MACHINES, access_kinds, machines
from kvmpfn.traces.memslots import Memslots
from kvmpfn.traces.threads import vm_of
from kvmpfn.units import InputError

# ---------------------------------------------------------------- real recordings


@pytest.mark.parametrize("kernel", ["61", "616"])
@pytest.mark.parametrize("name", ["two/dt1-v1", "two/dt2-v1", "two/dht-v1", "five/dt-v4p", "five/dt-v4s"])
def test_whole_recordings_agree_with_every_counter(recordings: Path, kernel: str, name: str) -> None:
    folder, stem = name.split("/")
    trace = read_trace(recordings / "npt" / f"{folder}{kernel}" / f"{stem}.trace.gz")
    outcomes, counters = trace.outcomes(), trace.counters()
    assert trace.whole
    for outcome, counter in (("FIXED", "pf_fixed"), ("SPURIOUS", "pf_spurious"), ("EMULATE", "pf_emulate")):
        assert outcomes.get(outcome, 0) == counters.get(counter, 0)
    others = sum(counters.get(name, 0) for name in ("pf_fixed", "pf_spurious", "pf_emulate"))
    assert outcomes.get("RETRY", 0) == counters["pf_taken"] - others
    assert not trace.faults["inferred"].any()
    vcpus = 4 if "v4" in stem else 1
    assert len(trace.vms) == 1 and trace.vms["vcpus"][0] == vcpus
    assert trace.threads["vm"].notna().sum() == vcpus


@pytest.mark.parametrize(("kernel", "rate", "faults"), [("61", "100", 10363), ("61", "-1", 2257)])
def test_cut_recordings_hold_as_many_faults_as_their_index_says(
    recordings: Path, kernel: str, rate: str, faults: int
) -> None:
    trace = read_trace(recordings / "npt" / f"two{kernel}" / f"st-v1-r{rate}.trace.gz")
    assert trace.outcomes().sum() == faults


@pytest.mark.parametrize(
    ("kernel", "rate", "places"),
    [
        ("61", "1000", {"locked": 2.82}),
        ("61", "-1", {"locked": 62.55}),
        ("616", "1000", {"pre_gup": 0.12, "post_gup": 1.30, "locked": 0.25}),
        ("616", "-1", {"pre_gup": 2.69, "post_gup": 51.07, "locked": 17.65}),
    ],
)
def test_retries_are_caught_where_the_index_says(
    recordings: Path, kernel: str, rate: str, places: dict[str, float]
) -> None:
    """The index counted the whole runs; these are cut, and a storm at full speed changes while it goes on."""
    trace = read_trace(recordings / "npt" / f"two{kernel}" / f"st-v1-r{rate}.trace.gz")
    retried = trace.faults[trace.faults["outcome"] == "RETRY"]
    share = 100 * retried["where"].value_counts() / trace.outcomes().sum()
    assert set(share[share > 0].index) == set(places)
    for where, percent in places.items():
        assert share[where] == pytest.approx(percent, rel=0.5, abs=0.15)
    assert share.idxmax() == max(places, key=lambda where: places[where])
    assert (retried["why"] == "seq").mean() > 0.85


def test_published_faults_say_what_they_can(recordings: Path) -> None:
    public = recordings / "public"
    spurious = read_trace(public / "lore-kvm-lefebvre-20240909-fast_page_fault-spurious.txt")
    assert spurious.outcomes().to_dict() == {"SPURIOUS": 7}
    assert spurious.faults["inferred"].all() and not spurious.faults["guessed"].any()
    assert list(spurious.faults["kind"].unique()) == ["exec"]
    assert sorted(spurious.faults["vcpu"].unique()) == [4, 7]
    stuck = read_trace(public / "lore-kvm-brak-20230523-ept-intel.txt")
    assert list(stuck.faults["outcome"]) == ["unknown"] * 5 + ["unfinished"]
    assert stuck.mmu == "ept" and (stuck.faults["kind"] == "write").all()
    assert (stuck.faults["gfn"] == 0x2594).all()
    assert any("which faults were retried" in what for what in stuck.summary().splitlines())
    old = read_trace(public / "lore-kvm-peterx-20191202-dirty-ring.txt")
    assert (old.faults["vcpu"] == 1).all() and "vCPU, by the order of threads" not in old.guessed
    nested = read_trace(public / "lore-kvm-wanpengli-20200708-npf-3vcpu.txt")
    assert nested.mmu == "npt" and not nested.faults["guessed"].any()
    assert (nested.faults["kind"] == "exec").all() and (nested.faults["place"] == "mmio").all()
    assert list(nested.vms["vcpus"]) == [3]
    guest = read_trace(public / "lore-kvm-seanjc-20220830-first-new-format.txt")
    assert guest.guessed["page of a device, by its address"] == 2
    assert guest.faults["guessed"].all()
    huge = read_trace(public / "lore-kvm-annapurve-2022-tdpmmu-coalesce.txt").faults.iloc[0]
    assert (huge["level"], huge["pfn"], huge["kind"]) == (2, 0x100B4A4D, "unknown")


# ---------------------------------------------------------------- who, on what, how it ended


def test_vms_are_told_apart_by_their_threads(tmp_path: Path) -> None:
    trace = recorded(
        tmp_path,
        fault(101, 0, 10, 5, vcpu=0),
        fault(102, 1, 11, 6, vcpu=1),
        fault(201, 2, 12, 5, vcpu=0),
        fault(102, 1, 13, 7, vcpu=1),
        line("vhost-101", 150, 3, 14, "kvm_unmap_hva_range: mmu notifier unmap range: 0x1000 -- 0x3000"),
        line("vhost-101", 150, 3, 15, "inv_end: (x)"),
    )
    assert trace.vms["vcpus"].tolist() == [2, 1] and trace.vms["faults"].tolist() == [3, 1]
    assert trace.faults["vm"].tolist() == [0, 0, 1, 0]
    helper = trace.threads[trace.threads["vm"].isna()]
    assert helper["task"].tolist() == ["vhost-101"] and helper["invalidations"].tolist() == [1]
    assert trace.guessed["VM, by the order and the names of threads"] == 3
    assert trace.invalidations["span"].tolist() == [0x2000]
    with pytest.raises(InputError, match="VM 7"):
        trace.scenario(vm=7)


def test_threads_that_start_side_by_side_make_as_many_vms() -> None:
    tasks = {number: "CPU 0/KVM" for number in range(100)}
    found = vm_of([(10, 0), (11, 0), (12, 1), (13, 1)], tasks)
    assert len(set(found.values())) == 2
    assert vm_of([(10, 0), (20, 1)], {10: "fc_vcpu 0", 20: "CPU 1/KVM"})[20, 1] == 1


def test_vcpus_without_numbers_are_named_by_their_threads(tmp_path: Path) -> None:
    trace = recorded(
        tmp_path,
        line("qemu", 7, 0, 10, "kvm_entry: vcpu 3"),
        fault(7, 0, 11, 5),
        fault(9, 1, 12, 6),
        fault(8, 1, 13, 7),
    )
    assert trace.faults["vcpu"].tolist() == [3, 4, 5]
    assert trace.guessed["vCPU, by the order of threads"] == 2


def test_events_lost_break_a_thread(tmp_path: Path) -> None:
    trace = recorded(
        tmp_path,
        fault(1, 0, 10, 5, vcpu=0),
        line("CPU 0/KVM", 1, 0, 11, "pf_ret: ret=5"),
        fault(2, 1, 12, 6, vcpu=1),
        line("CPU 1/KVM", 2, 1, 13, "pf_ret: ret=5"),
        fault(1, 0, 14, 7, vcpu=0),
        "CPU:0 [LOST 3 EVENTS]\n",
        line("CPU 0/KVM", 1, 0, 20, "pf_ret: ret=5"),
        fault(1, 0, 21, 8, vcpu=0),
        fault(2, 1, 22, 9, vcpu=1),
        kernel="6.16",
    )
    assert trace.lost == 3
    assert trace.faults["outcome"].tolist() == ["FIXED", "FIXED", "unknown", "unfinished", "unfinished"]
    assert trace.faults["broken"].tolist() == [False, False, False, True, False]
    thinks = trace.accesses["think_ps"]
    assert thinks.isna().tolist() == [True, True, False, True, False]
    assert thinks[4] == 9 * US


def test_think_starts_at_the_entry_if_no_return_was_recorded(tmp_path: Path) -> None:
    trace = recorded(
        tmp_path,
        fault(1, 0, 10, 5, vcpu=0),
        line("CPU 0/KVM", 1, 0, 14, "kvm_entry: vcpu 0, rip 0x1"),
        fault(1, 0, 20, 6, vcpu=0),
        fault(1, 0, 33, 7, vcpu=0),
    )
    assert trace.accesses["think_ps"].iloc[1:].tolist() == [6 * US, 13 * US]
    assert trace.faults["outcome"].tolist() == ["unknown", "unknown", "unfinished"]


def test_outcomes_are_inferred_from_what_was_written(tmp_path: Path) -> None:
    entry = "kvm_entry: vcpu 0, rip 0x1"
    zapped = "kvm_tdp_mmu_spte_changed: as id 0 gfn 6 level 1 old_spte 600000000006b77 new_spte 5a0"
    trace = recorded(
        tmp_path,
        fault(1, 0, 10, 5, vcpu=0),
        line("v", 1, 0, 11, "kvm_mmu_set_spte: gfn 5 spte 600000000005b77 (rwxu) level 1 at 1000"),
        line("v", 1, 0, 12, entry),
        fault(1, 0, 20, 6, vcpu=0),
        line("v", 1, 0, 21, zapped),
        line("v", 1, 0, 22, entry),
        fault(1, 0, 30, 6, vcpu=0),
        line("v", 1, 0, 31, "kvm_mmu_set_spte: gfn 0 spte 6000000000000f3 (rwxu) level 2 at 1000"),
        line("v", 1, 0, 32, entry),
        fault(1, 0, 40, 0xFEE00, vcpu=0),
        line("v", 1, 0, 41, "mark_mmio_spte: sptep:00000000abcdef00 gfn fee00 access 6 gen 1"),
        line("v", 1, 0, 42, entry),
    )
    assert trace.faults["outcome"].tolist() == ["FIXED", "RETRY", "FIXED", "EMULATE"]
    assert trace.faults["inferred"].all()
    assert trace.faults["level"].tolist()[:1] + trace.faults["level"].tolist()[2:3] == [1, 2]
    assert trace.faults["place"].tolist() == ["unknown"] * 3 + ["mmio"]
    assert trace.accesses["tries"].tolist() == [1, 2, 1]
    assert len(trace.replay_accesses()) == 2  # nothing is mapped at a device's page
    assert trace.guessed["outcome, by what was written"] == 4


@pytest.mark.parametrize("kernel", ["6.1", "6.16"])
@pytest.mark.parametrize("rate", ["1000", "-1"])
def test_inference_finds_what_the_probes_say(repo_root: Path, kernel: str, rate: str) -> None:
    trace = read_trace(repo_root / "data" / "recordings" / kernel / f"st-v1-r{rate}.trace.gz")
    less = without(trace, PROBES)
    # The last one has no event after it that would say that the thread is past it.
    assert less.faults["outcome"].tolist()[:-1] == trace.faults["outcome"].tolist()[:-1]
    ended = less.faults["outcome"] != "unfinished"
    assert less.faults.loc[ended, "inferred"].all()
    assert set(less.faults.loc[less.faults["outcome"] == "RETRY", "where"]) == {"unknown"}


@pytest.mark.parametrize("kernel", ["61", "616"])
def test_what_others_mapped_meanwhile_is_not_inferred(recordings: Path, kernel: str) -> None:
    trace = read_trace(recordings / "npt" / f"five{kernel}" / "dt-v4s.trace.gz")
    told = pd.crosstab(
        trace.faults["outcome"].astype(str), without(trace, PROBES).faults["outcome"].astype(str)
    )
    assert (
        told.loc["FIXED", "FIXED"] >= told.loc["FIXED"].sum() - 4
    )  # a vCPU's last one has no event after it
    assert told.loc[["RETRY", "SPURIOUS"]].sum().drop(["unknown", "unfinished"], errors="ignore").sum() <= 1


@pytest.mark.parametrize(
    ("reason", "codes", "machine", "kinds"),
    [
        ("EPT_VIOLATION", [0x181, 0x182, 0x184, 0x683], "ept", ["read", "write", "exec", "write"]),
        ("npf", [0x100000004, 0x100000006, 0x100000014], "npt", ["read", "write", "exec"]),
        ("EXIT_NPF", [0x14], "npt", ["exec"]),
        ("EXCEPTION_NMI", [0x4, 0x6, 0x15], "shadow", ["read", "write", "exec"]),
    ],
)
def test_the_exit_tells_the_machine(reason: str, codes: list[int], machine: str, kinds: list[str]) -> None:
    code = np.array(codes, dtype=np.int64)
    found, guessed = machines(np.zeros(len(code), np.int64), code, np.zeros(len(code), bool), [reason])
    assert [MACHINES[one] for one in found] == [machine] * len(code) and not guessed.any()
    assert [KINDS[kind] for kind in access_kinds(found, code)] == kinds


def test_without_an_exit_bits_are_a_guess() -> None:
    def told(*codes: int, reasons: tuple[str, ...] = ()) -> tuple[set[str], set[bool], list[str]]:
        code = np.array(codes, dtype=np.int64)
        found, guessed = machines(np.full(len(code), -1), code, np.zeros(len(code), bool), reasons)
        return (
            {MACHINES[one] for one in found},
            set(guessed.tolist()),
            [KINDS[k] for k in access_kinds(found, code)],
        )

    assert told(0x100000014, 6) == ({"npt"}, {True}, ["exec", "write"])
    assert told(0x184, 1) == ({"ept"}, {True}, ["exec", "read"])
    assert told(4, 6) == ({"unknown"}, {False}, ["unknown", "write"])
    assert told(4, reasons=("HLT", "EPT_MISCONFIG")) == ({"ept"}, {True}, ["exec"])


def test_arm64_has_its_own_syndromes(tmp_path: Path) -> None:
    text = "kvm_guest_fault: ipa {:#x}, hsr {:#x}, hxfar 0xffff0000, pc 0xffff800010000000"
    trace = recorded(
        tmp_path,
        *(
            line("kvm-vcpu-0", 9, 0, 10 + number, text.format(0x40000000 + (number << 12), hsr))
            for number, hsr in enumerate((0x93C08047, 0x93C08007, 0x82000007))
        ),
    )
    assert trace.mmu == "arm64"
    assert trace.faults["kind"].tolist() == ["write", "read", "exec"]
    assert trace.faults["gfn"].tolist() == [0x40000, 0x40001, 0x40002]


# ---------------------------------------------------------------- memslots


def test_ranges_are_mapped_as_kvm_does_it() -> None:
    slots = Memslots([(0x100, 0x10000000, 16), (0x400, 0x20000000, 8)])
    start = np.array([0x10001000, 0x0FFFF000, 0x1000F000, 0x30000000, 0x10000800], dtype=np.uint64)
    end = np.array([0x10003000, 0x10001000, 0x20001000, 0x30001000, 0x10001001], dtype=np.uint64)
    first, last = slots.gfns(start, end)
    assert first.tolist() == [0x101, 0x100, 0x10F, -1, 0x100]
    assert last.tolist() == [0x103, 0x101, 0x401, -1, 0x102]
    assert slots.place(np.array([0x100, 0x10F, 0x110, 0x400, 0x408, 0])).tolist() == [0, 15, -1, 16, -1, -1]
    assert slots.total == 24 and Memslots(slots).rows() == slots.rows()


def test_a_map_comes_from_a_table_a_file_or_triples(tmp_path: Path) -> None:
    lines = (
        fault(1, 0, 10, 0x100001, vcpu=0),
        fault(1, 0, 11, 5, vcpu=0),
        line(
            "mm", 2, 1, 12, "kvm_unmap_hva_range: mmu notifier unmap range: 0x7f0000001000 -- 0x7f0000003000"
        ),
        line("mm", 2, 1, 13, "kvm_unmap_hva_range: mmu notifier unmap range: 0x1000 -- 0x3000"),
    )
    csv = tmp_path / "slots.csv"
    csv.write_text("# slots\ngfn, hva, pages\n0x100000, 0x7f0000000000, 4096\n")
    table = pd.DataFrame([SLOT], columns=["gfn", "hva", "pages"])
    for given_as in (csv, str(csv), table, [SLOT]):
        trace = recorded(tmp_path, *lines, memslots=given_as)
        assert trace.faults["place"].tolist() == ["slot", "outside"]
        assert trace.invalidations["gfn_start"].tolist()[0] == 0x100001
        assert trace.invalidations["gfn_end"].tolist()[0] == 0x100003
        assert trace.invalidations["gfn_start"].isna().tolist() == [False, True]
        assert trace.replay_gfns() == {0x100001: 1, 5: 4096}


def test_without_a_map_memory_is_no_larger_than_it_must_be(tmp_path: Path) -> None:
    far = 0x7FC036D
    trace = recorded(
        tmp_path, *(fault(1, 0, 10 + n, gfn, vcpu=0) for n, gfn in enumerate((far, 3, far + 600)))
    )
    assert trace.replay_gfns() == {3: 3, far: 512 + far % 512, far + 600: 1024 + (far + 600) % 512}
    assert kp.simulate(trace.scenario(), progress=False).faults == 3


@pytest.mark.parametrize(
    ("slots", "says"),
    [
        ([], "none"),
        ([(0, 0x1000, 4), (2, 0x9000, 4)], "nearest gfn is 0x4"),
        ([(0, 0x1001, 4)], "nearest is 0x1000"),
        ([(0, 0x1000, 0)], "no memslot"),
        ([(0, 0x1000)], "is not gfn, hva, pages"),
        (pd.DataFrame({"gfn": [1], "hvas": [0], "pages": [1]}), "nearest is 'hvas'"),
        ("nowhere.csv", "no such file"),
    ],
)
def test_a_map_that_is_none_is_told_in_one_line(slots: Any, says: str) -> None:
    with pytest.raises(InputError, match=says) as raised:
        Memslots(slots)
    assert "\n" not in str(raised.value)


# ---------------------------------------------------------------- assembly


EVENTS = st.tuples(
    st.integers(1, 4),
    st.sampled_from(sorted(CODE)),
    *(st.one_of(st.integers(0, 6), st.sampled_from([ABSENT, 0x5A0, 1 << 63, 0x1000, 0x182])) for _ in "abcd"),
)


@given(st.lists(EVENTS, max_size=60), st.lists(st.integers(0, 60), max_size=3), st.integers(1, 20))
def test_events_may_come_in_any_order_and_in_any_blocks(
    events: list[Any], losses: list[int], size: int
) -> None:
    rows = [(number * US, *event) for number, event in enumerate(events)]
    block = columns(rows)
    lost = np.array([(row, row % 3 - 1) for row in sorted(losses)], dtype="i8").reshape(-1, 2)
    whole, parts = Faults(Memslots([(0, 0, 8)])), Faults(Memslots([(0, 0, 8)]))
    whole.feed(block, lost)
    for begin in range(0, len(rows), size):
        here = lost[(lost[:, 0] >= begin) & (lost[:, 0] < begin + size)] - np.array([begin, 0])
        parts.feed({name: column[begin : begin + size] for name, column in block.items()}, here)
    assert len(whole) == sum(event[1] in ("kvm_page_fault", "kvm_guest_fault") for event in events)
    for name in ("time_ps", "state", "ret", "end_ps", "evidence", "where", "why", "level", "broken"):
        assert whole.fault(name).tolist() == parts.fault(name).tolist(), name
    for name in ("start_ps", "gfn_start", "gfn_end", "end_ps", "end_ret_ps"):
        assert whole.call(name).tolist() == parts.call(name).tolist(), name
    for kernel in ("6.1", "6.16"):
        outcome, inferred = whole.outcome(kernel)
        where, why = whole.places(outcome)
        assert len(outcome) == len(inferred) == len(where) == len(why) == len(whole)


@settings(max_examples=40)
@given(
    st.lists(EVENTS, max_size=60),
    st.lists(st.integers(0, 1 << 62), min_size=60, max_size=60),
    st.booleans(),
    st.sampled_from(["6.1", "6.16"]),
)
def test_whatever_was_recorded_something_can_be_said_of_it(
    events: list[Any], times: list[int], mapped: bool, kernel: str
) -> None:
    rows = [(time, *event) for time, event in zip(times, events, strict=False)]
    records = Records(**columns(rows), lines=len(rows), reasons=["EPT_VIOLATION", "HLT"])
    trace = Trace("any", kernel, records, memslots=Memslots([(0, 0, 8)]) if mapped else None)
    assert f"{len(rows):,d} events" in trace.summary()
    assert len(trace.faults) == trace.accesses["tries"].sum()
    assert trace.over_time(3)["faults"].sum() == len(trace.faults)
    assert trace.vms["faults"].sum() == len(trace.faults)
    assert trace.threads["faults"].sum() == len(trace.faults)
    trace.events, trace.storms()
    try:
        trace.scenario()
        trace.fit().scenario(vcpus="2x", storm="3x")
    except InputError as error:
        assert "\n" not in str(error)


def test_a_reason_needs_the_ends_of_invalidations(tmp_path: Path) -> None:
    unmap = "kvm_unmap_hva_range: mmu notifier unmap range: 0x7f0000000000 -- 0x7f0000040000"
    lines = [
        line("mm", 2, 1, 9, unmap),
        line("CPU 0/KVM", 1, 0, 10, "kvm_page_fault: vcpu 0 rip 0x1 address 0x100001000 error_code 0x182"),
        line("CPU 0/KVM", 1, 0, 11, "stale_ret: ret=1"),
        line("CPU 0/KVM", 1, 0, 12, "pf_ret: ret=1"),
    ]
    told = recorded(tmp_path, *lines, line("mm", 2, 1, 20, "inv_end_ret: (x)"), kernel="6.1", memslots=[SLOT])
    assert told.faults.loc[0, ["where", "why"]].tolist() == ["locked", "range"]
    untold = recorded(tmp_path, *lines, kernel="6.1", memslots=[SLOT])
    assert untold.faults.loc[0, ["where", "why"]].tolist() == ["locked", "unknown"]


@pytest.mark.parametrize("kernel", ["6.1", "6.16"])
def test_events_need_not_be_kept(repo_root: Path, kernel: str) -> None:
    file = repo_root / "data" / "recordings" / kernel / "st-v1-r1000.trace.gz"
    trace, less = read_trace(file), read_trace(file, events=False)
    assert less.summary() == trace.summary()
    for name in ("faults", "invalidations", "accesses", "threads"):
        pd.testing.assert_frame_equal(getattr(less, name), getattr(trace, name))
    assert less.storms() == trace.storms() and less.duration_ps == trace.duration_ps
    with pytest.raises(InputError, match="events were not kept"):
        less.to_parquet("x.parquet")
    # What an invalidation zapped, counted by the times of events.
    changed = trace.events[trace.events["event"] == "kvm_tdp_mmu_spte_changed"]
    times = {pid: group.to_numpy() for pid, group in changed.groupby("pid")["time_ps"]}
    for call in trace.invalidations.dropna(subset=["start_ret_ps"]).itertuples():
        own = times.get(call.pid, np.zeros(0))
        assert call.zapped == ((own >= call.start_ps) & (own <= call.start_ret_ps)).sum()


def test_time_is_cut_into_stretches(repo_root: Path) -> None:
    trace = read_trace(repo_root / "data" / "recordings" / "6.16" / "st-v1-r1000.trace.gz")
    for bins in (1, 7, 100):
        frame = trace.over_time(bins)
        assert len(frame) == bins
        assert frame["faults"].sum() == len(trace.faults)
        assert frame["retries"].sum() == trace.outcomes()["RETRY"]
        assert frame["invalidations"].sum() == len(trace.invalidations)
        assert frame["working_set"].iloc[-1] == trace.vms["pages"].sum()
        assert (frame["pages"] >= frame["new_pages"]).all()
    with pytest.raises(InputError, match="bins"):
        trace.over_time(0)
