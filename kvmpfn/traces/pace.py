"""A host that is as slow as the machine a recording was made on, so that the recording can be replayed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvmpfn import workloads
from kvmpfn.hosts import Host
from kvmpfn.traces.trace import ACCESS_KIND, Trace
from kvmpfn.units import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["pace", "paced_host", "paced_workload", "zapped_leaves"]

SPLIT = ("gup_fast", "gup_slow", "zero_4k")
"""Costs inside GUP that keep their value; the host's own fault takes what is left of the phase."""


def pace(trace: Trace, host: Host) -> pd.Series[float]:
    """Read from a recording what the steps of a fault and of an invalidation took, as costs in ns.

    Parameters
    ----------
    trace : Trace
        A recording with all probes.
    host : Host
        Whose remaining costs hold.

    Returns
    -------
    Series
        Medians, by the name of the host's cost. Exit and entry are half each of the time from a fault's
        return to the next fault; a notifier call is an invalidation's end; a leaf's zap is what a start
        takes longer than that for each leaf that it zaps.
    """
    import pandas as pd

    phases = trace.phases()["median"] * 1000
    if phases.isna().any():
        lacking = ", ".join(phases.index[phases.isna()])
        raise InputError(f"{trace.name}: no {lacking} in it; nearest valid: a recording with all probes")
    round_trip = _round_trip_ps(trace) / 1000
    inside = sum(host.cost_ps(name) for name in SPLIT) / 1000
    call, leaf = _invalidation_ns(trace)
    costs = {
        "exit": round_trip / 2,
        "entry": round_trip / 2,
        "handler_entry": phases["entry_to_gup"],
        "host_fault": phases["gup"] - inside,
        "handler_lock": phases["stale_check"],
        "handler_map": phases["map"],
        "handler_return": phases["return"],
        "notifier_call": call,
        "zap_leaf": leaf,
    }
    series = pd.Series(costs, dtype="float64", name="median")
    series.attrs["units"] = dict.fromkeys(costs, "ns")
    return series


def paced_host(trace: Trace, host: str | Host) -> Host:
    """Return a host whose fault path takes as long as the recording's; its other costs stay.

    Parameters
    ----------
    trace : Trace
        A recording with all probes.
    host : str or Host
        The host to begin with.
    """
    paced = host if isinstance(host, Host) else Host.load(host)
    for name, value in pace(trace, paced).items():
        paced = paced.with_cost(str(name), round(float(value), 3))
    return paced


def paced_workload(trace: Trace) -> workloads.Workload:
    """Return the recorded accesses with the guest's own time before each, less one entry and one exit.

    Parameters
    ----------
    trace : Trace
        The recording; the times it holds between two faults include entry and exit, which a replay on
        `paced_host` adds by itself.
    """
    places, frame, round_trip = trace.replay_gfns(), trace.accesses, int(_round_trip_ps(trace))
    vcpus: dict[int, list[Any]] = {vcpu: [] for vcpu in sorted(frame["vcpu"].unique())}
    columns = (frame[name].tolist() for name in ("vcpu", "gfn", "kind", "think_ps"))
    for vcpu, gfn, kind, pause in zip(*columns, strict=True):
        vcpus[vcpu].append([places[gfn], ACCESS_KIND[kind], max(0, pause - round_trip)])
    accesses: Any = list(vcpus.values())
    return workloads.replay(vcpus=accesses)


def zapped_leaves(trace: Trace) -> pd.Series[int]:
    """Return how many entries each invalidation's thread changed during its start, a row an invalidation.

    Parameters
    ----------
    trace : Trace
        A recording with all probes.
    """
    import pandas as pd

    changed = trace.events.loc[trace.events["event"] == "kvm_tdp_mmu_spte_changed", ["time_ps", "pid"]]
    times: dict[Any, Any] = {pid: group.to_numpy() for pid, group in changed.groupby("pid")["time_ps"]}
    counts = []
    for pid, begin, end in trace.invalidations[["pid", "start_ps", "start_ret_ps"]].to_numpy():
        whole = pid in times and not pd.isna(end)
        counts.append(times[pid].searchsorted(end, "right") - times[pid].searchsorted(begin) if whole else 0)
    return pd.Series(counts, index=trace.invalidations.index, dtype="int64", name="zapped")


def _round_trip_ps(trace: Trace) -> float:
    """Time from a fault's return to the next fault, where the guest had nothing to do in between."""
    faults = trace.faults
    after = faults["time_ps"].groupby(faults["vcpu"]).shift(-1) - faults["end_ps"].astype("Float64")
    # A page that was touched for the first time lets the guest on to the next page: a few instructions.
    return float(after[faults["outcome"] == "FIXED"].median())


def _invalidation_ns(trace: Trace) -> tuple[float, float]:
    """Time of a notifier call that zaps nothing, and the time more for each leaf that a start zaps."""
    calls = trace.invalidations.dropna(subset=["start_ret_ps", "end_ret_ps"])
    if calls.empty:
        return 0.0, 0.0
    call = float((calls["end_ret_ps"] - calls["end_ps"]).astype("float64").median()) / 1000
    zapped = zapped_leaves(trace).loc[calls.index]
    many = zapped >= zapped.max() / 4
    took = (calls["start_ret_ps"] - calls["start_ps"]).astype("float64") / 1000
    leaf = float(((took[many] - call) / zapped[many]).median()) if zapped.any() else 0.0
    return call, max(0.0, leaf)
