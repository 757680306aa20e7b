"""What all workloads have in common."""

from __future__ import annotations

from typing import Literal

from kvmpfn.records import Record, Time
from kvmpfn.units import parse_time

__all__ = ["Workload"]


class Workload(Record):
    """What the vCPUs of a VM access, and when.

    Attributes
    ----------
    kind : str
        Which workload it is.
    think : str
        Computing between two accesses, such as ``"100ns"``.
    think_dist : {"fixed", "exponential"}
        Whether that time is always the same, or a mean.
    """

    kind: str
    think: Time = "0ns"
    think_dist: Literal["fixed", "exponential"] = "fixed"

    @property
    def think_ps(self) -> int:
        """Computing between two accesses in picoseconds."""
        return parse_time(self.think)
