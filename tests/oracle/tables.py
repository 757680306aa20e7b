"""KVM's page tables (docs/model.md 4, 6 and 8, *walk*)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from oracle.lines import Line
from oracle.memory import pages_of


@dataclass(frozen=True)
class Leaf:
    """A present leaf. Its level is its place in the tables, and says whether it is huge.

    Attributes
    ----------
    generation : int
        Names the frame.
    w, x, a, d : bool
        Writable, executable, accessed, dirty.
    host_writable, mmu_writable : bool
        Why W is clear, and whether a fault may set it without mmu_lock.
    refcounted : bool
        v7_series and v11_series: the frame has a reference count.
    """

    generation: int
    w: bool = False
    x: bool = False
    a: bool = True
    d: bool = False
    host_writable: bool = False
    mmu_writable: bool = False
    refcounted: bool = False

    @property
    def volatile(self) -> bool:
        """Whether somebody may change it without mmu_lock, so that zapping it takes an atomic."""
        return (self.mmu_writable and not self.w) or not self.a or (self.w and not self.d)

    def grants(self, writes: bool, executes: bool) -> bool:
        """Whether an access needs no fault."""
        return (self.w or not writes) and (self.x or not executes)

    def but(self, **changes: bool) -> Leaf:
        return replace(self, **changes)


TABLE, FROZEN = "table", "frozen"
Entry = Leaf | str | None
"""What an entry holds: a leaf, TABLE, FROZEN, or nothing."""


class Tables:
    """One VM's tables: entry `gfn >> 9 * (level - 1)` of a level; the root table has the highest."""

    def __init__(self, levels: int) -> None:
        self.levels = levels
        self.entries: dict[tuple[int, int], Entry] = {}
        self.lines: dict[tuple[int, int], Line] = defaultdict(Line)
        self.leaves: Counter[int] = Counter()  # present, by level

    def lowest(self, gfn: int) -> tuple[int, Entry]:
        """Walk to the lowest entry for a gfn; return its level, and what is there."""
        level = self.levels
        while (entry := self.get(level, gfn)) == TABLE:
            level -= 1
        return level, entry

    def leaf(self, gfn: int) -> tuple[int, Leaf | None]:
        """Return the lowest entry's level, and the leaf that is there, if one is."""
        level, entry = self.lowest(gfn)
        return level, entry if isinstance(entry, Leaf) else None

    def get(self, level: int, gfn: int) -> Entry:
        return self.entries.get((level, gfn >> 9 * (level - 1)))

    def set(self, level: int, gfn: int, entry: Entry) -> None:
        """Write an entry, and keep count of leaves."""
        self.leaves[level] += isinstance(entry, Leaf) - isinstance(self.get(level, gfn), Leaf)
        self.entries[level, gfn >> 9 * (level - 1)] = entry

    def line(self, level: int, gfn: int) -> Line:
        """Return the line of an entry: eight neighbours share one."""
        return self.lines[level, gfn >> 9 * (level - 1) >> 3]

    def link(self, level: int, gfn: int) -> None:
        """Put a table in an entry of `level`; in a huge leaf's place, of 512 leaves with its bits."""
        old = self.get(level, gfn)
        self.set(level, gfn, TABLE)
        if isinstance(old, Leaf):
            first, step = gfn >> 9 * (level - 1) << 9 * (level - 1), pages_of(level - 1)
            for i in range(512):
                self.set(level - 1, first + i * step, old)

    def next_leaf(self, start: int, end: int) -> tuple[int, int, Leaf] | None:
        """Return first gfn, level and value of the first leaf that overlaps [start, end)."""
        gfn = start
        while gfn < end:
            level, entry = self.lowest(gfn)
            size = pages_of(level)
            if isinstance(entry, Leaf):
                return gfn // size * size, level, entry
            gfn = (gfn // size + 1) * size
        return None

    def all_leaves(self, start: int, end: int) -> Iterator[Leaf]:
        """Yield the leaves that overlap [start, end)."""
        while found := self.next_leaf(start, end):
            gfn, level, leaf = found
            yield leaf
            start = gfn + pages_of(level)
