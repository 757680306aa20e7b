"""What vCPUs and storm clients have in common: a thread, a clock, and steps (docs/model.md 1, 2 and 4).

Order
-----
SimPy pops the least of (time, priority, order of scheduling). Every event but the start of a process is a
step scheduled here, with the actor's number as its priority, and no actor has two; so the least (time, actor
number) is popped, which is what section 2 asks for. A process goes on inside the popping of its event, so
that nothing runs in between. All processes start before the first step: the starts are scheduled at time 0
with SimPy's highest priority before anything else is.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from simpy.events import Event

from oracle.lines import Line, Thread

if TYPE_CHECKING:
    from oracle.world import VM, World

Steps = Generator[Event, None, None]


class Step(Event):
    """An event that somebody schedules later."""

    def __init__(self, world: World) -> None:
        super().__init__(world.env)
        self._ok, self._value = True, None


class Actor:
    """An actor, pinned to a hardware thread.

    Attributes
    ----------
    t : int or None
        How far it has come; None while it waits for somebody who will say when it goes on.
    next_step : str or None
        The step that it will take next; None when it has stopped.
    since : int
        From when on it waits (section 5).
    asked : Line or None
        The shared line that the present step asked for.
    context : str
        Whose atomics its own are: "fault" or "zap".
    """

    context = "zap"
    gfn = 0

    def __init__(self, world: World, vm: VM, number: int, thread: Thread, smt: int) -> None:
        self.world, self.vm, self.number, self.thread, self.smt = world, vm, number, thread, smt
        self.t: int | None = None
        self.next_step: str | None = None
        self.since = 0
        self.asked: Line | None = None
        self.last_start = 0
        self._event: Step | None = None
        self._log = world.log
        world.env.process(self.run())

    def run(self) -> Steps:
        """Live."""
        raise NotImplementedError

    # Steps (section 2)

    def step(self, name: str) -> Steps:
        """Let the next step be `name`, at the time reached, or when somebody says so."""
        self.next_step, self._event = name, Step(self.world)
        if self.t is not None:
            self.wake(self.t)
        yield self._event
        self.t, self.asked = self.world.env.now, None
        self._log.append((self.t, self.number, name, self.gfn, self.last_start))

    def sleep(self) -> None:
        """Have no event until somebody calls `wake`."""
        self.since, self.t = self.t, None

    def wake(self, at: int) -> None:
        """Let the actor's next step be due at `at`."""
        env = self.world.env
        env.schedule(self._event, priority=self.number, delay=at - env.now)

    # Time

    def book(self, part: str, ps: int) -> None:
        """Book time to a part; clients book none."""

    def spend(self, ps: int, part: str) -> None:
        """Let time pass."""
        self.t += ps
        self.book(part, ps)

    def private(self, cost: str, n: int = 1) -> int:
        """Return what `n` times a piece of private work takes, a busy sibling slowing it down."""
        return self.world.x[cost] * n * self.smt // 100

    def work(self, cost: str, part: str) -> None:
        """Do private work."""
        self.spend(self.private(cost), part)

    # Shared words (section 4)

    def count(self, counter: str, n: int = 1) -> None:
        """Count for the VM."""
        self.vm.tally.counters[counter] += n

    def rmw(self, line: str, n: int = 1) -> None:
        """Count atomics."""
        self.vm.tally.rmw[self.context][line] += n

    def local(self, n: int, part: str) -> None:
        """Do atomics on words of one's own, which no line carries."""
        self.rmw("local", n)
        self.spend(n * self.world.x["own_add"], part)

    def add(self, line: Line, name: str, part: str) -> None:
        """Do one atomic add, or set or clear a bit."""
        self.rmw(name)
        self._write(line, self.world.x["own_add"], 1, part)

    def cas(self, line: Line, name: str, part: str) -> None:
        """Do one compare-and-exchange."""
        self.rmw(name)
        self._write(line, self.world.x["own_cas"], 1, part)

    def casloop(self, line: Line, name: str, part: str) -> None:
        """Do a compare-and-exchange loop, which holds on to the line; counted once however often it turns."""
        self.rmw(name)
        self._write(line, self.world.x["own_cas"], self.world.x["cas_factor"], part)

    def store(self, line: Line, part: str) -> None:
        """Write without an atomic."""
        self._write(line, 0, 1, part)

    def ride_along(self, line: Line, name: str, part: str) -> None:
        """Add to a line as if it were at hand: the put of an upgrade, whose folio may be another (*get*)."""
        self.asked = line
        self.add(line, name, part)

    def write_alone(self, line: Line, name: str, part: str) -> None:
        """Add to a line that nobody else may ask for meanwhile: section 2's one exception."""
        self.asked = None
        self.rmw(name)
        self._grant(line, self.world.x["own_add"], 1, part)

    def _write(self, line: Line, own: int, factor: int, part: str) -> None:
        """Ask for a line, or ride on it if this step was granted it already."""
        if self.asked is line:
            self.vm.tally.transfers["own"] += 1
            line.busy += own
            self.spend(own, part)
            return
        assert self.asked is None, "a step asks for one shared line at most"
        assert self.t == self.world.env.now, "a step asks for its line at its own time"
        self._grant(line, own, factor, part)

    def _grant(self, line: Line, own: int, factor: int, part: str) -> None:
        distance = self.thread.distance(line.owner)
        grant = max(self.t, line.busy)
        if distance == "own":
            done = line.busy = grant + own
        else:
            queued = line.busy > self.t
            done = grant + self.world.x[f"{distance}_latency"]
            line.busy = grant + self.world.x[f"{distance}_occupancy"] * (factor if queued else 1)
        line.owner, self.asked = self.thread, line
        self.vm.tally.transfers[distance] += 1
        self.spend(done - self.t, part)

    def load(self, line: Line, part: str) -> None:
        """Read a line: free from memory or one's own cache, else it is fetched and stays where it is."""
        distance = self.thread.distance(line.owner)
        if distance in ("own", "memory"):
            return
        done = max(self.t, line.busy) + self.world.x[f"{distance}_latency"]
        self.vm.tally.transfers[distance] += 1
        self.spend(done - self.t, part)
