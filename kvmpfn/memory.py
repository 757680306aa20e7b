"""The byte ledger: what each way of backing and mapping a guest costs in memory, structure by structure.

Every row is an exact integer with the formula it came from. The table sizes are x86-64's; the layouts are
those of 64-bit v6.1 and v6.12, where the header of a table has the same 184 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Literal

from kvmpfn.units import InputError, nearest, parse_size

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Alternative", "Entry", "Ledger", "memory_ledger", "reference_alternatives"]

GIB = 1 << 30
SPAN = {"4k": 1 << 12, "2m": 1 << 21, "1g": 1 << 30, "512g": 1 << 39, "256t": 1 << 48}
"""Bytes that one entry of a level maps."""

TABLE = 4096
HEADER = 184
CACHE_CAPACITY = 40
PTE_LIST_DESC = 128
POINTER = 8
STRUCT_PAGE = 64
LINE = 64
KSM_SHARERS = 256

HOST_LEVEL = {
    "anon": "4k",
    "thp": "2m",
    "hugetlb_2m": "2m",
    "hugetlb_1g": "1g",
    "page_cache": "4k",
    "ksm": "4k",
    "zero_page": "4k",
    "dax": "2m",
    "pfnmap": "4k",
    "pfnmap_struct_page": "4k",
    "tail_pages": "4k",
}
"""The level at which the host's own tables map a backing: the largest that KVM may use."""

