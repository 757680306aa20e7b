"""Workloads that come to every page of a range in turn: in order, in strides, or in a scattered order."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from kvmpfn.core import layout as L
from kvmpfn.records import Share, Size, Whole
from kvmpfn.units import PAGE, InputError, format_size, parse_size
from kvmpfn.workloads.workload import Mixed, Phase, q32

__all__ = ["DemandPaging", "SnapshotRestore", "Strided", "partition", "sequential", "whole_pages"]


def partition(count: int, parts: int, index: int) -> tuple[int, int]:
    """Return the first and the number of `count` things that the `index`-th of some equal parts gets."""
    first = index * count // parts
    return first, (index + 1) * count // parts - first


def whole_pages(size: int | str, where: str, least: int = 0) -> int:
    """Return a size in 4K pages.

    Raises
    ------
    InputError
        It is not a multiple of a page, or less than `least` pages.
    """
    size_bytes = parse_size(size)
    if size_bytes % PAGE or size_bytes < least * PAGE:
        near = format_size(max(least, round(size_bytes / PAGE)) * PAGE)
        raise InputError(f"{size!r} is not a multiple of {format_size(PAGE)}; nearest is {near!r}", where)
    return size_bytes // PAGE


class DemandPaging(Phase):
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

    def words(self, pages: int, vcpus: int, index: int) -> dict[int, int]:
        """Add the vCPU's pages, and their order."""
        base, count = partition(pages, vcpus, index) if self.share == "partitioned" else (0, pages)
        return super().words(pages, vcpus, index) | {
            L.PH_KIND: L.W_SWEEP,
            L.PH_BASE: base,
            L.PH_COUNT: count,
            L.PH_LIMIT: self.passes * count,
            L.PH_ORDER: L.ORDER_OWN if self.order == "random" else L.ORDER_SEQUENTIAL,
            L.PH_WRITES: q32(self.access == "write"),
        }


class Strided(Mixed):
    """Touch every page in strides; where a stride would leave the memory, start over one page further on.

    Attributes
    ----------
    stride : str
        From one access to the next, such as ``"2MiB"``.
    share : {"partitioned", "overlapping"}
        Whether memory is divided among the vCPUs, or each touches all of it.
    passes : int
        How often each vCPU goes through its pages.
    accesses : int or None
        Accesses of each vCPU, in place of `passes`.
    """

    kind: Literal["strided"] = "strided"
    stride: Size = "2MiB"
    share: Literal["partitioned", "overlapping"] = "partitioned"
    passes: Annotated[Whole, Field(ge=1)] = 1
    accesses: Annotated[Whole, Field(ge=1)] | None = None

    def model_post_init(self, context: Any, /) -> None:
        """Hold the stride to pages, and the ends to each other."""
        super().model_post_init(context)
        whole_pages(self.stride, "stride", least=1)
        if self.accesses is not None and self.passes != 1:
            raise InputError(f"{self.passes} beside accesses={self.accesses}; nearest is 1", "passes")

    @property
    def stride_pages(self) -> int:
        """The stride in 4K pages."""
        return whole_pages(self.stride, "stride", least=1)

    def words(self, pages: int, vcpus: int, index: int) -> dict[int, int]:
        """Add the vCPU's pages, and the stride."""
        base, count = partition(pages, vcpus, index) if self.share == "partitioned" else (0, pages)
        limit = self.passes * count if self.accesses is None else self.accesses
        return super().words(pages, vcpus, index) | {
            L.PH_KIND: L.W_STRIDED,
            L.PH_BASE: base,
            L.PH_COUNT: count,
            L.PH_LIMIT: limit if count else 0,
            L.PH_STRIDE: self.stride_pages,
        }


def sequential(**fields: Any) -> Strided:
    """Touch every page in order: `Strided` with a stride of one page, and its other fields."""
    return Strided(stride=format_size(PAGE), **fields)


class SnapshotRestore(Mixed):
    """Restore VMs from one image: each vCPU touches its share of a working set, the same in every VM.

    Attributes
    ----------
    working_set : str
        What a VM touches, such as ``"64MiB"``.
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

    def words(self, pages: int, vcpus: int, index: int) -> dict[int, int]:
        """Add the vCPU's share of the working set, and its order: the image's, one for all VMs."""
        first, limit = partition(self.working_set_pages, vcpus, index)
        return super().words(pages, vcpus, index) | {
            L.PH_KIND: L.W_SWEEP,
            L.PH_FIRST: first,
            L.PH_LIMIT: limit,
            L.PH_ORDER: L.ORDER_SHARED if self.order == "random" else L.ORDER_SEQUENTIAL,
        }
