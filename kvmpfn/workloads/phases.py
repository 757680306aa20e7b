"""Workloads one after the other."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from kvmpfn.records import Whole, each
from kvmpfn.units import InputError
from kvmpfn.workloads.locality import HotCold, PointerChase, Uniform, Zipf
from kvmpfn.workloads.replay import Replay
from kvmpfn.workloads.sweeps import DemandPaging, SnapshotRestore, Strided
from kvmpfn.workloads.workload import Phase, Workload, of_kind

__all__ = ["PHASE_KINDS", "Phases", "phases", "phases_of"]

PHASE_KINDS: dict[str, type[Phase]] = {
    "demand_paging": DemandPaging,
    "strided": Strided,
    "uniform": Uniform,
    "zipf": Zipf,
    "hot_cold": HotCold,
    "pointer_chase": PointerChase,
    "snapshot_restore": SnapshotRestore,
    "replay": Replay,
}
"""What can be a phase, by the `kind` that scenario files name it with."""


def _phase(value: Any) -> Phase:
    """Take one phase; phases in it would be phases beside it."""
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", value)
    if kind == "phases":
        raise InputError("'phases' in phases; nearest is one list of all of them", "kind")
    return of_kind(value, PHASE_KINDS)


def _phases(value: Any) -> Any:
    """Take workloads, or what a file says of them."""
    phases = tuple(each(value if isinstance(value, list | tuple) else [value], _phase))
    if not phases:
        raise InputError("no phase; nearest is ['demand_paging']")
    for number, phase in enumerate(phases[:-1]):
        if phase.endless:
            what = f"{phase.kind!r} without accesses never ends, and is not the last"
            raise InputError(f"missing: {what}; nearest is 1000000", f"{number}.accesses")
    return phases


class Phases(Workload):
    """Go through workloads one after the other, each vCPU on its own.

    Attributes
    ----------
    phases : list of workload
        In their order; all but the last must end.
    repeat : int
        How often a vCPU goes through all of them.
    """

    kind: Literal["phases"] = "phases"
    phases: Annotated[tuple[Phase, ...], BeforeValidator(_phases)]
    repeat: Annotated[Whole, Field(ge=1, le=1_000_000)] = 1

    def model_post_init(self, context: Any, /) -> None:
        """Hold the end to the repetition."""
        if self.repeat > 1 and self.phases[-1].endless:
            raise InputError(f"{self.repeat}, but the last phase never ends; nearest is 1", "repeat")


def phases(phases: Any, **fields: Any) -> Phases:
    """Go through the given workloads one after the other: `Phases` with its other fields."""
    return Phases(phases=phases, **fields)


def phases_of(work: Workload) -> tuple[tuple[Phase, ...], int]:
    """Return the phases of any workload, and how often they are gone through."""
    if isinstance(work, Phases):
        return work.phases, work.repeat
    assert isinstance(work, Phase)
    return (work,), 1
