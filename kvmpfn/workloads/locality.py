"""Workloads without an order of pages: all pages alike, some more popular than others, or a chain of them."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from kvmpfn.core import layout as L
from kvmpfn.records import Share, Size, Whole
from kvmpfn.units import PAGE, InputError, parse_size
from kvmpfn.workloads.sweeps import partition, whole_pages
from kvmpfn.workloads.workload import OpenEnded, q32
from kvmpfn.workloads.zipf_table import alias_table

__all__ = ["HotCold", "PointerChase", "Uniform", "Zipf"]


def _exponent(value: Any) -> float:
    """Accept numbers."""
    if isinstance(value, bool | str):
        raise InputError(f"{value!r} is not a number; nearest is 0.99")
    return float(value)


class Uniform(OpenEnded):
    """Touch uniformly random pages of all memory, one drawn apart from the other."""

    kind: Literal["uniform"] = "uniform"

    def words(self, pages: int, vcpus: int, index: int) -> dict[int, int]:
        """Add the kind."""
        return super().words(pages, vcpus, index) | {L.PH_KIND: L.W_UNIFORM}


class Zipf(OpenEnded):
    """Touch pages by Zipf's law: the k-th most popular one with a probability proportional to k**-exponent.

    Pages from the 4097th on are drawn in groups, within which they are equally popular (docs/model.md says
    what that changes).

    Attributes
    ----------
    exponent : float
        How unequal pages are: 0 makes them equal, 0.99 is what YCSB uses.
    order : {"random", "sequential"}
        Random: popular pages are scattered over memory, at the same places for all. Sequential: pages are the
        less popular, the higher their address.
    """

    kind: Literal["zipf"] = "zipf"
    exponent: Annotated[float, BeforeValidator(_exponent), Field(ge=0, le=8)] = 0.99
    order: Literal["random", "sequential"] = "random"

    def words(self, pages: int, vcpus: int, index: int) -> dict[int, int]:
        """Add the size of the table, and the order."""
        return super().words(pages, vcpus, index) | {
            L.PH_KIND: L.W_ZIPF,
            L.PH_BINS: len(alias_table(self.exponent, pages)),
            L.PH_ORDER: L.ORDER_SHARED if self.order == "random" else L.ORDER_SEQUENTIAL,
        }

    def tables(self, pages: int, vcpus: int) -> list[NDArray[np.int64]]:
        """Return the alias table."""
        return [alias_table(self.exponent, pages)]


class HotCold(OpenEnded):
    """Touch a hot part of memory more often than the rest; the hot part may drift.

    Attributes
    ----------
    hot_memory : float
        Share of memory that is hot, at least a page: one window of neighbouring pages.
    hot_accesses : float
        Share of the accesses that go there.
    drift : str
        By how much the window moves on, such as ``"2MiB"``; past the end of memory it starts over.
    drift_every : int
        After how many accesses of a vCPU its window moves.
    """

    kind: Literal["hot_cold"] = "hot_cold"
    hot_memory: Share = 0.1
    hot_accesses: Share = 0.9
    drift: Size = "0B"
    drift_every: Annotated[Whole, Field(ge=1)] = 1000

    def model_post_init(self, context: Any, /) -> None:
        """Hold the drift to pages."""
        super().model_post_init(context)
        whole_pages(self.drift, "drift")

    @property
    def drift_pages(self) -> int:
        """How far the window moves, in 4K pages."""
        return whole_pages(self.drift, "drift")

    def hot_pages(self, pages: int) -> int:
        """Return the pages of the window, of so many in all."""
        return max(1, int(Fraction(str(self.hot_memory)) * pages))

    def words(self, pages: int, vcpus: int, index: int) -> dict[int, int]:
        """Add the window and its drift."""
        return super().words(pages, vcpus, index) | {
            L.PH_KIND: L.W_HOT_COLD,
            L.PH_HOT_PAGES: self.hot_pages(pages),
            L.PH_HOT_SHARE: q32(self.hot_accesses),
            L.PH_DRIFT: self.drift_pages % pages,
            L.PH_DRIFT_EVERY: self.drift_every,
        }


class PointerChase(OpenEnded):
    """Follow pointers from page to page, along one random cycle; vCPUs start evenly spread along it.

    Attributes
    ----------
    footprint : str or None
        How much memory the cycle goes through, from the start of memory on, such as ``"64MiB"``; None is all.
    """

    kind: Literal["pointer_chase"] = "pointer_chase"
    footprint: Size | None = None
    writes: Share = 0.0

    def model_post_init(self, context: Any, /) -> None:
        """Hold the footprint to pages."""
        super().model_post_init(context)
        if self.footprint is not None:
            whole_pages(self.footprint, "footprint", least=1)

    @property
    def footprint_bytes(self) -> int | None:
        """The footprint in bytes; None is all memory."""
        return None if self.footprint is None else parse_size(self.footprint)

    def words(self, pages: int, vcpus: int, index: int) -> dict[int, int]:
        """Add the cycle, which is an order of its pages, and where the vCPU starts."""
        count = pages if self.footprint_bytes is None else self.footprint_bytes // PAGE
        return super().words(pages, vcpus, index) | {
            L.PH_KIND: L.W_SWEEP,
            L.PH_FIRST: partition(count, vcpus, index)[0],
            L.PH_COUNT: count,
            L.PH_ORDER: L.ORDER_SHARED,
        }
