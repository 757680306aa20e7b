"""Summaries: the numbers are those of the files, and every line is accounted for."""

from __future__ import annotations

import gzip
import lzma
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

import kvmpfn as kp
from kvmpfn.traces import Counters, read_counters
from kvmpfn.traces.report import describe
from kvmpfn.traces.summaries.counters import STATISTICS, Value
from kvmpfn.units import InputError

US, MS, S = 10**6, 10**9, 10**12

# Printed by perf 6.1.187 in the machine of data/README.md, where Debian's 6.1.192 ran one vCPU and a storm.
PERF = """\


Analyze events for all VMs, all VCPUs:

             VM-EXIT    Samples  Samples%     Time%    Min Time    Max Time         Avg time

                 npf       1063    98.33%    99.79%     24.83us  53465.03us    426.58us ( +-  15.78% )
           interrupt         18     1.67%     0.21%     18.08us    333.36us     52.86us ( +-  31.72% )

Total Samples:1081, Total events handled time:454409.27us.

"""

# kvm-selftests for LoongArch, as posted to the kvm list in 2023 (16K pages; the padding is kselftest's).
SELFTESTS = """\
# timeout set to 120
# selftests: kvm: demand_paging_test
# Testing guest mode: PA-bits:36,  VA-bits:47, 16K pages
# guest physical test memory: [0xfbfffc000, 0xfffffc000)
# Finished creating vCPUs and starting uffd threads
# Started all vCPUs
# All vCPU threads joined
# Total guest execution time: 0.200804700s
# Overall demand paging rate: 326366.862927 pgs/sec
ok 1 selftests: kvm: demand_paging_test
# selftests: kvm: memslot_perf_test
# Testing map performance with 1 runs, 5 seconds each
# Memslot count too high for this test, decrease the cap (max is 2053)
#
# Testing RW performance with 1 runs, 5 seconds each
# Test took 0.763568840s for slot setup + 5.002233800s all iterations
# Done 649 iterations, avg 0.007707602s each
# Best runtime result was 0.007707602s per iteration (with 649 iterations)
# Best slot setup time for the whole test area was 0.761678900s
ok 2 selftests: kvm: memslot_perf_test
"""

# dirty_log_perf_test of an arm64 machine with 160 CPUs, from the kvm list in 2023; the first lines only.
DIRTY = """\
$ ./dirty_log_perf_test -v 160 -i 3
Test iterations: 3
Testing guest mode: PA-bits:ANY, VA-bits:48,  4K pages
guest physical test memory: [0x3fd7c0000000, 0x3fffc0000000)
Populate memory time: 6.298459671s
Setting dirty log mode took : 0.000000052s

Enabling dirty logging time: 0.003815691s

Iteration 1 dirty memory time: 0.185538848s
Iteration 1 get dirty log time: 0.002562641s
Iteration 1 clear dirty log time: 3.638543593s
"""

DEBUGFS = """\
/sys/kernel/debug/kvm/pf_taken:5000
/sys/kernel/debug/kvm/812-11/pf_taken:3000
/sys/kernel/debug/kvm/812-11/pf_fixed:2900
/sys/kernel/debug/kvm/812-11/vcpu0/guest_mode:0
/sys/kernel/debug/kvm/812-11/vcpu0/tsc-offset:-1234
/sys/kernel/debug/kvm/900-12/pf_taken:2000
"""

QEMU = """\
(qemu) info stats vm
provider: kvm
    remote_tlb_flush (cumulative): 93
    pages_2m (instant): 511
(qemu) cpu 3
(qemu) info stats vcpu
provider: kvm
    pf_fixed (cumulative): 4101
    halt_poll_success_ns (cumulative, ns): 18446744073709551615
    guest_mode (instant, boolean): no
    halt_wait_hist (log2-histogram, ns): [1]=0 [2]=7 [3]=1
"""

KVM_STAT_LOG = """\
kvm_entry kvm_exit kvm_exit(EPT_VIOLATION) kvm_page_fault
2025-03-01 10:00:01      1000      1001        40        41
2025-03-01 10:00:02         0         0         0         0
2025-03-01 10:00:03       500
"""

KVM_STAT_CSV = """\
timestamp,exits,pf_fixed
2025-03-01 10:00:01,12,3
2025-03-01 10:00:02,-1,0
"""

EVERYTHING = (PERF, SELFTESTS, DIRTY, DEBUGFS, QEMU, KVM_STAT_LOG, KVM_STAT_CSV)


