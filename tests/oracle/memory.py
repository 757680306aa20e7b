"""Guest memory as the host has it (docs/model.md 6): regions, host page tables, folios."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from kvmpfn.scenario import Region
from oracle.lines import Line
from oracle.locks import PageTableLock

if TYPE_CHECKING:
    from oracle.actor import Actor

HOST_LEVEL = {"thp": 2, "hugetlb_2m": 2, "hugetlb_1g": 3}
SPECIAL = ("pfnmap", "pfnmap_struct_page", "tail_pages")
ON_LRU = ("anon", "thp", "page_cache")
ALIGN = 1 << 18  # regions begin at multiples of 1 GiB


def pages_of(level: int) -> int:
    """Return the 4K pages that an entry of a level covers."""
    return 1 << 9 * (level - 1)


class Folio:
    """A struct page: the line of its count and flags, the flags that matter, and KVM's references."""

    def __init__(self, *, on_lru: bool = False, hugetlb: bool = False, unevictable: bool = False) -> None:
        self.line = Line()
        self.on_lru, self.hugetlb, self.unevictable = on_lru, hugetlb, unevictable
        self.referenced = self.active = self.workingset = False
        self.uses = 0  # MGLRU's two-bit count
        self.in_flight = 0

    def renew(self, actor: Actor) -> None:
        """Be the folio of a new frame, which the actor has just written."""
        self.referenced = self.active = self.workingset = self.on_lru = False
        self.uses = 0
        if not self.in_flight:
            self.line.owner, self.line.busy = actor.thread, actor.world.env.now

    def mark_accessed(self, actor: Actor, lru: str) -> None:
        """mark_page_accessed (mm/swap.c): what it takes depends on flags and on the kind of LRU."""
        if lru == "off" or self.unevictable:
            return
        if not self.referenced:
            self.referenced = True
            actor.add(self.line, "folio", "folio")
        elif self.hugetlb:
            self.referenced = False
            actor.add(self.line, "folio", "folio")
        elif lru == "mglru":
            if not self.workingset:
                self.workingset = True
                actor.add(self.line, "folio", "folio")
            elif self.uses < 3:
                self.uses += 1
                actor.cas(self.line, "folio", "folio")
        elif not self.active:
            self.active, self.referenced = True, False
            actor.add(self.line, "folio", "folio")
            actor.add(self.line, "folio", "folio")
            if self.on_lru:
                actor.rmw("host_folio", 4)  # when the batch drains

    def mark_dirty(self, actor: Actor) -> None:
        """set_page_dirty."""
        actor.add(self.line, "folio", "folio")


@dataclass(frozen=True)
class HostPte:
    """An entry of the host's page table; the generation names the frame.

    `unmapped_by` is the client that took it away; it does not make one entry differ from another.
    """

    state: str = "absent"
    zero: bool = False
    file: bool = False
    freed: bool = False
    generation: int = 0
    unmapped_by: Actor | None = field(default=None, compare=False)

    def frame(self, state: str, *, zero: bool = False, file: bool = False) -> HostPte:
        """Return the entry with a new frame in it."""
        return HostPte(state, zero, file, False, self.generation + 1)

    def to(self, state: str, unmapped_by: Actor | None = None) -> HostPte:
        """Return the entry in another state, with the same frame."""
        return replace(self, state=state, unmapped_by=unmapped_by)

    def released(self) -> HostPte:
        """Return the entry with its frame given back: somebody else may have it."""
        return replace(self, freed=True)


class HostRegion:
    """One region of one VM: its place in guest memory, its host entries, locks and folios."""

    def __init__(
        self, number: int, region: Region, gfn: int, first: int, file_folios: dict[int, Folio], zero: Folio
    ) -> None:
        self.number, self.gfn, self.first, self.pages = number, gfn, first, region.pages
        self.backing = region.backing
        self.level = HOST_LEVEL.get(region.backing, 1)
        self.special = region.backing in SPECIAL
        self.file = region.backing == "page_cache"
        self.private = region.mapping == "private"
        self.copied_on_write = not self.special and (self.private or not self.file)
        self.writable, self.congruent = region.writable, region.congruent
        self.fault_around = region.fault_around_pages
        self.order = region.folio_order
        self.populated = region.populated or self.special
        self.zero = zero
        self.file_folios = file_folios
        self.folios: dict[int, Folio] = {}
        self.lines: dict[int, Line] = defaultdict(Line)
        self.dirty_lines: dict[int, Line] = defaultdict(Line)
        self.ptls: dict[int, PageTableLock] = defaultdict(PageTableLock)
        self.ptes: dict[int, HostPte] = {}
        first_state = "special" if self.special else "ro" if self.file and self.private else "rw"
        present = HostPte(first_state, file=self.file, generation=1)
        self._start = present if self.populated else HostPte()

    def index(self, gfn: int) -> int:
        """Return the number of the host entry that holds a gfn."""
        return (gfn - self.gfn) // pages_of(self.level)

    def pte(self, gfn: int) -> HostPte:
        return self.ptes.get(self.index(gfn), self._start)

    def set(self, gfn: int, pte: HostPte) -> None:
        self.ptes[self.index(gfn)] = pte

    def line(self, gfn: int) -> Line:
        """Return the line of a host entry: eight neighbours share one."""
        return self.lines[self.index(gfn) // 8]

    def dirty_line(self, gfn: int) -> Line:
        """Return the line of a page's bit in the dirty bitmap."""
        return self.dirty_lines[(gfn - self.gfn) // 512]

    def ptl(self, gfn: int) -> PageTableLock:
        """Return the lock of the host table that holds a gfn's entry; 1G entries share one."""
        return self.ptls[0 if self.level == 3 else (gfn - self.gfn) // pages_of(self.level + 1)]

    def folio(self, gfn: int, pte: HostPte) -> Folio | None:
        """Return the folio of the frame in an entry; None without a struct page that counts."""
        if self.backing in ("pfnmap", "tail_pages"):
            return None
        if pte.zero:
            return self.zero
        if pte.file:
            number = (gfn - self.gfn) >> self.order
            if number not in self.file_folios:
                self.file_folios[number] = Folio(on_lru=self.populated)
            return self.file_folios[number]
        number = self.index(gfn)
        if number not in self.folios:
            on_lru = self.populated and self.backing in ON_LRU and not self.file
            self.folios[number] = Folio(on_lru=on_lru, hugetlb=self.backing.startswith("hugetlb"))
        return self.folios[number]

    def own_frame(self, gfn: int, actor: Actor) -> None:
        """Put a new frame of anonymous memory in the entry."""
        pte = self.pte(gfn).frame("rw")
        self.set(gfn, pte)
        self.folio(gfn, pte).renew(actor)

    def file_frame(self, gfn: int) -> None:
        """Map the page of the file."""
        self.set(gfn, self.pte(gfn).frame("ro" if self.private else "rw", file=True))


def lay_out(
    regions: tuple[Region, ...], shared: dict[int, dict[int, Folio]], zero: Folio
) -> list[HostRegion]:
    """Lay the regions of a VM into guest memory; `shared` holds the file folios that all VMs map."""
    laid, gfn, first = [], 0, 0
    for number, region in enumerate(regions):
        files = shared.setdefault(number, {}) if region.shared else {}
        laid.append(HostRegion(number, region, gfn, first, files, zero))
        gfn += -(-region.pages // ALIGN) * ALIGN
        first += region.pages
    return laid
