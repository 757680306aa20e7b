"""The shared words of a tiny configuration, and what must hold of them in every state."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

__all__ = ["WRITER", "Frame", "Violation", "Words"]

WRITER = -1
"""mmu_lock held for write; else the word counts readers."""


class Frame(NamedTuple):
    """What an SPTE, a host PTE or a TLB entry points at.

    The generation is a ghost: hardware stores the frame only. It is odd while the frame is in use and grows
    when the frame is freed or taken, so that an entry made before the frame was freed can be told.
    """

    number: int
    generation: int


class Violation(NamedTuple):
    """Which properties a step breaks, the plainest first, and how."""

    properties: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Words:
    """Layout of the shared words, and the operations that are more than a load or a store.

    Parameters
    ----------
    vcpus, pages : int
        Of the configuration. vCPU `v` touches page ``v % pages``; there are two frames a page.
    refcounted : bool
        Whether the host counts references on the pages it maps; if not, its owner unmaps them before it frees
        them (kernel-facts 5).
    """

    vcpus: int
    pages: int
    refcounted: bool = True

    @property
    def frames(self) -> int:
        """Two a page, for a page that is zapped and faulted in again."""
        return 2 * self.pages

    @cached_property
    def names(self) -> list[str]:
        """The words in the order in which a memory holds them."""
        return [
            "mmu_invalidate_seq",
            "mmu_invalidate_in_progress",
            "mmu_invalidate_range_start",
            "mmu_invalidate_range_end",
            "mn_active_invalidate_count",
            "mmu_lock",
            *(f"spte[{page}]" for page in range(self.pages)),
            *(f"pte[{page}]" for page in range(self.pages)),
            *(f"refcount[{frame}]" for frame in range(self.frames)),
            *(f"generation[{frame}]" for frame in range(self.frames)),
            *(
                f"{word}[{vcpu}]"
                for word in ("tlb", "request", "in_guest", "lock")
                for vcpu in range(self.vcpus)
            ),
        ]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    def at(self, name: str) -> int:
        """Return the index of a word."""
        return self._index[name]

    def initial(self) -> list[int]:
        """Return the memory in which every page is mapped by the host and nothing by KVM."""
        memory = [0] * len(self.names)
        for page in range(self.pages):
            memory[self.at(f"generation[{page}]")] = 1
            memory[self.at(f"refcount[{page}]")] = int(self.refcounted)
            memory[self.at(f"pte[{page}]")] = self.entry(Frame(page, 1))
        return memory

    def entry(self, frame: Frame) -> int:
        """Encode what an entry points at; 0 is an absent entry."""
        return 1 + frame.number + self.frames * frame.generation

    def frame(self, entry: int) -> Frame:
        """Decode a present entry."""
        generation, number = divmod(entry - 1, self.frames)
        return Frame(number, generation)

    def page_of(self, vcpu: int) -> int:
        """Return the page that a vCPU touches."""
        return vcpu % self.pages

    def freed(self, memory: list[int], entry: int) -> bool:
        """Whether the frame of a present entry was freed after the entry was made."""
        number, generation = self.frame(entry)
        return memory[self.at(f"generation[{number}]")] != generation

    def take_frame(self, memory: list[int]) -> int:
        """Allocate the first free frame, and return an entry for it; 0 if there is none."""
        for number in range(self.frames):
            at = self.at(f"generation[{number}]")
            if memory[at] % 2 == 0:
                memory[at] += 1
                memory[self.at(f"refcount[{number}]")] = int(self.refcounted)
                return self.entry(Frame(number, memory[at]))
        return 0

    def free(self, memory: list[int], number: int) -> None:
        """Free a frame, if it is in use."""
        at = self.at(f"generation[{number}]")
        memory[at] += memory[at] % 2

    def get_unless_zero(self, memory: list[int], entry: int) -> bool:
        """try_get_folio: one more reference, if there is any."""
        at = self.at(f"refcount[{self.frame(entry).number}]")
        if memory[at] == 0:
            return False
        memory[at] += 1
        return True

    def put(self, memory: list[int], entry: int) -> Violation | None:
        """put_page: one reference less; the last one frees the frame."""
        number = self.frame(entry).number
        at = self.at(f"refcount[{number}]")
        if memory[at] == 0:
            return Violation(("refcount",), f"put of frame {number}, whose count is 0 already")
        memory[at] -= 1
        if memory[at] == 0:
            self.free(memory, number)
        return None

    def touch(self, memory: list[int], entry: int, what: str) -> Violation | None:
        """Mark a page: it must not have been freed meanwhile."""
        if self.freed(memory, entry):
            return Violation(("freed_use",), f"{what} frame {self.frame(entry).number}, which has been freed")
        return None

    def check(self, memory: list[int]) -> Violation | None:
        """Compare every translation that can be used now with the host's page tables.

        A use is not a step of its own: what can be used now counts as used, for nothing keeps its user from
        doing so next. ``tlb[v]`` is what vCPU v goes by: its TLB entry, the VMCS's APIC-access address, the
        cache's khva or the mapping of kvm_vcpu_map; ``in_guest[v]`` says that it does so now.
        """
        for vcpu in range(self.vcpus):
            entry = memory[self.at(f"tlb[{vcpu}]")]
            if not (entry and memory[self.at(f"in_guest[{vcpu}]")]) or memory[self.at(f"lock[{vcpu}]")]:
                continue
            page, number = self.page_of(vcpu), self.frame(entry).number
            if self.freed(memory, entry):
                text = f"vCPU {vcpu} uses frame {number} for page {page}, and it has been freed"
                return Violation(("freed_use", "stale_use"), text)
            if memory[self.at(f"pte[{page}]")] != entry:
                text = f"vCPU {vcpu} uses frame {number} for page {page}, and the host has unmapped it"
                return Violation(("stale_use",), text)
        return None

    def balance(self, memory: list[int]) -> Violation | None:
        """Compare each frame's count with the host's mappings of it, when nobody is on the way."""
        mapped = [memory[self.at(f"pte[{page}]")] for page in range(self.pages)]
        for number in range(self.frames):
            count = memory[self.at(f"refcount[{number}]")]
            mappings = sum(entry != 0 and self.frame(entry).number == number for entry in mapped)
            if count != mappings * self.refcounted:
                text = f"frame {number} is left with count {count} and {mappings} mappings"
                return Violation(("refcount",), text)
        return None

    def change(self, name: str, old: int, new: int) -> str:
        """Write a word's change for people."""
        if name.startswith("generation"):
            frame = name.removeprefix("generation[").removesuffix("]")
            return f"frame {frame} is {'in use' if new % 2 else 'free'}"
        return f"{name} {self.show(name, old)} -> {self.show(name, new)}"

    def show(self, name: str, value: int) -> str:
        """Write a word's value for people."""
        if name.startswith(("spte", "pte", "tlb")):
            return f"frame {self.frame(value).number}" if value else "absent"
        if name == "mmu_lock":
            return "write" if value == WRITER else f"{value} reader{'s' * (value > 1)}" if value else "free"
        return str(value)
