"""Cache lines and the threads that share them (docs/model.md 1 and 4)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thread:
    """A hardware thread, and what it shares with others."""

    number: int
    core: int
    llc: int
    socket: int

    def distance(self, owner: Thread | None) -> str:
        """Return how far away a line is that `owner` has, or memory."""
        if owner is None:
            return "memory"
        if owner == self:
            return "own"
        if owner.core == self.core:
            return "core"
        if owner.llc == self.llc:
            return "llc"
        return "socket" if owner.socket == self.socket else "remote"


class Line:
    """A cache line: who has it (None: memory), and until when it is taken."""

    def __init__(self) -> None:
        self.owner: Thread | None = None
        self.busy = 0


class Resource:
    """A timed first-come resource of a socket: zone lock, LRU lock, zeroing bandwidth."""

    def __init__(self) -> None:
        self.free = 0

    def use(self, t: int, duration: int) -> int:
        """Take it at `t` or as soon as it is free; return the end."""
        self.free = max(t, self.free) + duration
        return self.free
