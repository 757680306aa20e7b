"""Which pages a recorded guest goes to, from the faults alone: accesses that hit leave no trace.

* **sweep**: steps from one access to the next go up. Where the guest comes to a page again, or others were
  there, it hit those that it stepped over, which tells how many accesses there were.
* **once**: no order, and no page twice: first touches.
* else accesses are drawn. The popular pages hardly fault more often than others, since a page faults at most
  once for each time it is taken away; but they fault sooner. So for each page there is the time that it was
  away (from an invalidation to the fault after it, or to the recording's end) and the faults that ended it:
  with a rate of access l, faults n and time away e have the likelihood l**n exp(-l e). Where it is not known
  which pages invalidations took, a page counts as away all the time, and each fault as an access. Most likely
  are **uniform** (one l), **hot_cold** (two: in and out of a window of neighbours, that with most faults
  above the mean, Kadane's greatest subarray) or **zipf** (Zipf's law, which page has which rank unknown: the
  mean of the likelihoods of all ranks).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from kvmpfn.core.jit import kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Words = NDArray[np.int64]
    Reals = NDArray[np.float64]

__all__ = ["Locality", "locality", "run_lengths", "times_away"]

Pattern = Literal["sweep", "once", "uniform", "zipf", "hot_cold"]

ASCENDING = 0.75
"""Share of steps that go up in a sweep; half of them do by chance."""

REPEATED = 1.1
"""Faults a page and vCPU up to which pages come once."""

SHARED = 1.5
"""vCPUs a page from which they share the pages."""

MOST_HITS = 200
"""Accesses for each fault that are believed: beyond it the faults hardly tell how many there were."""

LIKELIER = 10.0
"""Log likelihood by which pages must be told better apart than as all alike."""

MOST_EXPONENT = 3.0
SAMPLE = 2048
"""Pages, spread evenly, that the exponent is fitted to; more make it hardly better."""

RANKS = 32
"""Groups of ranks, each a constant factor wide, that stand for all of them."""

GOLDEN = (5**0.5 - 1) / 2
STEPS = 16


@dataclass(frozen=True)
class Locality:
    """How a guest goes through its pages.

    Attributes
    ----------
    pattern : {"sweep", "once", "uniform", "zipf", "hot_cold"}
        Which.
    accesses : float
        Accesses of all vCPUs while it was recorded, hits included.
    shared : bool
        Whether vCPUs go to the same pages.
    stride : int
        Sweep: pages from one access to the next.
    passes : int
        Sweep: how often a vCPU goes through its pages.
    exponent : float
        Zipf's.
    hot_memory, hot_accesses : float
        Share of the pages that is hot, and of the accesses that go there.
    """

    pattern: Pattern
    accesses: float
    shared: bool
    stride: int = 1
    passes: int = 1
    exponent: float = 0.0
    hot_memory: float = 0.0
    hot_accesses: float = 0.0


def locality(vcpus: Sequence[Words], pages: int, away: tuple[Words, Words] | None, time: int) -> Locality:
    """Fit the places of accesses.

    Parameters
    ----------
    vcpus : sequence of ndarray of int64
        Pages that faulted, from 0, in order, for each vCPU.
    pages : int
        Pages of the memory.
    away : pair of ndarray of int64, shape (pages,), optional
        How often each page faulted after it was taken away, and how long it was away in all; see
        `times_away`.
    time : int
        How long was recorded, in the same unit.
    """
    every = np.concatenate(vcpus)
    owned = np.unique(np.concatenate([one + number * pages for number, one in enumerate(vcpus)]))
    touched = np.unique(every)
    shared = len(owned) >= SHARED * len(touched)
    steps = np.concatenate([np.diff(one) for one in vcpus])
    up = steps[steps > 0]
    if len(steps) and len(up) >= ASCENDING * len(steps):
        strides, counts = np.unique(up, return_counts=True)
        stride = int(strides[counts.argmax()])
        passes = 1 + max(int((np.diff(one) < 0).sum()) for one in vcpus)
        # A descent is the end of a pass: what is left of this one, and the beginning of the next.
        gone = np.where(steps < 0, steps + (pages if shared else pages / len(vcpus)), steps)
        accesses = max(float(len(every)), float(np.maximum(gone / stride, 1).sum()) + len(vcpus))
        if passes == 1 and not shared:
            accesses = len(every)
        return Locality("sweep", min(accesses, MOST_HITS * len(every)), shared, stride=stride, passes=passes)
    if len(every) <= REPEATED * len(owned):
        return Locality("once", len(every), shared)
    if away is None or away[0].sum() < LIKELIER:
        away = np.bincount(every, minlength=pages), np.full(pages, time)
    return _drawn(away[0].astype(np.float64), away[1].astype(np.float64), float(time), len(every), shared)


def run_lengths(vcpus: Sequence[Words], stride: int) -> Words:
    """Return how many accesses in a row were a stride apart, run by run."""
    lengths = []
    for pages in vcpus:
        ends = np.flatnonzero(np.diff(pages) != stride)
        edges = np.concatenate([[-1], ends, [len(pages) - 1]])
        lengths.append(np.diff(edges))
    return np.concatenate(lengths) if lengths else np.zeros(0, dtype=np.int64)


@kernel
def times_away(time, first, last, tick, until, faults, away, since) -> None:  # type: ignore[no-untyped-def]
    """Go through invalidations and faults, and add up how long pages were away.

    Parameters
    ----------
    time : ndarray of int64, shape (events,)
        In order.
    first, last : ndarray of int64, shape (events,)
        Pages that an invalidation takes away, from first up to last; or the one that faults, and last is -1.
    tick : int
        Resolution of the times, half of which a fault is later on average than it seems.
    until : int
        The recording's end.
    faults, away : ndarray of int64, shape (pages,)
        Filled with how often each page faulted after it was taken away, and how long it was away.
    since : ndarray of int64, shape (pages,)
        Scratch, filled with -1.
    """
    for event in range(len(time)):
        page = first[event]
        if last[event] < 0:
            if since[page] >= 0:
                faults[page] += 1
                away[page] += max(0, time[event] - since[page]) + tick // 2
                since[page] = -1
        else:
            for taken in range(page, last[event]):
                if since[taken] < 0:
                    since[taken] = time[event]
    for page in range(len(since)):
        if since[page] >= 0:
            away[page] += max(0, until - since[page])


def _drawn(faults: Reals, away: Reals, time: float, taken: int, shared: bool) -> Locality:
    """Choose the draws that make it most likely that pages faulted so often in the time they were away."""
    pages = len(faults)
    most = MOST_HITS * taken / time
    even = faults.sum() / away.sum()
    alike = _log_likelihood(faults.sum(), away.sum())

    first, end = _greatest(faults - even * away)
    window = np.zeros(pages, dtype=np.bool_)
    window[first:end] = True
    counts, times = ([part[window].sum(), part[~window].sum()] for part in (faults, away))
    two = sum(_log_likelihood(*one) for one in zip(counts, times, strict=True))

    seen = np.flatnonzero(away > 0)
    sample = seen[:: max(1, len(seen) // SAMPLE)]
    exponent, rate, ranked = _zipf(faults[sample], away[sample], pages)
    ranked -= _log_likelihood(faults[sample].sum(), away[sample].sum())
    ranked *= len(seen) / len(sample)
    if max(two - alike, ranked) < LIKELIER:
        return Locality("uniform", min(pages * even, most) * time, shared)
    if two - alike >= ranked:
        rates = [count / one for count, one in zip(counts, times, strict=True)]
        hot, cold = window.sum() * rates[0], (~window).sum() * rates[1]
        share = {"hot_memory": round(window.mean(), 4), "hot_accesses": round(hot / (hot + cold), 4)}
        return Locality("hot_cold", min(hot + cold, most) * time, shared, **share)
    return Locality("zipf", min(rate, most) * time, shared, exponent=round(exponent, 3))


def _log_likelihood(faults: float, away: float) -> float:
    """Log likelihood of so many faults in a time, at the rate that makes them most likely."""
    return float(faults * np.log(faults / away) - faults) if faults and away else 0.0


def _zipf(faults: Reals, away: Reals, pages: int) -> tuple[float, float, float]:
    """Return the most likely exponent, the rate of all accesses, and the log likelihood."""
    edges = np.unique(np.round(np.geomspace(1, pages + 1, RANKS + 1)))
    size = np.diff(edges)
    middle = np.sqrt(edges[:-1] * (edges[1:] - 1).clip(min=1))

    def likelihood(exponent: float, log_rate: float) -> float:
        weights = middle**-exponent
        log_each = log_rate - np.log((weights * size).sum()) - exponent * np.log(middle)
        each = faults[:, None] * log_each - away[:, None] * np.exp(log_each) + np.log(size / pages)
        top = each.max(axis=1)
        return float((top + np.log(np.exp(each - top[:, None]).sum(axis=1))).sum())

    center = float(np.log(pages * faults.sum() / away.sum()))

    def best_rate(exponent: float) -> tuple[float, float]:
        return _highest(lambda log_rate: likelihood(exponent, log_rate), center - 3, center + 6)

    exponent, _ = _highest(lambda exponent: best_rate(exponent)[1], 0.0, MOST_EXPONENT)
    log_rate, value = best_rate(exponent)
    return exponent, float(np.exp(log_rate)), value


def _highest(function: Callable[[float], float], low: float, high: float) -> tuple[float, float]:
    """Return where a function with one maximum has it, and the maximum (golden section)."""
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = function(left), function(right)
    for _ in range(STEPS):
        if at_left < at_right:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = function(right)
        else:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = function(left)
    return (left, at_left) if at_left > at_right else (right, at_right)


def _greatest(excess: Reals) -> tuple[int, int]:
    """Return where the slice with the greatest sum begins and ends (Kadane)."""
    sums = np.concatenate([[0.0], np.cumsum(excess)])
    lowest = np.minimum.accumulate(sums)
    end = int(np.argmax(sums - lowest))
    first = int(np.argmin(sums[: end + 1]))
    return first, max(end, first + 1)
