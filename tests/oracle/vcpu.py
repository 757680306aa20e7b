"""A vCPU: it computes, accesses memory, and faults (docs/model.md 8, *access*, and 12)."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from kvmpfn.core.names import HIST_SUB_BITS, VCPU_FIELDS
from oracle import fault
from oracle.actor import Actor, Steps
from oracle.lines import Line, Thread
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
    attempt : Counter
        The present attempt's time by part.
    """

    context = "fault"

    def __init__(
        self, world: World, vm: VM, number: int, thread: Thread, smt: int, accesses: Accesses
    ) -> None:
        self.accesses, self.n = accesses, 0
        self.access: Access | None = None
        self.request_line, self.flush_requested = Line(), False
        self.paid_version = -1  # of the sequence line
        self.debt = 0
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

    def run(self) -> Steps:
        world = self.world
        self.t = self.totals["start"] = world.start(self.number)
        while True:
            yield from self.step("access")
            if self.debt:
                self.pass_time(self.debt, "kicked")
                self.debt = 0
                continue
            if not self.vm.alive or world.time_is_up(self.t):
                break
            if self.access is None:
                self.access = self.accesses.get(self.n)
                if self.access is None:
                    break
                self.n += 1
                self.gfn = self.vm.gfn(self.access.page)
                think = self.access.think * self.smt // 100
                if think:
                    self.pass_time(think, "guest")
                    continue
            level, leaf = self.vm.tables.leaf(self.gfn)
            if leaf and leaf.grants(self.writes, self.executes):
                self.hit(level, leaf)
                continue
            self.hits = 0
            if world.faults_are_up():
                break
            self.exit_at = self.t
            self.work("exit", "exit_entry")
            self.work("handler_entry", "handler")
            outcome = yield from fault.handle(self, was_present=leaf is not None)
            self.resolve(outcome)
        self.totals["end"] = self.t
        self.next_step = None

    def hit(self, level: int, leaf) -> None:
        """Access memory through a leaf that allows it; hardware sets A and D."""
        self.vm.tables.set(level, self.gfn, leaf.but(a=True, d=leaf.d or self.writes))
        pte = self.vm.region(self.gfn).pte(self.gfn)
        if leaf.generation != pte.generation or pte.state in ("absent", "migration", "protnone"):
            self.count("stale_uses")
            if leaf.generation != pte.generation or pte.freed:
                self.count("freed_uses")
        self.pass_time(self.private("access"), "guest")
        self.done()
        self.hits += 1
        bounded = self.world.scenario.until_faults is not None
        if self.accesses.end is None and bounded and self.hits == self.world.scenario.pages:
            self.hits = 0
            if not self.vm.clients_running and self.vm.nothing_can_fault(bool(self.accesses.writes)):
                self.accesses.end = self.n

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
        if outcome == fault.RETRY:
            parts["wasted"] += took
            self.totals["retries"] += 1
        else:
            parts.update(self.attempt)
            self.count({fault.FIXED: "pf_fixed", fault.SPURIOUS: "pf_spurious"}.get(outcome, f"pf_{outcome}"))
            self.world.found_latency(self.latency, self.tries)
            self.totals["tries_max"] = max(self.totals["tries_max"], self.tries)
            self.totals["latency_max"] = max(self.totals["latency_max"], self.latency)
            self.latency = self.tries = 0
        self.attempt.clear()
        if outcome == fault.EMULATE:
            self.done()
        elif outcome == fault.ERROR:
            self.vm.alive = False


def bucket(latency: int) -> int:
    """Return the histogram's bucket: 64 a factor of two (docs/model.md 14)."""
    e = max(0, latency.bit_length() - HIST_SUB_BITS - 1)
    return (e << HIST_SUB_BITS) + (latency >> e)
