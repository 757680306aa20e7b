"""A block of a recording's lines, and what was read from each."""

from __future__ import annotations

import numpy as np

from kvmpfn.traces.events.ftrace import Place
from kvmpfn.traces.events.records import UNNAMED

ODD, UNUSED, BLANK, PLAIN = 255, 254, 253, 252
"""What became of a line that is no event: left to the careful way, counted, blank, text without any sign."""

NO_NAME, ASIDE = -1, -2
"""Where the name of a thread lies that ftrace did not know, or that the careful way read."""


class Block:
    """The lines of a block, and what was read from each, an array an attribute, an element a line."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.bytes = np.frombuffer(data, "u1")
        self.lines = int(np.count_nonzero(self.bytes == 10)) + (bool(data) and not data.endswith(b"\n"))
        size = self.lines
        self.bounds = np.empty((size, 2), "i8")
        self.event = np.full(size, ODD, "u1")
        self.time_ps = np.empty(size, "i8")
        self.pid = np.empty(size, "i8")
        self.cpu = np.empty(size, "i8")
        self.words = np.empty((size, 5), "i8")
        self.comm = np.empty((size, 2), "i8")
        self.careful = np.zeros(size, bool)
        self.losses: list[tuple[int, int]] = []
        self._tasks: dict[int, str] = {}

    def split(self) -> None:
        """Find the lines, and read none."""
        ends = np.flatnonzero(self.bytes == 10)
        if self.lines > len(ends):
            ends = np.append(ends, len(self.bytes))
        self.bounds[:, 1] = ends
        self.bounds[1:, 0] = ends[:-1] + 1
        self.bounds[:1, 0] = 0

    def put(self, line: int, code: int, time_ps: int, place: Place, words: tuple[int, ...]) -> None:
        """Note an event that the careful way read."""
        self.event[line] = code
        self.time_ps[line] = time_ps
        self.pid[line] = place.pid
        self.cpu[line] = place.cpu
        self.words[line, :4] = [word - (1 << 64) if word >> 63 else word for word in words]
        self.careful[line] = True
        unnamed = place.task in ("", UNNAMED)
        self.comm[line, 0] = NO_NAME if unnamed else ASIDE
        if not unnamed:
            self._tasks[line] = place.task

    def task(self, line: int) -> str:
        """Name the thread of an event."""
        begin, end = self.comm[line].tolist()
        return self._tasks[line] if begin == ASIDE else self.data[begin:end].decode()
