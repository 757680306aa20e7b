"""Go through a run's kept steps once more, with the engine's memory at hand before and after each.

The step log holds a row of five numbers a step (docs/model.md, section 2). What else an export tells, such as
the level of an entry or the outcome of a fault, is read from the engine's memory while the same scenario runs
again, one event at a time, as far as the log goes. Each step is held against its row of the log.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from kvmpfn.core import layout as L
from kvmpfn.core.names import LOG_FIELDS, STEPS
from kvmpfn.explain.actors import Actors
from kvmpfn.simulator import _World
from kvmpfn.units import InputError

if TYPE_CHECKING:
    from kvmpfn.results import Run
    from kvmpfn.scenario import Scenario

__all__ = ["Follower", "Machine", "follow"]

PIDS_A_VM = 1 << 12
"""Thread numbers that a VM's process has for itself: more than the model has actors."""

ROWS_AT_ONCE = 1 << 16


class Machine:
    """What is simulated, and the engine's memory of it.

    Parameters
    ----------
    scenario : Scenario
        What is simulated.
    words : memoryview of int64
        The engine's memory, prepared.

    Attributes
    ----------
    actors : Actors
        Clients, then vCPUs, by number.
    vms : list of int
        Pointers to the virtual machines.
    """

    def __init__(self, scenario: Scenario, words: memoryview) -> None:
        self.scenario = scenario
        self.words = words
        self.actors = Actors(scenario, words)
        self.vms = [words[words[L.VM_PTRS] + i] for i in range(scenario.vms)]

    def lookup(self, vm: int, gfn: int) -> tuple[int, int]:
        """Walk KVM's tables to the lowest entry for a gfn: its address and its level."""
        w = self.words
        table, level = w[vm + L.ROOT], w[L.LEVELS]
        while True:
            at = table + (gfn >> 9 * (level - 1) & 511)
            if not w[at] & L.SPTE_TABLE:
                return at, level
            table, level = w[at] >> L.SPTE_PFN_SHIFT, level - 1

    def process(self, vm: int) -> int:
        """Return the made-up number of a VM's process, by the VM's number."""
        return PIDS_A_VM * (vm + 1)

    def thread(self, a: int) -> int:
        """Return the made-up number of an actor's thread: vCPUs come first, then the storms' clients."""
        w, s = self.words, self.scenario
        number = w[a + L.ID]
        place = w[a + L.INDEX] % s.vcpus if w[a + L.IS_VCPU] else s.vcpus + number
        return self.process(w[w[a + L.VM] + L.VM_ID]) + 1 + place


class Follower(Protocol):
    """Who looks at each step: before it is taken, and after."""

    def before(self, t: int, a: int, step: int) -> None:
        """Look at the step that actor `a` is about to take at `t` ps."""

    def after(self, t: int, a: int, step: int) -> None:
        """Look at what the step has done."""


Looking = TypeVar("Looking", bound=Follower)


def follow(run: Run, make: Callable[[Machine], Looking]) -> tuple[Looking, int]:
    """Take the steps that a run's log holds, and show each to a follower.

    Parameters
    ----------
    run : Run
        With a log.
    make : callable
        Makes the follower, when the memory is prepared.

    Returns
    -------
    follower : Follower
        As it was made.
    time : int
        Of the last step, in ps.

    Raises
    ------
    InputError
        The same scenario takes other steps now than the log holds.
    """
    from kvmpfn.core.engine import prepare, run_until

    world = _World(run.scenario, 0, False, len(run.arrays["timeline"]))
    w = world.words.data
    log = run.arrays["log"][:, : LOG_FIELDS.index("step") + 1]
    t = 0
    with np.errstate(over="ignore"):
        prepare(world.words)
        machine = Machine(run.scenario, w)
        follower, pointers = make(machine), machine.actors.pointers
        before, after, root = follower.before, follower.after, w[L.QUEUE] + 1
        for first in range(0, len(log), ROWS_AT_ONCE):
            for t, actor, step in log[first : first + ROWS_AT_ONCE].tolist():
                a = pointers[actor]
                if w[root] != t << L.OWNER_BITS | actor or w[a + L.PC] != step:
                    raise InputError(
                        f"write_events: the same scenario does not take the step {STEPS[step]!r} at {t} ps "
                        "now: the run is another model's; simulate again"
                    )
                before(t, a, step)
                run_until(world.words, 1)
                after(t, a, step)
    return follower, t
