"""Who is who in the engine's memory, what an actor is about, and what a word is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmpfn.core import layout as L

if TYPE_CHECKING:
    from kvmpfn.scenario import Scenario

__all__ = ["MMU_LOCK_STEPS", "Actors", "actor_names", "begins_fault"]

MMU_LOCK_STEPS = frozenset(
    (L.PC_READ_LOCK, L.PC_WRITE_LOCK, L.PC_QUEUE_HEAD, L.PC_WRITE_GRANT, L.PC_READ_UNLOCK, L.PC_WRITE_UNLOCK)
)
ASKS_FOR_MMU_LOCK = MMU_LOCK_STEPS - {L.PC_READ_UNLOCK, L.PC_WRITE_UNLOCK}
CALLED = MMU_LOCK_STEPS | {
    L.PC_PTL_LOCK, L.PC_PTL_UNLOCK, L.PC_MMAP_LOCK, L.PC_OWNER_LOAD, L.PC_OWNER_STORE, L.PC_HOST_FLUSH,
    L.PC_PML_FLUSH, L.PC_DRAIN_PUTS,
}  # fmt: skip
"""Steps that say nothing of their own: what an actor is about shows in the step that comes after."""

GUEST = (L.PC_ACCESS, L.PC_STOPPED)
"""Steps of a vCPU that is in no fault."""

OPERATIONS = {
    "madvise": "madvise of",
    "numa_balancing": "NUMA scan of",
    "migration": "migration of",
    "fork": "fork of",
    "age": "aging",
    "ksm": "merging",
    "khugepaged": "collapsing",
    "mprotect": "mprotect of",
    "reclaim": "swapping out",
    "clear_dirty_log": "clearing the dirty log of",
}
"""What a storm's action is called, of a range."""

PHASES = {
    **dict.fromkeys(range(L.PC_START, L.PC_STARTED + 1), "zapping"),
    **dict.fromkeys(range(L.PC_END, L.PC_ENDED + 1), "ending its invalidation of"),
    **dict.fromkeys((L.PC_SPLIT, L.PC_SPLIT_FLUSHED), "splitting"),
    **dict.fromkeys((L.PC_PTES, L.PC_PTE_END), "changing the host's entries of"),
    L.PC_FLUSH: "flushing",
    **dict.fromkeys((L.PC_CUT, L.PC_AFTER, L.PC_RESTORE, L.PC_MMAP_UNLOCK, L.PC_OVER, L.PC_DONE), ""),
    **dict.fromkeys(range(L.PC_COLLAPSE, L.PC_COLLAPSED + 1), ""),
    **dict.fromkeys(range(L.PC_AGE, L.PC_CLEARED + 1), ""),
    **dict.fromkeys((L.PC_IDLE, L.PC_STOPPED), "done with"),
}
"""What a storm client is about whose next step is this one; empty: what its action is called."""

# Lines that a step asks for: in the VM by their address, the others by the step.
VM_LINES = (
    (L.SEQ_LINE, "seq", "seq_line"),
    (L.MMU_LINE, "mmu_lock", "mmu_lock"),
    (L.STAT_LINE, "stat_pages", "stat_pages"),
    (L.TABLES_LINE, "page_table", "walk"),
    (L.MN_LINE, "mn_lock", "walk"),
    (L.MMAP_LINE, "mmap_lock", "mmap_lock"),
)
STEP_LINES = {
    **dict.fromkeys(
        (L.PC_GET, L.PC_EARLY_PUT, L.PC_PFN_GET, L.PC_RELEASE_UNUSED, L.PC_RELEASE, L.PC_RELEASE_CLEAN,
         L.PC_FOLLOW, L.PC_UNLINK_MARK, L.PC_DRAIN_PUTS, L.PC_ZAP_MARK),
        ("folio", "folio"),
    ),
    **dict.fromkeys(
        (L.PC_FAST_PAGE_FAULT, L.PC_MAPPED, L.PC_TABLE_COUNT, L.PC_FREEZE, L.PC_FROZEN, L.PC_LEAF,
         L.PC_SET_LEAF, L.PC_UNLINK, L.PC_ZAP),
        ("spte", "spte"),
    ),
    L.PC_MAP_FILE: ("folio", "host_fault"),
    **dict.fromkeys((L.PC_GUP, L.PC_SLOW), ("host_pte", "gup")),
    L.PC_INSTALL: ("host_pte", "host_fault"),
    **dict.fromkeys((L.PC_PTL_LOCK, L.PC_PTL_UNLOCK), ("ptl", "ptl")),
    **dict.fromkeys((L.PC_FAST_DIRTY, L.PC_PML_FLUSH), ("dirty_bitmap", "dirty_log")),
    L.PC_LINK: ("page_table", "walk"),
    **dict.fromkeys((L.PC_FLUSH, L.PC_FINISH), ("vcpu_request", "flush")),
}  # fmt: skip
RESOURCES = ("zone_lock", "memory_bandwidth", "lru_lock")
"""What the threads of a socket have one at a time, in the engine's order."""


