"""KVM's page tables (docs/model.md 4, 6 and 8, *walk*)."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import NamedTuple

from oracle.lines import Line
from oracle.memory import TABLE, pages_of


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


class Table:
    """A page table of a level, the level of its entries.

    Attributes
    ----------
    nx : bool
        Whether it was linked for an execution that may not use a huge page.
    removed : bool
        Whether a huge leaf has replaced it.
    """

    def __init__(self, level: int, *, nx: bool = False) -> None:
        self.level, self.nx, self.removed = level, nx, False
        self.entries: dict[int, Entry] = {}
        self.lines: dict[int, Line] = defaultdict(Line)

    @property
    def forbids_leaf(self) -> bool:
        """Whether no huge leaf may replace it: an NX table, or one that has tables below."""
        return self.nx or any(isinstance(entry, Table) for entry in self.entries.values())


FROZEN = "frozen"
Entry = Leaf | Table | str | None
"""What an entry holds: a leaf, a table, FROZEN, or nothing."""


class Sptep(NamedTuple):
    """A pointer to an entry."""

    table: Table
    index: int

    @property
    def level(self) -> int:
        return self.table.level

    @property
    def entry(self) -> Entry:
        return self.table.entries.get(self.index)

    @property
    def leaf(self) -> Leaf | None:
        """The leaf that is there, if one is."""
        return self.entry if isinstance(self.entry, Leaf) else None

    @property
    def line(self) -> Line:
        """The line of the entry: eight neighbours share one."""
        return self.table.lines[self.index // 8]


class Tables:
    """One VM's tables, below the root."""

    def __init__(self, levels: int) -> None:
        self.levels = levels
        self.root = Table(levels)
        self.leaves: Counter[int] = Counter()  # present, by level

    def walk(self, gfn: int, goal: int = 1) -> Sptep:
        """Return the lowest entry for a gfn that is at the goal's level or above."""
        table = self.root
        while True:
            sptep = Sptep(table, gfn // pages_of(table.level) % TABLE)
            if table.level == goal or not isinstance(sptep.entry, Table):
                return sptep
            table = sptep.entry

    def set(self, sptep: Sptep, entry: Entry) -> None:
        """Write an entry, and keep count of leaves."""
        self.leaves[sptep.level] += isinstance(entry, Leaf) - isinstance(sptep.entry, Leaf)
        sptep.table.entries[sptep.index] = entry

    def link(self, sptep: Sptep, *, nx: bool = False) -> None:
        """Put a table in an entry; in a huge leaf's place, of 512 leaves with its bits."""
        table, old = Table(sptep.level - 1, nx=nx), sptep.entry
        self.set(sptep, table)
        if isinstance(old, Leaf):
            for i in range(TABLE):
                self.set(Sptep(table, i), old)

    def next_leaf(self, start: int, end: int) -> tuple[int, Sptep] | None:
        """Return the first gfn and the place of the first leaf that overlaps [start, end)."""
        gfn = start
        while gfn < end:
            sptep = self.walk(gfn)
            first = gfn // pages_of(sptep.level) * pages_of(sptep.level)
            if sptep.leaf:
                return first, sptep
            gfn = first + pages_of(sptep.level)
        return None
