"""mmu_lock as a machine repairman: many readers that work side by side, and a writer that wants all of it.

In the queued rwlock a writer that has come to the head of the queue keeps new readers out and waits for
those inside to leave. So readers delay a writer by the longest rest of a section under way, and a writer
costs readers its own section and that wait.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmpfn.units import InputError

__all__ = ["Blocking", "reader_delay", "writer_wait"]


@dataclass(frozen=True, slots=True)
class Blocking:
    """A time for which readers are kept out.

    Attributes
    ----------
    mean : float
        Its mean.
    square : float
        Mean of its square.
    """

    mean: float
    square: float

    def after(self, section: float) -> Blocking:
        """Return the same time followed by a fixed one."""
        square = self.square + 2 * section * self.mean + section * section
        return Blocking(self.mean + section, square)


def writer_wait(readers: int, think: float, section: float, handoff: float = 0.0) -> Blocking:
    """Return how long a writer at the head of the queue waits for the readers inside.

    A reader is inside for a fixed section R in each round of Z + R, so with p = R / (Z + R) at a moment that
    it knows nothing of (renewal theory), and then the rest of its section is uniform on (0, R). Readers do
    not wait for each other; the last to leave lets the writer in: P(wait <= x) = (1 - p + p x/R)^N.
    With u = 1 - p + p x/R and a = 1 - p that is u^N on [a, 1], so E u^k = a^(N+k) + N/(N+k) (1 - a^(N+k))
    and wait = R (u - a) / p. In particular E wait = R (1 - (1 - a^(N+1)) / ((N+1) p)).
    If anybody was inside, with probability 1 - a^N, a hand-off comes on top.

    Parameters
    ----------
    readers : int
        N; 0 for none.
    think, section : float
        Z, all of a reader's round but its read section, and R.
    handoff : float
        From the last reader's leaving to the writer's having the lock: the RMWs of both.

    Returns
    -------
    Blocking
        Mean and mean square of the wait.

    Raises
    ------
    InputError
        A number is none.

    Notes
    -----
    Assumes one writer that is seldom there: readers are independent again when it comes back, and it comes at
    a time independent of theirs. That leaves out a storm client that is late and begins anew right after its
    last end, when no reader was inside.
    """
    if readers < 0:
        raise InputError(f"{readers} readers; nearest is 0", "readers")
    if not think >= 0:
        raise InputError(f"{think} is no time; nearest is 0", "think")
    if not section > 0:
        raise InputError(f"{section} is no section; it is more than 0", "section")
    if not handoff >= 0:
        raise InputError(f"{handoff} is no time; nearest is 0", "handoff")
    inside = section / (think + section)
    outside = 1 - inside
    n = readers
    first, second = (
        outside ** (n + k) + n / (n + k) * (1 - outside ** (n + k)) if n else outside**k for k in (1, 2)
    )
    scale = section / inside
    mean = scale * (first - outside)
    square = scale**2 * (second - 2 * outside * first + outside**2)
    anybody = 1 - outside**n
    return Blocking(mean + anybody * handoff, square + 2 * handoff * mean + anybody * handoff**2)


def reader_delay(rate: float, blockings: tuple[Blocking, ...]) -> float:
    """Return the mean delay of one read lock by a writer that keeps readers out again and again.

    A request that comes at a random time falls into a blocking of length V with probability rate * E V, and
    then waits for the rest of it, E V^2 / (2 E V) on average: rate * E V^2 / 2 for each kind of blocking.

    Parameters
    ----------
    rate : float
        How often each blocking comes, in a unit of time.
    blockings : tuple of Blocking
        The kinds: for an invalidation, that of range_start and that of range_end.

    Returns
    -------
    float
        Mean delay.

    Raises
    ------
    InputError
        The lock would be blocked for more than a tenth of the time: then requests that were put off pile up,
        and no longer come at random times.

    Notes
    -----
    Renewal theory (mean residual life), as in the Pollaczek-Khinchine formula for M/G/1 with vacations. For
    `writer_wait` give one reader less: a reader that asks is not inside (arrival theorem). Readers let in
    together have a line transfer between each two, which is not counted.
    """
    if not rate >= 0:
        raise InputError(f"{rate} is no rate; nearest is 0", "rate")
    share = rate * sum(one.mean for one in blockings)
    if share > 0.1:
        raise InputError(
            f"{rate} blocks the lock for {share:.0%} of the time; nearest is {rate * 0.1 / share:g}", "rate"
        )
    return rate * sum(one.square for one in blockings) / 2
