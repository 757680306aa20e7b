"""A scenario becomes VMs and actors, and runs to its end (docs/model.md 1, 6 and 7)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import count

import simpy

from kvmpfn.hosts import COSTS
from kvmpfn.hosts.host import FACTORS
from kvmpfn.scenario import Scenario
from oracle.draws import START, Draws
from oracle.folio import Folio
from oracle.found import Found, Row, Tally
from oracle.lines import Line, Resource, Thread
from oracle.locks import MmapLock, MmuLock
from oracle.memory import HostRegion, lay_out, pages_of
from oracle.notifier import Invalidations
from oracle.storm import Client
from oracle.tables import Leaf, Tables
from oracle.vcpu import Vcpu, bucket
from oracle.workload import Accesses

STAGGER = 10_000_000  # ps within which actors start


@dataclass
class Socket:
    """What the threads of a socket share of the host's memory management."""

    zone: Resource = field(default_factory=Resource)
    lru: Resource = field(default_factory=Resource)
    bandwidth: Resource = field(default_factory=Resource)


class VM:
    """struct kvm, and the mm of the process that runs it."""

    def __init__(self, scenario: Scenario, regions: list[HostRegion]) -> None:
        self.alive = True
        self.tally = Tally()
        self.regions = regions
        self.tables = Tables(scenario.levels)
        self.invalidations = Invalidations()
        self.mmu_lock, self.mmap_lock = MmuLock(), MmapLock()
        self.stat_line, self.table_line = Line(), Line()
        self.vcpus: list[Vcpu] = []
        self.clients: list[Client] = []
        self.sleepers: list[Vcpu] = []  # on migration entries

    def region(self, gfn: int) -> HostRegion:
        """Return the region that holds a gfn."""
        return next(r for r in reversed(self.regions) if gfn >= r.gfn)

    def gfn(self, page: int) -> int:
        """Return the gfn of a page, counted over regions without gaps."""
        region = next(r for r in reversed(self.regions) if page >= r.first)
        return region.gfn + page - region.first

    @property
    def vcpus_running(self) -> bool:
        return any(cpu.next_step is not None for cpu in self.vcpus)

    @property
    def clients_running(self) -> bool:
        return any(client.next_step is not None for client in self.clients)

    def nothing_can_fault(self, writes: bool, executes: bool) -> bool:
        """Whether every page has a leaf that grants what the workload does."""
        return all(
            (leaf := self.tables.walk(region.gfn + page).leaf) is not None and leaf.grants(writes, executes)
            for region in self.regions
            for page in range(region.pages)
        )


