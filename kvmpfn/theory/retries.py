"""With what probability a fault goes stale, where that is found, and how often it is tried.

Let y be the time from a fault's snapshot of mmu_invalidate_seq to the next end of an invalidation, at which
the sequence grows. With W the window from the snapshot to the lock and H the time that an invalidation is in
progress before its end:

- a fault whose page is not in the range is stale if y <= W, since the sequence is the VM's;
- a fault whose page is in the range is stale if y <= W + H: it ended in the window, or is in progress at the
  window's end, and that is when its end comes within the next H.

So all that is asked of the storm is A(x) = P(y <= x), the distribution of the time to the next event of a
stationary point process: A(x) = r int_0^x P(D > t) dt for rate r and distance D between ends (renewal theory:
forward recurrence time; for one fault at a random time it needs no independence of the distances).

Why the window ends with the lock, not with the check under it: the sequence grows, and a range begins, under
mmu_lock held for writing. Neither can happen between the RMW with which a reader comes in and its unlock.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

from kvmpfn.units import InputError

__all__ = ["Invalidations", "Window", "expected_tries", "retry_cells", "retry_probability"]

SECOND_MEETING = 0.05
"""How often, at most, a fault may meet a second invalidation for which `expected_tries` has no term."""


@dataclass(frozen=True, slots=True)
class Window:
    """When one attempt looks, counted from its snapshot, and when the next one takes its own.

    Attributes
    ----------
    lock : float
        From the snapshot to mmu_lock (W).
    cycle : float
        From the snapshot to that of the next attempt, after a retry found under the lock.
    gup : float or None
        From the snapshot to the pre-check after GUP; None without pre-checks.
    cycle_gup, cycle_early : float
        As `cycle`, after a retry found by the pre-check after GUP and before it.
    """

    lock: float
    cycle: float
    gup: float | None = None
    cycle_gup: float = 0.0
    cycle_early: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.lock <= self.cycle:
            raise InputError(f"lock {self.lock} is not from 0 to the cycle; nearest is {self.cycle}", "lock")
        if self.gup is None:
            return
        if not 0 <= self.gup <= min(self.lock, self.cycle_gup):
            near = min(self.lock, self.cycle_gup)
            raise InputError(f"gup {self.gup} comes after the lock or its cycle; nearest is {near}", "gup")
        if not self.cycle_early > 0:
            raise InputError("an attempt takes time; it is more than 0", "cycle_early")


@dataclass(frozen=True, slots=True)
class Invalidations:
    """One storm client, which is serial, as a point process of ends.

    The distance D between two ends is `gap` for a periodic client, unless it can't keep up (then `busy`),
    and `busy` + `gap` for a closed loop. A Poisson client is an M/D/1 queue with service `busy` and load
    rho = busy / gap: the next operation ends one service after the last with probability rho (someone waits),
    else after an exponential idle time more. With rho >= 1 all are `busy`.

    Attributes
    ----------
    arrival : {"poisson", "periodic", "closed_loop"}
        Its arrival process.
    gap : float
        Mean time between arrivals; a closed loop's thinking.
    busy : float
        Duration of a whole operation.
    hold : float
        From in_progress + 1 to in_progress - 1 (H).
    hit : float
        Probability that a range covers the page of a given fault: span / memory for a random place.
    wait : float
        From the client's claim on mmu_lock to its having it, on average: its RMW, and the readers inside
        (`writer_wait`). Requests for reading that come meanwhile are put behind it, and find the sequence
        changed at its end, and the range in progress at its start.
    """

    arrival: Literal["poisson", "periodic", "closed_loop"]
    gap: float
    busy: float
    hold: float
    hit: float = 0.0
    wait: float = 0.0

    def __post_init__(self) -> None:
        if self.arrival not in ("poisson", "periodic", "closed_loop"):
            raise InputError(f"{self.arrival!r} has no closed form; nearest is 'poisson'", "arrival")
        if not (self.gap > 0 or (self.gap == 0 and self.arrival == "closed_loop")):
            raise InputError(f"{self.gap} is no time between arrivals; it is more than 0", "gap")
        if not 0 <= self.hold <= self.busy:
            raise InputError(
                f"{self.hold} is not within an operation of {self.busy}; nearest is {self.busy}", "hold"
            )
        if not self.busy > 0:
            raise InputError("an operation takes time; it is more than 0", "busy")
        if not 0 <= self.hit <= 1:
            raise InputError(f"{self.hit} is no probability; nearest is {int(self.hit > 1)}", "hit")
        if not self.wait >= 0:
            raise InputError(f"{self.wait} is no time; nearest is 0", "wait")

    @property
    def rate(self) -> float:
        """Operations in a unit of time (r)."""
        return 1 / (self.gap + self.busy if self.arrival == "closed_loop" else max(self.gap, self.busy))

    def ends_within(self, x: float) -> float:
        """A(x), the probability that an operation ends within x of a random time.

        Fixed distance: r x up to 1. Poisson: P(D > t) is 1 up to `busy`, then (1 - rho) exp(-(t - busy)/gap),
        whose integral is x / gap, then rho + (1 - rho) (1 - exp(-(x - busy)/gap)). The 1 - exp(-x/gap) of
        text books is the limit of operations that take no time.
        """
        load = self.busy / self.gap if self.arrival == "poisson" else 1.0
        if load >= 1 or x <= self.busy:
            return min(1.0, self.rate * max(0.0, x))
        return load - (1 - load) * math.expm1(-(x - self.busy) / self.gap)

    def next_within(self, x: float) -> float:
        """P(D <= x), the probability that the next end follows an end within x."""
        if self.arrival == "poisson" and self.busy < self.gap:
            if x < self.busy:
                return 0.0
            load = self.busy / self.gap
            return load - (1 - load) * math.expm1(-(x - self.busy) / self.gap)
        return float(x * self.rate >= 1)


def retry_probability(window: Window, *storms: Invalidations) -> float:
    """Return the probability that a fault's first attempt ends in RETRY.

    One storm: (1 - q) A(W + w) + q A(W + H + w), with q = `hit` and w = `wait`. Pre-checks change where a
    retry is found and not its probability: each looks for something that the check under the lock would find
    too. Independent storms leave a fault fresh independently.

    Parameters
    ----------
    window : Window
        Of the fault path.
    *storms : Invalidations
        The storms of the VM.

    Returns
    -------
    float
        Probability.

    Notes
    -----
    Assumes that first attempts come independently of the storm (Poisson arrivals see time averages; a
    periodic storm needs faults of no common period). A vCPU that spins takes no new fault meanwhile, so that
    is off by up to half of the faults that it would begin, and find in the range, in W + H. Also assumes that
    a range is drawn apart from the fault's page, and that ranges in progress are looked at one by one. The
    kernel looks at their collapsed interval: with several storms in several places come the retries of
    `retry_false_range`. As to W see the module: the state of a word is uncertain by a transfer, between being
    asked for and being there.
    """
    fresh = 1.0
    for storm in storms:
        near = storm.ends_within(window.lock + storm.wait)
        wide = storm.ends_within(window.lock + storm.hold + storm.wait)
        fresh *= 1 - (1 - storm.hit) * near - storm.hit * wide
    return 1 - fresh


def retry_cells(window: Window, storm: Invalidations) -> dict[str, float]:
    """Return the mean number of retries of one fault by where and why, in the names of the counters.

    Outside of the range one retry is enough: the next snapshot has the new sequence. Inside it a fault spins,
    attempt after attempt, until the end. Without pre-checks attempt k, k cycles C after the first, is stale
    if the end is yet to come, y > k C; for y <= k C + W by the sequence, else by the range in progress. So
    there are sum_k (A(W + H) - A(k C))+ retries, of which sum_k (A(W + H) - A(k C + W))+ by range.

    With pre-checks, one at the snapshot and one G later, the first attempt is caught at the snapshot for
    y <= H, at G for y <= G + H, else under the lock, and each later one at its snapshot, in a shorter cycle:
    the same sums from the end of the first cycle on. The wait w of the writer is added to W under the lock.

    Parameters
    ----------
    window : Window
        Of the fault path.
    storm : Invalidations
        The only storm.

    Returns
    -------
    dict of str to float
        Retries a fault for ``"locked.range"``, ``"locked.seq"``, ``"pre_gup.range"`` and so on.

    Raises
    ------
    InputError
        Operations follow each other so fast that a fault meets a second one, with a probability of more than
        `SECOND_MEETING`: there is no term for that.

    Notes
    -----
    Assumes, beyond what `retry_probability` does, that all attempts take the same course but for where they
    are caught; a storm that takes the page from the host too lengthens an attempt of a fault in its range.
    """
    again = second_meeting(window, storm)
    if again > SECOND_MEETING:
        raise InputError(
            f"a fault meets a second invalidation with probability {again:.2g}; at most {SECOND_MEETING}",
            "gap",
        )
    hold, hit, lock, gup = storm.hold, storm.hit, window.lock + storm.wait, window.gup

    def between(low: float, high: float) -> float:
        return max(0.0, storm.ends_within(high) - storm.ends_within(low))

    def spin(high: float, first: float, cycle: float, low: float = 0.0) -> float:
        starts = itertools.takewhile(lambda at: at < high, itertools.count(first, cycle))
        return math.fsum(between(max(low, at), high) for at in starts)

    cells = dict.fromkeys(
        (f"{where}.{why}" for where in ("pre_gup", "post_gup", "locked") for why in ("range", "seq")), 0.0
    )
    if gup is None:
        by_range = spin(lock + hold, lock, window.cycle)
        by_seq = spin(lock + hold, 0.0, window.cycle) - by_range
        cells["locked.range"] = hit * by_range
        cells["locked.seq"] = hit * by_seq + (1 - hit) * between(0, lock)
        return cells
    early = window.cycle_early
    later = spin(hold, 0.0, early)
    later += spin(gup + hold, window.cycle_gup, early, hold)
    later += spin(lock + hold, window.cycle, early, gup + hold)
    cells["pre_gup.range"] = hit * later
    cells["post_gup.seq"] = (1 - hit) * between(0, gup) + hit * between(hold, gup)
    cells["post_gup.range"] = hit * between(max(hold, gup), gup + hold)
    cells["locked.seq"] = (1 - hit) * between(gup, lock) + hit * between(gup + hold, lock)
    cells["locked.range"] = hit * between(max(gup + hold, lock), lock + hold)
    return cells


def expected_tries(window: Window, storm: Invalidations) -> float:
    """Return the mean number of attempts until a fault is resolved: one more than its `retry_cells`.

    Parameters
    ----------
    window : Window
        Of the fault path.
    storm : Invalidations
        The only storm.

    Returns
    -------
    float
        Attempts; the share of attempts that end in RETRY is 1 - 1 / attempts.

    Raises
    ------
    InputError
        As for `retry_cells`.
    """
    return 1 + math.fsum(retry_cells(window, storm).values())


def second_meeting(window: Window, storm: Invalidations) -> float:
    """Return with which probability, at most, an attempt after an end is stale by the next one.

    Its snapshot is taken within a cycle C of the end. Outside of the range the next end then comes too soon
    if D <= C + W + w, inside if D <= C + W + H + w, and its range must cover the page again.

    Parameters
    ----------
    window : Window
        Of the fault path.
    storm : Invalidations
        The storm.

    Returns
    -------
    float
        An upper bound of the relative error of `expected_tries` - 1.
    """
    reach = window.cycle + window.lock + storm.wait
    return max(storm.next_within(reach), storm.hit * storm.next_within(reach + storm.hold))