def actor_names(scenario: Scenario) -> list[str]:
    """Name a scenario's actors, by number: clients, then vCPUs."""
    several = scenario.vms > 1
    clients = [scenario.vms if storm.vm == "each" else 1 for storm in scenario.storms]
    storms = [i for i, n in enumerate(clients) for _ in range(n)]
    names = [
        f"storm {i} ({storm.action})" + (f" of VM {vm}" if several else "")
        for i, (storm, vm) in zip(storms, scenario.clients, strict=True)
    ]
    for vm in range(scenario.vms):
        names += [(f"VM {vm} " if several else "") + f"vCPU {i}" for i in range(scenario.vcpus)]
    return names


def begins_fault(w: memoryview, a: int) -> bool:
    """Whether a vCPU's access that was just taken is not granted: the handler comes next."""
    following: int = w[a + L.AFTER] if w[a + L.PC] == L.PC_PML_FLUSH else w[a + L.PC]
    return following == L.PC_HANDLE


class Actors:
    """The actors of a world.

    Parameters
    ----------
    scenario : Scenario
        What is simulated.
    words : memoryview of int64
        The engine's memory, prepared.

    Attributes
    ----------
    names, pointers : list
        Of each actor, by number.
    on_thread : dict of int to int
        The pointer to the actor on a hardware thread, by the number of that + 1.
    """

    def __init__(self, scenario: Scenario, words: memoryview) -> None:
        self.words = words
        self.names = actor_names(scenario)
        self.actions = [storm.action for storm, _ in scenario.clients]
        self.pointers = [words[words[L.ACTOR_PTRS] + i] for i in range(len(self.names))]
        self.on_thread = {words[a + L.CPU] + 1: a for a in self.pointers}
        vms = [words[words[L.VM_PTRS] + i] for i in range(scenario.vms)]
        self.lines = {vm + at: (name, part) for vm in vms for at, name, part in VM_LINES}
        sockets = 1 + max(socket for _, _, socket in scenario.machine.topology())
        self.resources = {words[L.SOCKETS] + i: name for i, name in enumerate(RESOURCES * sockets)}

    def name(self, a: int) -> str:
        """Name an actor; 0 is nobody."""
        return self.names[self.words[a + L.ID]] if a else ""

    def span(self, a: int) -> str:
        """Write the gfns that an actor invalidates, or did last."""
        return f"[{self.words[a + L.N_START]}..{self.words[a + L.N_END]})"

    def doing(self, a: int) -> str:
        """Say what an actor is about, which may have asked for a lock and wait."""
        w = self.words
        if not a:
            return ""
        step = w[a + L.PC]
        ahead = "asking for mmu_lock, then " if step in ASKS_FOR_MMU_LOCK else ""
        if step in CALLED:
            step = w[a + L.AFTER]
        if w[a + L.IS_VCPU]:
            what = "copy-on-write of" if w[a + L.CONTEXT] == L.CTX_ZAP else "fault on"
            if step in GUEST:
                what = "access to"
            return f"{ahead}{what} gfn {w[a + L.V_GFN]}"
        return ahead + (f"{PHASES[step]} {self.span(a)}" if PHASES[step] else self.operation(a))

    def operation(self, a: int) -> str:
        """Say what all of an actor's present work is, whatever its step."""
        w = self.words
        if a and not w[a + L.IS_VCPU]:
            return f"{OPERATIONS[self.actions[w[a + L.ID]]]} [{w[a + L.S_START]}..{w[a + L.S_END]})"
        return self.doing(a)

    def line(self, address: int, step: int, booked: dict[str, int]) -> tuple[str, str]:
        """Name a word that a step waited for, and the part that the wait is in.

        Parameters
        ----------
        address : int
            Of a line or a socket's resource; 0 is another CPU's answer to an interrupt.
        step : int
            The step that waited.
        booked : dict of str to int
            What the step booked, in ps by part.
        """
        if not address:
            return "ipi", "flush" if step == L.PC_FLUSH else "host_fault"
        if address in self.resources:
            return self.resources[address], "host_fault"
        name, part = self.lines.get(address) or STEP_LINES[step]
        # Two steps ask for one of two lines; which of them shows in what they booked.
        if step == L.PC_FOLLOW and "folio" not in booked:
            name, part = "host_pte", "host_fault"
        elif step == L.PC_LEAF and "dirty_log" in booked:
            name, part = "dirty_bitmap", "dirty_log"
        return f"{name} line", part
