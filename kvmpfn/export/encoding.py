"""What the engine holds, in the bits and numbers that KVM prints.

Entries have the layout of arch/x86/kvm/mmu/spte.h, for EPT and NPT; error codes are what the exit handlers
pass on: the exit qualification on Intel (SDM, "Exit Qualification for EPT Violations"), the #PF-like code on
AMD (APM volume 2, "Nested versus Guest Page Faults"). Frames and tables have no addresses in the model, so
theirs are made up: see `Encoding.pfn` and `Encoding.table`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmpfn.core import layout as L

if TYPE_CHECKING:
    from kvmpfn.export.steps import Machine

__all__ = ["Encoding"]

NUMBERED_ANEW = ("v6.13", "v6.16")
"""Presets of kernels from 6.12 on: RET_PF_* has one value more, and an empty entry has bit 63."""

RETURNS = {
    False: {L.RET_RETRY: 1, L.RET_EMULATE: 2, L.RET_FIXED: 4, L.RET_SPURIOUS: 5, L.RET_ERROR: -14},
    True: {L.RET_RETRY: 1, L.RET_EMULATE: 2, L.RET_FIXED: 5, L.RET_SPURIOUS: 6, L.RET_ERROR: -14},
}
"""RET_PF_* (mmu_internal.h of 6.1 and of 6.16), and -EFAULT."""

HVA = 1 << 46
EMPTY = 1 << 63
MMU_PRESENT = 1 << 11
NX = 1 << 63
PFN_BITS = 40
WRITE_BACK = 0x70
"""EPT memory type WB, and ignore PAT: what vmx_get_mt_mask gives ordinary memory."""

EPT_BITS = (
    (L.SPTE_PRESENT, 1), (L.SPTE_W, 2), (L.SPTE_X, 4), (L.SPTE_HUGE, 1 << 7), (L.SPTE_A, 1 << 8),
    (L.SPTE_D, 1 << 9), (L.SPTE_HOST_W, 1 << 57), (L.SPTE_MMU_W, 1 << 58), (L.SPTE_REFCOUNTED, 1 << 59),
)  # fmt: skip
EPT_TABLE = 0x907
NPT_KEPT = (
    L.SPTE_PRESENT | L.SPTE_W | L.SPTE_A | L.SPTE_D | L.SPTE_HUGE | L.SPTE_HOST_W | L.SPTE_MMU_W
    | L.SPTE_REFCOUNTED
)  # fmt: skip
NPT_USER = 4
NPT_TABLE = 0x827

EPT_ACCESS = {L.READ: 0x181, L.WRITE: 0x182, L.EXEC: 0x184}
NPT_ACCESS = {L.READ: 1 << 32 | 4, L.WRITE: 1 << 32 | 6, L.EXEC: 1 << 32 | 0x14}
PFERR_PRESENT, PFERR_WRITE, PFERR_USER, PFERR_FETCH = 1, 2, 4, 16
PFERR = {L.READ: PFERR_USER, L.WRITE: PFERR_WRITE, L.EXEC: PFERR_FETCH}


class Encoding:
    """How a machine's entries and faults are printed.

    Parameters
    ----------
    machine : Machine
        What is simulated.

    Attributes
    ----------
    ept : bool
        Whether it is Intel's format.
    anew : bool
        Whether numbers are those of kernels from 6.12 on.
    returns : dict of int to int
        RET_PF_* by the engine's outcome.
    """

    def __init__(self, machine: Machine) -> None:
        self.words, s = machine.words, machine.scenario
        self.ept = s.mmu == "ept"
        self.anew = s.mechanisms.preset in NUMBERED_ANEW
        self.returns = RETURNS[self.anew]
        self.empty = EMPTY if self.anew else 0
        vm = machine.vms[0]
        last = self.words[vm + L.REGIONS] + (self.words[vm + L.REGION_COUNT] - 1) * L.REGION_WORDS
        self.pages = self.words[last + L.R_GFN] + self.words[last + L.R_PAGES]
        """Guest memory of one VM in pages, with the gaps between regions."""
        self.place = self.pages.bit_length()
        self.generation = (s.vms << self.place).bit_length()

    def hva(self, vm: int) -> int:
        """Make up the host address of gfn 0 of a VM, by its number; no two VMs overlap, though they might."""
        return HVA + (vm << self.place + 12)

    def pfn(self, vm: int, gfn: int, generation: int) -> int:
        """Make up the number of a frame: the page, and above it how many frames the page had before.

        Frames that pages share (KSM, the zero page, a file) are not told apart from others. Numbers begin
        anew after 40 bits.
        """
        page = self.words[vm + L.VM_ID] << self.place | gfn
        return (generation << self.generation | page) & (1 << PFN_BITS) - 1

    def table(self, pointer: int) -> int:
        """Make up the address of a page table: where the engine has it, which no two tables share."""
        return pointer * 8 & ~0xFFF

    def sptep(self, at: int, gfn: int, level: int) -> int:
        """Make up the address of an entry."""
        index = gfn >> 9 * (level - 1) & 511
        return self.table(at - index) | index * 8

    def spte(self, vm: int, gfn: int, level: int, entry: int) -> int:
        """Write an entry for a gfn as KVM would have it."""
        if entry == L.SPTE_FROZEN:
            return self.empty | L.SPTE_FROZEN
        if not entry & L.SPTE_PRESENT:
            return self.empty
        if entry & L.SPTE_TABLE:
            bits = EPT_TABLE if self.ept else NPT_TABLE
            return self.table(entry >> L.SPTE_PFN_SHIFT) | bits
        first = gfn >> 9 * (level - 1) << 9 * (level - 1)
        bits = self.pfn(vm, first, entry >> L.SPTE_PFN_SHIFT & L.SPTE_PFN_MASK) << 12 | MMU_PRESENT
        if self.ept:
            return bits | WRITE_BACK | sum(there for here, there in EPT_BITS if entry & here)
        return bits | NPT_USER | entry & NPT_KEPT | (0 if entry & L.SPTE_X else NX)

    def error_code(self, kind: int, entry: int) -> int:
        """Return the code of a violation by a kind of access, where an entry stood."""
        leaf = _is_leaf(entry)
        if not self.ept:
            return NPT_ACCESS[kind] | (1 if leaf else 0)
        allowed = 8 | (entry & (L.SPTE_W | L.SPTE_X)) << 3 if leaf else 0
        return EPT_ACCESS[kind] | allowed

    def pferr(self, kind: int, entry: int) -> int:
        """Return that code in the bits of PFERR_*, as KVM's handler has it on both machines."""
        return (PFERR_PRESENT if _is_leaf(entry) else 0) | PFERR[kind] | (0 if self.ept else PFERR_USER)


def _is_leaf(entry: int) -> bool:
    """A present entry that maps memory."""
    return entry & (L.SPTE_PRESENT | L.SPTE_TABLE) == L.SPTE_PRESENT
