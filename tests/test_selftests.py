"""KVM selftests' command lines: each becomes the scenario that the test's source says, or one line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

import kvmpfn as kp
from kvmpfn.cli import main
from kvmpfn.selftests import SELFTESTS

MIB = 1 << 20
PAGES = MIB // 4096
FILES = sorted((Path(__file__).parent.parent / "data" / "scenarios").glob("*.toml"))


def asked(path: Path) -> tuple[str, str | None]:
    """Read the command line and the phase that a scenario file was made from: its first line."""
    words = shlex.split(path.read_text().partition("\n")[0])
    assert words[:4] == ["#", "kvmpfn", "run", "--selftest"]
    return words[4], words[6] if words[5:6] == ["--phase"] else None


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_scenario_file_is_what_its_command_line_asks_for(path: Path) -> None:
    command, phase = asked(path)
    scenario = kp.selftest(command, phase)
    assert kp.Scenario.load(path) == scenario
    assert kp.Scenario.load(path).digest() == scenario.digest()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_scenario_file_runs(path: Path) -> None:
    run = kp.simulate(kp.Scenario.load(path).replace(until="1000 faults"))
    # All but the pass of writes that PML logs begin with memory that KVM has not mapped.
    assert run.counters["accesses"] > 0 and (run.faults > 0) == (asked(path)[1] != "dirty")


def test_every_selftest_and_phase_has_a_file() -> None:
    found = [(command.split()[0], phase) for command, phase in map(asked, FILES)]
    several = {name: test.phases if len(test.phases) > 1 else (None,) for name, test in SELFTESTS.items()}
    assert sorted(found, key=str) == sorted(((n, p) for n in several for p in several[n]), key=str)


def test_demand_paging_test() -> None:
    scenario = kp.selftest("demand_paging_test -b 64M -v 64")
    assert (scenario.vcpus, scenario.memory_bytes, scenario.vms) == (64, 64 * 64 * MIB, 1)
    assert scenario.memory == (kp.Region("4GiB"),) and scenario.workload == kp.workloads.demand_paging()
    assert kp.selftest("demand_paging_test").memory_bytes == 1 << 30
    overlap = kp.selftest("./demand_paging_test -ob64m -v2 -a -d 5 -r 3")
    assert overlap.workload == kp.workloads.demand_paging(share="overlapping")
    assert overlap.memory_bytes == 128 * MIB


def test_options_go_to_the_scenario_unchanged() -> None:
    scenario = kp.selftest(
        "demand_paging_test -b 2M", host="milan_2s", fault_path="v6.13", until="100 faults"
    )
    assert (scenario.host, scenario.fault_path, scenario.until) == ("milan_2s", "v6.13", "100 faults")


@pytest.mark.parametrize(
    ("size", "size_bytes"),
    [
        ("8192", 8192),
        ("0x2000", 8192),
        ("020000", 8192),
        ("8k", 8192),
        ("8K", 8192),
        ("8192b", 8192),
        ("1g", 1 << 30),
    ],
)
def test_sizes_are_read_as_parse_size_reads_them(size: str, size_bytes: int) -> None:
    assert kp.selftest(f"demand_paging_test -b {size}").memory_bytes == size_bytes


@pytest.mark.parametrize(
    ("source", "backing"),
    [
        ("anonymous", "anon"),
        ("anonymous_thp", "thp"),
        ("anonymous_hugetlb", "hugetlb_2m"),
        ("anonymous_hugetlb_2mb", "hugetlb_2m"),
        ("anonymous_hugetlb_1gb", "hugetlb_1g"),
        ("shared_hugetlb", "hugetlb_2m"),
    ],
)
def test_backing_sources(source: str, backing: str) -> None:
    (region,) = kp.selftest(f"demand_paging_test -s {source}").memory
    assert region.backing == backing and not region.populated


def test_each_vcpu_touches_each_of_its_pages_once() -> None:
    run = kp.simulate(kp.selftest("demand_paging_test -b 2M -v 3"))
    assert run.counters["pf_taken"] == run.faults == run.counters["accesses"] == 3 * 2 * PAGES
    shared = kp.simulate(kp.selftest("demand_paging_test -b 2M -v 3 -o"))
    assert shared.counters["accesses"] == 3 * 3 * 2 * PAGES and shared.counters["installs"] == 3 * 2 * PAGES
    huge = kp.simulate(kp.selftest("demand_paging_test -b 8M -v 2 -s anonymous_thp"))
    assert huge.counters["installs"] == 2 * 4


def test_dirty_log_perf_test() -> None:
    populate = kp.selftest("dirty_log_perf_test -b 4M -v 2 -w 0 -a", "populate")
    # The populating pass writes everything, in order, whatever the iterations do.
    assert populate.workload == kp.workloads.demand_paging() and not populate.dirty_logging
    dirty = kp.selftest("dirty_log_perf_test -b 4M -v 2 -s anonymous_thp")
    assert dirty.dirty_logging and dirty.memory == (kp.Region("8MiB", backing="thp", mapped=True),)
    assert dirty == kp.selftest("dirty_log_perf_test -b 4M -v 2 -s anonymous_thp -i 5 -g", "dirty")
    # Write-protected 4K leaves, one fast fault each; with PML the hardware logs, and nothing faults.
    protected = kp.simulate(dirty.replace(pml=False))
    assert protected.counters["pf_taken"] == protected.counters["pf_fast"] == 8 * PAGES
    assert kp.simulate(dirty).counters["pf_taken"] == 0
    assert kp.simulate(kp.selftest("dirty_log_perf_test -b 4M -w 0").replace(pml=False)).faults == 0
    slots = kp.selftest("dirty_log_perf_test -b 4M -v 2 -x 4").memory
    assert slots == (kp.Region("2MiB", mapped=True),) * 4
    (shmem,) = kp.selftest("dirty_log_perf_test -b 4M -s shmem").memory
    assert (shmem.backing, shmem.mapping, shmem.mapped) == ("page_cache", "shared", True)
    assert kp.selftest("dirty_log_perf_test -b 4M -r 7 -f 1").seed == 7


def test_dirty_log_perf_test_at_random() -> None:
    scenario = kp.selftest("dirty_log_perf_test -b 4M -v 2 -a -o -w 30")
    assert scenario.workload == kp.workloads.uniform(writes=0.3, accesses=2 * 4 * PAGES)
    run = kp.simulate(scenario.replace(pml=False))
    # 2 vCPUs x 2048 draws of 2048 pages, 30 % of them writes: 2048 * (1 - exp(-0.6)) = 924 pages are written.
    assert abs(run.faults - 924) < 4 * 22


def test_access_tracking_perf_test() -> None:
    plain = kp.selftest("access_tracking_perf_test -b 4M -v 2 -w 1")
    assert plain == kp.selftest("demand_paging_test -b 4M -v 2")
    aging = kp.selftest("access_tracking_perf_test -b 4M -v 2 -l -p")
    assert aging.lru == "mglru" and [storm.action for storm in aging.storms] == ["age"]
    run = kp.simulate(aging)
    assert run.counters["aged"] > 0 and run.faults == 2 * 4 * PAGES and run.counters["invalidations"] == 0


def test_memslot_perf_test() -> None:
    scenario = kp.selftest("memslot_perf_test -f 5 -e 5 -s 10 -l 1 -r 2 -v -d")
    assert len(scenario.memory) == 9 and scenario.pages == 512 * PAGES + 1
    # 131073 pages in 9 slots: 14563 each, and 6 more in the last.
    assert [region.pages for region in scenario.memory] == [14563] * 8 + [14569]
    assert all(region.populated and not region.mapped for region in scenario.memory)


def test_mmu_stress_test() -> None:
    scenario = kp.selftest("mmu_stress_test -m 1 -s 2")
    # Three quarters of the host's processors, one slot whole.
    assert scenario.vcpus == scenario.machine.threads * 3 // 4 and scenario.memory_bytes == 2 << 30
    (region,) = scenario.memory
    assert (region.backing, region.mapping, region.populated) == ("page_cache", "shared", True)
    assert kp.selftest("mmu_stress_test -m 1 -s 1 -H").memory[0].backing == "hugetlb_2m"
    small = kp.simulate(kp.selftest("mmu_stress_test -c 4 -m 1 -s 1", until="2000 faults"))
    # Memory is in place: the host has nothing to do.
    assert small.faults > 1900 and small.counters["host_faults"] == 0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "selftest: empty; nearest is 'demand_paging_test"),
        ("demand_paging_test 'a", "selftest: .* cannot be split"),
        (
            "demand_paging_tset",
            "selftest: 'demand_paging_tset' is not one of .*; nearest is 'demand_paging_test'",
        ),
        ("demand_paging_test -u MINOR", "demand_paging_test -u: .*; nearest is no -u: userfaultfd"),
        ("demand_paging_test -m 2", "demand_paging_test -m: .*; nearest is no -m, which is 4K pages"),
        ("demand_paging_test -c 1,2", "demand_paging_test -c: .*; nearest is --set placement=cores"),
        ("demand_paging_test -z", "demand_paging_test: has no option -z; nearest is '-a -o"),
        ("demand_paging_test -v", "demand_paging_test -v: needs a value; nearest is '-a -o"),
        ("demand_paging_test -h", "demand_paging_test: takes -a -o"),
        ("demand_paging_test -b 4M more", "demand_paging_test: 'more' belongs to no option"),
        ("demand_paging_test -b 5", "demand_paging_test -b: '5' is not a multiple .*; nearest is '-b 4K'"),
        ("demand_paging_test -b M", "demand_paging_test -b: 'M' is not a size .*; nearest is '-b 64M'"),
        ("demand_paging_test -b 4x", "demand_paging_test -b: '4x' is not a size .*; nearest is '-b 64M'"),
        ("demand_paging_test -b 09k", "demand_paging_test -b: '09' is not octal"),
        ("demand_paging_test -v 0", "demand_paging_test -v: '0' is out of range.*; nearest is '-v 1'"),
        ("demand_paging_test -v 300", "demand_paging_test vcpus: .*; largest is vcpus=128"),
        ("demand_paging_test -s shmem", "demand_paging_test -s: 'shmem' .*; nearest is '-s anonymous'"),
        ("demand_paging_test -s anonymous_hugetlb_8mb", "-s: .*; nearest is '-s anonymous_hugetlb_2mb'"),
        ("demand_paging_test -b 1M -s anonymous_thp", "demand_paging_test size: .* multiple of 2MiB"),
        ("dirty_log_perf_test -i 1", "dirty_log_perf_test -i: '1' .*; nearest is '-i 2'"),
        ("dirty_log_perf_test -w 50", "dirty_log_perf_test -w: '50' .*; nearest is '-w 50 -a -o'"),
        ("dirty_log_perf_test -w 101", "dirty_log_perf_test -w: '101' .*; nearest is '-w 100'"),
        ("dirty_log_perf_test -f 2", "dirty_log_perf_test -f: '2' .*; nearest is '-f 1'"),
        ("dirty_log_perf_test -v 2 -a", "dirty_log_perf_test -a: .*; nearest is '-a -o'"),
        ("dirty_log_perf_test -x 3", "dirty_log_perf_test -x: '3' .*; nearest is '-x 2'"),
        ("dirty_log_perf_test -x 1024", "dirty_log_perf_test -x: '1024' .*; nearest is '-x 512'"),
        ("dirty_log_perf_test -n", "dirty_log_perf_test -n: .*; nearest is no -n: nested"),
        ("memslot_perf_test", "memslot_perf_test -f: tests 0 to 5.*; nearest is '-f 5 -e 5'"),
        ("memslot_perf_test -f 5", "memslot_perf_test -s: 32763 slots .*; nearest is '-s 513'"),
        ("memslot_perf_test -f 5 -s -1", "memslot_perf_test -s: 32763 slots .*; nearest is '-s 513'"),
        ("memslot_perf_test -e 6", "memslot_perf_test -e: '6' .*; nearest is '-e 5'"),
        ("mmu_stress_test", "mmu_stress_test -m: 128 GiB in slots of 2 GiB.*; nearest is '-m 2'"),
    ],
)
def test_what_cannot_be_is_one_line(command: str, message: str) -> None:
    with pytest.raises(kp.InputError, match=message) as error:
        kp.selftest(command)
    assert "\n" not in str(error.value)


def test_a_phase_that_is_not_there() -> None:
    with pytest.raises(
        kp.InputError, match=r"phase: dirty_log_perf_test has no phase 'dirt'.*; nearest is 'dirty'"
    ):
        kp.selftest("dirty_log_perf_test", "dirt")


def call(*arguments: str) -> int:
    """Run the command line in this process, and return its exit code."""
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert isinstance(exit.value.code, int)
    return exit.value.code


def test_the_command_line_takes_a_selftest(capsys: pytest.CaptureFixture[str]) -> None:
    command = "dirty_log_perf_test -b 2M -v 2"
    arguments = ("--selftest", command, "--phase", "dirty", "--set", "pml=false", "--json")
    assert call("run", *arguments) == 0
    found = json.loads(capsys.readouterr().out)
    scenario = kp.selftest(command, "dirty").replace(pml=False)
    assert found["scenario"] == json.loads(scenario.to_json())
    assert found["digest"] == kp.simulate(scenario).digest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no SCENARIO file; nearest is --selftest"),
        (("x.toml", "--selftest", "demand_paging_test"), "--selftest: takes the place of a file"),
        (("x.toml", "--phase", "dirty"), "--phase: belongs to --selftest"),
        (("--selftest", "demand_paging_test -q"), "demand_paging_test: has no option -q"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("run", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("kvmpfn: ") and message in error and error.count("\n") == 1
