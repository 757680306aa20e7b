"""A host that is as slow as the machine a recording was made on, so that the recording can be replayed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmpfn.hosts import Host
from kvmpfn.traces.trace import Trace
from kvmpfn.units import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["pace", "paced_host", "round_trip_ps", "zapped_leaves"]

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
    round_trip = round_trip_ps(trace) / 1000
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
        paced = paced.with_cost(str(name), round(float(value), 3), f"median of {trace.name}")
    return paced


def zapped_leaves(trace: Trace) -> pd.Series[int]:
    """Return how many entries each invalidation's thread changed during its start, a row an invalidation.

    Parameters
    ----------
    trace : Trace
        A recording with all probes.
    """
    calls = trace.invalidations
    return calls["zapped"].where(calls["start_ret_ps"].notna(), 0)


def round_trip_ps(trace: Trace) -> float:
    """Time from a fault's return to the next fault, where the guest had nothing to do in between."""
    faults = trace.faults
    after = faults["time_ps"].groupby([faults["vm"], faults["vcpu"]]).shift(-1) - faults["end_ps"].astype(
        "Float64"
    )
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
