"""Storm presets: the rates that a simulation finds are those of the kernel's defaults.

The figures on the right-hand sides are worked out by hand from the sources that the presets cite.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

import kvmpfn as kp
from kvmpfn.units import parse_rate, parse_time

SECOND = 10**12


def under(storm: kp.Storm, memory: str, until: str, **fields: Any) -> kp.Run:
    """Run a storm beside one vCPU that goes on reading mapped memory, an access every 50 us."""
    return kp.simulate(
        kp.Scenario(
            memory=[kp.Region(memory, mapped=True, **fields)],
            workload=kp.workloads.demand_paging(access="read", passes=100_000, think="50us"),
            storms=[storm],
            until=until,
        )
    )


@pytest.mark.parametrize(
    ("memory", "pace", "period_ms"),
    [
        ("64MiB", "fastest", 1000),
        ("256MiB", "fastest", 1000),
        ("257MiB", "fastest", 500),
        ("768MiB", "fastest", 333),
        ("1GiB", "fastest", 250),
        ("2560MiB", "fastest", 100),
        ("64GiB", "fastest", 100),
        ("256MiB", "slowest", 60000),
        ("1GiB", "slowest", 15000),
        ("64GiB", "slowest", 234),
        ("1TiB", "slowest", 100),
    ],
)
def test_numa_balancing_scans_as_often_as_task_scan_min_and_max_say(
    memory: str, pace: Any, period_ms: int
) -> None:
    storm = kp.storms.numa_balancing(memory, pace=pace)
    # A rate is written to a millionth of a call a second.
    assert storm.gap_ps == pytest.approx(period_ms * 10**9, rel=1e-4)
    assert storm.span_bytes <= 256 << 20


def test_a_small_scan_size_has_a_low_floor() -> None:
    # 2560 // 16 = 160 windows a second, 1000 // 160 = 6 ms each.
    storm = kp.storms.numa_balancing("64GiB", scan_size_mb=16)
    assert storm.gap_ps == pytest.approx(6 * 10**9, rel=1e-4) and storm.span_bytes == 16 << 20
    # The largest rate that the kernel ever has: 2560 MB a second.
    fastest = kp.storms.numa_balancing("64GiB")
    assert fastest.span_bytes * SECOND / fastest.gap_ps == pytest.approx(2560 << 20)


def test_numa_balancing_in_a_simulation() -> None:
    storm = kp.storms.numa_balancing("512MiB")
    first = under(storm, "512MiB", "600ms")
    assert (first.counters["invalidations"], first.counters["zapped"]) == (1, 65536)
    # 256 MiB every 500 ms: 2 calls and 131072 pages a second; each page is PROT_NONE until it is touched.
    run = under(storm, "512MiB", "3200ms")
    assert run.counters["storm_done"] == 6 and run.counters["storm_late"] == 0
    assert run.counters["numa_hints"] > 10_000


def test_compaction_in_a_simulation() -> None:
    run = under(kp.storms.compaction(), "16MiB", "1990ms")
    # 4 wake-ups (at 0, 500, 1000, 1500 ms) of 512 calls on average, one page each: 1024 pages a second.
    mean = 4 * 512
    assert abs(run.counters["storm_done"] - mean) < 4 * math.sqrt(mean)
    # A random page was mapped again if it was touched, else it is migrated unmapped.
    assert 0 < run.counters["zapped"] <= run.counters["storm_done"] + run.counters["host_op_busy"]


def test_madvise_loop_in_a_simulation() -> None:
    run = under(kp.storms.madvise_loop(), "64MiB", "20ms")
    client = run.clients.iloc[0]
    # Back to back: the client does nothing else, and its calls are as many as fit.
    assert client["done"] > 100
    assert client["busy_ps"] > 0.99 * 20 * 10**9
    # With a pause, at most one call a pause.
    slow = under(kp.storms.madvise_loop(think="1ms"), "64MiB", "20ms").clients.iloc[0]
    assert slow["done"] * 10**9 + slow["busy_ps"] == pytest.approx(20 * 10**9, rel=0.06)
    one = under(kp.storms.madvise_loop(limit=1), "64MiB", "20ms")
    # 512 leaves, one call, wherever it lands.
    assert (one.counters["invalidations"], one.counters["zapped"]) == (1, 512)


def test_balloon_in_a_simulation() -> None:
    run = under(kp.storms.balloon("1MiB"), "8MiB", "50ms")
    # A call for each 4 KiB page; random places meet the same page now and then: 256 draws of 2048 find
    # 2048 * (1 - (1 - 1/2048)**256) = 241 different ones, give or take 4 times 3.5.
    assert run.counters["invalidations"] == 256
    assert 227 <= run.counters["zapped"] <= 256
    assert kp.storms.balloon().limit is None


@pytest.mark.parametrize(
    ("free", "order", "a_pass"),
    [
        ("64MiB", 9, 32),
        ("128MiB", 9, 64),
        ("1GiB", 9, 64),
        ("1026MiB", 9, 96),
        ("16GiB", 9, 544),
        ("1GiB", 10, 64),
    ],
)
def test_a_pass_reports_a_sixteenth_of_the_free_list_and_one_report(
    free: str, order: int, a_pass: int
) -> None:
    storm = kp.storms.free_page_reporting(free, page_reporting_order=order)
    assert storm.rate is not None and storm.on is not None and storm.off is not None
    assert parse_time(storm.on) / parse_rate(storm.rate) == pytest.approx(a_pass)
    assert parse_time(storm.on) + parse_time(storm.off) == 2 * SECOND
    assert storm.span_bytes == 4096 << order


def test_free_page_reporting_in_a_simulation() -> None:
    run = under(kp.storms.free_page_reporting("1GiB"), "64MiB", "5s")
    # 3 passes (at 0, 2, 4 s) of 64 blocks of 2 MiB: 2 reports of 32.
    assert abs(run.counters["storm_done"] - 192) < 4 * math.sqrt(192)
    assert run.counters["zapped"] > 512
    # An idle guest has reported all it has after 8 passes of 64: the 512 blocks, and then no more.
    whole = under(kp.storms.free_page_reporting("1GiB"), "4MiB", "40s")
    assert whole.counters["storm_done"] == 512


def test_fork_in_a_simulation() -> None:
    run = under(kp.storms.fork("16MiB"), "16MiB", "1500ms")
    # One call over all 4096 pages, once a second; nothing is written, so nothing is copied.
    assert (run.counters["invalidations"], run.counters["zapped"]) == (1, 4096)
    often = under(kp.storms.fork("16MiB", rate="10/s"), "16MiB", "950ms")
    assert often.counters["storm_done"] == 9 and often.counters["cow_breaks"] == 0


def test_ksm_in_a_simulation() -> None:
    # ksmd's defaults: 100 pages each 20 ms. One after the other, and none twice.
    run = under(kp.storms.ksm(), "8MiB", "100ms")
    assert run.counters["ksm_merges"] == 500
    assert run.counters["invalidations"] == 1000 == 2 * run.counters["storm_done"]
    some = under(kp.storms.ksm(mergeable=0.1), "8MiB", "100ms")
    assert some.counters["ksm_merges"] == 50
    # 256 pages in all: once they are merged, ksmd calls no notifier any more.
    whole = under(kp.storms.ksm(), "1MiB", "100ms")
    assert whole.counters["ksm_merges"] == 256
    assert whole.counters["storm_skipped"] == whole.counters["storm_asked"] - 256


def test_khugepaged_in_a_simulation() -> None:
    # 4096 pages each 10 s: 8 2M pages a pass, all of them huge as they are.
    run = under(kp.storms.khugepaged(), "16MiB", "30s", backing="thp")
    passes = 3
    assert abs(run.counters["storm_asked"] - 8 * passes) < 4 * math.sqrt(8 * passes)
    assert run.counters["storm_skipped"] == run.counters["storm_asked"] and run.counters["invalidations"] == 0
    scenario = kp.Scenario(
        memory=[kp.Region("16MiB", backing="thp", populated=True)],
        workload=kp.workloads.demand_paging(access="read", passes=100_000, think="50us"),
        storms=[
            kp.storms.madvise_loop("4KiB", think="1ms", limit=8, place="scan"),
            kp.storms.khugepaged(scan_sleep_millisecs=20),
        ],
        until="60ms",
    )
    run = kp.simulate(scenario, check=True)
    # All eight 4K pages lie in the first 2M page: split, collapsed when khugepaged came by, and split again.
    assert 1 <= run.counters["thp_collapses"] <= run.counters["thp_splits"] <= 4
    assert run.counters["thp_splits"] - run.counters["thp_collapses"] in (0, 1)


def test_reclaim_in_a_simulation() -> None:
    run = under(kp.storms.reclaim("2k/s"), "16MiB", "500ms")
    assert abs(run.counters["storm_asked"] - 1000) < 4 * math.sqrt(1000)
    assert run.counters["swap_outs"] == run.counters["storm_done"] - run.counters["host_op_busy"]
    # The guest goes through its 4096 pages twice and more, and meets pages that are gone.
    assert 0 < run.counters["swap_ins"] <= run.counters["swap_outs"]


def test_mprotect_in_a_simulation() -> None:
    run = under(kp.storms.mprotect("1MiB"), "16MiB", "95ms")
    # 100 pairs a second, each two calls over 256 pages that lie in one GiB.
    assert run.counters["storm_done"] == 9 and run.counters["invalidations"] == 18
    # Nothing lasts: no page is copied, and each can be written again.
    assert run.counters["cow_breaks"] == 0


def test_dirty_log_in_a_simulation() -> None:
    scenario = kp.Scenario(
        memory=[kp.Region("8MiB", mapped=True)],
        workload=kp.workloads.demand_paging(passes=100_000, think="10us"),
        storms=[kp.storms.dirty_log("8MiB", interval="100ms")],
        dirty_logging=True,
        pml=False,
        until="350ms",
    )
    c = kp.simulate(scenario, check=True).counters
    # A pass has one call on average, in the first ms: at 0, 100, 200, 300 ms. It write-protects what was
    # written, at most all 2048 pages, and the guest faults on it again.
    assert abs(c["storm_done"] - 4) <= 8
    assert c["invalidations"] == 0 and c["remote_tlb_flush_requests"] <= c["storm_done"]
    assert c["pf_fast"] == c["pf_taken"] <= 2048 * (c["storm_done"] + 1)
    chunks = kp.storms.dirty_log("64GiB", clear_bitmap_shift=18)
    assert chunks.span_bytes == 1 << 30
    assert chunks.rate is not None and chunks.on is not None
    assert parse_time(chunks.on) / parse_rate(chunks.rate) == pytest.approx(64)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kp.storms.numa_balancing(scan_size_mb=0), "scan_size_mb: 0 .*; nearest is 1"),
        (lambda: kp.storms.numa_balancing(pace="slow"), "pace: .*; nearest is 'slowest'"),
        (lambda: kp.storms.compaction(pageblock_order=11), "pageblock_order: .*; nearest is 10"),
        (lambda: kp.storms.compaction(blocks=0), "blocks: .*; nearest is 1"),
        (lambda: kp.storms.compaction(hpage_frag_check_interval_ms=1), "interval_ms: .*; nearest is 2"),
        (lambda: kp.storms.balloon("5KiB"), "size: .* multiple of 4KiB; nearest is '4KiB'"),
        (lambda: kp.storms.free_page_reporting("1MiB"), "free: .*; nearest is '2MiB'"),
        (lambda: kp.storms.free_page_reporting(page_reporting_delay="1ms"), "delay: .*; nearest is '2ms'"),
        (lambda: kp.storms.ksm(pages_to_scan=0), "pages_to_scan: 0 .*; nearest is 1"),
        (lambda: kp.storms.ksm(mergeable=2), "mergeable: 2 .*; nearest is 1.0"),
        (lambda: kp.storms.khugepaged(pages_to_scan=100), "pages_to_scan: 100 .*; nearest is 512"),
        (lambda: kp.storms.dirty_log(clear_bitmap_shift=5), "clear_bitmap_shift: 5 .*; nearest is 6"),
        (lambda: kp.storms.dirty_log(interval="1ms"), "interval: .*; nearest is '2ms'"),
        (lambda: kp.storms.ksm(place="scan", offset="0B"), "place: 'scan' .*; nearest is 'random'"),
        (lambda: kp.storms.madvise_loop(thinks="1ms"), "unknown key 'thinks'; nearest is 'think'"),
    ],
)
def test_a_wrong_value_is_one_line(make: Any, message: str) -> None:
    with pytest.raises(kp.InputError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_users_field_goes_before_the_presets() -> None:
    storm = kp.storms.numa_balancing(hold="3us", vm=0, rate="7/s")
    assert (storm.hold, storm.vm, storm.rate, storm.action) == ("3us", 0, "7/s", "numa_balancing")
