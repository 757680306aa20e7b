"""A vCPU: it computes, accesses memory, and faults (docs/model.md 8, *access*, and 12)."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING

from kvmpfn.core.names import HIST_SUB_BITS, VCPU_FIELDS
from oracle import dirty_log, fault
from oracle.actor import Actor, Steps
from oracle.folio import PutBatch
from oracle.lines import Line, Thread
from oracle.outcome import EMULATE, ERROR, FIXED, RETRY, SPURIOUS
from oracle.tables import Leaf, Sptep
from oracle.workload import EXECUTE, WRITE, Access, Accesses

if TYPE_CHECKING:
    from oracle.world import VM, World


class Vcpu(Actor):
    """One vCPU.

    Attributes
    ----------
    access : Access or None
        What it wants to access now; None if the last access is done.
    debt : int
        Time that kicks have cost it and that it has not yet paid.
    flush_requested : bool
        Whether KVM_REQ_TLB_FLUSH waits for it to be served.
    pml : deque of int
        Gfns that hardware has logged.
    batch : PutBatch
        References that are still to be put.
    between : bool
        Whether what it does now belongs to no fault.
    attempt : Counter
        The present attempt's time by part.
    """

    context = "fault"

    def __init__(
        self, world: World, vm: VM, number: int, thread: Thread, smt: int, accesses: Accesses
    ) -> None:
        self.accesses = accesses
        self.access: Access | None = None
        self.request_line, self.flush_requested = Line(), False
        self.paid_version = -1  # of the sequence line
        self.debt = 0
        self.pml: deque[int] = deque()
        self.batch = PutBatch(world.path.put_batch)
        self.between = False
        self.zone_pages = self.lru_pages = 0
        self.attempt: Counter[str] = Counter()
        self.exit_at = 0
        self.own_notifier = False
        self.latency = self.tries = self.hits = 0
        self.totals = dict.fromkeys(VCPU_FIELDS, 0)
        super().__init__(world, vm, number, thread, smt)

    @property
    def writes(self) -> bool:
        return self.access.kind == WRITE

    @property
    def executes(self) -> bool:
        return self.access.kind == EXECUTE

    def book(self, part: str, ps: int) -> None:
        if self.between:
            self.totals["kicked"] += ps
        else:
            self.attempt["self_invalidation" if self.own_notifier else part] += ps

    def pass_time(self, ps: int, what: str) -> None:
        """Let time pass outside of faults."""
        self.t += ps
        self.totals[what] += ps

    def kick(self) -> None:
        """Be interrupted in the guest: an exit, a flush and an entry, to be paid before the next access."""
        x = self.world.x
        self.debt += x["exit"] + x["flush_tlb"] + x["entry"]

    def enter_notifier(self) -> None:
        """Run section 10 on one's own behalf from here on."""
        self.context, self.own_notifier = "zap", True

    def leave_notifier(self) -> None:
        self.context, self.own_notifier = "fault", False

    def serve_flush_request(self) -> bool:
        """Serve KVM_REQ_TLB_FLUSH; return whether it was asked for."""
        asked, self.flush_requested = self.flush_requested, False
        if asked:
            self.add(self.request_line, "vcpu_request", "flush")
            self.work("flush_tlb", "flush")
        return asked

    def run(self) -> Steps:
        self.t = self.totals["start"] = self.world.start(self.number)
        while (yield from self.once()) or (yield from self.drained()):
            pass
        self.totals["end"] = self.t
        self.next_step = None

    def once(self) -> Steps:
        """Take one step through memory, and the fault if it faults; return whether there is more to do."""
        world = self.world
        yield from self.step("access")
        if (yield from self.interrupted()):
            return True
        if not self.vm.alive or world.time_is_up(self.t):
            return False
        if self.access is None:
            self.access = self.accesses.next()
            if self.access is None:
                return False
            if self.access.m == 0:
                self.hits = 0
            self.gfn = self.vm.gfn(self.access.page)
            think = self.access.think * self.smt // 100
            if think:
                self.pass_time(think, "guest")
                return True
        sptep = self.vm.tables.walk(self.gfn)
        if sptep.leaf and sptep.leaf.grants(self.writes, self.executes):
            self.hit(sptep, sptep.leaf)
            return True
        self.hits = 0
        if world.faults_are_up():
            return False
        self.exit_at, was_present = self.t, sptep.leaf is not None
        self.work("exit", "exit_entry")
        self.work("handler_entry", "handler")
        yield from dirty_log.pml_flush(self)
        outcome = yield from fault.handle(self, was_present=was_present)
        self.resolve(outcome)
        return True

    def interrupted(self) -> Steps:
        """Pay for exits from the guest that it did not ask for, and do what is due there."""
        self.between, debt = True, self.debt
        if debt:
            self.debt = 0
            self.pass_time(debt, "kicked")
            yield from dirty_log.pml_flush(self)
        done = bool(debt) or self.serve_flush_request()
        self.between = False
        return done

    def drained(self) -> Steps:
        """Put what is still to be put; return whether there was anything."""
        any_left = bool(self.batch.since)
        self.between = True
        yield from fault.drain_puts(self)
        self.between = False
        return any_left

    def hit(self, sptep: Sptep, leaf: Leaf) -> None:
        """Access memory through a leaf that allows it; hardware sets A and D, and may log the page."""
        scenario = self.world.scenario
        logs = scenario.dirty_logging and scenario.pml_on and sptep.level == 1
        if logs and self.writes and not leaf.d:
            if len(self.pml) == dirty_log.PML_ENTRIES:
                self.count("pml_full")
                self.debt += self.world.x["exit"] + self.world.x["entry"]
                return
            self.pml.append(self.gfn)
        self.vm.tables.set(sptep, leaf.but(a=True, d=leaf.d or self.writes))
        pte = self.vm.region(self.gfn).pte(self.gfn)
        if leaf.generation != pte.generation or pte.state in ("absent", "migration", "protnone"):
            self.count("stale_uses")
            if leaf.generation != pte.generation or pte.freed:
                self.count("freed_uses")
        self.pass_time(self.private("access"), "guest")
        self.done()
        self.latency = self.tries = 0  # of attempts that were in vain: another vCPU has mapped the page
        self.hits += 1
        phase, scenario = self.accesses.phase, self.world.scenario
        bounded = scenario.until_faults is not None
        if phase.end is None and bounded and self.hits == scenario.pages:
            self.hits = 0
            idle = not self.vm.clients_running
            self.accesses.over = idle and self.vm.nothing_can_fault(phase.writes > 0, phase.execs > 0)

    def done(self) -> None:
        """Be done with an access."""
        self.access = None
        self.totals["accesses"] += 1
        self.count("accesses")

    def resolve(self, outcome: str) -> None:
        """Book an attempt: whole as wasted if it is to be tried again, else by part."""
        took = self.t - self.exit_at
        assert sum(self.attempt.values()) == took, "an attempt's parts are its time"
        self.totals["faults"] += took
        self.latency += took
        self.tries += 1
        parts = self.vm.tally.parts
        if outcome == RETRY:
            parts["wasted"] += took
            self.totals["retries"] += 1
        else:
            parts.update(self.attempt)
            self.count({FIXED: "pf_fixed", SPURIOUS: "pf_spurious"}.get(outcome, f"pf_{outcome}"))
            self.world.found_latency(self.latency, self.tries)
            self.totals["tries_max"] = max(self.totals["tries_max"], self.tries)
            self.totals["latency_max"] = max(self.totals["latency_max"], self.latency)
            self.latency = self.tries = 0
        self.attempt.clear()
        if outcome == EMULATE:
            self.done()
        elif outcome == ERROR:
            self.vm.alive = False


def bucket(latency: int) -> int:
    """Return the histogram's bucket: 64 a factor of two (docs/model.md 14)."""
    e = max(0, latency.bit_length() - HIST_SUB_BITS - 1)
    return (e << HIST_SUB_BITS) + (latency >> e)