def read(tmp_path: Path, text: str | bytes) -> Counters:
    path = tmp_path / "summary"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    counters = read_counters(path)
    whole(counters)
    return counters


def whole(counters: Counters) -> None:
    assert counters.used + sum(counters.skipped.values()) == counters.lines
    assert min(counters.skipped.values(), default=1) > 0


def values(counters: Counters, table: int = 0) -> dict[tuple[str, str], int | float]:
    """The values of one table by name and measure."""
    return {(one.name, one.measure): one.value for one in counters.tables[table].values}


def public(recordings: Path, name: str) -> Counters:
    counters = read_counters(recordings / "public" / name)
    whole(counters)
    return counters


def test_perf_kvm_stat(tmp_path: Path) -> None:
    counters = read(tmp_path, PERF)
    (table,) = counters.tables
    assert table.source == "perf kvm stat" and counters.machine == "svm"
    assert table.facts == {"events": "VM-EXIT", "of": "all VMs, all VCPUs"}
    assert table.totals == {"samples": 1081, "time": 454_409_270_000} and not counters.warnings
    assert values(counters)["npf", "max"] == 53_465_030_000
    assert table.values[:2] == [
        Value("all", "npf", "samples", 1063, "1"),
        Value("all", "npf", "samples_share", 98.33, "%"),
    ]
    assert counters.counters().to_dict() == {"npf": 1063, "interrupt": 18}
    assert counters.skipped == {"blank": 6}


def test_perf_kvm_stat_without_columns_live_and_damaged(tmp_path: Path) -> None:
    text = """\
\x1b[H\x1b[2J12:00:01.000250


Analyze events for pid(s) 77, VCPU 2:

             VM-EXIT    Samples  Samples%     Time%         Avg time

                 HLT          7    70.00%    90.00%     10.50us ( +-    -nan% )
       EPT_VIOLATION          2    20.00%     9.00%

Total Samples:10, Total events handled time:80.00us.
123456789 VM 77, vcpu 2: HLT event took 901usec
Lost events: 4

12:00:02.000250
Analyze events for pid(s) 77, VCPU 2:
             VM-EXIT    Samples  Samples%     Time%         Avg time
       EPT_VIOLATION          2    20.00%     9.00%      0.01us ( +-   0.00% )
Total Samples:2, Total events handled time:0.02us.
"""
    counters = read(tmp_path, text)
    assert [table.label for table in counters.tables] == ["12:00:01.000250", "12:00:02.000250"]
    assert counters.lost == 4 and counters.machine == "vmx"
    assert counters.warnings == ("perf kvm stat: rows add up to 7 of 10 samples",)
    assert counters.skipped["row cut short"] == counters.skipped["an exit longer than asked for"] == 1
    assert values(counters, 1)["EPT_VIOLATION", "mean"] == 10_000
    assert {value.scope for table in counters.tables for value in table.values} == {"vcpu2"}
    with pytest.raises(InputError, match=r"2 tables; nearest valid: counters\(table=0\)"):
        counters.counters()
    assert counters.counters(table=0).to_dict() == {"HLT": 7}
    with pytest.raises(InputError, match="no table 2; nearest valid: 0 to 1"):
        counters.counters(table=2)


def test_published_perf_kvm_stat(recordings: Path) -> None:
    arm = public(recordings, "perf-kvm-stat-arm64.txt")
    assert arm.machine == "arm64" and len(arm.tables) == 3 and not arm.warnings
    first = values(arm)
    assert first["DABT_LOW", "samples"] == 661867 and first["DABT_LOW", "mean"] == 6_240_000
    assert first["IABT_LOW", "max"] == 2742_070_000 and first["HVC64", "mean_error"] == 58.98
    assert [table.totals["samples"] for table in arm.tables] == [669155, 50477, 0]
    assert arm.tables[2].facts["of"] == "all VMs, VCPU 27" and not arm.tables[2].values
    x86 = public(recordings, "perf-kvm-stat-x86-2019-minmax.txt")
    assert x86.machine == "vmx" and len(x86.counters()) == 11
    assert values(x86)["EPT_VIOLATION", "samples"] == 6312
    assert values(x86)["EPT_VIOLATION", "max"] == 26_426_070_000
    assert x86.counters().sum() == 101128 + 14089 + 8246 + 6312 + 1730 + 1329 + 982 + 308 + 58 + 35 + 24


