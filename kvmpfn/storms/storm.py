"""A notifier client: when it invalidates, what, for how long, and what that does to the host."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from kvmpfn.records import Rate, Record, Size, Time, Whole
from kvmpfn.units import PAGE, InputError, format_size, nearest, parse_rate, parse_size, parse_time

__all__ = ["Action", "Arrival", "Storm"]

Arrival = Literal["poisson", "periodic", "closed_loop", "bursts"]
Action = Literal[
    "madvise",
    "numa_balancing",
    "migration",
    "fork",
    "age",
    "ksm",
    "khugepaged",
    "mprotect",
    "reclaim",
    "clear_dirty_log",
]

_NEEDS = {
    "poisson": {"rate"},
    "periodic": {"rate"},
    "closed_loop": {"think"},
    "bursts": {"rate", "on", "off"},
}


def _vm(value: Any) -> Any:
    """Accept the number of a VM, or each."""
    if value == "each" or (type(value) is int and value >= 0):
        return value
    raise InputError(
        f"{value!r} is neither a VM's number nor 'each'; nearest is {nearest(value, ('each', 0))!r}"
    )


class Storm(Record):
    """One client of the MMU notifiers, or one for each VM.

    Attributes
    ----------
    arrival : {"poisson", "periodic", "closed_loop", "bursts"}
        When invalidations are asked for: at random, evenly, a while after the last one ended, or at random
        within the on-phases of an on/off source.
    rate : str or None
        Mean rate, such as ``"50k/s"``; for bursts the rate within an on-phase.
    think : str or None
        Closed loop: from the end of an invalidation to the next.
    on, off : str or None
        Bursts: how long each phase lasts.
    span : str
        What one invalidation covers; a multiple of 4 KiB.
    offset : str or None
        Where the span starts in guest memory; as `place` says if None.
    hold : str
        From the return of the notifier's start to the call of its end.
    place : {"random", "scan"}
        Without an offset: at a random page, or on from where the last span ended.
    action : str
        Who it is: ``madvise`` MADV_DONTNEED; ``numa_balancing`` NUMA balancing's protection scan;
        ``migration`` (compaction); ``fork``, whose write-protected pages are then copied on write; ``ksm``,
        which merges pages; ``khugepaged``, which makes a huge page of small ones; ``mprotect``, which forbids
        writing and allows it again; ``reclaim``, which swaps out. No invalidation are ``age``, which takes
        accessed bits, and ``clear_dirty_log``, which reads the dirty log.
    vm : int or "each"
        The VM whose memory it is, or one client for each VM.
    cpu : int or None
        Hardware thread it is pinned to; the next free one if None.
    limit : int or None
        How many invalidations it makes; no end if None.
    """

    arrival: Arrival
    rate: Rate | None = None
    think: Time | None = None
    on: Time | None = None
    off: Time | None = None
    span: Size = "256KiB"
    offset: Size | None = None
    hold: Time = "4us"
    place: Literal["random", "scan"] = "random"
    action: Action = "madvise"
    vm: Annotated[int | Literal["each"], BeforeValidator(_vm)] = "each"
    cpu: Annotated[Whole, Field(ge=0)] | None = None
    limit: Annotated[Whole, Field(ge=1)] | None = None

    def model_post_init(self, context: Any, /) -> None:
        """Hold the arrival to its own times, and places to pages."""
        needs = _NEEDS[self.arrival]
        for name in ("rate", "think", "on", "off"):
            if (getattr(self, name) is None) == (name in needs):
                wrong = "is missing" if name in needs else "does not belong to it"
                raise InputError(
                    f"{wrong}; arrival {self.arrival!r} takes {' and '.join(sorted(needs))}", name
                )
        if self.arrival == "bursts" and not self.on_ps:
            raise InputError("an on-phase needs time; nearest is '1ps'", "on")
        if self.place == "scan" and self.offset is not None:
            raise InputError("'scan' has no fixed offset; nearest is 'random'", "place")
        for name in ("span", "offset"):
            value = getattr(self, name)
            size = PAGE if value is None else parse_size(value)
            if size % PAGE or (name == "span" and not size):
                near = max(1 if name == "span" else 0, round(size / PAGE)) * PAGE
                raise InputError(
                    f"{value!r} is not a multiple of 4KiB; nearest is '{format_size(near)}'", name
                )

    @property
    def gap_ps(self) -> int:
        """Mean time between arrivals, or a closed loop's thinking time, in picoseconds."""
        return self.think_ps if self.rate is None else parse_rate(self.rate)

    @property
    def think_ps(self) -> int:
        """A closed loop's thinking time in picoseconds; 0 for the others."""
        return parse_time(self.think or 0)

    @property
    def on_ps(self) -> int:
        """An on-phase of bursts in picoseconds; 0 for the others."""
        return parse_time(self.on or 0)

    @property
    def off_ps(self) -> int:
        """An off-phase of bursts in picoseconds; 0 for the others."""
        return parse_time(self.off or 0)

    @property
    def hold_ps(self) -> int:
        """From start's return to end's call in picoseconds."""
        return parse_time(self.hold)

    @property
    def span_bytes(self) -> int:
        """What one invalidation covers in bytes."""
        return parse_size(self.span)

    @property
    def span_pages(self) -> int:
        """What one invalidation covers in 4K pages."""
        return self.span_bytes // PAGE

    @property
    def offset_bytes(self) -> int | None:
        """Where the span starts in bytes of guest memory; None for a random page."""
        return None if self.offset is None else parse_size(self.offset)

    @property
    def offset_pages(self) -> int | None:
        """Where the span starts in 4K pages of guest memory; None for a random page."""
        return None if self.offset_bytes is None else self.offset_bytes // PAGE
