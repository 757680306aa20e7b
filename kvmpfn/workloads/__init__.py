"""What guests touch: for each vCPU, which page is accessed next, how, and after how much computing."""

from kvmpfn.workloads.generated import generated
from kvmpfn.workloads.locality import HotCold, PointerChase, Uniform, Zipf
from kvmpfn.workloads.phases import PHASE_KINDS, Phases, phases, phases_of
from kvmpfn.workloads.replay import Replay
from kvmpfn.workloads.sweeps import DemandPaging, SnapshotRestore, Strided, sequential
from kvmpfn.workloads.workload import ENDLESS, Phase, Workload, of_kind

__all__ = [
    "ENDLESS",
    "KINDS",
    "PHASE_KINDS",
    "DemandPaging",
    "HotCold",
    "Phase",
    "Phases",
    "PointerChase",
    "Replay",
    "SnapshotRestore",
    "Strided",
    "Uniform",
    "Workload",
    "Zipf",
    "demand_paging",
    "generated",
    "hot_cold",
    "of_kind",
    "phases",
    "phases_of",
    "pointer_chase",
    "replay",
    "sequential",
    "snapshot_restore",
    "strided",
    "uniform",
    "zipf",
]

demand_paging = DemandPaging
strided = Strided
uniform = Uniform
zipf = Zipf
hot_cold = HotCold
pointer_chase = PointerChase
snapshot_restore = SnapshotRestore
replay = Replay

KINDS: dict[str, type[Workload]] = {**PHASE_KINDS, "phases": Phases}
"""The workloads by the `kind` that scenario files name them with."""
