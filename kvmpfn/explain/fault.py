"""What is noted of a fault that is followed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Attempt", "Blame", "Fault", "Piece"]


class Piece(NamedTuple):
    """A stretch of an attempt's time.

    Attributes
    ----------
    attempt : int
        Of the fault's attempts, from 1 on.
    step, part : str
        Where it went.
    ps : int
        How long.
    waited_for : str
        The lock, line or resource, if it was a wait.
    holder, doing : str
        Who had it, or was ahead in the queue for it, and what that one was about.
    """

    attempt: int
    step: str
    part: str
    ps: int
    waited_for: str = ""
    holder: str = ""
    doing: str = ""


@dataclass(slots=True)
class Attempt:
    """One exit and entry: where, from when, how long, its end, and who made it retry."""

    gfn: int
    start: int
    ps: int = 0
    outcome: str = ""
    holder: str = ""
    because: str = ""


class Blame(NamedTuple):
    """Who was in the way of a waiter until a time: a pointer, and what that one was about."""

    until: int
    who: int
    doing: str


@dataclass(slots=True)
class Fault:
    """A fault that is followed.

    Attributes
    ----------
    actor : int
        Number of its vCPU among the actors.
    latency : int
        In ps, as the engine had it.
    first_event, last_event : int
        The events in which it exits first and enters last.
    a, vm : int
        Pointers to its vCPU and VM.
    attempts : list of Attempt
        In order; all but the last end in RETRY.
    pieces : list of Piece
        In order; they sum to the latency, exactly.
    waiting : str
        The lock whose queue it is in.
    blames : list of Blame
        Who was in the way since it queued.
    ended : tuple of int and str, or None
        Whose invalidation was the first to end since its snapshot, and what is to be said of it.
    entry, remembered : int
        The entry of KVM's tables that it goes by (0: none), and what stood there.
    changed_by : tuple of int and str, or None
        Who changed that entry meanwhile, and what that one was about.
    """

    actor: int
    latency: int
    first_event: int
    last_event: int
    a: int = 0
    vm: int = 0
    attempts: list[Attempt] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    waiting: str = ""
    blames: list[Blame] = field(default_factory=list)
    ended: tuple[int, str] | None = None
    entry: int = 0
    remembered: int = 0
    changed_by: tuple[int, str] | None = None
