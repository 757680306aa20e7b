"""What the closed forms take: lengths of a fault's sections and of an invalidation, from the cost table.

Only sums in program order of what a lone fault does; nothing is simulated. All times are in picoseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Literal

from kvmpfn.theory.retries import Invalidations, Window
from kvmpfn.units import InputError

if TYPE_CHECKING:
    from kvmpfn.hosts import Host
    from kvmpfn.scenario import Scenario

__all__ = ["Attempt", "attempt", "invalidations", "transfer"]

DISTANCES = ("core", "llc", "socket")
"""What two threads may share, from the nearest, in the order of `Host.topology`; else they are remote."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """The sections of one fault that maps a 4K page in a table that is there.

    Attributes
    ----------
    window : Window
        From its snapshot on, for the retries.
    section : float
        In which it is inside mmu_lock: from coming in to its unlock.
    total : float
        From exit to entry.
    handoff : float
        From a reader's leaving mmu_lock to a writer's having it: an RMW of each.
    transfer : float
        Longest latency of a line between two of the actors: how far in time the state of a shared word is
        uncertain, between being asked for and being there.
    """

    window: Window
    section: float
    total: float
    handoff: float
    transfer: float


def attempt(scenario: Scenario) -> Attempt:
    """Sum up a fault that nobody else delays.

    A vCPU writes a page that it never touched, in one region of `anon` that the host has in place
    (fast GUP hits), or of `pfnmap` (fast and slow GUP miss; follow_pte finds it). VM-wide lines come from
    another vCPU if there is one, at the mean latency between two of them; the page's own line and the SPTE's
    come from memory. The sequence's line is read from the client only after a change: it is left out.

    Parameters
    ----------
    scenario : Scenario
        Its host, fault path, vCPUs and memory.

    Returns
    -------
    Attempt
        Times in ps.

    Raises
    ------
    InputError
        Memory is something else, faults take mmu_lock alone, or vCPUs share cores.
    """
    path, c = scenario.mechanisms, scenario.machine.cost_ps
    region = scenario.memory[0]
    if len(scenario.memory) > 1 or region.backing not in ("anon", "pfnmap") or region.mapped:
        raise InputError(
            "closed forms are for one region of unmapped anon or pfnmap; nearest is anon", "memory"
        )
    if region.backing == "anon" and (not region.populated or region.folio_order):
        raise InputError("closed forms need single pages in place; nearest is populated=True", "memory.0")
    if path.mmu_lock != "read" or not path.seq_checked:
        raise InputError("closed forms are for readers that check; nearest is v6.1", "fault_path")
    clients, vcpus = scenario.threads()
    cores = [scenario.machine.topology()[cpu][0] for cpu in clients + vcpus]
    vcpus = vcpus[: scenario.vcpus]  # those of the first VM
    if len(set(cores)) < len(cores):
        raise InputError("actors share cores, which slows them; nearest is placement='cores'", "placement")
    add, memory = c("own_add"), c("memory_latency")
    common = transfer(scenario.machine, vcpus) if scenario.vcpus > 1 else add
    referenced = region.backing == "anon" and path.reference != "none"
    marks = 2 * add if region.backing == "anon" and scenario.lru == "classic" else 0.0

    gup = float(c("gup_fast"))
    if region.backing == "anon":
        gup += memory + add if referenced else 0.0
        gup += add if path.reference == "early_put" else 0.0
    else:
        # mmap_lock twice, the page-table lock once; the unlock of that is a store to a line of one's own.
        gup += c("gup_slow") + 4 * common + (common if scenario.vcpus > 1 else c("own_cas")) + c("follow_pfn")
    put = add if referenced and path.reference in ("held", "locked_put") else 0.0
    locked_put = put if path.reference == "locked_put" else 0.0
    clean = put - locked_put + marks * (path.accessed_marking == "after_unlock" and path.accessed_on_retry)
    around = c("handler_return") + c("entry") + c("exit") + c("handler_entry") + 3 * add
    unlock = common
    lock = gup + c("handler_lock")
    window = Window(
        lock=lock,
        cycle=lock + common + locked_put + unlock + clean + around,
        gup=gup if path.prechecks else None,
        cycle_gup=gup + clean + put * (path.reference == "locked_put") + around,
        cycle_early=around,
    )
    leaf = scenario.levels * c("table_load") + c("handler_map") + memory + common
    release = locked_put + (add if path.dirty_marking == "at_map" and region.backing == "anon" else 0.0)
    release += marks * (path.accessed_marking in ("before_unlock", "locked_release"))
    section = leaf + release + unlock
    late = put - locked_put + marks * (path.accessed_marking == "after_unlock")
    total = around + lock + common + section + late
    handoff = unlock + (transfer(scenario.machine, vcpus, clients) if clients else 0.0)
    others = _transfers(scenario.machine, vcpus + clients, None, "latency") if len(cores) > 1 else []
    return Attempt(window, section, total, handoff, max([memory, *others]))


def invalidations(scenario: Scenario, number: int = 0, wait: float = 0.0) -> Invalidations:
    """Describe a storm of the scenario as its closed form needs it.

    An operation: [mmap_lock,] the notifier's call, mmu_lock, in_progress + 1, unlock, the hold, the call,
    mmu_lock, in_progress - 1, unlock, [mmap_lock]; its lines come from a vCPU where vCPUs write them. If it
    changes host entries, the last one at the end of the hold, the host's own shootdown lengthens that.

    Parameters
    ----------
    scenario : Scenario
        Its host, storms and memory.
    number : int
        Which of its storms.
    wait : float
        Mean wait for the readers inside mmu_lock, in ps (`writer_wait`).

    Returns
    -------
    Invalidations
        With times in ps; a page is hit with probability span / memory.

    Raises
    ------
    InputError
        The storm has another arrival process, or does not invalidate.

    Notes
    -----
    Leaves that an invalidation zaps are left out (a few: `zap_leaf` and two lines each, and a flush), so
    it must meet few mapped pages, or be one of a path that is not `guarded`. A change of a host entry must
    take less than its share of the hold.
    """
    storm, c = scenario.storms[number], scenario.machine.cost_ps
    if storm.action == "age":
        raise InputError("aging changes no sequence; nearest is 'madvise'", f"storms.{number}.action")
    clients, vcpus = scenario.threads()
    place = sum(scenario.vms if one.vm == "each" else 1 for one in scenario.storms[:number])
    first = scenario.clients[place][1] * scenario.vcpus
    far = transfer(scenario.machine, vcpus[first : first + scenario.vcpus], [clients[place]])
    # Who only loads a line leaves it with its owner: the sequence's is the client's own, and so is that of
    # mmap_lock unless vCPUs take it too. mmu_lock's comes from a vCPU, but for the unlock a moment later.
    add = c("own_add")
    held = 0.0 if storm.action == "migration" else far if scenario.memory[0].backing == "pfnmap" else add
    begin = held + add + c("notifier_call")
    wait += far  # from its claim on the lock to its having it: the RMW
    changing = float(storm.hold_ps)
    if storm.action == "madvise" or scenario.memory[0].backing == "anon":
        last = storm.hold_ps * (storm.span_pages - 1) // storm.span_pages
        remote = max(_transfers(scenario.machine, vcpus, [clients[place]], "latency")) == c("remote_latency")
        answer = c("ipi_remote") if remote else c("ipi_socket")
        changing = max(changing, last + c("host_pte") + c("ipi_send") + answer)
    hold = c("zap_skip") + changing + c("notifier_call") + wait
    end = add + held
    return Invalidations(
        arrival=storm.arrival,  # type: ignore[arg-type]  # refused there if it is bursts
        gap=float(storm.gap_ps),
        busy=begin + wait + hold + end,
        hold=hold,
        hit=storm.span_pages / scenario.pages,
        wait=wait,
    )


def transfer(
    machine: Host,
    threads: Sequence[int],
    others: Sequence[int] | None = None,
    kind: Literal["latency", "occupancy"] = "latency",
) -> float:
    """Return what a line costs on average that goes from any one thread to any other.

    Parameters
    ----------
    machine : Host
        Whose costs and topology.
    threads : sequence of int
        Hardware threads that ask for it.
    others : sequence of int, optional
        Hardware threads that had it; the same ones if not given.
    kind : {"latency", "occupancy"}
        What the asker waits, or how long the line is taken.

    Returns
    -------
    float
        Mean over all pairs of two different threads, in ps.

    Raises
    ------
    InputError
        There are no such pairs.

    Notes
    -----
    Takes hand-offs between any two threads to be equally frequent, which is exact within a last-level cache.
    """
    return fmean(_transfers(machine, threads, others, kind))


def _transfers(machine: Host, threads: Sequence[int], others: Sequence[int] | None, kind: str) -> list[float]:
    """Cost of a line for each pair of different threads, in ps."""
    places, c = machine.topology(), machine.cost_ps

    def cost(a: int, b: int) -> float:
        same = [name for name, x, y in zip(DISTANCES, places[a], places[b], strict=True) if x == y]
        return float(c(f"{same[0] if same else 'remote'}_{kind}"))

    found = [cost(a, b) for a in threads for b in (threads if others is None else others) if a != b]
    if not found:
        raise InputError("one thread alone hands no line over; nearest is two", "threads")
    return found