def test_published_kvm_stat(recordings: Path) -> None:
    new = public(recordings, "kvm_stat-x86-tables.txt")
    assert [len(new.counters(table=number)) for number in range(3)] == [18, 19, 15]
    assert [table.totals["count"] for table in new.tables] == [85051, 43827, 5533]
    assert [table.totals["rate"] for table in new.tables] == [403315, 9250, 394]
    assert new.tables[2].facts == {"of": "openeuler-20_03"} and new.tables[2].values[0].scope == "pid 2137740"
    assert values(new, 1)["kvm_page_fault", "count"] == 168 and values(new, 1)["kvm_msr", "rate"] == 452
    assert not new.warnings and new.skipped == {"blank": 5}
    old = public(recordings, "kvm_stat-2012-page-fault-loop.txt")
    assert len(old.tables) == 2
    assert values(old, 0)["exits", "count"] == 6778198 and values(old, 0)["mmu_cache_miss", "rate"] == 0
    assert values(old, 1)["kvm_exit(EXCEPTION_NMI)", "rate"] == 330604
    assert values(old, 1)["kvm_page_fault", "count"] == 13793650
    assert old.skipped == {"blank": 4, "not understood": 2} and old.machine == "vmx"


def test_published_debugfs(recordings: Path) -> None:
    twice = public(recordings, "lore-kvm-brak-20230530-debugfs-pf-counters.txt")
    assert twice.counters().to_dict() == {
        "pf_emulate": 0,
        "pf_fast": 0,
        "pf_fixed": 0,
        "pf_guest": 0,
        "pf_mmio_spte_created": 0,
        "pf_spurious": 0,
        "pf_taken": 74499574212 - 74486522452,
        "remote_tlb_flush": 0,
        "remote_tlb_flush_requests": 0,
        "tlb_flush": 3,
    }
    differences = public(recordings, "lore-kvm-lefebvre-20240909-pf-counters.txt")
    assert differences.counters()["pf_taken"] == 168635430 and not differences.skipped
    assert differences.counters()["pf_fixed"] == 1181


def test_debugfs_by_vm(tmp_path: Path) -> None:
    counters = read(tmp_path, DEBUGFS)
    assert counters.counters().to_dict() == {"pf_taken": 5000, "pf_fixed": 2900, "guest_mode": 0}
    assert {value.scope for value in counters.tables[0].values} == {"all", "812-11", "812-11/vcpu0", "900-12"}
    assert counters.skipped == {"not a counter": 1}


def test_debugfs_in_mail(tmp_path: Path) -> None:
    text = "\n".join(f"> > {name} {number}" for number, name in enumerate(sorted(STATISTICS)))
    counters = read(tmp_path, f"hello,\n\n{text}\n\nregards 5\nRunning Linux version 6.1.192 (debian)\n")
    assert len(counters.counters()) == len(STATISTICS)
    assert counters.skipped["not understood"] == 3


def test_the_kernel_is_told(tmp_path: Path) -> None:
    counters = read(tmp_path, "Linux version 6.1.0-56-amd64 (debian)\npf_taken 3\n")
    assert counters.kernel == "6.1.0-56-amd64" and counters.skipped == {"tells the kernel": 1}


def test_qemu(tmp_path: Path) -> None:
    counters = read(tmp_path, QEMU)
    vm, vcpu = counters.tables
    assert [value.scope for value in vm.values] == ["vm", "vm"]
    assert vcpu.values[1] == Value("vcpu3", "halt_poll_success_ns", "total", (2**64 - 1) * 1000, "ps")
    assert vcpu.values[2].value == 0
    assert [value[2:4] for value in vcpu.values[3:]] == [("bucket 1", 0), ("bucket 2", 7), ("bucket 3", 1)]
    assert counters.counters()["pages_2m"] == 511 and counters.used == counters.lines


def test_logs(tmp_path: Path) -> None:
    counters = read(tmp_path, KVM_STAT_LOG)
    assert [table.label for table in counters.tables] == ["2025-03-01 10:00:01", "2025-03-01 10:00:02"]
    assert counters.counters()["kvm_exit(EPT_VIOLATION)"] == 40 and counters.machine == "vmx"
    assert counters.skipped == {"interval cut short": 1}
    assert read(tmp_path, KVM_STAT_CSV).counters().to_dict() == {"exits": 11, "pf_fixed": 3}


