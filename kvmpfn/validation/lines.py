"""The line model alone: threads that do nothing but change one shared word, and one thread on a run of pages.

What a program like that measures is the engine's own `kvmpfn.core.lines`, asked for in the order of the times
of the requests and nothing else.
"""

from __future__ import annotations

import heapq
from typing import Literal

from kvmpfn.core import layout as L
from kvmpfn.core import lines
from kvmpfn.core.engine import prepare
from kvmpfn.core.jit import kernel
from kvmpfn.hosts import Host, Placement
from kvmpfn.scenario import Region, Scenario
from kvmpfn.simulator import _World
from kvmpfn.workloads import demand_paging

__all__ = ["Operation", "hammer", "mmap_readers", "references"]

Operation = Literal["add", "cas"]

rmw_add, rmw_cas_loop, store = kernel(lines.rmw_add), kernel(lines.rmw_cas_loop), kernel(lines.store)
OPERATIONS = {"add": rmw_add, "cas": rmw_cas_loop}
WARM_UP = 16
"""Operations of each thread before counting begins: the line comes from memory once."""


def hammer(
    host: str | Host, threads: int, operation: Operation, *, each: int = 100, placement: Placement = "cores"
) -> float:
    """Let threads change one word as fast as they can.

    Parameters
    ----------
    host : str or Host
        Whose lines.
    threads : int
        How many, one a hardware thread.
    operation : {"add", "cas"}
        A locked add, or a compare-and-swap repeated until it succeeds.
    each : int
        Operations of each thread that count.
    placement : {"cores", "spread", "smt"}
        Where the threads are.

    Returns
    -------
    float
        Nanoseconds an operation, on average over threads: the sum of their times over the sum of their
        operations, as concurrency-hierarchy-bench prints it.
    """
    world = _world(host, threads, placement)
    words, line = world.words, world.vm_at[0] + L.MMAP_LINE
    operate = OPERATIONS[operation]
    due = [(0, actor) for actor in world.vcpu_at]
    warm_up, spent = WARM_UP * threads, 0
    for number in range(warm_up + each * threads):
        at, actor = due[0]
        done = operate(words, actor, line, L.X_MMAP_LOCK, L.PART_MMAP_LOCK, at)
        heapq.heapreplace(due, (done, actor))
        if number >= warm_up:
            spent += done - at
    return spent / (each * threads) / 1000


def references(host: str | Host, *, pinned: bool, pages: int = 512) -> float:
    """Take references to a large folio's pages one by one, as get_user_pages() did before batching.

    Parameters
    ----------
    host : str or Host
        Whose lines.
    pinned : bool
        FOLL_PIN: beside the count (`try_get_compound_head`, a cmpxchg loop) the head's pin count, an add.
    pages : int
        Of one call, all of one folio.

    Returns
    -------
    float
        Nanoseconds a page, of the atomics alone: what batching them to one a call saves, up to one part in
        `pages`.
    """
    world = _world(host, 1, "cores")
    words, actor, line = world.words, world.vcpu_at[0], world.vm_at[0] + L.MMAP_LINE
    done = 0
    for _ in range(pages):
        done = rmw_cas_loop(words, actor, line, L.X_FOLIO, L.PART_FOLIO, done)
        if pinned:
            done = rmw_add(words, actor, line, L.X_FOLIO, L.PART_FOLIO, done)
    return done / pages / 1000


def mmap_readers(host: str | Host, threads: int, work_ns: float, *, each: int = 100) -> float:
    """Let threads of one process fault, as far as mmap_lock sees it.

    A fault is private work between four accesses of the lock's line: the add that takes it for reading, the
    load and the store of the owner word (`rwsem_set_reader_owned`), and the add that drops it.

    Parameters
    ----------
    host : str or Host
        Whose lines.
    threads : int
        How many, spread over the sockets.
    work_ns : float
        A fault's own time.
    each : int
        Faults of each thread that count.

    Returns
    -------
    float
        Faults a second of all threads.
    """
    world = _world(host, threads, "spread")
    words, line = world.words, world.vm_at[0] + L.MMAP_LINE
    part, work = L.PART_MMAP_LOCK, round(1000 * work_ns)
    # All start at once, as a program's threads do: in step, they take the line from each other from the
    # beginning. Evenly spread they would not, until something makes two meet; then it stays so.
    due = [(number, actor, 0) for number, actor in enumerate(world.vcpu_at)]
    heapq.heapify(due)
    faults, warm, begin, at = 0, WARM_UP * threads, 0, 0
    while faults < warm + each * threads:
        at, actor, stage = due[0]
        if stage == 0 or stage == 3:
            done = rmw_add(words, actor, line, L.X_MMAP_LOCK, part, at)
        else:  # owner_load, which the model charges as a store, and owner_store
            done = store(words, actor, line, part, at) + work * (stage == 2)
        faults += stage == 3
        if faults == warm and stage == 3:
            begin = at
        heapq.heapreplace(due, (done, actor, (stage + 1) % 4))
    return each * threads / (at - begin) * 1e12


def _world(host: str | Host, threads: int, placement: Placement) -> _World:
    """Make a host with so many threads in use; the guest's memory and work do not matter."""
    scenario = Scenario(
        host=host,
        vcpus=threads,
        memory=[Region("2MiB")],
        workload=demand_paging(share="overlapping"),
        placement=placement,
    )
    world = _World(scenario, 0, False, 2)
    prepare(world.words)
    return world
