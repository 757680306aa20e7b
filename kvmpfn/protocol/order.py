"""Single accesses, threads of them, and the orders in which a memory model lets them happen.

A thread is a straight line of accesses, each with a condition on what was read before: an access whose
condition is false is passed over. Three memory models say which access may happen next:

``sc``
    the first that has not happened.
``tso``
    the same, but a plain store goes to the thread's FIFO buffer, from which it reaches memory at any later
    time; loads look there first, and an atomic read-modify-write waits until the buffer is empty (x86).
``weak``
    any whose predecessors have happened. An access precedes a later one of its thread if both are of the same
    word, if the later one needs what it read (a store or an atomic also for its condition; a load may happen
    before its condition is known, and is then perhaps in vain), if it is an acquire, if the later one is a
    release, or if a barrier for both stands between. Stores are seen by all threads at once (multi-copy
    atomic), and a thread's own no sooner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from kvmpfn.protocol.words import Violation, Words

__all__ = [
    "MEMORY_MODELS", "Access", "Line", "Local", "Memory", "Move", "Registers", "barrier", "calc", "full",
    "load", "rmw", "store",
]  # fmt: skip

MEMORY_MODELS = ("sc", "tso", "weak")

STEPS = ("load", "store", "rmw")
"""The kinds of access that are steps."""

Registers = dict[str, int]
Memory = list[int]


@dataclass(frozen=True)
class Access:
    """One access of a thread; or a barrier, or a computation, which are no steps.

    Parameters
    ----------
    kind : {"load", "store", "rmw", "calc", "rmb", "wmb"}
        What it is. A lock is an ``rmw`` that waits; under a lock, words that only its holders write may be
        read with the acquisition (see `kvmpfn.protocol.explore`).
    text : str
        What people read.
    word : str
        The word it accesses; empty if it depends on what was read before.
    out : tuple of str
        Registers it sets.
    uses : tuple of str
        Registers it needs.
    given : tuple of str
        Registers that `when` needs.
    when : callable, optional
        Whether it happens at all.
    value : callable, optional
        ``store``, ``calc``: what is stored or computed.
    act : callable, optional
        ``rmw``: changes memory and registers.
    ready : callable, optional
        ``rmw``: whether it need not wait.
    ghost : callable, optional
        ``load``: what the second register of `out` notes of memory at this time, for a property's sake.
    acquire, release : bool
        Order against all later and all earlier accesses.
    alone : bool
        ``load``: whether a lock keeps everybody from writing the word (see `kvmpfn.protocol.explore`).
    """

    kind: Literal["load", "store", "rmw", "calc", "rmb", "wmb"]
    text: str = ""
    word: str = ""
    out: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    when: Callable[[Registers], bool] | None = None
    value: Callable[[Registers], int] | None = None
    act: Callable[[Memory, Registers], Violation | None] | None = None
    ready: Callable[[Memory], bool] | None = None
    ghost: Callable[[Memory, Registers], int] | None = None
    acquire: bool = False
    release: bool = False
    alone: bool = False


@dataclass(frozen=True)
class Local:
    """What a thread knows: how far it is, and what it has read and not yet stored.

    Parameters
    ----------
    phase : str
        Which part of its life it is in.
    done : int
        Bits of the accesses that have happened or were passed over.
    early : int
        Bits of the loads that happened before their condition was known.
    registers : tuple of int
        In the order of the line's registers; 0 when no longer needed.
    buffer : tuple of (int, int)
        Words and values on their way to memory.
    """

    phase: str
    done: int = 0
    early: int = 0
    registers: tuple[int, ...] = ()
    buffer: tuple[tuple[int, int], ...] = ()


class Move(NamedTuple):
    """One step of a thread: what it did, its state and the memory after it, what it broke itself.

    Of a load also its word, whether a lock keeps everybody from writing it, and whether a property's ghost
    looks at more than that word.
    """

    text: str
    local: Local
    memory: tuple[int, ...]
    violation: Violation | None = None
    alone: bool = False
    word: int | None = None
    ghost: bool = False


class Line:
    """A thread's accesses in program order, under a memory model.

    Parameters
    ----------
    accesses : list of Access
        In program order; each register is set by one of them.
    memory_model : {"sc", "tso", "weak"}
        See the module.
    words : Words
        The memory's layout.
    keep : tuple of str
        Registers that are needed after the last access.
    """

    def __init__(
        self, accesses: list[Access], memory_model: str, words: Words, keep: tuple[str, ...] = ()
    ) -> None:
        self.accesses = accesses
        self.words = words
        self.buffered = memory_model == "tso"
        self.names = [name for access in accesses for name in access.out]
        if len(set(self.names)) != len(self.names):
            raise AssertionError("a register is set twice")
        self.all = (1 << len(accesses)) - 1
        maker = {name: 1 << at for at, access in enumerate(accesses) for name in access.out}
        self.condition = [sum({maker[name] for name in access.given}) for access in accesses]
        inputs = [sum({maker[name] for name in access.uses}) for access in accesses]
        self.before = [
            _predecessors(accesses, at, inputs[at], self.condition[at])
            if memory_model == "weak" or access.kind == "calc"
            else (1 << at) - 1
            for at, access in enumerate(accesses)
        ]
        self.users = {
            name: sum(1 << at for at, access in enumerate(accesses) if name in access.uses + access.given)
            for name in self.names
            if name not in keep
        }
        self._steps = [(at, access) for at, access in enumerate(accesses) if access.kind in STEPS]
        self._settled = [
            (at, access) for at, access in enumerate(accesses) if access.when or access.kind == "calc"
        ]

    def start(self, phase: str) -> Local:
        """Return the state before the first access."""
        barriers = sum(1 << at for at, access in enumerate(self.accesses) if access.kind in ("rmb", "wmb"))
        return self._settle(phase, barriers, 0, dict.fromkeys(self.names, 0), ())

    def finished(self, local: Local) -> bool:
        """Whether every access has happened, and reached memory."""
        return local.done == self.all and not local.buffer

    def registers(self, local: Local) -> Registers:
        """Return the registers by name."""
        return dict(zip(self.names, local.registers, strict=True))

    def moves(self, local: Local, memory: tuple[int, ...]) -> Iterator[Move]:
        """Yield every access that may happen next."""
        if local.buffer:
            (word, value), *rest = local.buffer
            after = list(memory)
            after[word] = value
            text = f"(store buffer) {self.words.names[word]} reaches memory"
            yield Move(text, replace(local, buffer=tuple(rest)), tuple(after))
        for at, access in self._steps:
            bit = 1 << at
            if local.done & bit or self.before[at] & ~local.done:
                continue
            if access.kind == "rmw" and (local.buffer or (access.ready and not access.ready(list(memory)))):
                continue
            registers, after, violation, buffer = self.registers(local), list(memory), None, local.buffer
            if access.kind == "load":
                word = self.words.at(access.word)
                own = [value for stored, value in buffer if stored == word]
                registers[access.out[0]] = own[-1] if own else memory[word]
                if access.out[1:]:
                    assert access.ghost
                    registers[access.out[1]] = access.ghost(after, registers)
            elif access.kind == "store":
                assert access.value
                word, value = self.words.at(access.word), access.value(registers)
                if self.buffered:
                    buffer = (*buffer, (word, value))
                else:
                    after[word] = value
            else:
                assert access.act
                violation = access.act(after, registers)
            early = local.early | (bit if self.condition[at] & ~local.done else 0)
            settled = self._settle(local.phase, local.done | bit, early, registers, buffer)
            read = self.words.at(access.word) if access.kind == "load" else None
            ghost = access.ghost is not None
            yield Move(access.text, settled, tuple(after), violation, access.alone, read, ghost)

    def pending(self, local: Local) -> int:
        """Return the bits of the words that may yet be written."""
        words = [word for word, _ in local.buffer]
        for at, access in enumerate(self.accesses):
            if access.kind in ("store", "rmw") and access.word and not local.done >> at & 1:
                words.append(self.words.at(access.word))
        return sum(1 << word for word in set(words))

    def _settle(
        self, phase: str, done: int, early: int, registers: Registers, buffer: tuple[tuple[int, int], ...]
    ) -> Local:
        """Pass over what will not happen, compute what can be computed, forget what is no longer needed."""
        for at, access in self._settled:
            bit = 1 << at
            if done & bit and not early & bit:
                continue
            if access.when and not self.condition[at] & ~done:
                early &= ~bit
                if not access.when(registers):
                    done |= bit
                    registers.update(dict.fromkeys(access.out, 0))
            elif access.kind == "calc" and not self.before[at] & ~done:
                assert access.value
                registers[access.out[0]] = int(access.value(registers))
                done |= bit
        pending = ~done | early
        for name, users in self.users.items():
            if not users & pending:
                registers[name] = 0
        return Local(phase, done, early, tuple(registers.values()), buffer)


def _predecessors(accesses: list[Access], at: int, inputs: int, condition: int) -> int:
    """Return the bits of the accesses that a weakly ordered machine lets happen only before this one."""
    access = accesses[at]
    before = inputs | (0 if access.kind == "load" else condition)
    if access.kind == "calc":
        return before
    reads, writes = ("load", "rmw"), ("store", "rmw")
    for earlier, other in enumerate(accesses[:at]):
        between = {fence.kind for fence in accesses[earlier + 1 : at]}
        if (
            (access.word and access.word == other.word)
            or other.acquire
            or access.release
            or (other.release and access.acquire)
            or ("rmb" in between and other.kind in reads and access.kind in reads)
            or ("wmb" in between and other.kind in writes and access.kind in writes)
        ):
            before |= 1 << earlier
    return before


def load(word: str, out: str, text: str = "", **more: Any) -> Access:
    """Return a plain read."""
    return Access("load", text or f"read {word}", word=word, out=(out, *more.pop("also", ())), **more)


def store(word: str, value: Callable[[Registers], int], text: str, **more: Any) -> Access:
    """Return a plain write."""
    return Access("store", text, word=word, value=value, **more)


def rmw(act: Callable[[Memory, Registers], Violation | None], text: str, **more: Any) -> Access:
    """Return an atomic read-modify-write, ordered as `more` says."""
    return Access("rmw", text, act=act, **more)


def full(act: Callable[[Memory, Registers], Violation | None], text: str, **more: Any) -> Access:
    """Return a fully ordered read-modify-write."""
    return Access("rmw", text, act=act, acquire=True, release=True, **more)


def calc(out: str, uses: tuple[str, ...], value: Callable[[Registers], int]) -> Access:
    """Return a computation in registers, which is no step."""
    return Access("calc", out=(out,), uses=uses, value=value)


def barrier(kind: Literal["rmb", "wmb"]) -> Access:
    """Return smp_rmb or smp_wmb."""
    return Access(kind)
