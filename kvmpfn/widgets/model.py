"""What the explorer shows: a small run for each setting of its controls, kept once simulated."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from kvmpfn.fault_path import PRESETS
from kvmpfn.results import Run
from kvmpfn.scenario import BACKINGS, Region, Scenario
from kvmpfn.simulator import simulate
from kvmpfn.storms import poisson
from kvmpfn.units import InputError, nearest
from kvmpfn.workloads import uniform

__all__ = ["ExplorerModel", "Setting"]

FAULTS = 20_000
"""Faults that one run takes at most."""

RETRIES = {
    "in a range under way": ("retry.pre_gup.range", "retry.post_gup.range", "retry.locked.range"),
    "in the gap of a collapsed range": (
        "retry.pre_gup.false_range", "retry.post_gup.false_range", "retry.locked.false_range",
    ),
    "sequence only": ("retry.pre_gup.seq", "retry.post_gup.seq", "retry.locked.seq"),
    "race for an entry": ("retry.race.leaf", "retry.race.parent", "retry.race.frozen", "retry.other"),
}  # fmt: skip
"""Why faults were told to try again, in words, and the counters that are summed for it."""

PARTS = {
    "exit, entry": ("exit_entry",),
    "handler, walk": ("handler", "walk", "seq_line"),
    "GUP": ("gup",),
    "refcount line": ("folio",),
    "host's own fault": ("host_fault", "self_invalidation"),
    "mmap_lock, ptl": ("mmap_lock", "mmap_wait", "ptl", "ptl_wait"),
    "mmu_lock": ("mmu_lock",),
    "waiting for mmu_lock": ("mmu_lock_wait",),
    "SPTE, statistics": ("spte", "stat_pages", "dirty_log"),
    "flush": ("flush",),
    "retried in vain": ("wasted",),
}
"""What a fault's time went into, in words, and the parts that are summed for it."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where the explorer's controls stand.

    Attributes
    ----------
    vcpus : int
        vCPUs of the one VM.
    rate : int
        Invalidations a second; 0 for no storm.
    span_pages : int
        4K pages that one invalidation covers.
    backing : str
        What guest memory is in the host.
    preset : str
        The fault path.
    """

    vcpus: int = 16
    rate: int = 20_000
    span_pages: int = 64
    backing: str = "anon"
    preset: str = "v6.1"


@dataclass(slots=True)
class ExplorerModel:
    """Small runs, by setting.

    Attributes
    ----------
    host : str
        The host simulated.
    memory : str
        Guest memory, all of it in place in the host and none mapped by KVM.
    seed : int
        Seed of every run, so that two settings differ by nothing else.
    kept : int
        Runs kept at most; the oldest goes first.
    """

    host: str = "icelake_sp_2s"
    memory: str = "256MiB"
    seed: int = 1
    kept: int = 256
    _runs: dict[Setting, Run] = field(default_factory=dict, repr=False)

    vcpus = (1, 2, 4, 8, 16, 32, 48, 64, 96, 120)
    rates = (0, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000)
    spans = (1, 8, 64, 512, 4096)
    backings = tuple(BACKINGS)
    presets = tuple(PRESETS)

    def scenario(self, setting: Setting) -> Scenario:
        """Return the scenario that a setting stands for.

        Parameters
        ----------
        setting : Setting
            Where the controls stand.
        """
        for name, value, valid in (
            ("backing", setting.backing, self.backings),
            ("preset", setting.preset, self.presets),
        ):
            if value not in valid:
                raise InputError(f"no {value!r}; nearest is {nearest(value, valid)!r}", name)
        if setting.rate < 0:
            raise InputError(f"{setting.rate} is below zero; nearest is 0", "rate")
        # hugetlb_1g cannot be had in less than a page of it
        memory = "1GiB" if setting.backing == "hugetlb_1g" else self.memory
        span = f"{setting.span_pages * 4}KiB"
        storms = [poisson(rate=f"{setting.rate}/s", span=span)] if setting.rate else []
        return Scenario(
            host=self.host,
            vcpus=setting.vcpus,
            memory=[Region(memory, backing=setting.backing, populated=True)],
            fault_path=setting.preset,
            workload=uniform(writes=0.5, accesses=max(1, 2 * FAULTS // setting.vcpus)),
            storms=storms,
            until=f"{FAULTS} faults",
            seed=self.seed,
        )

    def run(self, setting: Setting) -> Run:
        """Return the run of a setting, simulated when it is first asked for.

        Parameters
        ----------
        setting : Setting
            Where the controls stand.
        """
        if setting not in self._runs:
            while len(self._runs) >= self.kept:
                self._runs.pop(next(iter(self._runs)))
            self._runs[setting] = simulate(self.scenario(setting), progress=False, timeline_bins=64)
        return self._runs[setting]

    def parts(self, setting: Setting) -> dict[str, float]:
        """Return the mean time of a resolved fault by `PARTS`, in ns.

        Parameters
        ----------
        setting : Setting
            Where the controls stand.
        """
        run = self.run(setting)
        resolved = max(1, run.latency.count)
        return self._sums(run.parts / 1000 / resolved, PARTS)

    def retries(self, setting: Setting) -> dict[str, float]:
        """Return the retries by `RETRIES`, in percent of the faults taken.

        Parameters
        ----------
        setting : Setting
            Where the controls stand.
        """
        counters = self.run(setting).counters
        return self._sums(100 * counters / max(1, int(counters["pf_taken"])), RETRIES)

    def tail(self, setting: Setting) -> tuple[list[float], list[float]]:
        """Return latencies in us, and the percentage of the faults that took longer.

        Parameters
        ----------
        setting : Setting
            Where the controls stand.
        """
        histogram = self.run(setting).latency.histogram()
        if histogram.empty:
            return [], []
        done = histogram["count"].cumsum() / histogram["count"].sum()
        return (histogram["high"] / 1e6).tolist(), (100 * (1 - done)).tolist()

    def headline(self, setting: Setting) -> str:
        """Return one line on the run.

        Parameters
        ----------
        setting : Setting
            Where the controls stand.
        """
        run = self.run(setting)
        if run.died:
            return f"{setting.preset} refuses {setting.backing}: the guest dies of -EFAULT at its first fault"
        latency = run.latency
        return (
            f"{run.faults:,d} faults in {run.time_ps / 1e9:.2f} ms, {100 * run.retry_share:.1f} % of those "
            f"taken retried; mean {latency.mean / 1e6:.2f} us, p99.9 {latency.quantile(0.999) / 1e6:.1f} us"
        )

    def baseline(self, setting: Setting) -> Setting:
        """Return what a setting is compared with: the same without a storm.

        Parameters
        ----------
        setting : Setting
            Where the controls stand.
        """
        return replace(setting, rate=0)

    @staticmethod
    def _sums(values: Any, groups: dict[str, tuple[str, ...]]) -> dict[str, float]:
        """Sum values by group."""
        return {name: float(sum(values[part] for part in parts)) for name, parts in groups.items()}
