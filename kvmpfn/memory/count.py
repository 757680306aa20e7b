"""The ledger of one guest's memory, and of all guests of a scenario."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from kvmpfn.memory.ledger import Ledger
from kvmpfn.memory.structures import (
    HOST_LEVEL,
    SPAN,
    VMEMMAP_KEPT,
    Slot,
    host_tables,
    page_metadata,
    per_slot,
    per_vcpu,
    stage2,
)
from kvmpfn.units import InputError, nearest, parse_size

if TYPE_CHECKING:
    from kvmpfn.scenario import Region, Scenario

__all__ = ["memory_ledger", "scenario_ledger"]

Level = Literal["4k", "2m", "1g"]
Mmu = Literal["tdp", "shadow"]

RING_MOST = 65536
RING_LEAST = 256
RING_LEAST_PML = 1024
"""Entries of a dirty ring: KVM_DIRTY_RING_MAX_ENTRIES; a page; with PML, room for 64 reserved entries and
a buffer of 512 (kvm_dirty_ring_get_rsvd_entries), to a power of two."""


def memory_ledger(
    guest_bytes: int | str,
    *,
    level: Level = "4k",
    backing: str = "anon",
    mmu: Mmu = "tdp",
    levels: int = 4,
    vcpus: int = 1,
    dirty_logging: bool = False,
    dirty_ring: int = 0,
    pml: bool = False,
    hvo: bool = False,
    aligned: bool = True,
    address_spaces: int = 1,
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
        KSM goes, for ``"zero_page"`` all are the zero page, for ``"page_cache"`` none is a private copy.
    mmu : {"tdp", "shadow"}
        Two-dimensional paging with the TDP MMU, or shadow paging.
    levels : {4, 5}
        Depth of the stage-2 tables.
    vcpus : int
        Number of vCPUs.
    dirty_logging : bool
        Whether the slot logs dirty pages; then it can only be mapped at 4K.
    dirty_ring : int
        Entries of each vCPU's dirty ring, which takes the place of the bitmaps; 0 is no ring.
    pml : bool
        Whether vCPUs have a page-modification log, as they do with EPT on hardware that has it.
    hvo : bool
        Whether the vmemmap of huge pages is optimised (hugetlb, and DAX without an altmap).
    aligned : bool
        Whether the slot starts at a multiple of its mapping size; if not, it starts and ends where it
        costs most, and its ragged ends are mapped at smaller levels.
    address_spaces : int
        With shadow paging, the guest address spaces that each map all of memory once.

    Returns
    -------
    Ledger
        One row a structure.

    Raises
    ------
    InputError
        No kernel would do this.

    Examples
    --------
    >>> memory_ledger("1GiB")["stage-2 tables"]
    2101248
    """
    size = parse_size(guest_bytes) if isinstance(guest_bytes, str) else guest_bytes
    _one_of("level", level, ("4k", "2m", "1g"))
    _one_of("backing", backing, tuple(HOST_LEVEL))
    _one_of("mmu", mmu, ("tdp", "shadow"))
    slot = Slot(size, level, backing, aligned=aligned, hvo=hvo)
    _check_slot(slot, dirty_logging)
    _check_vm(mmu, levels, vcpus, dirty_ring, pml, address_spaces)
    return _ledger([slot], 1, vcpus, mmu, levels, dirty_logging, dirty_ring, pml, address_spaces)


def scenario_ledger(scenario: Scenario, *, dirty_ring: int = 0, hvo: bool = False) -> Ledger:
    """Count the bytes that the guests of a scenario take once all of their memory is mapped to be written.

    A guest that has touched less has no more tables than this, and `simulate` builds just these:
    ``run.memory["kvm_table_bytes"]`` is stage-2 tables and upper tables together, ``kvm_header_bytes`` the
    table headers, and ``host_table_bytes`` the host PTE tables. Pages are what the backing says: private
    copies that a write makes of page cache, KSM pages or the zero page come on top.

    Parameters
    ----------
    scenario : Scenario
        Its memory, VMs, vCPUs, levels and dirty logging; huge pages are mapped as such unless dirty logging
        or incongruent addresses forbid it.
    dirty_ring : int
        Entries of each vCPU's dirty ring, which takes the place of the bitmaps; 0 is no ring.
    hvo : bool
        Whether the vmemmap of huge pages is optimised, where a backing has it.

    Returns
    -------
    Ledger
        One row a structure, for all VMs; page cache that VMs share is counted once.

    Raises
    ------
    InputError
        The ring is none that KVM has.

    Examples
    --------
    >>> from kvmpfn.scenario import Scenario
    >>> scenario_ledger(Scenario(vms=2, memory="1GiB"))["stage-2 tables"]
    4202496
    """
    pml = scenario.pml_on and scenario.mmu == "ept"
    _check_vm("tdp", scenario.levels, scenario.vcpus, dirty_ring, pml, 1)
    slots = [
        _slot(region, scenario, hvo, again=vm > 0 and region.shared)
        for vm in range(scenario.vms)
        for region in scenario.memory
    ]
    vcpus = scenario.vms * scenario.vcpus
    return _ledger(
        slots, scenario.vms, vcpus, "tdp", scenario.levels, scenario.dirty_logging, dirty_ring, pml, 1
    )


