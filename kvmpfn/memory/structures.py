"""The structures, a function for each place where they lie: bytes, formula, source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvmpfn.memory.ledger import Entry
from kvmpfn.scenario import KSM_SHARERS

__all__ = ["HOST_LEVEL", "SPAN", "Slot", "host_tables", "page_metadata", "per_slot", "per_vcpu", "stage2"]

SPAN = {"4k": 1 << 12, "2m": 1 << 21, "1g": 1 << 30, "512g": 1 << 39, "256t": 1 << 48}
"""Bytes that one entry of a level maps."""

TABLE = 4096
HEADER = 184
CACHE_CAPACITY = 40
PTE_LIST_DESC = 128
PTE_LIST_EXT = 14
POINTER = 8
MEMSLOT = 264
DIRTY_GFN = 16
STRUCT_PAGE = 64
PER_VMEMMAP_PAGE = TABLE // STRUCT_PAGE * TABLE
"""Bytes of memory that the struct pages in one page of the vmemmap describe."""

XA_NODE = 576
XA_CHUNK_SHIFT = 6
KSM_ITEM = 64

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

VMEMMAP_KEPT = {"hugetlb_2m": 1, "hugetlb_1g": 1, "dax": 2}
"""Pages of the vmemmap that stay for each huge page when the optimisation is on."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Guest memory of one kind, mapped at one level.

    Attributes
    ----------
    size : int
        Bytes.
    level : {"4k", "2m", "1g"}
        Size of the stage-2 mappings.
    backing : str
        One of `HOST_LEVEL`.
    aligned : bool
        Whether it starts at a multiple of its mapping size; if not, it starts and ends where it costs most.
    hvo : bool
        Whether the vmemmap of its huge pages is optimised.
    folio_order : int
        Of page cache.
    again : bool
        Whether another slot maps the same pages and has them counted.
    host : {"4k", "2m", "1g", ""}
        How the host maps it; by its backing if not said.
    """

    size: int
    level: str
    backing: str
    aligned: bool = True
    hvo: bool = False
    folio_order: int = 0
    again: bool = False
    host: str = ""

    @property
    def host_level(self) -> str:
        """The level at which the host maps it."""
        return self.host or HOST_LEVEL[self.backing]

    @property
    def pages(self) -> int:
        """4K pages."""
        return self.size // SPAN["4k"]

    def spans(self, level: str) -> int:
        """Naturally aligned spans of a level that it touches: tables of the level below, or huge pages."""
        span = SPAN[level]
        if self.aligned:
            return -(-self.size // span)
        return 1 if self.size == SPAN["4k"] else (self.size - 2 * SPAN["4k"]) // span + 2

    @property
    def l1(self) -> int:
        """Last-level tables; the two ragged ends of an unaligned slot go down to 4K."""
        spans = self.spans("2m")
        return spans if self.level == "4k" else min(spans, self._ends)

    @property
    def l2(self) -> int:
        """Tables whose entries map 2M."""
        spans = self.spans("1g")
        return spans if self.level != "1g" else min(spans, self._ends)

    @property
    def _ends(self) -> int:
        return 0 if self.aligned else 2

    @property
    def leaves(self) -> int:
        """Entries that map memory. An unaligned slot starts with the last 4K page of a span."""
        if self.aligned or self.level == "4k":
            return self.size // SPAN[self.level]
        rest, leaves = self.size - SPAN["4k"], 1
        for level in ("1g", "2m", "4k")[("1g", "2m").index(self.level) :]:
            leaves += rest // SPAN[level]
            rest %= SPAN[level]
        return leaves

    @property
    def backing_bytes(self) -> int:
        """Memory that holds its pages."""
        if self.again or self.backing == "zero_page":
            return 0
        return -(-self.pages // KSM_SHARERS) * SPAN["4k"] if self.backing == "ksm" else self.size


def stage2(slots: Sequence[Slot], vms: int, mmu: str, levels: int, address_spaces: int) -> list[Entry]:
    """Count the tables that guests run on, and KVM's notes about each.

    Slots of one VM lie one after another, each from a multiple of 1 GiB on, and share tables above that.
    """
    l1, l2 = sum(one.l1 for one in slots), sum(one.l2 for one in slots)
    l3 = vms * _covering(slots, vms, "512g")
    l4 = vms * (_covering(slots, vms, "256t") if levels == 5 else 1)
    l5 = vms * (levels == 5)
    l1, l2, l3, l4, l5 = (count * address_spaces for count in (l1, l2, l3, l4, l5))
    count = l1 + l2 + l3 + l4 + l5
    indirect = count if mmu == "shadow" else 0
    layout = "arch/x86/kvm/mmu/mmu_internal.h: struct kvm_mmu_page"
    root = "one root for each guest address space" if mmu == "shadow" else "one root for all vCPUs"
    return [
        Entry(
            "stage-2 tables",
            (l1 + l2) * TABLE,
            f"({l1:,d} L1 + {l2:,d} L2) x {TABLE}",
            "512 entries of 8 bytes; an L1 table spans 2 MiB, an L2 table 1 GiB; a zap clears leaves and "
            "keeps tables",
        ),
        Entry(
            "stage-2 upper tables",
            (l3 + l4 + l5) * TABLE,
            f"({l3:,d} L3 + {l4:,d} L4 + {l5:,d} L5) x {TABLE}",
            f"{root}; an L3 table spans 512 GiB, an L4 table 256 TiB",
        ),
        Entry("table headers", count * HEADER, f"{count:,d} tables x {HEADER}", layout),
        Entry(
            "shadowed translations",
            indirect * TABLE,
            f"{indirect:,d} shadow tables x 512 x 8",
            f"{layout}, shadowed_translation: one word an entry of a table that shadows a guest's",
        ),
        Entry(
            "SPTE bit",
            0,
            "bit 59 of entries that exist anyway",
            "LKML v7 to v11 of the series: a software-available bit of 64-bit EPT and NPT entries",
        ),
    ]


def _covering(slots: Sequence[Slot], vms: int, level: str) -> int:
    """Tables of an upper level in one VM, whose entries map less than `level`: one for each span begun."""
    mine = slots[: len(slots) // vms]
    if len(mine) == 1:
        return mine[0].spans(level)
    end = sum(-(-one.size // SPAN["1g"]) * SPAN["1g"] for one in mine)
    return -(-end // SPAN[level])


def per_vcpu(vcpus: int, mmu: str, pml: bool, dirty_ring: int) -> list[Entry]:
    """Count the caches that a fault is filled up with before it takes a lock, and the logs of writes."""
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
            f"{source}; full, as after a refill",
        ),
        Entry(
            "vCPU cache pointers",
            vcpus * caches * CACHE_CAPACITY * POINTER,
            f"{vcpus:,d} vCPUs x {caches} caches x {CACHE_CAPACITY} x {POINTER}",
            source,
        ),
        Entry(
            "PML buffers",
            vcpus * TABLE * pml,
            f"{vcpus:,d} vCPUs x 512 entries x 8" if pml else "none without page-modification logging",
            "arch/x86/kvm/vmx/vmx.c: vmx_vcpu_create takes one page, whether or not anything is logged",
        ),
        Entry(
            "dirty rings",
            vcpus * dirty_ring * DIRTY_GFN,
            f"{vcpus:,d} vCPUs x {dirty_ring:,d} x {DIRTY_GFN}" if dirty_ring else "none: no dirty ring",
            "virt/kvm/dirty_ring.c: kvm_dirty_ring_alloc; struct kvm_dirty_gfn has 16 bytes",
        ),
    ]


def per_slot(
    slots: Sequence[Slot], mmu: str, dirty_logging: bool, dirty_ring: int, address_spaces: int
) -> list[Entry]:
    """Count what memslots keep for their pages."""
    pages = sum(one.pages for one in slots)
    two, one_gib = (sum(one.spans(level) for one in slots) for level in ("2m", "1g"))
    leaves = sum(one.leaves for one in slots)
    shadow = mmu == "shadow"
    each = -(-address_spaces // PTE_LIST_EXT) if shadow and address_spaces > 1 else 0
    logs = 2 if dirty_logging and not dirty_ring else 0
    no_bitmap = "none: a dirty ring instead" if dirty_logging else "none: no dirty logging"
    host = "arch/x86/include/asm/kvm_host.h"
    return [
        Entry(
            "memslots",
            len(slots) * MEMSLOT,
            f"{len(slots):,d} x {MEMSLOT}",
            "include/linux/kvm_host.h: struct kvm_memory_slot of v6.1; with guest_memfd 16 bytes more",
        ),
        Entry(
            "lpage_info",
            4 * (two + one_gib),
            f"4 x ({two:,d} of 2M + {one_gib:,d} of 1G)",
            f"{host}: struct kvm_lpage_info, always allocated",
        ),
        Entry(
            "rmap heads",
            8 * (pages + two + one_gib) * shadow,
            f"8 x ({pages:,d} of 4K + {two:,d} of 2M + {one_gib:,d} of 1G)"
            if shadow
            else "none with the TDP MMU",
            f"{host}: struct kvm_rmap_head, only once a shadow root exists",
        ),
        Entry(
            "rmap descriptors",
            each * leaves * PTE_LIST_DESC,
            f"{leaves:,d} mappings x {each} x {PTE_LIST_DESC}"
            if each
            else "none: no page is mapped more than once",
            "arch/x86/kvm/mmu/mmu.c: struct pte_list_desc, 14 entries; a single mapping lies in the head",
        ),
        Entry(
            "write tracking",
            2 * pages * shadow,
            f"2 x {pages:,d} of 4K" if shadow else "none with the TDP MMU",
            "arch/x86/kvm/mmu/page_track.c: a 16-bit count a page, only with shadow roots",
        ),
        Entry(
            "dirty bitmaps",
            logs * sum(bitmap(one.pages) for one in slots),
            f"{logs} x {pages:,d} bits" if logs else no_bitmap,
            "virt/kvm/kvm_main.c: kvm_alloc_dirty_bitmap allocates two of them",
        ),
    ]


def bitmap(pages: int) -> int:
    """Bytes of a bitmap of `pages` bits, in words of 8 bytes."""
    return -(-pages // 64) * 8


def page_metadata(slots: Sequence[Slot]) -> list[Entry]:
    """Count what the host keeps for the pages themselves, however they are mapped."""
    ksm = [one for one in slots if one.backing == "ksm"]
    items, stable = sum(one.pages for one in ksm), sum(-(-one.pages // KSM_SHARERS) for one in ksm)
    split = sum(-(-one.size // (512 * PER_VMEMMAP_PAGE)) for one in slots if one.hvo)
    nodes = sum(_index_nodes(one) for one in slots if one.backing == "page_cache" and not one.again)
    return [
        _struct_pages(slots),
        Entry(
            "vmemmap tables",
            split * TABLE,
            f"{split:,d} x {TABLE}, one for 128 MiB of memory" if split else "none: mapped at 2M",
            "mm/hugetlb_vmemmap.c: __split_vmemmap_huge_pmd; mm/sparse-vmemmap.c: "
            "vmemmap_populate_compound_pages; as few as memory without gaps needs",
        ),
        Entry(
            "page cache index",
            nodes * XA_NODE,
            f"{nodes:,d} nodes x {XA_NODE}" if nodes else "none: not page cache",
            "include/linux/xarray.h: struct xa_node, 64 slots",
        ),
        Entry(
            "KSM items",
            (items + stable) * KSM_ITEM,
            f"({items:,d} rmap items + {stable:,d} stable nodes) x {KSM_ITEM}" if items else "none: not KSM",
            "Documentation/admin-guide/mm/ksm.rst: an rmap_item has 64 bytes; mm/ksm.c: so has a stable node",
        ),
    ]


def _index_nodes(slot: Slot) -> int:
    """Nodes of the tree that finds the folios of a file; a large folio takes slots of one node only."""
    shift = slot.folio_order // XA_CHUNK_SHIFT * XA_CHUNK_SHIFT + XA_CHUNK_SHIFT
    nodes = count = -(-slot.pages >> shift)
    while count > 1:
        count = -(-count >> XA_CHUNK_SHIFT)
        nodes += count
    return nodes


def _struct_pages(slots: Sequence[Slot]) -> Entry:
    """Count the page descriptors."""
    source = ["include/linux/mm_types.h: struct page, 64 bytes in the usual x86-64 configurations"]
    pages = kept = 0
    for slot in slots:
        if slot.hvo:
            kept += VMEMMAP_KEPT[slot.backing] * -(-slot.size // SPAN[HOST_LEVEL[slot.backing]])
        elif slot.backing != "pfnmap":
            pages += slot.backing_bytes // SPAN["4k"]
    backings = {slot.backing for slot in slots}
    if kept:
        source.append("Documentation/mm/vmemmap_dedup.rst: one page of the vmemmap stays, two for DAX")
    if "ksm" in backings:
        source.append("mm/ksm.c: at most 256 sharers of one page (max_page_sharing)")
    if "zero_page" in backings:
        source.append("the zero page is the host's, one for all")
    if "dax" in backings:
        source.append("mm/memremap.c: ZONE_DEVICE has struct pages, in memory unless the device keeps them")
    parts = [f"{STRUCT_PAGE} x {pages:,d} pages"] if pages else []
    parts += [f"{kept:,d} vmemmap pages kept x {TABLE}"] if kept else []
    text = " + ".join(parts) or "none of the guest's own"
    return Entry("struct page", STRUCT_PAGE * pages + TABLE * kept, text, "; ".join(source))


def host_tables(slots: Sequence[Slot]) -> list[Entry]:
    """Count the tables of the processes that own the memory, below their top level."""
    pte = pmd = pud = deposited = 0
    for slot in slots:
        level = slot.host_level
        # A mapping of huge pages is aligned to them, whatever the guest's addresses are.
        pte += slot.spans("2m") if level == "4k" else 0
        pmd += slot.spans("1g") if level != "1g" else 0
        pud += slot.spans("512g")
        deposited += -(-slot.size // SPAN["2m"]) if slot.backing == "thp" else 0
    return [
        Entry(
            "host PTE tables",
            pte * TABLE,
            f"{pte:,d} x {TABLE}",
            "x86-64: 512 entries of 8 bytes a table; a PTE table spans 2 MiB",
        ),
        Entry(
            "host upper tables",
            (pmd + pud) * TABLE,
            f"({pmd:,d} PMD + {pud:,d} PUD) x {TABLE}",
            "a PMD table spans 1 GiB, a PUD table 512 GiB; each mapping starts at a multiple of both",
        ),
        Entry(
            "host deposited tables",
            deposited * TABLE,
            f"{deposited:,d} huge pages x {TABLE}" if deposited else "none: only transparent huge pages",
            "mm/huge_memory.c: pgtable_trans_huge_deposit keeps a PTE table for the split of each; fs/dax.c "
            "does so only on powerpc",
        ),
    ]
