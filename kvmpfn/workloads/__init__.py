"""What guests touch: for each vCPU, which page is accessed next, how, and after how much computing."""

from kvmpfn.workloads.replay import Replay
from kvmpfn.workloads.synthetic import DemandPaging, SnapshotRestore, Uniform
from kvmpfn.workloads.workload import Workload

__all__ = [
    "KINDS",
    "DemandPaging",
    "Replay",
    "SnapshotRestore",
    "Uniform",
    "Workload",
    "demand_paging",
    "replay",
    "snapshot_restore",
    "uniform",
]

demand_paging = DemandPaging
uniform = Uniform
snapshot_restore = SnapshotRestore
replay = Replay

KINDS: dict[str, type[Workload]] = {
    "demand_paging": DemandPaging,
    "uniform": Uniform,
    "snapshot_restore": SnapshotRestore,
    "replay": Replay,
}
"""The workloads by the `kind` that scenario files name them with."""