class World:
    """One run.

    Attributes
    ----------
    x : dict of str to int
        The host's costs: ps, or plain numbers.
    path : FaultPath
        The mechanisms.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.env = simpy.Environment(0)
        self.scenario, self.path, self.lru = scenario, scenario.mechanisms, scenario.lru
        self.draws = Draws(scenario.seed)
        host = scenario.machine
        self.x = {name: host.factor(name) if name in FACTORS else host.cost_ps(name) for name in COSTS}
        preempt = scenario.preempt
        yields = {"never": False, "preemption": preempt != "none", "full": preempt == "full"}
        self.zap_yields = yields[self.path.zap_yields]
        self.sockets = [Socket() for _ in range(host.sockets)]
        self.taken = 0
        self.hist: Counter[int] = Counter()
        self.tries: Counter[int] = Counter()
        self.log: list[Row] = []
        zero = Folio(reserved=True)
        shared: dict[int, dict[int, Folio]] = {}
        self.vms = [
            VM(scenario, lay_out(scenario.memory, scenario.vms, shared, zero)) for _ in range(scenario.vms)
        ]
        for vm in self.vms:
            self.map_at_start(vm)
        self.populate_actors()

    def populate_actors(self) -> None:
        """Make the actors and pin each to a thread."""
        scenario, numbers = self.scenario, count()
        client_threads, vcpu_threads = pin(scenario)
        cores = Counter(thread.core for thread in client_threads + vcpu_threads)

        def place(thread: Thread) -> tuple[int, Thread, int]:
            return next(numbers), thread, self.x["smt_percent"] if cores[thread.core] > 1 else 100

        for (storm, vm), thread in zip(scenario.clients, client_threads, strict=True):
            self.vms[vm].clients.append(Client(self, self.vms[vm], *place(thread), storm))
        threads = iter(vcpu_threads)
        for vm in self.vms:
            for index in range(scenario.vcpus):
                number, thread, smt = place(next(threads))
                accesses = Accesses(scenario, number, index)
                vm.vcpus.append(Vcpu(self, vm, number, thread, smt, accesses))

    def map_at_start(self, vm: VM) -> None:
        """Map what is mapped before time 0."""
        scenario = self.scenario
        logging = scenario.dirty_logging and not scenario.initially_all_set  # which touches the leaves
        for region, wanted in zip(vm.regions, scenario.memory, strict=True):
            if scenario.dirty_logging and scenario.initially_all_set:
                region.dirty = set(range(region.pages))
            if not wanted.mapped:
                continue
            split = logging and scenario.eager_page_split
            level = 1 if split or not region.congruent else region.level
            for gfn in range(region.gfn, region.gfn + region.pages, pages_of(level)):
                pte = region.pte(gfn)
                writable = pte.state != "ro" and region.writable
                w = writable and (not logging or (level == 1 and scenario.pml_on))
                leaf = Leaf(
                    generation=pte.generation,
                    w=w,
                    x=level == 1 or not scenario.nx_huge_pages_on,
                    a=True,
                    d=w and not logging,
                    host_writable=writable,
                    mmu_writable=writable,
                    refcounted=region.folio(gfn, pte) is not None and self.bit_covers(level),
                )
                while (sptep := vm.tables.walk(gfn)).level > level:
                    vm.tables.link(sptep)
                    vm.tally.counters["tables_built"] += 1
                vm.tables.set(sptep, leaf)

    def bit_covers(self, level: int) -> bool:
        """Whether leaves of a level carry the refcounted bit."""
        return self.path.spte_bit == "all" or (self.path.spte_bit == "4k" and level == 1)

    def marks_page(self, leaf: Leaf) -> bool:
        """Whether a leaf that goes hands its dirty and accessed bits on to the page."""
        path = self.path
        if not path.zap_marks_page or (path.spte_bit != "none" and not leaf.refcounted):
            return False
        return leaf.d or (leaf.a and self.lru != "off")

    def start(self, number: int) -> int:
        """Return when an actor starts."""
        return self.draws.below(number, START, 0, STAGGER)

    def time_is_up(self, t: int) -> bool:
        return self.scenario.until_ps is not None and t >= self.scenario.until_ps

    def faults_are_up(self) -> bool:
        return self.scenario.until_faults is not None and self.taken >= self.scenario.until_faults

    def is_over(self, cpu: Vcpu) -> bool:
        """Whether a vCPU would stop at its next access that faults."""
        return self.time_is_up(cpu.t) or self.faults_are_up() or not cpu.vm.alive

    def found_latency(self, latency: int, tries: int) -> None:
        """Note a resolved fault."""
        self.hist[bucket(latency)] += 1
        self.tries[tries] += 1


def pin(scenario: Scenario) -> tuple[list[Thread], list[Thread]]:
    """Return the threads of clients and of vCPUs (section 1)."""
    host, storms = scenario.machine, [storm for storm, _ in scenario.clients]
    cores = host.sockets * host.llcs_per_socket * host.cores_per_llc
    threads = [
        Thread(sibling * cores + core, core, core // host.cores_per_llc, core // (cores // host.sockets))
        for sibling in range(host.smt)
        for core in range(cores)
    ]
    order = {
        "cores": lambda thread: thread.number,
        "spread": lambda thread: (
            thread.number // cores,
            thread.core % (cores // host.sockets),
            thread.socket,
        ),
        "smt": lambda thread: (thread.core, thread.number),
    }[scenario.placement]
    pinned = {storm.cpu for storm in storms}
    free = [thread for thread in sorted(threads, key=order) if thread.number not in pinned]
    vcpus = scenario.vms * scenario.vcpus
    rest = iter(free[vcpus:])
    clients = [next(rest) if storm.cpu is None else threads[storm.cpu] for storm in storms]
    return clients, free[:vcpus]


def simulate(scenario: Scenario) -> Found:
    """Run a scenario to its end."""
    world = World(scenario)
    world.env.run()
    for vm in world.vms:
        tables, counters = vm.tables, vm.tally.counters
        for level, name in ((1, "pages_4k"), (2, "pages_2m"), (3, "pages_1g")):
            counters[name] = tables.leaves[level]
    actors = [actor for vm in world.vms for actor in vm.clients + vm.vcpus]
    stuck = [(actor.number, actor.next_step) for actor in actors if actor.next_step is not None]
    assert not stuck, f"actors are stuck: {stuck}"
    clients = sorted((client for vm in world.vms for client in vm.clients), key=lambda c: c.number)
    found = Found(
        log=world.log,
        vms=[vm.tally for vm in world.vms],
        vcpus=[dict(cpu.totals) for vm in world.vms for cpu in vm.vcpus],
        clients=[{"vm": world.vms.index(client.vm)} | client.totals for client in clients],
        hist=world.hist,
        tries=world.tries,
        died=[i for i, vm in enumerate(world.vms) if not vm.alive],
    )
    found.check()
    return found