def test_long_lines_are_logs(tmp_path: Path) -> None:
    names = [f"kvm_exit({'X' * 20}{number})" for number in range(300)]
    text = " " * 30000 + "x\n" + ",".join(["timestamp", *names]) + "\n2025-03-01 10:00:01" + ",7" * 300
    counters = read(tmp_path, text)
    assert len(counters.counters()) == 300 and counters.counters().sum() == 2100
    assert read(tmp_path, "pf_taken 1\nx" + " " * 30000 + "x").skipped == {"not understood": 1}


def test_batch(tmp_path: Path) -> None:
    counters = read(tmp_path, "kvm_entry        100        20\nkvm_exit          90        18\n")
    assert values(counters) == {
        ("kvm_entry", "count"): 100,
        ("kvm_entry", "rate"): 20,
        ("kvm_exit", "count"): 90,
        ("kvm_exit", "rate"): 18,
    }


def test_selftests(tmp_path: Path) -> None:
    counters = read(tmp_path, SELFTESTS)
    demand, memslot = counters.tables
    assert demand.label == "demand_paging_test" and demand.facts["result"] == "ok"
    assert values(counters)["guest execution", "time"] == 200_804_700_000
    assert values(counters)["test memory", "number"] == 65536
    assert values(counters)["demand paging", "rate"] == 326366.862927
    assert memslot.label == "memslot_perf_test"
    assert values(counters, 1)["RW: all iterations", "time"] == 5_002_233_800_000
    assert values(counters, 1)["RW: iterations", "number"] == 649
    assert values(counters, 1)["map: not run: most slots", "number"] == 2053
    assert not counters.warnings
    with pytest.raises(InputError, match="nothing was counted"):
        counters.counters()


def test_a_selftest_stands_beside_its_scenario(tmp_path: Path) -> None:
    counters = read(tmp_path, DIRTY)
    (table,) = counters.tables
    assert table.facts["command"] == "dirty_log_perf_test -v 160 -i 3"
    scenario = kp.selftest(table.facts["command"], phase="populate", host="milan_2s")
    memory = values(counters)["test memory", "size"]
    assert scenario.memory_bytes == memory == 160 << 30
    assert values(counters)["test memory", "number"] == memory // 4096
    assert values(counters)["populate memory", "time"] == 6_298_459_671_000
    assert values(counters)["clear dirty log, iteration 1", "time"] == 3_638_543_593_000
    assert values(counters)["set dirty log mode", "time"] == 52_000


def test_other_selftests(tmp_path: Path) -> None:
    text = """\
Using lru_gen for aging
Testing guest mode: PA-bits:ANY, VA-bits:48,  4K pages
guest physical test memory: [0xfffe7ffff000, 0xffffbffff000)

Populating memory             : 1.500000001s
Mark memory idle (lru_gen)    : 0.250000000s
WARNING: vCPU3: Too many pages still idle (70 out of 512), this will affect performance results.
Reading from idle memory      : 0.100000000s
Running with 128gb of guest memory and 96 vCPUs
Waiting for vCPUs to finish run 1...
1 vCPUs haven't rendezvoused...\rAll vCPUs finished run 1, releasing...
run1 = 7.000000001s, reset = 0.100000000s, run2 = 6.000000000s, ro = 0.500000000s, rw = 2.250000000s
sudo ./demand_paging_test -b 1G -v 4 -s shmem
Testing guest mode: PA-bits:ANY, VA-bits:48,  4K pages
guest physical test memory: [0x0, 0x100000000)
Total guest execution time: 1.500000000s
Overall demand paging rate: 174762.666667 pgs/sec
Testing guest mode: PA-bits:40, VA-bits:48, 64K pages
Total guest execution time:\t0.500000000s
"""
    counters = read(tmp_path, text)
    access, stress, demand, again = counters.tables
    assert access.label == "access_tracking_perf_test" and access.facts["aging"] == "lru_gen"
    assert values(counters)["Mark memory idle (lru_gen)", "time"] == 250 * MS
    assert values(counters)["pages still idle vCPU3", "number"] == 70
    assert stress.facts == {"GiB": "128", "vcpus": "96"} and stress.label == "mmu_stress_test"
    assert values(counters, 1)["rw", "time"] == 2250 * MS
    assert again.facts["command"] == demand.facts["command"] == "demand_paging_test -b 1G -v 4 -s shmem"
    # Before the fix: 2^20 pages in 1.5 s, but 500,000,000 ns were taken for 5 s.
    (warning,) = counters.warnings
    assert warning.endswith("699,051 pages/s is")


