"""Lines of the kernel's own ftrace text and of ``trace-cmd report``: what stands around an event.

``COMM-PID [TGID] [CPU] FLAGS STAMP EVENT: FIELDS``, and in the latency form ``COMM-PID CPUFLAGS STAMP ...``.
COMM is free text, with blanks and dashes in it, so PID is the last number before the CPU; TGID and FLAGS may
be missing. STAMP is ``SECONDS.FRACTION:``, ``MICROSECONDSus :`` in a dump, or a bare number of clock ticks.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["EVENT", "HEADER", "LATENCY", "LOST", "OVERWRITTEN", "STAMP", "Place", "is_cut", "place"]

STAMP = re.compile(r"(?:^|(?<=[\s\]]))(\d{1,19})(?:\.(\d{1,12})|(us)[^\w\s:]?\s?)?:(?=\s|$)", re.ASCII)
EVENT = re.compile(
    r"\s*(?:\(\+\d+\)\s+)?(?:\d+\s+)?(?:([\w-]+):)?([A-Za-z_]\w{0,99}):(.*)", re.ASCII | re.DOTALL
)

_FLAGS = r"[^\s:\[\]]{4,8}"
_BEFORE = re.compile(
    rf"(.*?\S)-(\d{{1,10}})\s+(?:\(\s*[\d-]+\)\s+)?\[(\d{{1,5}})\](?:\s+{_FLAGS})?\s*", re.ASCII | re.DOTALL
)
_BEFORE_LATENCY = re.compile(
    r"(.*?\S)-(\d{1,10})\s+(\d{1,5})(?:[a-zA-Z.][^\s:\[\]]{3,7}|-0x[\da-f]+)\s*", re.ASCII | re.DOTALL
)
HEAD_LIMIT = 200
"""Characters before a stamp; longer text is prose."""

LOST = re.compile(r"CPU:(\d{1,9})\d* \[(?:LOST )?(?:(\d+) )?EVENTS(?: DROPPED)?\]", re.ASCII)
OVERWRITTEN = re.compile(r"# *entries-in-buffer/entries-written: (\d{1,18})/(\d{1,18})", re.ASCII)
LATENCY = re.compile(r"# .*latency trace v")
HEADER = re.compile(
    r"(?:(\S+):\s+)?(?:cpus=\d+|version = \d+|CPU \d+ is empty|CPU:\d+ \[SUBBUFFER START\].*)", re.ASCII
)


class Place(NamedTuple):
    """Where an event happened; -1 where the line does not tell."""

    task: str
    pid: int
    cpu: int


def place(before: str) -> Place | None:
    """Read what stands before a stamp."""
    if len(before) > HEAD_LIMIT:
        return None
    found = _BEFORE.fullmatch(before) or _BEFORE_LATENCY.fullmatch(before)
    return Place(found[1].strip(), int(found[2]), int(found[3])) if found else None


def is_cut(text: str) -> bool:
    """Say whether a line ends before its stamp, as mail wraps it."""
    return len(text) < HEAD_LIMIT and _BEFORE.fullmatch(text) is not None
