"""What all workloads have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kvmpfn.core import layout as L
from kvmpfn.records import Record, Share, Time, Whole
from kvmpfn.units import InputError, nearest, parse_time

__all__ = ["ENDLESS", "Mixed", "OpenEnded", "Phase", "Workload", "of_kind", "q32"]

ENDLESS = 1 << 62
"""More accesses than any run has, and the most that the engine is told of."""


class Workload(Record):
    """What the vCPUs of a VM access, and when.

    Attributes
    ----------
    kind : str
        Which workload it is.
    """

    kind: str


class Phase(Workload):
    """A workload of one kind: all that a scenario has, or one of the phases of `Phases`.

    Attributes
    ----------
    think : str
        Computing between two accesses, such as ``"100ns"``.
    think_dist : {"fixed", "exponential"}
        Whether that time is always the same, or a mean.
    """

    think: Time = "0ns"
    think_dist: Literal["fixed", "exponential"] = "fixed"

    @property
    def think_ps(self) -> int:
        """Computing between two accesses in picoseconds."""
        return parse_time(self.think)

    @property
    def endless(self) -> bool:
        """Whether it has no end of its own."""
        return False

    def words(self, pages: int, vcpus: int, index: int) -> dict[int, int]:
        """Write the phase down for the engine.

        Parameters
        ----------
        pages, vcpus : int
            Of the VM.
        index : int
            The vCPU's number in the VM.

        Returns
        -------
        dict
            By the offset in the engine's phase record, its words; those left out are 0.
        """
        exponential = self.think_dist == "exponential" and self.think_ps > 0
        return {L.PH_THINK: self.think_ps, L.PH_THINK_EXP: int(exponential), L.PH_COUNT: pages}

    def tables(self, pages: int, vcpus: int) -> list[NDArray[np.int64]]:
        """Return what the engine looks up: one array for all vCPUs, one each, or none."""
        return []


class Mixed(Phase):
    """A workload whose accesses do different things, one drawn apart from the other.

    Attributes
    ----------
    writes : float
        Share of the accesses that write.
    execs : float
        Share of the accesses that execute, which a huge page does not grant under `nx_huge_pages`. The rest
        reads.
    """

    writes: Share = 0.5
    execs: Share = 0.0

    def model_post_init(self, context: Any, /) -> None:
        """Hold the shares to each other."""
        if q32(self.writes) + q32(self.execs) > 1 << L.ALL_BITS:
            near = f"{1 - self.writes:.9g}"
            raise InputError(
                f"{self.execs} beside writes={self.writes} is more than all; nearest is {near}", "execs"
            )

    def plain(self) -> Any:
        """Return the record; `execs` is left out at 0, as in files from before it was there."""
        plain = super().plain()
        return plain if self.execs else {name: plain[name] for name in plain if name != "execs"}

    def words(self, pages: int, vcpus: int, index: int) -> dict[int, int]:
        """Add the shares."""
        shares = {L.PH_WRITES: q32(self.writes), L.PH_EXECS: q32(self.execs)}
        return super().words(pages, vcpus, index) | shares


class OpenEnded(Mixed):
    """A workload that could go on for ever.

    Attributes
    ----------
    accesses : int or None
        Accesses of each vCPU; without end if None, and then the scenario must say `until` when.
    """

    accesses: Annotated[Whole, Field(ge=1)] | None = None

    @property
    def endless(self) -> bool:
        """Whether it has no end of its own."""
        return self.accesses is None

    def words(self, pages: int, vcpus: int, index: int) -> dict[int, int]:
        """Add the end."""
        limit = ENDLESS if self.accesses is None else self.accesses
        return super().words(pages, vcpus, index) | {L.PH_LIMIT: limit}


def q32(value: float) -> int:
    """Return a share in units of 2**-32, rounded down; exact, as a float's product with a power of two is."""
    return int(value * (1 << L.ALL_BITS))


W = TypeVar("W", bound=Workload)


def of_kind(value: Any, kinds: Mapping[str, type[W]]) -> W:
    """Take a workload of one of some kinds, the name of a kind, or what a file says of one."""
    for cls in kinds.values():
        if isinstance(value, cls):
            return value
    fields = value.plain() if isinstance(value, Workload) else value
    fields = dict(fields) if isinstance(fields, dict) else {"kind": fields}
    kind = fields.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise InputError(
            f"{kind!r} is not one of {', '.join(kinds)}; nearest is {nearest(kind, kinds)!r}", "kind"
        )
    return kinds[kind](**fields)
