"""The threads of a configuration: vCPUs, which come back for ever, and notifier clients, which end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from kvmpfn.protocol.callers import CALLERS
from kvmpfn.protocol.gup import Setting
from kvmpfn.protocol.host import invalidation
from kvmpfn.protocol.order import Line, Local, Move
from kvmpfn.protocol.words import Violation

__all__ = ["Client", "Thread", "Vcpu", "initial_memory", "threads"]

Memory = tuple[int, ...]


class Thread(Protocol):
    """What the search needs to know of a thread."""

    name: str
    ends: bool

    def initial(self) -> Local:
        """Return the first state."""
        ...

    def moves(self, local: Local, memory: Memory) -> Iterator[Move]:
        """Yield every step that may come next."""
        ...

    def pending(self, local: Local) -> int:
        """Return the bits of the words that it may yet write, of those that plain loads read."""
        ...

    def rests(self, local: Local, memory: Memory) -> bool:
        """Whether nothing is left to do, unless another thread makes something to do."""
        ...


class Client:
    """A notifier client: one invalidation.

    Parameters
    ----------
    setting : Setting
        The exploration.
    number : int
        Which one.
    """

    ends = True

    def __init__(self, setting: Setting, number: int) -> None:
        self.name = f"host {number}"
        self.line = Line(invalidation(setting, number), setting.memory_model, setting.words)

    def initial(self) -> Local:
        """Return the state before the first access."""
        return self.line.start("invalidates")

    def moves(self, local: Local, memory: Memory) -> Iterator[Move]:
        """Yield every step that may come next."""
        return self.line.moves(local, memory)

    def pending(self, local: Local) -> int:
        """Return the bits of the words that it may yet write."""
        return self.line.pending(local)

    def rests(self, local: Local, memory: Memory) -> bool:
        """Whether the invalidation is over."""
        return self.line.finished(local)


class Vcpu:
    """A vCPU, or the task that stands for it with the other callers.

    Its life: ``resolves`` (the caller's line), then ``enters`` the guest unless a request is pending, then
    goes by its translation in the ``guest`` until a request kicks it out; without a translation it walks the
    SPTEs, and resolves anew if there is none. Nothing counts or bounds its tries: a try leaves no trace in
    the vCPU's own state, so the tries of ever are a loop in a finite graph. Exit and entry are full barriers,
    and the entry's look at the request is one step with it, as vcpu->mode and smp_mb make it.

    Parameters
    ----------
    setting : Setting
        The exploration.
    number : int
        Which one.
    """

    ends = False

    def __init__(self, setting: Setting, number: int) -> None:
        words = setting.words
        self.name = f"vCPU {number}"
        self.caller = setting.caller
        page = words.page_of(number)
        self.spte, self.pte = words.at(f"spte[{page}]"), words.at(f"pte[{page}]")
        self.tlb, self.request, self.in_guest = (
            words.at(f"{word}[{number}]") for word in ("tlb", "request", "in_guest")
        )
        keep = ("pfn", "stale", "late") if self.caller in ("pfncache", "observer") else ("pfn",)
        self.line = Line(CALLERS[self.caller](setting, number), setting.memory_model, words, keep)
        self.start = self.line.start("resolves")

    def initial(self) -> Local:
        """Return the state of a vCPU that has just left the guest for want of a translation."""
        return self.start

    def moves(self, local: Local, memory: Memory) -> Iterator[Move]:
        """Yield every step that may come next."""
        if local.phase == "resolves":
            for move in self.line.moves(local, memory):
                yield self._next_phase(move) if self.line.finished(move.local) else move
        elif local.phase == "enters":
            yield self._enter(local, memory)
        elif local.phase == "guest":
            if memory[self.request]:
                yield self._move("leave the guest for the request", "enters", memory, {self.in_guest: 0})
            if not memory[self.tlb]:
                yield self._walk(local, memory)
        elif local.phase == "cached" and not memory[self.tlb]:
            yield Move("find the cache invalid", self.start, memory)

    def pending(self, local: Local) -> int:
        """Return the bits of its page's SPTE and PTE, which it may always write."""
        return 1 << self.spte | 1 << self.pte

    def rests(self, local: Local, memory: Memory) -> bool:
        """Whether it has what it wants: a translation to go by, or an end."""
        if local.phase == "guest":
            return bool(memory[self.tlb] and not memory[self.request])
        return local.phase == "ended" or (local.phase == "cached" and bool(memory[self.tlb]))

    def _next_phase(self, move: Move) -> Move:
        registers = self.line.registers(move.local)
        if registers["pfn"] < 0 or self.caller == "vcpu_map":
            return move._replace(local=Local("ended"))
        if self.caller not in ("pfncache", "observer"):
            return move._replace(local=Local("enters"))
        if self.caller == "pfncache":
            after = Local("cached")
        else:
            after = self.start if registers["stale"] else Local("ended")
        if registers["stale"] or not registers.get("late"):
            return move._replace(local=after)
        text = f"{self.name} judges a pfn fresh that had been replaced when its check began"
        return move._replace(local=after, violation=Violation(("observer",), text))

    def _enter(self, local: Local, memory: Memory) -> Move:
        if not memory[self.request]:
            return self._move("enter the guest", "guest", memory, {self.in_guest: 1})
        if self.caller == "apic_access_page":
            text = "take the request: reload the APIC page"
            return self._move(text, "resolves", memory, {self.request: 0})
        return self._move("take the request: flush the TLB", "enters", memory, {self.request: 0, self.tlb: 0})

    def _walk(self, local: Local, memory: Memory) -> Move:
        entry = memory[self.spte]
        if entry:
            return self._move("hardware walk: fill the TLB", "guest", memory, {self.tlb: entry})
        return self._move("hardware walk: no leaf, leave the guest", "resolves", memory, {self.in_guest: 0})

    def _move(self, text: str, phase: str, memory: Memory, changes: dict[int, int]) -> Move:
        after = list(memory)
        for at, value in changes.items():
            after[at] = value
        return Move(text, self.start if phase == "resolves" else Local(phase), tuple(after))


def threads(setting: Setting) -> list[Thread]:
    """Return the vCPUs, then the clients."""
    vcpus: list[Thread] = [Vcpu(setting, number) for number in range(setting.words.vcpus)]
    return vcpus + [Client(setting, number) for number in range(setting.invalidations)]


def initial_memory(setting: Setting) -> Memory:
    """Return the shared words before the first step."""
    memory = setting.words.initial()
    if setting.caller == "pfncache":
        for vcpu in range(setting.words.vcpus):
            memory[setting.words.at(f"in_guest[{vcpu}]")] = 1
    return tuple(memory)
