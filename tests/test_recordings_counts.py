"""The clean demand recordings of a real KVM, simulated: equal counts where the schedule cannot matter."""

from __future__ import annotations

from pathlib import Path

import pytest

import kvmpfn as kp
from kvmpfn.traces import read_counters

KERNELS = {"6.1": "v6.1", "6.16": "v6.16"}
SLOT = 64 * 256
OTHER = 5
"""Pages of the guest's code and page tables, beside the slot."""


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def recorded(repo_root: Path, kernel: str, name: str) -> dict[str, int]:
    counters = read_counters(repo_root / "data" / "recordings" / kernel / f"{name}.txt").counters()
    return {str(key): int(value) for key, value in counters.items()}


def guest(kernel: str, backing: str = "anon", vcpus: int = 1, **work: str) -> kp.Run:
    """Simulate the recorder's guest: one sweep over the slot, and some pages of its own."""
    scenario = kp.Scenario(
        host="milan_2s",
        vcpus=vcpus,
        memory=[kp.Region("64MiB", backing=backing), kp.Region(f"{OTHER * 4}KiB")],
        mmu="npt",
        workload=kp.workloads.demand_paging(**work),
        fault_path=KERNELS[kernel],
    )
    return kp.simulate(scenario, check=True)


@pytest.mark.parametrize(
    ("name", "access"), [("d-v1.1", "write"), ("d-v1.2", "write"), ("d-v1.3", "write"), ("dr-v1", "read")]
)
def test_one_vcpu_touches_all_pages(repo_root: Path, kernel: str, name: str, access: str) -> None:
    real = recorded(repo_root, kernel, name)
    counters = guest(kernel, access=access).counters
    assert real["pf_taken"] == SLOT + OTHER
    for key in ("pf_taken", "pf_fixed", "pages_4k"):
        assert counters[key] == real[key], key
    for key in ("pf_spurious", "pf_emulate", "pf_fast", "retry"):
        assert counters[key] == 0 == real.get(key, 0), key


def test_huge_pages(repo_root: Path, kernel: str) -> None:
    real = recorded(repo_root, kernel, "dh-v1")
    counters = guest(kernel, "thp").counters
    assert real["pf_taken"] == 32 + OTHER
    for key in ("pf_taken", "pf_fixed", "pages_4k", "pages_2m"):
        assert counters[key] == real[key], key


@pytest.mark.parametrize("repeat", (1, 2, 3))
def test_private_slices(repo_root: Path, kernel: str, repeat: int) -> None:
    """All pages are mapped once; only the race for a table that two vCPUs share depends on the schedule."""
    real = recorded(repo_root, kernel, f"d-v4p.{repeat}")
    counters = guest(kernel, vcpus=4).counters
    assert counters["installs"] == counters["pages_4k"] == real["pages_4k"] == SLOT + OTHER
    for counts in (real, counters):
        retries = counts["pf_taken"] - counts["pf_fixed"] - counts.get("pf_spurious", 0)
        assert 0 <= retries <= 8
        assert counts["pf_fixed"] + counts.get("pf_spurious", 0) - (SLOT + OTHER) in range(8)
    assert counters["retry"] == counters["retry_race"]


@pytest.mark.parametrize("repeat", (1, 2, 3))
def test_what_pf_fixed_means_on_a_shared_range(repo_root: Path, kernel: str, repeat: int) -> None:
    """Up to 6.12 a vCPU that comes second rewrites the entry and counts FIXED; 6.16 counts SPURIOUS."""
    real = recorded(repo_root, kernel, f"d-v4s.{repeat}")
    # The recorder's emulated CPUs are stopped for microseconds at random: they do not march in step.
    apart = {"think": "5us", "think_dist": "exponential"}
    counters = guest(kernel, vcpus=4, share="overlapping", **apart).counters
    for counts in (real, counters):
        assert counts["pages_4k"] == SLOT + OTHER
        assert counts["pf_taken"] > 1.2 * (SLOT + OTHER)
        if kernel == "6.1":
            assert counts["pf_fixed"] > 1.2 * (SLOT + OTHER)
            # A third vCPU finds the entry right only before the guest has set its Dirty bit again.
            assert counts["pf_spurious"] < 0.02 * counts["pf_fixed"]
        else:
            assert counts["pf_fixed"] == SLOT + OTHER
            assert counts["pf_spurious"] > 0.2 * (SLOT + OTHER)
    assert counters["installs"] == SLOT + OTHER
