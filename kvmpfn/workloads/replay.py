"""The workload that a recording, or a user, spells out access by access."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator

from kvmpfn.core import layout as L
from kvmpfn.units import TIME_LIMIT_PS, InputError
from kvmpfn.workloads.workload import Phase

__all__ = ["Replay"]

LIMITS = (1 << 52, 3, TIME_LIMIT_PS)
FIELDS = ("gfn", "kind", "think_ps")


def _accesses(vcpus: Any) -> tuple[tuple[tuple[int, int, int], ...], ...]:
    """Check all accesses; done by hand, as there may be millions."""
    try:
        return tuple(tuple(_access(*access) for access in accesses) for accesses in vcpus)
    except TypeError:
        raise InputError("not a list a vCPU of [gfn, kind, think_ps]; nearest is [[[0, 1, 0]]]") from None


def _access(gfn: int, kind: int, think_ps: int) -> tuple[int, int, int]:
    """Check one access."""
    access = (gfn, kind, think_ps)
    for name, value, limit in zip(FIELDS, access, LIMITS, strict=True):
        if type(value) is not int or not 0 <= value < limit:
            raise InputError(f"{name} {value!r} of an access is not a whole number from 0 to {limit - 1}")
    return access


class Replay(Phase):
    """Replay given accesses.

    Attributes
    ----------
    vcpus : list of list of [gfn, kind, think_ps]
        For each vCPU of a VM its accesses: the page (counted over all regions), 0 to read, 1 to write or 2 to
        execute, and the computing before the access, in ps, to which `think` adds.
    """

    kind: Literal["replay"] = "replay"
    vcpus: Annotated[tuple[tuple[tuple[int, int, int], ...], ...], BeforeValidator(_accesses)]

    @property
    def pages(self) -> int:
        """Pages of memory that the accesses need."""
        return max((access[0] for accesses in self.vcpus for access in accesses), default=-1) + 1

    def words(self, pages: int, vcpus: int, index: int) -> dict[int, int]:
        """Add the end."""
        limit = len(self.vcpus[index])
        return super().words(pages, vcpus, index) | {L.PH_KIND: L.W_REPLAY, L.PH_LIMIT: limit}

    def tables(self, pages: int, vcpus: int) -> list[NDArray[np.int64]]:
        """Return each vCPU's accesses, one after the other."""
        return [np.asarray(accesses, dtype=np.int64).reshape(-1) for accesses in self.vcpus]
