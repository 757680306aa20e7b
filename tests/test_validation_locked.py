"""LOCK-prefixed instructions a fault, counted on two kernels, site by site and line by line."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import kvmpfn as kp
from kvmpfn.units import InputError
from kvmpfn.validation import read_locked, reconcile

CASES = [(kernel, access) for kernel in ("6.1", "6.16") for access in ("write", "read")]
LRU = {"6.1": "classic", "6.16": "mglru"}
TOTALS = {("6.1", "write"): 24.76, ("6.1", "read"): 15.11, ("6.16", "write"): 26.45, ("6.16", "read"): 14.13}
KVM = 7.0
"""mmu_lock 2, stat.pages 1, SPTE 1, and three full barriers: SRCU twice, vcpu->mode."""


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    return tuple(request.param)


def sites_of(repo_root: Path, kernel: str, access: str) -> pd.DataFrame:
    sites = pd.read_csv(repo_root / "data" / "recordings" / "lock_sites.csv", dtype={"kernel": str})
    return sites[(sites["kernel"] == kernel) & (sites["access"] == access)]


def counted_of(repo_root: Path, kernel: str, access: str) -> pd.DataFrame:
    counted = read_locked(repo_root / "data" / "recordings" / kernel / "lock.txt")
    return counted[counted["access"] == access]


def faults(kernel: str, access: str) -> kp.Run:
    scenario = kp.Scenario(
        host="milan_2s",
        vcpus=1,
        memory="8MiB",
        mmu="npt",
        lru=LRU[kernel],
        workload=kp.workloads.demand_paging(access=access),
        fault_path=f"v{kernel}",
    )
    return kp.simulate(scenario, progress=False)


def test_every_function_is_explained(repo_root: Path, case: tuple[str, str]) -> None:
    counted, sites = counted_of(repo_root, *case), sites_of(repo_root, *case)
    assert counted["each"].sum() == pytest.approx(TOTALS[case], abs=1e-6)
    named = counted[counted["each"] > 0.05]
    assert set(sites["function"]) <= set(counted["function"])
    assert set(named["function"]) - set(sites["function"]) <= {"(not listed)"}
    assert sites[sites["whose"] == "kvm"]["each"].sum() == KVM


def test_the_lines_that_kvm_shares_are_as_counted(repo_root: Path, case: tuple[str, str]) -> None:
    """The folio's, mmu_lock's, the statistics', the entry's and mmap_lock's atomics are exact."""
    table = reconcile(counted_of(repo_root, *case), sites_of(repo_root, *case), faults(*case))
    lines = table.set_index("line")
    assert table["recorded"].sum() == pytest.approx(TOTALS[case], abs=1e-6)
    for line in ("folio", "mmu_lock", "stat_pages", "spte", "mmap_lock"):
        assert lines.loc[line, "simulated"] == pytest.approx(lines.loc[line, "recorded"], abs=0.01), line
    assert lines.loc["unexplained", "recorded"] < 0.1
    assert lines.loc["mmu_lock", "whose"] == "kvm"
    assert lines.loc["folio", "whose"] == "on its behalf"


def test_wrong_sites_are_told_in_one_line(repo_root: Path) -> None:
    counted, sites = counted_of(repo_root, "6.1", "read"), sites_of(repo_root, "6.1", "read")
    run = faults("6.1", "read")
    for column, value, near in (
        ("whose", "guest", "host"),
        ("line", "folios", "folio"),
        ("function", "down_reed", "down_read"),
    ):
        wrong = sites.assign(**{column: [value, *sites[column].iloc[1:]]})
        with pytest.raises(InputError, match=f"no {column} '{value}'; nearest is '{near}'"):
            reconcile(counted, wrong, run)


def test_a_text_without_a_count_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lock.txt").write_text("hello\n")
    with pytest.raises(InputError, match=r"lock\.txt: no window in it"):
        read_locked(tmp_path / "lock.txt")
