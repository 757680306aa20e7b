"""Workloads made of rules, with the knobs of the KVM selftests that users know."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kvmpfn.records import Share, Size, Whole
from kvmpfn.units import PAGE, parse_size
from kvmpfn.workloads.workload import Workload

__all__ = ["DemandPaging", "SnapshotRestore", "Uniform"]


class DemandPaging(Workload):
    """Touch every page, as KVM's demand_paging_test does.

    Attributes
    ----------
    order : {"sequential", "random"}
        In which order a vCPU goes through its pages; each comes once a pass.
    share : {"partitioned", "overlapping"}
        Whether memory is divided among the vCPUs, or each touches all of it.
    access : {"write", "read"}
        What each access does.
    passes : int
        How often each vCPU goes through its pages.
    """

    kind: Literal["demand_paging"] = "demand_paging"
    order: Literal["sequential", "random"] = "sequential"
    share: Literal["partitioned", "overlapping"] = "partitioned"
    access: Literal["write", "read"] = "write"
    passes: Annotated[Whole, Field(ge=1)] = 1


class Uniform(Workload):
    """Touch uniformly random pages of all memory, one drawn apart from the other.

    Attributes
    ----------
    writes : float
        Share of the accesses that write.
    accesses : int or None
        Accesses of each vCPU; without end if None, and then the scenario must say `until` when.
    """

    kind: Literal["uniform"] = "uniform"
    writes: Share = 0.5
    accesses: Annotated[Whole, Field(ge=1)] | None = None


class SnapshotRestore(Workload):
    """Restore VMs from one image: each vCPU touches its share of a working set, the same in every VM.

    Attributes
    ----------
    working_set : str
        What a VM touches, such as ``"64MiB"``.
    writes : float
        Share of the accesses that write.
    order : {"random", "sequential"}
        Sequential: the working set is the start of memory, each vCPU goes through its share in order. Random:
        it is scattered over all of memory, and so is the order.
    """

    kind: Literal["snapshot_restore"] = "snapshot_restore"
    working_set: Size = "64MiB"
    writes: Share = 0.1
    order: Literal["random", "sequential"] = "random"

    @property
    def working_set_bytes(self) -> int:
        """The working set in bytes."""
        return parse_size(self.working_set)

    @property
    def working_set_pages(self) -> int:
        """The working set in 4K pages, a begun one whole."""
        return -(-self.working_set_bytes // PAGE)