def test_recorder(repo_root: Path, tmp_path: Path) -> None:
    path = repo_root / "data" / "recordings" / "6.16" / "d-v4s.1.txt"
    counters = read(tmp_path, path.read_bytes())
    assert counters.source == "recorder" and not counters.skipped
    assert counters.config["vcpus"] == "4" and counters.config["shared"] == "1"
    assert counters.slot is not None and counters.slot[0] == 0x40000 and counters.slot[2] == 64 * 256
    totals = counters.counters()
    assert totals["pf_taken"] == 8899 + 8951 + 8609 + 8749
    assert totals["pf_spurious"] == 3560 + 3055 + 3759 + 3051 and totals["pages_4k"] == 16389
    assert counters.result == {"wall_ns": 765814322000, "invalidations": 0, "inv_pages": 0, "inv_ns_total": 0}
    results = {
        (one.scope, one.name): one.value for one in counters.tables[1].values if one.measure == "result"
    }
    assert results["vm", "wall_ns"] == 765814322 * 1000 and results["vcpu2", "passes"] == 1
    assert counters.tables[1].facts == {"bad_pages": "0"}


def test_what_is_zero_has_no_line(tmp_path: Path) -> None:
    text = "STAT r before vm pages_4k 7\nSTAT r after vcpu0 pf_taken 5\nSTAT r after vm pages_2m 3\nlost 2\n"
    counters = read(tmp_path, text)
    assert counters.counters().to_dict() == {"pages_4k": -7, "pf_taken": 5, "pages_2m": 3}
    assert counters.lost == 2


def descriptor(name: bytes, flags: int, exponent: int, size: int, offset: int, bucket: int = 0) -> bytes:
    return struct.pack("<IhHII", flags, exponent, size, offset, bucket) + name.ljust(48, b"\0")


def binary(vcpu: bytes = b"/vcpu-2") -> bytes:
    """A statistics file as Documentation/virt/kvm/api.rst lays it out."""
    cumulative, instant, linear, log = 0, 1, 3, 4
    unit_bytes, seconds, cycles, power_of_2 = 1 << 4, 2 << 4, 3 << 4, 1 << 8
    descriptors = b"".join(
        [
            descriptor(b"pf_taken", cumulative, 0, 1, 0),
            descriptor(b"halt_wait_ns", cumulative | seconds, -9, 1, 8),
            descriptor(b"cache", instant | unit_bytes | power_of_2, 10, 1, 16),
            descriptor(b"halt_wait_hist", log | seconds, -9, 3, 24),
            descriptor(b"steps", linear | cycles, 0, 2, 48, 10),
            descriptor(b"beyond", cumulative, 0, 1, 64),
            descriptor(b"unknown", 9, 0, 1, 0),
        ]
    )
    head = struct.pack("<6I", 0, 48, 7, 24, 72, 72 + len(descriptors))
    identity = (b"kvm-4711" + vcpu).ljust(48, b"\0")
    return head + identity + descriptors + struct.pack("<8Q", 16389, 77, 3, 0, 5, 6, 8, 9)


