"""The closed queue: N requesters, one server, and thinking in between.

A shared cache line is such a server (occupancy is its service, what is left of the latency is thinking),
and so is a lock that excludes everybody. Notation: N requesters, Z thinking, S service, X throughput.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from kvmpfn.units import InputError

__all__ = ["Queue", "asymptotic_bounds", "mean_value_analysis", "repairman"]


@dataclass(frozen=True, slots=True)
class Queue:
    """The stationary state of a closed queue.

    Attributes
    ----------
    throughput : float
        Requests served in a unit of time.
    residence : float
        Mean time at the server, waiting and service, of one round.
    utilisation : float
        Share of time in which the server is busy.
    """

    throughput: float
    residence: float
    utilisation: float


def _check(requesters: int, think: float, service: float) -> None:
    """Refuse what is no closed queue."""
    if requesters < 1:
        raise InputError(f"{requesters} requesters; nearest is 1", "requesters")
    if not think >= 0:
        raise InputError(f"{think} is no time; nearest is 0", "think")
    if not service > 0:
        raise InputError(f"{service} is no service time; it is more than 0", "service")


def asymptotic_bounds(
    requesters: int, think: float, latency: float, occupancy: float, visits: int = 1
) -> tuple[float, float]:
    """Bound the throughput of requesters that share one line, whatever the distributions are.

    A round is thinking Z and V visits. A visit takes the latency L if nobody is there before, and keeps the
    line for the occupancy S. One round takes Z + V L at least, so X <= N / (Z + V L); the line is busy V S in
    each, so X <= 1 / (V S). At worst each visit of a FIFO line waits for one visit of every other requester:
    X >= N / (Z + V L + V (N - 1) S). With fixed times and one visit the upper bound is reached: N requesters
    in a fixed order never meet before N S = Z + L, and then queue without a gap.

    Parameters
    ----------
    requesters : int
        N.
    think, latency, occupancy : float
        Z of a whole round; L and S of a visit, in the same unit.
    visits : int
        V, visits in a round.

    Returns
    -------
    low, high : float
        Bounds of X, in rounds a unit of time.

    Raises
    ------
    InputError
        A number is none.

    Notes
    -----
    Asymptotic bounds of operational analysis: Muntz and Wong (1974); Denning and Buzen (1978). The lower one
    needs a FIFO line and a requester that waits for each of its visits.
    """
    _check(requesters, think, occupancy)
    if not latency > 0:
        raise InputError(f"{latency} is no latency; it is more than 0", "latency")
    if visits < 1:
        raise InputError(f"{visits} visits; nearest is 1", "visits")
    alone = think + visits * latency
    low = requesters / (alone + visits * (requesters - 1) * occupancy)
    return low, min(requesters / alone, 1 / (visits * occupancy))


def mean_value_analysis(requesters: int, think: float, service: float) -> Queue:
    """Solve the closed queue with exponential service, whatever the law of thinking is.

    An arriving request sees the queue of the same network with one requester less (arrival theorem), so
    R(n) = S (1 + Q(n-1)), X(n) = n / (Z + R(n)), Q(n) = X(n) R(n), from Q(0) = 0. For V visits to one line
    take V S for S, and all time that is no occupancy for Z.

    Parameters
    ----------
    requesters : int
        N.
    think, service : float
        Z and S (demand: service times visits).

    Returns
    -------
    Queue
        Throughput, residence and utilisation.

    Raises
    ------
    InputError
        A number is none.

    Notes
    -----
    Reiser and Lavenberg (1980). Exact for exponential FIFO service (a delay station is insensitive); with
    less variable service, as of a cache line, throughput is higher: a lower bound there.
    """
    _check(requesters, think, service)
    queue = 0.0
    for n in range(1, requesters + 1):
        residence = service * (1 + queue)
        queue = n * residence / (think + residence)
    throughput = requesters / (think + residence)
    return Queue(throughput, residence, throughput * service)


def repairman(
    requesters: int, think: float, service: float, law: Literal["exponential", "fixed"] = "fixed"
) -> Queue:
    """Solve the machine repairman: exponential thinking with mean Z, service S exponential or fixed.

    Machines break at rate v = 1/Z each while they run. A busy period that starts with one broken machine
    lasts S sum_{k<N} C(N-1, k) prod_{i<=k} (1 - f(iv)) / f(iv) on average, where f(s) = E exp(-s S): for
    fixed service each factor is exp(iv S) - 1, for exponential service iv S. Idle periods last Z/N, so the
    server is busy U = B / (B + Z/N), X = U/S, and by Little's law a round takes N/X = Z + R.

    Parameters
    ----------
    requesters : int
        N.
    think, service : float
        Z > 0 and S.
    law : {"fixed", "exponential"}
        Law of the service time.

    Returns
    -------
    Queue
        Throughput, residence and utilisation.

    Raises
    ------
    InputError
        Thinking takes no time (see `asymptotic_bounds`), or a number is none.

    Notes
    -----
    Palm (1947) for exponential, Takacs (1962) for general service; N = 1 and the exponential law agree with
    `mean_value_analysis`. Assumes independent exponential thinking and one FIFO server.
    """
    _check(requesters, think, service)
    if think == 0:
        raise InputError("no thinking: the server is always busy; asymptotic_bounds has that", "think")
    if law not in ("exponential", "fixed"):
        raise InputError(f"{law!r} is not 'exponential' or 'fixed'; nearest is 'fixed'", "law")
    load = service / think
    # Logarithms: the products grow like exp(N**2 load / 2).
    product, terms = 0.0, [0.0]
    for k in range(1, requesters):
        product += math.log(k * load) if law == "exponential" else _log_expm1(k * load)
        choose = math.lgamma(requesters) - math.lgamma(k + 1) - math.lgamma(requesters - k)
        terms.append(product + choose)
    largest = max(terms)
    log_busy = math.log(service) + largest + math.log(math.fsum(math.exp(x - largest) for x in terms))
    utilisation = 1 / (1 + math.exp(math.log(think / requesters) - log_busy))
    throughput = utilisation / service
    return Queue(throughput, requesters / throughput - think, utilisation)


def _log_expm1(x: float) -> float:
    """log(exp(x) - 1) without overflow."""
    return x + math.log(-math.expm1(-x))
