"""The published sweeps over vCPUs as scenarios: the same programs, on less memory a vCPU.

What a fault costs does not depend on how much memory is swept once it is much more than a page table covers,
so memory is scaled down and times are scaled up to it. Programs' threads are not pinned; the scheduler
balances them over both sockets, which is ``placement="spread"``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from kvmpfn.fault_path import FaultPath
from kvmpfn.hosts import Host
from kvmpfn.scenario import Region, Scenario
from kvmpfn.storms import Storm
from kvmpfn.units import PAGE, InputError
from kvmpfn.workloads import demand_paging

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpfn.results import Run

__all__ = ["access_tracking", "aging_pass", "dirty_log", "fit", "seconds"]

GIB_PAGES = (1 << 30) // PAGE
AGING_SPAN = "4KiB"
"""MGLRU asks KVM page by page, and only for pages that the process has in its tables."""


def access_tracking(
    vcpus: int, host: Host, *, mib: int, aging: Literal["write", "none"] | None = None, think: str = "0ns"
) -> Scenario:
    """Build access_tracking_perf_test's first write to anonymous memory, MGLRU aging beside it or not.

    Parameters
    ----------
    vcpus : int
        How many; each writes its own part once.
    host : Host
        The machine.
    mib : int
        Memory a vCPU; the program has 1 GiB.
    aging : {"write", "none"}, optional
        The lock under which KVM looks at a page's accessed bit; no aging if not given.
    think : str
        The aging thread's own time a page.

    Returns
    -------
    Scenario
        With MGLRU, 4K pages, and v6.8's fault path, the nearest preset to the program's kernel.
    """
    storms = []
    path = FaultPath("v6.8")
    if aging is not None:
        storms = [Storm(arrival="closed_loop", think=think, span=AGING_SPAN, hold="0ns", action="age")]
        path = FaultPath("v6.8", aging_lock=aging, aging_flush=False)
    return Scenario(
        host=host,
        vcpus=vcpus,
        memory=f"{mib * vcpus}MiB",
        workload=demand_paging(),
        storms=storms,
        fault_path=path,
        placement="spread",
        lru="mglru",
    )


def dirty_log(vcpus: int, host: Host, mmu_lock: Literal["read", "exclusive"], *, mib: int) -> Scenario:
    """Build dirty_log_perf_test's pass of writes after logging began: huge pages in the host, 4K in KVM.

    Parameters
    ----------
    vcpus : int
        How many; each writes its own part once.
    host : Host
        The machine.
    mmu_lock : {"read", "exclusive"}
        How a fault takes mmu_lock.
    mib : int
        Memory a vCPU, at least 2; the program has 4 GiB.
    """
    return Scenario(
        host=host,
        vcpus=vcpus,
        memory=[Region(f"{mib * vcpus}MiB", backing="thp", populated=True)],
        dirty_logging=True,
        workload=demand_paging(),
        fault_path=FaultPath("v6.1", mmu_lock=mmu_lock),
        placement="spread",
    )


def seconds(run: Run, gib: float) -> float:
    """Scale a run's length to so much memory a vCPU.

    Parameters
    ----------
    run : Run
        Of one sweep over partitioned memory.
    gib : float
        The memory each vCPU of the program has.
    """
    pages = run.scenario.pages / run.scenario.vcpus
    return run.time_ps / 1e12 * gib * GIB_PAGES / pages


def aging_pass(run: Run, gib: float = 1.0) -> float:
    """Return how long the aging thread needed for one pass over the guest's pages, in seconds.

    Parameters
    ----------
    run : Run
        Of `access_tracking`, with aging.
    gib : float
        The memory each vCPU of the program has.

    Notes
    -----
    Memory fills up evenly while the passes go on, so that a pass finds half of it in place, on average.
    """
    each = run.time_ps / 1e12 / float(run.clients["done"].iloc[0])
    return each * gib * GIB_PAGES * run.scenario.vcpus / 2


def fit(measure: Callable[[float], float], target: float, low: float, high: float, steps: int = 12) -> float:
    """Find the value at which a measure that grows with it meets its target, by bisection.

    Parameters
    ----------
    measure : callable
        From a value to what is measured.
    target : float
        What it should be.
    low, high : float
        Where to look.
    steps : int
        Halvings.

    Returns
    -------
    float
        The value, to (high - low) / 2**steps.

    Raises
    ------
    InputError
        The target is met nowhere between the two.
    """
    for bound, met in ((low, measure(low) <= target), (high, measure(high) >= target)):
        if not met:
            raise InputError(f"target {target:g} is not met from {low:g} to {high:g}; nearest is {bound:g}")
    for _ in range(steps):
        middle = (low + high) / 2
        if measure(middle) < target:
            low = middle
        else:
            high = middle
    return (low + high) / 2
