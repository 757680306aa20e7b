"""Guest memory as the host has it (docs/model.md 6): regions and the entries of the host's page tables."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from kvmpfn.scenario import Region
from oracle.folio import Folio
from oracle.lines import Line
from oracle.locks import PageTableLock

if TYPE_CHECKING:
    from oracle.actor import Actor

HUGE = {"thp": 2, "hugetlb_2m": 2, "hugetlb_1g": 3}
SPECIAL = ("pfnmap", "pfnmap_struct_page", "tail_pages")
ANONYMOUS = ("anon", "ksm", "zero_page", "thp")
FILE = ("page_cache", "dax")
FIRST_STATE = dict.fromkeys(SPECIAL, "special") | {"ksm": "ro", "zero_page": "ro"}
ALIGN = 1 << 18  # regions begin at multiples of 1 GiB
MAX_PAGE_SHARING = 256
TABLE = 512  # entries


def pages_of(level: int) -> int:
    """Return the 4K pages that an entry of a level covers."""
    return 1 << 9 * (level - 1)


@dataclass(frozen=True)
class HostPte:
    """An entry of the host's page table, at a level; the generation names the frame.

    `noted` is the client that changed it last; it does not make one entry differ from another.
    """

    level: int
    state: str = "absent"
    zero: bool = False
    ksm: bool = False
    file: bool = False
    compound: bool = False
    swap: bool = False
    freed: bool = False
    generation: int = 0
    noted: Actor | None = field(default=None, compare=False)

    @property
    def present(self) -> bool:
        return self.state not in ("absent", "migration")

    def frame(self, state: str, *, zero: bool = False, ksm: bool = False, file: bool = False) -> HostPte:
        """Return the entry with a new frame in it."""
        generation = self.generation + 1
        return HostPte(self.level, state, zero=zero, ksm=ksm, file=file, generation=generation)

    def to(self, state: str, noted: Actor | None = None) -> HostPte:
        """Return the entry in another state, with the same frame."""
        return replace(self, state=state, noted=noted)

    def released(self) -> HostPte:
        """Return the entry with its frame given back: somebody else may have it."""
        return replace(self, freed=True)

    def swapped_out(self) -> HostPte:
        """Return the entry with its page on the device, and the frame given back."""
        return replace(self, state="absent", swap=True, freed=True, noted=None)

    def same(self, now: HostPte) -> bool:
        """pte_same: whether it is the same entry as before; one absent entry is like another."""
        if self.state == "absent":
            return (now.state, now.level, now.swap) == (self.state, self.level, self.swap)
        return now == self


class HostRegion:
    """One region of one VM: its place in guest memory, its host entries, locks and folios.

    Attributes
    ----------
    common : dict of int to Folio
        Folios that many pages share: those of a file, or KSM's.
    dirty : set of int
        Pages, from the region's start, with their bit set in the dirty bitmap.
    """

    def __init__(
        self, region: Region, gfn: int, first: int, vms: int, common: dict[int, Folio], zero: Folio
    ) -> None:
        self.gfn, self.first, self.pages = gfn, first, region.pages
        self.backing = region.backing
        self.special = region.backing in SPECIAL
        self.file = region.backing in FILE
        self.anonymous = region.backing in ANONYMOUS
        self.private = region.backing == "page_cache" and region.mapping == "private"
        self.copied_on_write = not self.special and (self.private or not self.file)
        self.writable, self.congruent = region.writable, region.congruent
        self.fault_around = region.fault_around_pages if region.backing == "page_cache" else 1
        self.order = region.folio_order
        self.populated = region.populated or region.backing in FIRST_STATE
        huge = region.backing in ("dax", "pfnmap") and region.folio_order == 9
        self.level = 2 if huge else HUGE.get(region.backing, 1)  # of what is not split
        sharers = vms if region.backing == "ksm" and region.shared else 1
        self.ksm_order = max(0, (MAX_PAGE_SHARING // sharers).bit_length() - 1)
        self.zero = zero
        self.common = common
        self.folios: dict[tuple[int, int], Folio] = {}
        self.lines: dict[tuple[int, int], Line] = defaultdict(Line)
        self.dirty_lines: dict[int, Line] = defaultdict(Line)
        self.dirty: set[int] = set()
        self.ptls: dict[tuple[int, int], PageTableLock] = defaultdict(PageTableLock)
        self.ptes: dict[tuple[int, int], HostPte] = {}
        self.split: set[int] = set()  # first gfns of 2M pages of thp
        self._start = HostPte(self.level)
        if self.populated:
            state = FIRST_STATE.get(region.backing, "ro" if self.private else "rw")
            self._start = HostPte(
                self.level,
                state,
                zero=region.backing == "zero_page",
                ksm=region.backing == "ksm",
                file=self.file,
                generation=1,
            )

    # Entries

    def level_at(self, gfn: int) -> int:
        """Return the level of the entry that holds a gfn."""
        return 1 if gfn // TABLE * TABLE in self.split else self.level

    def index(self, gfn: int, level: int) -> int:
        """Return the number of the entry of a level, from the region's start, that holds a gfn."""
        return (gfn - self.gfn) // pages_of(level)

    def pte(self, gfn: int) -> HostPte:
        level = self.level_at(gfn)
        return self.ptes.get((level, self.index(gfn, level)), self._start)

    def set(self, gfn: int, pte: HostPte) -> None:
        self.ptes[pte.level, self.index(gfn, pte.level)] = pte

    def line(self, gfn: int) -> Line:
        """Return the line of a host entry: eight neighbours share one."""
        level = self.level_at(gfn)
        return self.lines[level, self.index(gfn, level) // 8]

    def dirty_line(self, gfn: int) -> Line:
        """Return the line of a page's bit in the dirty bitmap."""
        return self.dirty_lines[(gfn - self.gfn) // 512]

    def ptl(self, gfn: int, level: int | None = None) -> PageTableLock:
        """Return the lock of the table with a gfn's entry, or with that of a level; 1G entries share one."""
        level = level or self.level_at(gfn)
        return self.ptls[level, 0 if level == 3 else (gfn - self.gfn) // pages_of(level + 1)]

    # Frames

    def folio(self, gfn: int, pte: HostPte) -> Folio | None:
        """Return the folio of the frame in an entry; None without a struct page that counts."""
        if self.backing in ("pfnmap", "tail_pages"):
            return None
        if pte.zero:
            return self.zero
        if pte.file or pte.ksm:
            number = (gfn - self.gfn) >> (self.order if pte.file else self.ksm_order)
            if number not in self.common:
                on_lru = self.populated and self.backing in ("page_cache", "ksm")
                self.common[number] = Folio(on_lru=on_lru, reserved=self.backing == "dax")
            return self.common[number]
        level = 2 if pte.compound else pte.level
        place = level, self.index(gfn, level)
        if place not in self.folios:
            on_lru = self.populated and self.anonymous
            self.folios[place] = Folio(on_lru=on_lru, hugetlb=self.backing.startswith("hugetlb"))
        return self.folios[place]

    def own_frame(self, gfn: int, actor: Actor) -> None:
        """Put a new frame of anonymous memory in the entry."""
        pte = self.pte(gfn).frame("rw")
        self.set(gfn, pte)
        self.folio(gfn, pte).renew(actor)

    def file_frame(self, gfn: int) -> None:
        """Map the page of the file."""
        self.set(gfn, self.pte(gfn).frame("ro" if self.private else "rw", file=True))

    # Transparent huge pages

    def huge(self, gfn: int) -> bool:
        """Whether the entry is that of a 2M page which can be split."""
        return self.backing == "thp" and self.level_at(gfn) == 2

    def split_huge(self, gfn: int, *, compound: bool) -> None:
        """Have a table of 512 entries in the place of a 2M entry; the folio stays, or is split too."""
        pte = self.pte(gfn)
        small = replace(pte, level=1, compound=compound, noted=None)
        for page in range(gfn, gfn + TABLE):
            self.ptes[1, self.index(page, 1)] = small
            if not compound:
                self.folio(page, small).like(self.folio(gfn, pte))
        self.split.add(gfn)

    def table(self, gfn: int) -> list[HostPte]:
        """Return the 512 entries of a split page."""
        first = self.index(gfn, 1)
        return [self.ptes[1, first + i] for i in range(TABLE)]

    def can_collapse(self, gfn: int) -> bool:
        """Whether khugepaged can make a huge page of the 2M that begin at a gfn."""
        if gfn not in self.split:
            return False
        ptes = self.table(gfn)
        return any(pte.state == "rw" for pte in ptes) and not any(
            pte.state == "migration" or pte.swap for pte in ptes
        )

    def take_out(self, gfn: int) -> list[HostPte]:
        """Have an absent 2M entry in the place of a split page's table, which is returned."""
        table = self.table(gfn)
        self.split.remove(gfn)
        self.set(gfn, HostPte(2, generation=max(pte.generation for pte in table)))
        return table

    def put_back(self, gfn: int) -> None:
        """Undo `take_out`."""
        self.split.add(gfn)


def lay_out(
    regions: tuple[Region, ...], vms: int, shared: dict[int, dict[int, Folio]], zero: Folio
) -> list[HostRegion]:
    """Lay the regions of a VM into guest memory; `shared` holds the folios that all VMs map."""
    laid, gfn, first = [], 0, 0
    for number, region in enumerate(regions):
        one_set = region.shared and region.backing in (*FILE, "ksm")
        common = shared.setdefault(number, {}) if one_set else {}
        laid.append(HostRegion(region, gfn, first, vms, common, zero))
        gfn += -(-region.pages // ALIGN) * ALIGN
        first += region.pages
    return laid
