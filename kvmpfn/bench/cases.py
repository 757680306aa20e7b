"""What is timed: one workload in many sizes, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass

from kvmpfn.fault_path import PRESETS
from kvmpfn.hosts import Host
from kvmpfn.scenario import Scenario
from kvmpfn.storms import poisson
from kvmpfn.workloads import uniform

__all__ = ["FULL", "QUICK", "STORMS", "Plan", "bench_16g", "case"]

HOST = "icelake_sp_2s"
STORMS = 2


def case(
    vcpus: int, memory: str, *, preset: str = "v6.1", storms: bool = True, faults: int = 3_000_000
) -> Scenario:
    """Return a scenario in which nothing but the simulator's work is left: faults on random pages.

    Parameters
    ----------
    vcpus : int
        vCPUs, which touch uniformly random pages without think time.
    memory : str
        Anonymous memory in 4K pages, not populated.
    preset : str
        The fault path.
    storms : bool
        Whether there are two Poisson storms, each with a mean gap of 50 us, a span of 256 KiB and a hold of
        3 us.
    faults : int
        Faults taken at which the run ends.
    """
    host = Host.load(HOST)
    a_socket = host.threads // host.sockets
    sockets = -(-(vcpus + STORMS) // a_socket)
    return Scenario(
        host=HOST if sockets <= host.sockets else Host.scaled(HOST, sockets=sockets),
        vcpus=vcpus,
        memory=memory,
        fault_path=preset,
        workload=uniform(),
        storms=[poisson(rate="20k/s", span="256KiB", hold="3us")] * STORMS if storms else [],
        until=faults,
    )


def bench_16g(faults: int = 3_000_000) -> Scenario:
    """Return the standard workload: 64 vCPUs, 16 GiB, two storms, `v6.1`."""
    return case(64, "16GiB", faults=faults)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes
    ----------
    vcpus, memory : tuple
        The grid of sizes.
    presets : tuple of str
        Fault paths that `bench_16g` is timed with, each with and without storms.
    faults : int
        Faults of a run of the grid, of a preset, and of a replica.
    bench_faults : int
        Faults of `bench_16g` beside the C program.
    oracle_faults : int
        Faults of the smaller scenario that the oracle can run.
    start : bool
        Whether fresh processes are timed.
    cold : bool
        Whether one of them compiles the engine, which takes as long as all else of a quick run.
    repetitions : int
        Rounds; what is compared is run once in each, one after the other.
    """

    vcpus: tuple[int, ...] = (8, 64, 512)
    memory: tuple[str, ...] = ("4GiB", "64GiB")
    presets: tuple[str, ...] = ("v6.1", "v6.16", "no_ref")
    faults: int = 100_000
    bench_faults: int = 300_000
    oracle_faults: int = 2_000
    start: bool = True
    cold: bool = False
    repetitions: int = 3


QUICK = Plan()
FULL = Plan(
    vcpus=(8, 16, 32, 64, 128, 256, 512),
    memory=("4GiB", "16GiB", "64GiB", "256GiB", "1TiB"),
    presets=tuple(PRESETS),
    faults=500_000,
    bench_faults=3_000_000,
    oracle_faults=5_000,
    cold=True,
    repetitions=5,
)