def test_binary_statistics(tmp_path: Path) -> None:
    counters = read(tmp_path, binary())
    (table,) = counters.tables
    assert table.source == "binary stats" and table.facts == {"id": "kvm-4711/vcpu-2"}
    assert table.values == [
        Value("vcpu2", "pf_taken", "total", 16389, "1"),
        Value("vcpu2", "halt_wait_ns", "total", 77_000, "ps"),
        Value("vcpu2", "cache", "total", 3072, "B"),
        Value("vcpu2", "halt_wait_hist", "[0, 1)", 0, "1"),
        Value("vcpu2", "halt_wait_hist", "[1, 2)", 5, "1"),
        Value("vcpu2", "halt_wait_hist", "[2, inf)", 6, "1"),
        Value("vcpu2", "steps", "[0, 10)", 8, "1"),
        Value("vcpu2", "steps", "[10, inf)", 9, "1"),
    ]
    assert (counters.lines, counters.used) == (7, 5)
    assert counters.skipped == {"data cut off": 1, "descriptor not understood": 1}
    assert read(tmp_path, binary(b"")).tables[0].values[0].scope == "vm"


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, pa.Codec("zstd").compress])
def test_packed(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    assert read(tmp_path, bytes(pack(PERF.encode()))).counters()["npf"] == 1063
    chance = random.Random(5)
    long = "".join(f"pf_taken {chance.randrange(10**15)}\n" for _ in range(30000)).encode()
    packed = bytes(pack(long))
    assert read(tmp_path, packed).lines == 30000
    cut = read(tmp_path, packed[: len(packed) // 2])
    assert 0 < cut.lines < 30000 and cut.warnings == ("packed file that ends too early",)


def test_the_frame(tmp_path: Path) -> None:
    frame = read(tmp_path, DEBUGFS).frame
    assert list(frame.columns) == ["table", "source", "label", "scope", "name", "measure", "value", "unit"]
    assert frame["value"].dtype == "int64" and len(frame) == 5
    assert read(tmp_path, "pf_taken 18446744073709551615\n").frame["value"].dtype == "uint64"
    assert read(tmp_path, PERF).frame["value"].dtype == "float64"
    assert read(tmp_path, QEMU).frame["value"].dtype == "float64"


def test_mail_wraps_and_quotes(tmp_path: Path) -> None:
    wrapped = []
    for line in PERF.splitlines():
        cut = line.rfind(" ", 0, 72) if len(line) > 72 else 0
        wrapped += [f">> {line[:cut]}", f">> {line[cut:]}"] if cut else [f">> {line}"]
    counters = read(tmp_path, "\r\n".join(["On Monday somebody wrote:", *wrapped, "Total nonsense."]))
    assert counters.counters().to_dict() == {"npf": 1063, "interrupt": 18} and not counters.warnings
    assert counters.tables[0].totals["samples"] == 1081
    assert counters.skipped["not understood"] == 2
    printable = PERF.replace("99.79%", "99.79=\n%").replace("all VMs", "all=20VMs")
    assert read(tmp_path, printable).counters()["npf"] == 1063


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no summary in 0 lines; nearest valid: output of perf kvm stat"),
        ("nothing\nof the kind\n", "no summary in 2 lines"),
        ("\0\1\2\xff", "no summary in 1 lines"),
    ],
)
def test_no_summary(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, text)
    with pytest.raises(InputError, match="no such file"):
        read_counters(tmp_path / "missing")
    with pytest.raises(InputError, match="is a directory"):
        read_counters(tmp_path)


def test_damaged_files_do_no_harm(tmp_path: Path) -> None:
    """2,000 files, damaged at random by a fixed seed: each is read or refused, no line is lost."""
    chance = random.Random(20250301)
    whole_texts = [text.encode() for text in EVERYTHING] + [binary()]
    path, refused = tmp_path / "damaged", 0
    for _ in range(2000):
        data = bytearray(chance.choice(whole_texts))
        for _ in range(chance.randint(1, 8)):
            at = chance.randrange(len(data) + 1)
            match chance.randrange(6):
                case 0:
                    data[at : at + chance.randint(0, 40)] = b""
                case 1:
                    data[at:at] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 8)))
                case 2:
                    data[at:at] = chance.choice(
                        [b"9" * 5000, b"\n", b"\0", b"> ", b"=", b"-", b"nan", "µ".encode()]
                    )
                case 3:
                    other = chance.choice(whole_texts)
                    data[at:at] = other[chance.randrange(len(other)) :]
                case 4:
                    del data[at:]
                case 5:
                    data[at : at + 1] = bytes([chance.randrange(256)])
        path.write_bytes(data)
        try:
            counters = read_counters(path)
        except InputError:
            refused += 1
            continue
        whole(counters)
        assert len(counters.frame) == sum(len(table.values) for table in counters.tables)
        assert repr(counters) and counters.machine and counters.slot is None
    assert 0 < refused < 1000


def test_a_summary_is_a_recording_without_events(tmp_path: Path) -> None:
    path = tmp_path / "exits.trace"
    path.write_text(PERF)
    trace = kp.read_trace(path)
    assert trace.used == 0
    assert trace.counters().to_dict() == {"npf": 1063, "interrupt": 18}
    said = trace.summary()
    assert "npf: samples 1,063, samples_share 98.33%, time_share 99.79%, min 24.83us" in said
    assert "in all: samples 1,081, time 454.40927ms" in said
    told = describe(trace)
    assert told["tables"][0]["values"][0]["value"] == 1063
    assert told["lines"] == len(PERF.splitlines())
    with pytest.raises(InputError, match="too few to fit"):
        trace.fit()