Level = Literal["4k", "2m", "1g"]
Mmu = Literal["tdp", "shadow"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One structure's bytes.

    Attributes
    ----------
    name : str
        The structure.
    bytes : int
        Its size for the whole guest.
    formula : str
        How the size follows, with the numbers in place.
    source : str
        Where the factors come from.
    """

    name: str
    bytes: int
    formula: str
    source: str


@dataclass(frozen=True, slots=True)
class Ledger:
    """All structures that one guest's memory needs beside the memory itself.

    Attributes
    ----------
    guest_bytes : int
        Guest memory.
    rows : tuple of Entry
        One entry a structure; structures that do not exist in the configuration have 0 bytes.
    """

    guest_bytes: int
    rows: tuple[Entry, ...]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.rows)

    def __getitem__(self, name: str) -> int:
        """Bytes of the structure called `name`."""
        for row in self.rows:
            if row.name == name:
                return row.bytes
        raise KeyError(f"no structure {name!r}; there are: {', '.join(row.name for row in self.rows)}")

    @property
    def total(self) -> int:
        """Bytes of all structures together."""
        return sum(row.bytes for row in self.rows)

    @property
    def per_gib(self) -> float:
        """Bytes of all structures for each GiB of guest memory."""
        return self.total * GIB / self.guest_bytes

    @property
    def frame(self) -> pd.DataFrame:
        """The ledger as a table, indexed by structure; units are in ``.attrs["units"]``."""
        import pandas as pd

        frame = pd.DataFrame(
            {
                "bytes": [row.bytes for row in self.rows],
                "bytes_per_gib": [row.bytes * GIB / self.guest_bytes for row in self.rows],
                "percent": [100 * row.bytes / self.guest_bytes for row in self.rows],
                "formula": [row.formula for row in self.rows],
                "source": [row.source for row in self.rows],
            },
            index=pd.Index([row.name for row in self.rows], name="structure"),
        )
        frame.attrs["units"] = {"bytes": "B", "bytes_per_gib": "B/GiB", "percent": "% of guest memory"}
        return frame

    def __repr__(self) -> str:
        rows = "".join(f"\n  {row.name:28s} {row.bytes:>16,d}  {row.formula}" for row in self.rows)
        share = 100 * self.total / self.guest_bytes
        total = f"\n  {'total':28s} {self.total:>16,d}  {share:.4f} %"
        return f"Ledger of {self.guest_bytes:,d} bytes of guest memory{rows}{total}"

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td>{escape(row.name)}</td><td style='text-align:right'>{row.bytes:,d}</td>"
            f"<td>{escape(row.formula)}</td></tr>"
            for row in self.rows
        )
        return (
            "<table><thead><tr><th>structure</th><th>bytes</th><th>formula</th></tr></thead>"
            f"<tbody>{cells}<tr><th>total</th><th style='text-align:right'>{self.total:,d}</th>"
            f"<th>{100 * self.total / self.guest_bytes:.4f} % of guest memory</th></tr></tbody></table>"
        )


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way to know, when a page is zapped, whether its mapping had a usable reference count.

    Attributes
    ----------
    name : str
        Where the fact is kept.
    bytes : int
        Memory it needs for the whole guest.
    lines_per_page : int
        64-byte lines that zapping one 4K page touches because of it.
    lines_per_2m : int
        The same for 512 neighbouring 4K pages.
    formula : str
        How the size follows.
    source : str
        Where the factors come from.
    """

    name: str
    bytes: int
    lines_per_page: int
    lines_per_2m: int
    formula: str
    source: str


def memory_ledger(
    guest_bytes: int | str,
    *,
    level: Level = "4k",
    backing: str = "anon",
    mmu: Mmu = "tdp",
    levels: int = 4,
    vcpus: int = 1,
    dirty_logging: bool = False,
    hvo: bool = False,
    aligned: bool = True,
) -> Ledger:
    """Count the bytes that KVM and the host spend on mapping a guest's memory.

    Parameters
    ----------
    guest_bytes : int or str
        Guest memory in one slot, fully mapped; ``"16GiB"`` is understood.
    level : {"4k", "2m", "1g"}
        Size of the stage-2 mappings.
    backing : str
        What the memory is in the host: one of `HOST_LEVEL`. For ``"ksm"`` all pages are merged as far as
        KSM goes, for ``"zero_page"`` all are the zero page.
    mmu : {"tdp", "shadow"}
        Two-dimensional paging with the TDP MMU, or shadow paging of one guest address space that maps
        all of memory once.
    levels : {4, 5}
        Depth of the stage-2 tables.
    vcpus : int
        Number of vCPUs.
    dirty_logging : bool
        Whether the slot logs dirty pages; then it can only be mapped at 4K.
    hvo : bool
        Whether the hugetlb vmemmap optimisation is on.
    aligned : bool
        Whether the slot starts at a multiple of its mapping size; if not, it starts and ends where it
        costs most, and its ragged ends are mapped at smaller levels.

    Returns
    -------
    Ledger
        One row a structure.

    Examples
    --------
    >>> memory_ledger("1GiB")["stage-2 tables"]
    2101248
    """
    size = parse_size(guest_bytes) if isinstance(guest_bytes, str) else guest_bytes
    _check(size, level, backing, mmu, levels, vcpus, dirty_logging, hvo, aligned)
    pages = size // SPAN["4k"]
    tables = _Tables.count(size, level, levels, aligned)
    rows = [*_stage2(tables, mmu), *_per_vcpu(vcpus, mmu)]
    rows += _per_slot(size, pages, mmu, dirty_logging, aligned)
    rows += [_struct_pages(size, pages, backing, hvo), *_host_tables(size, backing, aligned)]
    return Ledger(size, tuple(rows))


def reference_alternatives(guest_bytes: int | str) -> tuple[Alternative, ...]:
    """Compare the ways to record, for each 4K mapping, that its page is reference counted.

    Parameters
    ----------
    guest_bytes : int or str
        Guest memory mapped at 4K; ``"16GiB"`` is understood.

    Returns
    -------
    tuple of Alternative
        The software bit in the entry itself, a bitmap beside the table, and asking the struct page.
    """
    size = parse_size(guest_bytes) if isinstance(guest_bytes, str) else guest_bytes
    _check(size, "4k", "anon", "tdp", 4, 1, False, False, True)
    pages = size // SPAN["4k"]
    per_table = SPAN["2m"] // SPAN["4k"]
    return (
        Alternative(
            "SPTE bit",
            0,
            0,
            0,
            "bit 59 of an entry that exists anyway, read by the zap in any case",
            "LKML v7 to v11 of the series: a software-available bit of 64-bit EPT and NPT entries",
        ),
        Alternative(
            "side bitmap",
            _bitmap(pages),
            1,
            per_table // (8 * LINE),
            f"1 bit for each of {pages:,d} pages, in 8-byte words",
            "derived: as KVM's dirty bitmap, with 512 pages a line",
        ),
        Alternative(
            "struct page lookup",
            0,
            1,
            per_table,
            "nothing stored: the zap reads one 64-byte struct page for each page",
            "include/linux/mm_types.h: one line a page; impossible where there is no struct page",
        ),
    )


def _check(
    size: int,
    level: str,
    backing: str,
    mmu: str,
    levels: int,
    vcpus: int,
    dirty_logging: bool,
    hvo: bool,
    aligned: bool,
) -> None:
    """Refuse what no kernel would do."""
    _one_of("level", level, ("4k", "2m", "1g"))
    _one_of("backing", backing, tuple(HOST_LEVEL))
    _one_of("mmu", mmu, ("tdp", "shadow"))
    if levels not in (4, 5):
        raise InputError(f"{levels} is not 4 or 5; nearest is {4 + (levels > 4)}", "levels")
    if vcpus < 1:
        raise InputError(f"{vcpus} is not a number of vCPUs; nearest is 1", "vcpus")
    step = SPAN[level] if aligned else SPAN["4k"]
    if size < step or size % step:
        near = max(1, round(size / step)) * step
        raise InputError(f"{size} is not a positive multiple of {step}; nearest is {near}", "guest_bytes")
    if SPAN[level] > SPAN[HOST_LEVEL[backing]]:
        near_level = HOST_LEVEL[backing]
        raise InputError(
            f"{level!r} is more than backing {backing!r} allows; nearest is {near_level!r}", "level"
        )
    if dirty_logging and level != "4k":
        raise InputError(f"{level!r} cannot be while dirty pages are logged; nearest is '4k'", "level")
    if hvo and not backing.startswith("hugetlb"):
        raise InputError(f"only hugetlb backings have it, not {backing!r}; nearest is False", "hvo")


def _one_of(key: str, value: str, valid: tuple[str, ...]) -> None:
    """Refuse a value that is not among the valid ones, naming the nearest."""
    if value in valid:
        return
    raise InputError(f"{value!r} is unknown; nearest is {nearest(value, valid)!r}", key)


def _spans(size: int, span: int, aligned: bool) -> int:
    """Count the naturally aligned spans that `size` bytes touch, at the worst 4K offset if not aligned."""
    if aligned:
        return -(-size // span)
    return 1 if size == SPAN["4k"] else (size - 2 * SPAN["4k"]) // span + 2


def _bitmap(pages: int) -> int:
    """Bytes of a bitmap of `pages` bits, in words of 8 bytes."""
    return -(-pages // 64) * 8


@dataclass(frozen=True, slots=True)
class _Tables:
    """How many stage-2 tables of each level there are."""

    l1: int
    l2: int
    l3: int
    l4: int
    l5: int

    @classmethod
    def count(cls, size: int, level: str, levels: int, aligned: bool) -> _Tables:
        """Tables for one slot; the two ragged ends of an unaligned one go down to 4K."""
        l1 = _spans(size, SPAN["2m"], aligned)
        l2 = _spans(size, SPAN["1g"], aligned)
        ends = 0 if aligned else 2
        if level != "4k":
            l1 = min(l1, ends)
        if level == "1g":
            l2 = min(l2, ends)
        l3 = _spans(size, SPAN["512g"], aligned)
        l4 = _spans(size, SPAN["256t"], aligned) if levels == 5 else 1
        return cls(l1, l2, l3, l4, int(levels == 5))

    @property
    def lower(self) -> int:
        return self.l1 + self.l2

    @property
    def upper(self) -> int:
        return self.l3 + self.l4 + self.l5


def _stage2(tables: _Tables, mmu: str) -> list[Entry]:
    """Count the tables the guest runs on, and KVM's notes about each."""
    count = tables.lower + tables.upper
    indirect = count if mmu == "shadow" else 0
    layout = "arch/x86/kvm/mmu/mmu_internal.h: struct kvm_mmu_page"
    return [
        Entry(
            "stage-2 tables",
            tables.lower * TABLE,
            f"({tables.l1:,d} L1 + {tables.l2:,d} L2) x {TABLE}",
            "512 entries of 8 bytes; an L1 table spans 2 MiB, an L2 table 1 GiB",
        ),
        Entry(
            "stage-2 upper tables",
            tables.upper * TABLE,
            f"({tables.l3:,d} L3 + {tables.l4:,d} L4 + {tables.l5:,d} L5) x {TABLE}",
            "one root for all vCPUs; an L3 table spans 512 GiB, an L4 table 256 TiB",
        ),
        Entry("table headers", count * HEADER, f"{count:,d} tables x {HEADER}", layout),
        Entry(
            "shadowed translations",
            indirect * TABLE,
            f"{indirect:,d} shadow tables x 512 x 8",
            f"{layout}, shadowed_translation: one word an entry of a table that shadows a guest's",
        ),
    ]


def _per_vcpu(vcpus: int, mmu: str) -> list[Entry]:
    """Count the caches that a fault is filled up with before it takes a lock."""
    source = "arch/x86/kvm/mmu/mmu.c: mmu_topup_memory_caches; KVM_ARCH_NR_OBJS_PER_MEMORY_CACHE = 40"
    objects = TABLE + HEADER + PTE_LIST_DESC
    shown = f"{TABLE} + {HEADER} + {PTE_LIST_DESC}"
    caches = 3
    if mmu == "shadow":
        objects, shown, caches = objects + TABLE, f"{shown} + {TABLE}", 4
    return [
        Entry(
            "vCPU caches",
            vcpus * CACHE_CAPACITY * objects,
            f"{vcpus:,d} vCPUs x {CACHE_CAPACITY} x ({shown})",
            source,
        ),
        Entry(
            "vCPU cache pointers",
            vcpus * caches * CACHE_CAPACITY * POINTER,
            f"{vcpus:,d} vCPUs x {caches} caches x {CACHE_CAPACITY} x {POINTER}",
            source,
        ),
    ]


def _per_slot(size: int, pages: int, mmu: str, dirty_logging: bool, aligned: bool) -> list[Entry]:
    """Count what a memslot keeps for each page."""
    two, one = (_spans(size, SPAN[level], aligned) for level in ("2m", "1g"))
    shadow = mmu == "shadow"
    logs = 2 if dirty_logging else 0
    return [
        Entry(
            "lpage_info",
            4 * (two + one),
            f"4 x ({two:,d} of 2M + {one:,d} of 1G)",
            "arch/x86/include/asm/kvm_host.h: struct kvm_lpage_info, always allocated",
        ),
        Entry(
            "rmap heads",
            8 * (pages + two + one) * shadow,
            f"8 x ({pages:,d} of 4K + {two:,d} of 2M + {one:,d} of 1G)"
            if shadow
            else "none with the TDP MMU",
            "arch/x86/include/asm/kvm_host.h: struct kvm_rmap_head, only once a shadow root exists",
        ),
        Entry(
            "write tracking",
            2 * pages * shadow,
            f"2 x {pages:,d} of 4K" if shadow else "none with the TDP MMU",
            "arch/x86/kvm/mmu/page_track.c: a 16-bit count a page, only with shadow roots",
        ),
        Entry(
            "dirty bitmaps",
            logs * _bitmap(pages),
            f"{logs} x {pages:,d} bits" if logs else "none: no dirty logging",
            "virt/kvm/kvm_main.c: kvm_alloc_dirty_bitmap allocates two of them",
        ),
    ]


def _struct_pages(size: int, pages: int, backing: str, hvo: bool) -> Entry:
    """Count the host's page descriptors."""
    source = "include/linux/mm_types.h: struct page, 64 bytes in the usual x86-64 configurations"
    if backing == "pfnmap":
        return Entry("struct page", 0, "none: no struct page for these pfns", source)
    if hvo:
        span = SPAN[HOST_LEVEL[backing]]
        count = -(-size // span)
        whole = span // SPAN["4k"] * STRUCT_PAGE // TABLE
        return Entry(
            "struct page",
            count * TABLE,
            f"{count:,d} huge pages x {TABLE}, one vmemmap page kept of {whole:,d}",
            "Documentation/mm/vmemmap_dedup.rst",
        )
    if backing == "ksm":
        pages = -(-pages // KSM_SHARERS)
        source += "; KSM: at most 256 sharers of one page"
    elif backing == "zero_page":
        pages = 1
        source += "; one zero page in the whole host"
    return Entry("struct page", STRUCT_PAGE * pages, f"{STRUCT_PAGE} x {pages:,d} pages", source)


def _host_tables(size: int, backing: str, aligned: bool) -> list[Entry]:
    """Count the tables of the process that owns the memory, below its top level."""
    level = HOST_LEVEL[backing]
    # A mapping of huge pages is aligned to them, whatever the guest's addresses are.
    pte = _spans(size, SPAN["2m"], aligned) if level == "4k" else 0
    pmd = _spans(size, SPAN["1g"], aligned) if level != "1g" else 0
    pud = _spans(size, SPAN["512g"], aligned)
    deposited = -(-size // SPAN["2m"]) if backing == "thp" else 0
    return [
        Entry(
            "host tables",
            (pte + pmd + pud) * TABLE,
            f"({pte:,d} PTE + {pmd:,d} PMD + {pud:,d} PUD) x {TABLE}",
            "x86-64: 512 entries of 8 bytes a table",
        ),
        Entry(
            "host deposited tables",
            deposited * TABLE,
            f"{deposited:,d} huge pages x {TABLE}" if deposited else "none: only transparent huge pages",
            "mm/huge_memory.c: pgtable_trans_huge_deposit keeps a PTE table for the split of each",
        ),
    ]
