"""A recording as a scenario: its accesses one by one, its storms, and its own pace where it tells that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvmpfn.hosts import Host
from kvmpfn.scenario import Region, Scenario
from kvmpfn.traces.pace import paced_host, round_trip_ps
from kvmpfn.traces.trace import Trace, as_replay
from kvmpfn.units import PAGE_SHIFT, InputError, format_size, parse_size

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["own_host", "own_time", "replay"]

HUGE = 512
"""4K pages of a 2M page."""


def replay(trace: Trace, *, vm: int = 0, host: str | Host | None = None, **fields: Any) -> Scenario:
    """Return the scenario that replays a VM of a recording under the fault path of its kernel.

    Parameters
    ----------
    trace : Trace
        The recording. If it has all probes the host's fault path takes as long as the recording's (see
        `kvmpfn.traces.pace`), else as long as the host's own.
    vm : int
        Which VM; 0 is the one with most faults.
    host : str or Host, optional
        Whose costs hold otherwise; if not given, one of the recording's make.
    **fields
        Other fields of `Scenario`.

    Raises
    ------
    InputError
        The VM has no fault that could be replayed.
    """
    frame = own_time(trace, vm, host)
    if frame.empty:
        raise InputError(f"{trace.name}: no fault of VM {vm} to replay; nearest valid: {_near(trace)}")
    given: dict[str, Any] = {
        "host": own_host(trace, host),
        "vcpus": int(frame["vcpu"].nunique()),
        "memory": (
            memory(max(trace.replay_bytes, int(frame["page"].max() + 1) << PAGE_SHIFT), huge(trace, vm)),
        ),
        "mmu": mmu(trace),
        "workload": as_replay(frame),
        "storms": tuple(storm.replace(span=clipped(storm, trace.replay_bytes)) for storm in trace.storms()),
        "fault_path": f"v{trace.kernel}",
    }
    return Scenario(**given | fields)


def own_host(trace: Trace, host: str | Host | None = None) -> Host:
    """Return the host of a replay: at the recording's pace, if it tells its pace."""
    chosen = host or {"npt": "milan_2s"}.get(mmu(trace), "icelake_sp_2s")
    base = chosen if isinstance(chosen, Host) else Host.load(chosen)
    return paced_host(trace, base) if is_paced(trace) else base


def own_time(trace: Trace, vm: int = 0, host: str | Host | None = None) -> pd.DataFrame:
    """Return the accesses of a replay (`Trace.replay_accesses`) with the guest's own time before each.

    An entry and an exit are taken off: the recording's, or if it does not tell its pace the host's.
    """
    frame = trace.replay_accesses(vm)
    if is_paced(trace):
        off = int(round_trip_ps(trace))
    else:
        machine = own_host(trace, host)
        off = machine.cost_ps("exit") + machine.cost_ps("entry")
    return frame.assign(think_ps=(frame["think_ps"] - off).clip(lower=0))


def is_paced(trace: Trace) -> bool:
    """Whether a recording has all probes, and so tells how long each step took."""
    return bool(trace.phases()["median"].notna().all())


def mmu(trace: Trace) -> str:
    """Return the paging of a replay: shadow paging and arm64 are not modelled, and stand as EPT."""
    return "npt" if trace.mmu == "npt" else "ept"


def huge(trace: Trace, vm: int) -> bool:
    """Whether most of a VM's faults map 2M pages or larger."""
    level = trace.faults.loc[trace.faults["vm"] == vm, "level"].dropna()
    return len(level) > 0 and float((level > 1).mean()) > 0.5


def memory(size: int, thp: bool) -> Region:
    """Return memory of a size, in huge pages or small ones."""
    unit = HUGE << PAGE_SHIFT if thp else 1 << PAGE_SHIFT
    return Region(format_size(max(1, -(-size // unit)) * unit), backing="thp" if thp else "anon")


def clipped(storm: Any, size: int) -> str:
    """Return a storm's span, no larger than memory."""
    return storm.span if parse_size(storm.span) <= size else format_size(size)


def _near(trace: Trace) -> str:
    with_faults = trace.vms.index[trace.vms["faults"] > 0].tolist()
    return f"vm={with_faults[0]}" if with_faults else "a recording with kvm_page_fault"
