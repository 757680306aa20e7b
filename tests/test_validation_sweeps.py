"""Published sweeps over vCPUs: where they saturate, who starves, and what a read lock gains."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

import kvmpfn as kp
from kvmpfn.hosts import Host
from kvmpfn.validation import read_table
from kvmpfn.validation.scaling import access_tracking, aging_pass, dirty_log, seconds

HOST = Host.load("icelake_sp_2s")
PAGES = 1 << 18


@cache
def first_touch(vcpus: int, aging: str | None = None) -> kp.Run:
    think = "0ns" if aging is None else "53ns"
    fields = {"aging": aging, "think": think}
    return kp.simulate(access_tracking(vcpus, HOST, mib=2, **fields), progress=False)  # type: ignore[arg-type]


@cache
def dirtied(vcpus: int, mode: str) -> float:
    run = kp.simulate(dirty_log(vcpus, HOST, mode, mib=2), progress=False)  # type: ignore[arg-type]
    return seconds(run, 4)


def test_first_touches_saturate(repo_root: Path) -> None:
    """Nothing is fitted here but the host's own fault, on one vCPU: that is the host's default."""
    table = read_table(repo_root / "data" / "published" / "houghton.csv").set_index("vcpus")["no_aging_s"]
    walls = {vcpus: seconds(first_touch(vcpus), 1) for vcpus in (1, 2, 8, 32, 64)}
    assert walls[1] == pytest.approx(table[1], rel=0.02)
    assert walls[2] == pytest.approx(table[2], rel=0.1)
    for vcpus in (8, 32, 64):
        assert walls[vcpus] == pytest.approx(table[vcpus], rel=0.35), vcpus
    million_a_second = [vcpus * PAGES / walls[vcpus] / 1e6 for vcpus in (32, 64)]
    assert million_a_second[1] == pytest.approx(million_a_second[0], rel=0.1)
    assert 2.2 < min(million_a_second) and max(million_a_second) < 4


def test_readers_starve_the_notifier_and_lockless_aging_is_free(repo_root: Path) -> None:
    table = read_table(repo_root / "data" / "published" / "houghton.csv").set_index("vcpus")
    for vcpus in (1, 32):
        lockless, locked = (aging_pass(first_touch(vcpus, lock)) for lock in ("none", "write"))
        measured = table.loc[vcpus, "pass_locked_s"] / table.loc[vcpus, "pass_lockless_s"]
        assert lockless == pytest.approx(table.loc[vcpus, "pass_lockless_s"], rel=0.1)
        assert locked / lockless == pytest.approx(measured, rel=0.5)
        assert seconds(first_touch(vcpus, "none"), 1) == pytest.approx(
            seconds(first_touch(vcpus), 1), rel=0.06
        )
    assert first_touch(32, "write").counters["aged"] > 0


def test_a_read_lock_rises_where_a_write_lock_is_flat(repo_root: Path) -> None:
    table = read_table(repo_root / "data" / "published" / "upton.csv").set_index("vcpus")
    counts = (4, 16, 48)
    write, read = ([vcpus / dirtied(vcpus, mode) for vcpus in counts] for mode in ("exclusive", "read"))
    assert max(write) < 1.3 * min(write)
    assert read[1] > 1.8 * read[0] and read[2] == pytest.approx(read[1], rel=0.25)
    gain = dirtied(48, "exclusive") / dirtied(48, "read")
    measured = table.loc[48, "dirty_exclusive_s"] / table.loc[48, "dirty_parallel_s"]
    # Understated, and shown as a miss in the notebook: less is serial under the write lock than there.
    assert 2.5 < gain < measured


def test_scaling_memory_down_changes_little() -> None:
    small, large = (kp.simulate(access_tracking(8, HOST, mib=mib), progress=False) for mib in (2, 8))
    assert seconds(small, 1) == pytest.approx(seconds(large, 1), rel=0.05)
