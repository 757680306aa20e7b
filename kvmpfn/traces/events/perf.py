"""Lines of ``perf script`` and ``perf trace``: what stands around an event.

``perf script``: ``COMM PID/TID [CPU] STAMP SYSTEM:EVENT: FIELDS``, each of the first four there or not, as -F
asked. ``perf trace``: ``MILLISECONDS (DURATION): COMM/TID SYSTEM:EVENT(NAME: VALUE, ...)``, the duration,
the thread or the parentheses there or not.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from kvmpfn.traces.events.ftrace import HEAD_LIMIT, Place

__all__ = ["LOST", "Traced", "place", "traced"]

_BEFORE = re.compile(
    r"(?:(.*?\S)\s+)??(?:(?:-?\d{1,10}/)?(-?\d{1,10}))(?:\s+\[(\d{1,5})\])?\s*", re.ASCII | re.DOTALL
)
_NO_THREAD = re.compile(r"(?:(.*?\S)\s+)??(?:\[(\d{1,5})\])?\s*|(.*\S)\s*", re.ASCII | re.DOTALL)
_TRACED = re.compile(
    r"\s*+(\d{1,15})\.(\d{3})\s++(?:\(\s*+(?:[\d.]++ ms)?\s*+\):?\s++)?(?:(.*?\S)/(\d{1,10})\s++)?"
    r"[\w-]+:([A-Za-z_]\w{0,99})(\(|:)(.*)",
    re.ASCII | re.DOTALL,
)
LOST = re.compile(
    r"PERF_RECORD_LOST(?:_SAMPLES)?\b(?:.*?\blost[ :]+(\d{1,18}))?|LOST (\d{1,18}) events!", re.ASCII
)


def place(before: str) -> Place | None:
    """Read what stands before the stamp of ``perf script``; -1 where -F left it out."""
    if len(before) > HEAD_LIMIT:
        return None
    before = before.strip()
    if found := _BEFORE.fullmatch(before):
        return Place(found[1] or "", max(-1, int(found[2])), int(found[3] or -1))
    found = _NO_THREAD.fullmatch(before)
    return Place(found[1] or found[3] or "", -1, int(found[2] or -1)) if found else None


class Traced(NamedTuple):
    """A line of ``perf trace``: its time, where it happened, the event, and its arguments or text."""

    time_ps: int
    place: Place
    event: str
    arguments: bool
    text: str


def traced(line: str) -> Traced | None:
    """Read a line of ``perf trace``."""
    found = _TRACED.fullmatch(line) if len(line) < 10 * HEAD_LIMIT else None
    if found is None:
        return None
    where = Place(found[3] or "", int(found[4] or -1), -1)
    time_ps = (int(found[1]) * 1000 + int(found[2])) * 10**6
    return Traced(time_ps, where, found[5], found[6] == "(", found[7].rstrip().removesuffix(")"))
