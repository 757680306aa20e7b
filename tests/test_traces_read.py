"""Event recordings in all their renderings, with the dirt that tools, mail and crashes put on them."""

from __future__ import annotations

import gzip
import lzma
import re
import stat
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from recorded_lines import EXITS, KERNEL_EXIT, accounted, records, same

from kvmpfn.traces import source
from kvmpfn.traces.events import read
from kvmpfn.traces.events import records as records_module
from kvmpfn.traces.events.exits import exit_name
from kvmpfn.traces.events.read import BACKWARD, TAIL, convert, read_blocks, read_records
from kvmpfn.traces.events.records import ABSENT, CODE, COLUMNS, EVENTS, Records, write_parquet
from kvmpfn.units import InputError

PUBLIC = re.compile(r"\| `(.+?)` \| (\d+) \| (.*?) \|")
PREFIX = "       CPU 3/KVM-4145    [002] d..1. "


def text(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def event(line: str, **options: float) -> tuple[str, list[int]]:
    """Read one line both ways: the event's name and its fields."""
    one, other = (records(text(line), fast=fast, **options) for fast in (True, False))
    assert same(one, other)
    assert len(one) == 1, one.skipped
    return EVENTS[one.event[0]], [int(column[0]) for column in (one.a, one.b, one.c, one.d)]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("way", EXITS)
def test_every_rendering_holds_the_same_event(way: str, fast: bool) -> None:
    found = records(text(EXITS[way]), fast=fast)
    assert len(found) == 1, found.skipped
    assert EVENTS[found.event[0]] == "kvm_exit"
    assert found.time_ps[0] == 86_581_928 * 10**6
    assert found.reasons[int(found.b[0])] == "EPT_VIOLATION"
    assert (found.c[0], found.d[0]) == (0xD82, 7)
    assert found.a[0] == (3 if "vcpu" in EXITS[way] else ABSENT)
    threadless = ("without thread", "only", "of 4.18")
    assert found.pid[0] == (-1 if way.startswith(("script", "perf")) and way.endswith(threadless) else 4145)
    cpuless = way.startswith("perf trace") or way.endswith(("without cpu", "only"))
    assert found.cpu[0] == (-1 if cpuless else 2)
    names = {"report -l": "CPU 3/KV", "script without comm": "<...>"}
    assert found.tasks == ({} if found.pid[0] < 0 else {4145: names.get(way, "CPU 3/KVM")})


@pytest.mark.parametrize(
    ("line", "name", "fields"),
    [
        (
            "kvm_page_fault: address 12345000 error_code 182",
            "kvm_page_fault",
            [ABSENT, ABSENT, 0x12345000, 0x182],
        ),
        (
            "kvm_page_fault: vcpu 219 rip 0x0 address 0x00000018cbc00000 error_code 0x500000004",
            "kvm_page_fault",
            [219, 0, 0x18CBC00000, 0x500000004],
        ),
        (
            "kvm_page_fault: vcpu 1 address 0xfd000 error_code 0x14",
            "kvm_page_fault",
            [1, ABSENT, 0xFD000, 0x14],
        ),
        (
            "kvm_page_fault:     vcpu_id=1 guest_rip=0x10 fault_address=0x0000000000fd0000 error_code=0x14",
            "kvm_page_fault",
            [1, 0x10, 0xFD0000, 0x14],
        ),
        (
            "kvm_page_fault: fault_address=fd000 error_code=0x14",
            "kvm_page_fault",
            [ABSENT, ABSENT, 0xFD000, 0x14],
        ),
        (
            "fast_page_fault: vcpu 4 gva 20fe612 error_code P|F sptep 00000000fd98c937 old 0x61000034d4fe877 "
            "new 61000034d4fe877 spurious 1 fixed 0",
            "fast_page_fault",
            [4, 0x20FE612, 1, 0],
        ),
        (
            "fast_page_fault: vcpu 4 gva 20fe612 error_code  sptep (____ptrval____) old 0x5 new 7 "
            "spurious 0 fixed 1",
            "fast_page_fault",
            [4, 0x20FE612, 0, 1],
        ),
        (
            "fast_page_fault: vcpu_id=4 cr2_or_gpa=20fe612 error_code=9 sptep=1 old_spte=5 new_spte=7 ret=5",
            "fast_page_fault",
            [4, 0x20FE612, 0, 1],
        ),
        (
            "fast_page_fault: vcpu_id=4 cr2_or_gpa=20fe612 error_code=9 sptep=1 old_spte=7 new_spte=7 ret=5",
            "fast_page_fault",
            [4, 0x20FE612, 1, 0],
        ),
        (
            "kvm_mmu_spte_requested: gfn 84d pfn 100b4a4d level 2",
            "kvm_mmu_spte_requested",
            [0x84D, 0x100B4A4D, 2, 0],
        ),
        (
            "kvm_mmu_set_spte: gfn 800 spte 100b4a00ea7 (rwxu) level 2 at 10052fa5020",
            "kvm_mmu_set_spte",
            [0x800, 0x100B4A00EA7, 2, 0],
        ),
        (
            "kvm_tdp_mmu_spte_changed: as id 0 gfn 10 level 1 old_spte 8000000000000000 new_spte 5a0",
            "kvm_tdp_mmu_spte_changed",
            [0x10, 1, 1 << 63, 0x5A0],
        ),
        (
            "kvm_tdp_mmu_spte_changed: gfn=10 old_spte=8000000000000000 new_spte=5a0 level=1 as_id=0",
            "kvm_tdp_mmu_spte_changed",
            [0x10, 1, 1 << 63, 0x5A0],
        ),
        ("mark_mmio_spte: sptep:00000000aa gfn fee00 access 6 gen 1", "mark_mmio_spte", [0xFEE00, 0, 0, 0]),
        ("kvm_entry: vcpu 1", "kvm_entry", [1, 0, 0, 0]),
        (
            "kvm_entry: vcpu 1, rip 0xfff0 intr_info 0x0 error_code 0x0[immediate exit]",
            "kvm_entry",
            [1, 0, 0, 0],
        ),
        ("kvm_entry:             vcpu 1 rip native_safe_halt+0xe", "kvm_entry", [1, 0, 0, 0]),
        ("kvm_entry: PC: 0x0000000000401ec4", "kvm_entry", [ABSENT, 0, 0, 0]),
        (
            "kvm_unmap_hva_range: mmu notifier unmap range: 0x00007f0000000000 -- 0x00007f0000001000",
            "kvm_unmap_hva_range",
            [0x7F0000000000, 0x7F0000001000, 0, 0],
        ),
        ("kvm_age_hva: mmu notifier age hva: 0x7f00 -- 0x7f01", "kvm_age_hva", [0x7F00, 0x7F01, 0, 0]),
        (
            "kvm_test_age_hva: mmu notifier test age hva: 0x00007f0000001000",
            "kvm_test_age_hva",
            [0x7F0000001000, 0, 0, 0],
        ),
        (
            "kvm_guest_fault: ipa 0x8000000, hsr 0x93810007, hxfar 0xffff800008, pc 0xffff8000080e5a4c",
            "kvm_guest_fault",
            [0x8000000, 0x93810007, 0xFFFF800008, 0xFFFF8000080E5A4C],
        ),
        (
            "kvm_mmu_split_huge_page: gfn 800 spte 100b4a00ea7 level 2 errno -12",
            "kvm_mmu_split_huge_page",
            [0x800, 0x100B4A00EA7, 2, 2**64 - 12],
        ),
        ("kvm_inj_virq: IRQ 0xec [reinjected]", "kvm_inj_virq", [0xEC, 0, 0, 0]),
        ("kvm_inj_virq: irq 236", "kvm_inj_virq", [236, 0, 0, 0]),
        ("pf_ret: (handler+0x1a/0x20 <- kvm_tdp_page_fault) ret=-14", "pf_ret", [2**64 - 14, 0, 0, 0]),
        ("pf_ret: (handler+0x1a/0x20 [kvm] <- kvm_tdp_page_fault [kvm]) arg1=0x4", "pf_ret", [4, 0, 0, 0]),
        ("gup: (__gfn_to_pfn_memslot+0x0/0x100)", "gup", [0, 0, 0, 0]),
    ],
)
def test_the_texts_of_each_event(line: str, name: str, fields: list[int]) -> None:
    assert event(f"{PREFIX}1.000001: {line}") == (name, fields)
    assert event(f"   qemu 12/4145 [002] 1.000001: kvm:{line}") == (name, fields)


@pytest.mark.parametrize(
    ("line", "reason", "infos"),
    [
        ("vcpu 1 reason npf rip 0xfd11d info 100000014 fd000", "npf", (0x100000014, 0xFD000)),
        ("reason EXIT_NPF rip 0xffffffffffbbe119 info 200000006 1ab000", "EXIT_NPF", (0x200000006, 0x1AB000)),
        ("vcpu 1 reason DE excp rip 0x1 info1 0x2 info2 0x3", "DE excp", (2, 3)),
        (
            "vcpu 1 reason EPT_VIOLATION FAILED_VMENTRY rip 0x1 info1 0x2 info2 0x3",
            "EPT_VIOLATION FAILED_VMENTRY",
            (2, 3),
        ),
        ("IRQ: HSR_EC: 0x0000 (UNKNOWN), PC: 0x0000000000401ec4", "IRQ", (0, ABSENT)),
        ("TRAP: HSR_EC: 0x0020 (IABT_LOW), PC: 0x0000000000401ec4", "IABT_LOW", (0x20, ABSENT)),
        (
            "exit_reason=1024 guest_rip=0x1 isa=2 info1=0x2 info2=0x3 intr_info=0x0 error_code=0x0 vcpu_id=1",
            "npf",
            (2, 3),
        ),
        ("exit_reason=48 guest_rip=0x1 isa=1 info1=0x2 info2=0x3", "EPT_VIOLATION", (2, 3)),
        (
            "exit_reason=7 guest_rip=0x1 isa=9 info1=2 info2=3 intr_info=0 error_code=0 vcpu_id=1",
            "0x7",
            (2, 3),
        ),
    ],
)
def test_exits_by_name_and_by_number(line: str, reason: str, infos: tuple[int, int]) -> None:
    one, other = (records(text(f"{PREFIX}1.0: kvm_exit: {line}"), fast=fast) for fast in (True, False))
    assert same(one, other)
    assert (one.reasons[int(one.b[0])], (int(one.c[0]), int(one.d[0]))) == (reason, infos)


def test_exit_numbers() -> None:
    assert exit_name(1, 48) == "EPT_VIOLATION"
    assert exit_name(1, 1 << 31 | 33) == "INVALID_STATE FAILED_VMENTRY"
    assert exit_name(2, 0x400) == "npf"
    assert exit_name(2, 0x4E) == "PF excp"
    assert exit_name(1, 6) == exit_name(0, 6) == "0x6"


@pytest.mark.parametrize(
    "task",
    [
        *("fc_vcpu 0", "VCPU-0", "vhost-150742", "tdxvm-13694", "kworker/u8:1-ev"),
        *("<idle>", "tmux: server", "[kvm]", "a [1] b", "x-1 [2]"),
    ],
)
@pytest.mark.parametrize("fast", [True, False])
def test_the_name_of_a_thread_is_free_text(task: str, fast: bool) -> None:
    lines = (f"  {task}-77    [001] ..... 5.000001: gup:", f"  {task} 78 [001] 5.000001: kvm:gup:")
    found = records(text(*lines), fast=fast)
    assert found.tasks == {77: task, 78: task}
    assert list(found.cpu) == [1, 1]


def test_a_name_is_not_forgotten() -> None:
    lines = [f"  {task}-77  [001] ..... 5.000001: gup:" for task in ("<...>", "qemu", "CPU 0/KVM", "<...>")]
    assert records(text(*lines)).tasks == {77: "CPU 0/KVM"}
    assert records(text(lines[0])).tasks == {77: "<...>"}


def test_file_columns() -> None:
    lines = ["      host: cpus=8", "trace.dat: cpus=4"]
    lines += [
        f"{name}:  CPU 0/KVM-7{n} [001] 5.0: gup:" for n, name in enumerate(("      host", "trace.dat"))
    ]
    lines += ["                 CPU 0/KVM-72 [001] 5.0: gup:", "  other:  tmux: server-73 [001] 5.0: gup:"]
    found = records(text(*lines))
    assert found.tasks == {70: "CPU 0/KVM", 71: "CPU 0/KVM", 72: "CPU 0/KVM", 73: "other:  tmux: server"}
    assert found.guessed == {f"threads after a file's name: {name}": 1 for name in ("host", "trace.dat")}
    assert found.skipped == {"header": 2}


def test_losses_are_counted() -> None:
    lines = [
        "# entries-in-buffer/entries-written: 5/12   #P:8",
        "CPU:2 [LOST 3 EVENTS]",
        "CPU:1 [LOST EVENTS]",
        "CPU:7 [204600 EVENTS DROPPED]",
        "trace.dat: CPU:0 [EVENTS DROPPED]",
        "[10612.028498] CPU:0 [LOST 40 EVENTS]",
        "   qemu 123 [001]  5.0: PERF_RECORD_LOST lost 500",
        "LOST 6000 events!",
    ]
    for fast in (True, False):
        found = records(text(*lines), fast=fast)
        assert (found.lost, found.lost_unknown) == (7 + 3 + 204600 + 40 + 500 + 6000, 2)
        assert found.skipped == {"comment": 1, "lost events": 7}


def test_clocks_that_go_back_are_noted_and_kept() -> None:
    times = ("5.000003", "5.000001", "5.000002", "0.000001")
    lines = [f"{PREFIX}{time}: gup:" for time in times]
    found = records(text(*lines))
    assert [time / 10**12 for time in found.time_ps.tolist()] == [float(time) for time in times]
    assert found.guessed == {BACKWARD: 2}
    reader = read.Reader("text")
    blocks = [reader.take(text(line), False)[0] for line in lines]
    assert Records.join(blocks).guessed == {BACKWARD: 2}


@pytest.mark.parametrize("seconds", [4_599_999, 4_600_000, 10_892_345, 1_700_000_000])
def test_long_uptimes_fit(seconds: int) -> None:
    lines = [f"{PREFIX}{seconds}.982869: gup:", f"{PREFIX}{seconds + 1}.5: gup:", f"{PREFIX}9.5: gup:"]
    one, other = (records(text(*lines), fast=fast) for fast in (True, False))
    assert same(one, other)
    assert one.origin_s == (seconds if seconds >= 4_600_000 else 0)
    assert int(one.time_ps[0]) + one.origin_s * 10**12 == seconds * 10**12 + 982869 * 10**6
    assert one.time_ps[1] - one.time_ps[0] == 10**12 - 482869 * 10**6
    assert accounted(one)
    assert one.skipped.get("time out of range", 0) == (seconds > 9_000_000)


def test_clocks_that_count_ticks() -> None:
    lines = text(f"{PREFIX}123456789012345: gup:", "  qemu-7 [003]123456789012346: kvm_entry: vcpu 0 rip 0x1")
    for fast in (True, False):
        found = records(lines, fast=fast, clock_hz=2_893_200_000)
        assert found.time_ps.tolist() == [
            ticks * 10**12 // 2_893_200_000 for ticks in (123456789012345, 123456789012346)
        ]
    reader = read.Reader("text")
    assert reader.take(lines, True)[0].skipped == {"time in clock ticks": 2}
    with pytest.raises(InputError, match="clock ticks of unknown rate") as raised:
        reader.finish()
    assert "\n" not in str(raised.value)
    for wrong in (0, -1, float("nan"), 1e13):
        with pytest.raises(InputError, match="clock_hz"):
            records(lines, clock_hz=wrong)


def test_marks() -> None:
    lines = text(
        f"{PREFIX}5.000001: tracing_mark_write: one two",
        "  qemu-7 [003] 5.000002: print:                tracing_mark_write: three",
        "  qemu-7 [003] 5.000002: print:                something else",
    )
    found = records(lines)
    assert found.marks == ["one two", "three"]
    assert found.skipped == {"event not used: print": 1}


def test_mail_is_put_together_where_fields_are_incomplete() -> None:
    lines = text(
        f"> {PREFIX}5.000001: kvm_exit: vcpu 4 reason",
        "> EPT_VIOLATION rip 0xffffffff820fe612 info1 0x0000000000000184 info2",
        "> 0x0000000000000002 intr_info 0x00000000",
        f"{PREFIX}5.000002: kvm_page_fault: address",
        "fffffff0 error_code 784",
        f"{PREFIX}5.000003: kvm_entry: vcpu 1, rip ",
        "0xfff0",
        "some prose",
        f"{PREFIX}5.000004: kvm_entry: vcpu 1",
        "0xfff0",
        f"{PREFIX}5.000005: kvm_page_fault: address",
        f"{PREFIX}5.000006: kvm_page_fault: vcpu 1 rip 0x1 address 0x12=",
        "34 error_code 0x1=",
        "81",
        f"{PREFIX}5.000007:",
        "kvm_entry: vcpu 7",
        f"{PREFIX}",
        "5.000008: kvm_entry: vcpu 8",
        f"{PREFIX}5.000009: kvm_page_fault: address",
    )
    for fast in (True, False):
        found = records(lines, fast=fast)
        assert (found.time_ps // 10**6 - 5_000_000).tolist() == [1, 2, 3, 4, 6, 7, 8]
        assert found.c[[0, 1, 4]].tolist() == [0x184, 0xFFFFFFF0, 0x1234]
        assert found.d[[0, 1, 4]].tolist() == [2, 0x784, 0x181]
        assert found.a[[2, 3, 5, 6]].tolist() == [1, 1, 7, 8]
        assert found.skipped == {TAIL: 8, "not an event": 2, "fields not understood: kvm_page_fault": 2}
        assert found.guessed["wrapped lines put together"] == 6
        assert accounted(found)


def test_other_dirt() -> None:
    lines = [
        "\ufeff# tracer: nop",
        "-bash-4.2# cat /sys/kernel/tracing/trace",
        "",
        f"\0\0\0{PREFIX}5.000001: kvm_entry: vcpu 1, rip 0x1",
        f"{PREFIX}5.000002: kvm_entry: vcpu 1, rip 0x1\r",
        f"{PREFIX}5.000003: kvm_page_fault: address 7fc036f000 error_code 582              <-------- [1]",
        "             cat-2212    [000] d.h..   369.060000: arch_local_irq_restore <-generic_atomic64_read",
        "             cat-2212    [000] d.h..   369.060000: <stack trace>",
        " => some_symbol",
        "\tffffffffc0a1b2c3 vmx_vcpu_run+0x123 ([kvm_intel])",
        "....",
        f"{PREFIX}5.000004: kvm_fpu: unload",
        f'{PREFIX}5.000005: kvm_exit: CAN\'T FIND FIELD "exit_reason"',
        f"{PREFIX}5.000006: kvm_entry: vcpu 18446744073709551616, rip 0x1",
        "  kvm_exit:             reason EXIT_RSM rip 0x7ffbb280 info 0 0",
        f"{PREFIX}99999999.000006: kvm_entry: vcpu 1, rip 0x1",
        "x" * 70_000,
        f"{PREFIX}5.000007: gup: cut",
    ]
    for fast in (True, False):
        found = records("\n".join(lines).encode(), fast=fast)
        assert (found.time_ps // 10**6 - 5_000_000).tolist() == [1, 2, 3, 7]
        assert found.skipped == {
            "comment": 1,
            "not an event": 6,
            "blank": 1,
            "event not used: kvm_fpu": 1,
            "fields not understood: kvm_exit": 1,
            "fields not understood: kvm_entry": 1,
            "event without a time: kvm_exit": 1,
            "time out of range": 1,
            "line too long": 1,
        }
        assert found.guessed == {"last line, perhaps cut": 1}
        assert found.counts() == {"kvm_entry": 3, "kvm_page_fault": 1, "gup": 1, "kvm_fpu": 1, "kvm_exit": 2}
        assert accounted(found)


def test_names_of_the_users_own_probes() -> None:
    line = text(f"{PREFIX}5.000001: my_ret: (a+0x1/0x2 <- b) ret=4")
    assert records(line).skipped == {"event not used: my_ret": 1}
    for fast in (True, False):
        found = records(line, fast=fast, names={"my_ret": "pf_ret"})
        assert found.counts() == {"pf_ret": 1}
    with pytest.raises(InputError, match=r"names: 'pf_rat' .* pf_ret"):
        records(line, names={"my_ret": "pf_rat"})


def test_reasons_cannot_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "REASONS_LIMIT", 3)
    lines = [f"{PREFIX}5.0: event{n}: x" for n in range(9)]
    lines += [f"{PREFIX}5.0: kvm_exit: vcpu 1 reason R{n} rip 0x1 info1 0x2 info2 0x3" for n in range(9)]
    found = records(text(*lines))
    assert found.skipped["event not used: (others)"] == 6
    assert found.reasons == ["R0", "R1", "R2", "(others)"]
    assert [found.reasons[code] for code in found.b] == ["R0", "R1", "R2", *["(others)"] * 6]


def noisy() -> bytes:
    ways = [line for way, line in EXITS.items() if way != "report of two files"]
    lines = [*ways, "CPU:2 [LOST 3 EVENTS]", "", "prose", " => symbol", f"{PREFIX}5.0: other: x"]
    lines += [f"{PREFIX}5.0: kvm_page_fault: address", "fffffff0 error_code", "784", f"{PREFIX}6.0: gup:"]
    return text(*lines * 20)


@pytest.mark.parametrize("size", [1, 100, 1000, 4096])
def test_blocks_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    path = tmp_path / "noisy"
    path.write_bytes(noisy())
    whole = read_records(path)
    assert accounted(whole) and whole.lines == noisy().count(b"\n")
    monkeypatch.setattr(source, "BLOCK", size)
    monkeypatch.setattr(source, "PIECE", size)
    assert same(read_records(path), whole)


def test_packed_files(tmp_path: Path) -> None:
    plain = noisy()
    whole = records(plain)
    packed = {
        "gzip": gzip.compress(plain),
        "two gzips": gzip.compress(plain[:5000]) + gzip.compress(plain[5000:]),
        "xz": lzma.compress(plain),
        "zstd": pa.compress(plain, "zstd", asbytes=True),
    }
    for name, data in packed.items():
        (tmp_path / name).write_bytes(data)
        assert same(read_records(tmp_path / name, progress=True), whole), name
        (tmp_path / "cut").write_bytes(data[: len(data) // 2])
        cut = read_records(tmp_path / "cut")
        assert accounted(cut)
        assert (cut.lost_unknown, cut.guessed["packed file that ends too early"]) == (1, 1)
    damaged = bytearray(packed["gzip"])
    damaged[40:60] = b"x" * 20
    (tmp_path / "damaged").write_bytes(damaged)
    with pytest.raises(InputError, match="damaged"):
        read_records(tmp_path / "damaged")


def program(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    ("magic", "name", "command"),
    [
        (b"\x17\x08\x44tracing7\0", "trace-cmd", "trace-cmd report -t -R -i"),
        (
            b"PERFILE2rest",
            "perf",
            "perf script --ns --show-lost-events -F comm,pid,tid,cpu,time,event,trace -i",
        ),
    ],
)
def test_binary_recordings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, magic: bytes, name: str, command: str
) -> None:
    recording = tmp_path / "recording"
    recording.write_bytes(magic)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="no " + name) as raised:
        read_records(recording)
    assert f"`{command} recording`" in str(raised.value)
    program(tmp_path, name, f"printf '%s\\n' '{EXITS['report -R']}'; echo \"# $0 $*\"")
    found = read_records(recording)
    assert found.counts() == {"kvm_exit": 1}
    assert found.skipped == {"comment": 1}
    program(tmp_path, name, "echo one >&2; echo it is broken >&2; exit 3")
    with pytest.raises(InputError, match=f"{name}: it is broken"):
        read_records(recording)
    (tmp_path / "packed").write_bytes(gzip.compress(magic))
    with pytest.raises(InputError, match="packed binary"):
        read_records(tmp_path / "packed")


def test_parquet_gives_the_same_records(
    tmp_path: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = repo_root / "data" / "recordings" / "6.1" / "st-v1-r1000.trace.gz"
    (tmp_path / "noisy").write_bytes(noisy())
    monkeypatch.setattr(source, "BLOCK", 1 << 20)
    for path in (recording, tmp_path / "noisy"):
        whole = read_records(path)
        notes = convert(path, tmp_path / "out.parquet")
        again = read_records(tmp_path / "out.parquet")
        assert same(again, whole)
        assert again.reasons == whole.reasons
        assert len(notes) == 0 and notes.skipped == whole.skipped
        again.to_parquet(tmp_path / "twice.parquet")
        assert same(Records.from_parquet(tmp_path / "twice.parquet"), whole)
    pa.parquet.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match="no recording"):
        read_records(tmp_path / "other.parquet")


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    def interrupted() -> Iterator[Records]:
        yield records(noisy())
        raise KeyboardInterrupt

    out = tmp_path / "out.parquet"
    with pytest.raises(KeyboardInterrupt):
        write_parquet(out, interrupted())
    assert list(tmp_path.iterdir()) == []
    out.write_text("before")
    (tmp_path / "ticks").write_bytes(text(f"{PREFIX}123456789012345: gup:"))
    with pytest.raises(InputError, match="clock ticks"):
        convert(tmp_path / "ticks", out)
    assert out.read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 2


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "BLOCK", 1 << 17)
    monkeypatch.setattr(records_module, "GROUP", 1 << 11)
    line = f"{PREFIX}86.581928: kvm_exit: {KERNEL_EXIT}\n".encode()
    peaks = []
    for blocks in (4, 40):
        path = tmp_path / str(blocks)
        path.write_bytes(line * (blocks * (1 << 17) // len(line)))
        convert(path, tmp_path / "out.parquet")  # what is loaded and kept once
        tracemalloc.start()
        convert(path, tmp_path / "out.parquet")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < 8 << 20


def test_a_line_without_end_does_not_fill_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "BLOCK", 1 << 17)
    path = tmp_path / "zeros"
    path.write_bytes(bytes(1 << 22) + text("", f"{PREFIX}5.0: gup:"))
    sizes = [len(data) for data, _ in source.Source(path).blocks()]
    assert max(sizes) < 1 << 18
    found = read_records(path)
    assert found.counts() == {"gup": 1}
    assert found.lines == 2 and accounted(found)


def raw_counts(data: bytes) -> Counter[str]:
    """Count events by name and colon over the raw text, as the index does."""
    return Counter(name.decode() for name in re.findall(rb"(?<=: )(\w+):", data))


@pytest.mark.parametrize("folder", ["two61", "two616", "five61", "five616"])
def test_own_recordings_are_read_whole(recordings: Path, folder: str) -> None:
    files = sorted((recordings / "npt" / folder).glob("*.trace.gz"))
    assert files
    for path in files:
        data = gzip.decompress(path.read_bytes())
        found = read_records(path)
        assert found.counts() == raw_counts(data), path.name
        assert set(found.skipped) == {"comment"}
        assert found.lines == data.count(b"\n") and accounted(found)
        assert found.lost == found.lost_unknown == 0
        start = data[: data.index(b"\n", 400_000) + 1] if len(data) > 400_000 else data
        assert same(records(start), records(start, fast=False))


def test_cut_recordings_hold_the_faults_that_their_index_tells(recordings: Path) -> None:
    for name, faults in (("st-v1-r100", 10_363), ("st-v1-r-1", 2_257)):
        found = read_records(recordings / "npt" / "two61" / f"{name}.trace.gz")
        assert found.counts()["kvm_page_fault"] == faults


UNREADABLE = {
    "lore-lkml-vitaly-trace-cmd-no-prefix-npf.txt": (
        {"kvm_nested_vmexit_inject": 1, "kvm_inj_exception": 1},
        "the index tells the eight commonest names of a file",
    ),
    "lost-events-markers-nonkvm.txt": (
        {"sched_stat_runtime": 1, "funcgraph_exit": 1, "sched_switch": 1},
        "events of other systems, which the index leaves out where a file has none of KVM's",
    ),
}
"""Events that are seen and that the index does not list, and why."""


def test_public_recordings_agree_with_their_index(recordings: Path) -> None:
    index = (recordings / "public" / "INDEX.md").read_text()
    rows = PUBLIC.findall(index)
    assert len(rows) == sum(1 for _ in (recordings / "public").iterdir()) - 1
    for name, lines, told in rows:
        found = read_records(recordings / "public" / name)
        counts = Counter({event: int(number) for event, number in re.findall(r"(\w+) (\d+)", told)})
        counts.update(UNREADABLE.get(name, ({}, ""))[0])
        assert found.counts() == counts, name
        assert found.lines == int(lines) and accounted(found), name
        for reason in found.skipped:
            timeless = name == "lore-lkml-vitaly-trace-cmd-no-prefix-npf.txt"
            assert not reason.startswith(("fields not understood", "time")), (name, reason)
            assert reason.startswith("event without a time") <= timeless, (name, reason)
        data = b"".join(block for block, _ in source.Source(recordings / "public" / name).blocks())
        assert same(found, records(data, fast=False)), name


def test_six_renderings_of_one_recording(recordings: Path) -> None:
    ways = ("default", "R", "l", "t", "tl")
    found = {way: read_records(recordings / "public" / f"hip24-report-{way}.txt.gz") for way in ways}
    first = found["default"]
    reasons = [first.reasons[code] for code in first.b[:400][first.event[:400] == CODE["kvm_exit"]]]
    for way, one in found.items():
        for name in ("pid", "cpu", "event", "c", "d"):
            assert np.array_equal(getattr(one, name)[:400], getattr(first, name)[:400]), (way, name)
        exits = one.event[:400] == CODE["kvm_exit"]
        assert [one.reasons[code] for code in one.b[:400][exits]] == reasons, way
        # Nanoseconds where -t asked for them, else rounded to microseconds.
        assert np.abs(one.time_ps[:400] - first.time_ps[:400]).max() <= 500_000
        assert (way in ("t", "tl")) == bool((one.time_ps[:400] % 10**6).any())
        # The plugin leaves the vCPU of an exit out; the raw record has it.
        vcpus = one.a[:400][exits]
        assert (vcpus < 2).all() if way == "R" else (vcpus == ABSENT).all()
        assert np.array_equal(one.a[:400][~exits], first.a[:400][~exits])
    dense = read_records(recordings / "public" / "hip24-report-ept-dense.txt.gz")
    assert (
        Counter(dense.reasons[code] for code in dense.b[dense.event == CODE["kvm_exit"]])["EPT_VIOLATION"]
        == 965
    )


def test_blocks_carry_their_own_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "noisy"
    path.write_bytes(noisy())
    monkeypatch.setattr(source, "BLOCK", 4096)
    monkeypatch.setattr(source, "PIECE", 4096)
    blocks = list(read_blocks(path))
    assert len(blocks) > 3
    assert all(accounted(block) for block in blocks)
    assert {name: getattr(blocks[0], name).dtype for name in COLUMNS} == {
        name: np.dtype(kind) for name, kind in COLUMNS.items()
    }