def _slot(region: Region, scenario: Scenario, hvo: bool, again: bool) -> Slot:
    """Say what a region is, and how it is mapped when a vCPU has written to each of its pages."""
    huge = region.congruent and not scenario.dirty_logging
    host = ("4k", "2m", "1g")[region.host_level - 1]
    return Slot(
        region.size_bytes,
        host if huge else "4k",
        region.backing,
        hvo=hvo and region.backing in VMEMMAP_KEPT,
        folio_order=region.folio_order if region.backing == "page_cache" else 0,
        again=again,
        host=host,
    )


def _ledger(
    slots: list[Slot],
    vms: int,
    vcpus: int,
    mmu: str,
    levels: int,
    dirty_logging: bool,
    dirty_ring: int,
    pml: bool,
    address_spaces: int,
) -> Ledger:
    """Put all structures together: KVM's, then the host's."""
    rows = [
        *stage2(slots, vms, mmu, levels, address_spaces),
        *per_vcpu(vcpus, mmu, pml, dirty_ring),
        *per_slot(slots, mmu, dirty_logging, dirty_ring, address_spaces),
        *page_metadata(slots),
        *host_tables(slots),
    ]
    return Ledger(sum(one.size for one in slots), sum(one.backing_bytes for one in slots), tuple(rows))


def _check_slot(slot: Slot, dirty_logging: bool) -> None:
    """Refuse a slot that no kernel would map so."""
    size, level, backing = slot.size, slot.level, slot.backing
    step = SPAN[level] if slot.aligned else SPAN["4k"]
    if size < step or size % step:
        near = max(1, round(size / step)) * step
        raise InputError(f"{size} is not a positive multiple of {step}; nearest is {near}", "guest_bytes")
    if SPAN[level] > SPAN[HOST_LEVEL[backing]]:
        raise InputError(
            f"{level!r} is more than backing {backing!r} allows; nearest is {HOST_LEVEL[backing]!r}", "level"
        )
    if dirty_logging and level != "4k":
        raise InputError(f"{level!r} cannot be while dirty pages are logged; nearest is '4k'", "level")
    if slot.hvo and backing not in VMEMMAP_KEPT:
        raise InputError(f"only hugetlb and dax have it, not {backing!r}; nearest is False", "hvo")


def _check_vm(mmu: str, levels: int, vcpus: int, dirty_ring: int, pml: bool, address_spaces: int) -> None:
    """Refuse a VM that KVM would not make."""
    if levels not in (4, 5):
        raise InputError(f"{levels} is not 4 or 5; nearest is {4 + (levels > 4)}", "levels")
    if vcpus < 1:
        raise InputError(f"{vcpus} is not a number of vCPUs; nearest is 1", "vcpus")
    if pml and mmu == "shadow":
        raise InputError("shadow paging has no page-modification log; nearest is False", "pml")
    least = RING_LEAST_PML if pml else RING_LEAST
    if dirty_ring and (not least <= dirty_ring <= RING_MOST or dirty_ring & (dirty_ring - 1)):
        near = min(max(1 << max(dirty_ring, 1).bit_length() - 1, least), RING_MOST)
        what = f"is not a power of two from {least} to {RING_MOST}"
        raise InputError(f"{dirty_ring} {what}; nearest is {near}", "dirty_ring")
    if address_spaces < 1 or (address_spaces > 1 and mmu != "shadow"):
        what = (
            "guest address spaces"
            if address_spaces < 1
            else "address spaces, but only shadow paging has more"
        )
        raise InputError(f"{address_spaces} {what}; nearest is 1", "address_spaces")


def _one_of(key: str, value: str, valid: tuple[str, ...]) -> None:
    """Refuse a value that is not among the valid ones, naming the nearest."""
    if value in valid:
        return
    raise InputError(f"{value!r} is unknown; nearest is {nearest(value, valid)!r}", key)
