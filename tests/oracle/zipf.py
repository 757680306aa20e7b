"""Zipf's law: ranks in bins, and Vose's alias table in integers (docs/model.md 12, *Zipf*)."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

SINGLES = 4096  # ranks with a bin of their own
BINS_AN_OCTAVE = 256
WHOLE = 1 << 48
DECIMAL = Context(prec=28, rounding=ROUND_HALF_EVEN)


class Bin(NamedTuple):
    """Neighbouring ranks; a draw that lands here at the threshold or beyond goes to the alias."""

    first: int
    size: int
    threshold: int
    alias: int


def bins(ranks: int) -> list[tuple[int, int]]:
    """Return the first rank and the size of each bin."""
    found = [(rank, 1) for rank in range(min(ranks, SINGLES))]
    octave = SINGLES
    while octave < ranks:
        size = octave // BINS_AN_OCTAVE
        for first in range(octave, min(2 * octave, ranks), size):
            found.append((first, min(size, ranks - first)))
        octave *= 2
    return found


def weight(first: int, size: int, exponent: float) -> int:
    """Return a bin's weight times 2^60: `size` times that of its middle."""
    log = DECIMAL.ln(Decimal(2 * first + size + 1) / 2)
    middle = DECIMAL.exp(DECIMAL.multiply(-Decimal(repr(exponent)), log))
    return round(Fraction(DECIMAL.multiply(middle, Decimal(size))) * (1 << 60))


@lru_cache(maxsize=16)
def table(exponent: float, ranks: int) -> list[Bin]:
    """Return the bins with thresholds and aliases."""
    places = bins(ranks)
    weights = [weight(first, size, exponent) for first, size in places]
    total, count = sum(weights), len(places)
    mass = [each * count for each in weights]
    cut = [(WHOLE, number) for number in range(count)]
    small = [number for number in range(count) if mass[number] < total]
    large = [number for number in range(count) if mass[number] >= total]
    while small and large:
        one, other = small.pop(), large[-1]
        cut[one] = (mass[one] * WHOLE // total, other)
        mass[other] -= total - mass[one]
        if mass[other] < total:
            small.append(large.pop())
    return [Bin(*place, *alias) for place, alias in zip(places, cut, strict=True)]
