"""One constructor an arrival process; what all storms have is described with `Storm`."""

from __future__ import annotations

from typing import Any

from kvmpfn.storms.storm import Action, Storm

__all__ = ["bursts", "closed_loop", "periodic", "poisson"]


def poisson(
    rate: str = "50k/s",
    span: int | str = "256KiB",
    hold: int | str = "4us",
    action: Action = "madvise",
    **others: Any,
) -> Storm:
    """Return a storm that arrives at random, `rate` times a second on average."""
    return Storm(arrival="poisson", rate=rate, span=span, hold=hold, action=action, **others)


def periodic(
    rate: str = "50k/s",
    span: int | str = "256KiB",
    hold: int | str = "4us",
    action: Action = "madvise",
    **others: Any,
) -> Storm:
    """Return a storm that arrives evenly, `rate` times a second."""
    return Storm(arrival="periodic", rate=rate, span=span, hold=hold, action=action, **others)


def closed_loop(
    think: int | str = "0ns",
    span: int | str = "256KiB",
    hold: int | str = "4us",
    action: Action = "madvise",
    **others: Any,
) -> Storm:
    """Return a storm that invalidates again `think` after it is done."""
    return Storm(arrival="closed_loop", think=think, span=span, hold=hold, action=action, **others)


def bursts(
    rate: str = "50k/s",
    on: int | str = "1ms",
    off: int | str = "9ms",
    span: int | str = "256KiB",
    hold: int | str = "4us",
    action: Action = "madvise",
    **others: Any,
) -> Storm:
    """Return a storm that is on and off in turn and, while on, arrives at random `rate` times a second."""
    return Storm(arrival="bursts", rate=rate, on=on, off=off, span=span, hold=hold, action=action, **others)
