"""Zipf's law as an alias table of integers, the same on every machine (docs/model.md, "Workloads").

The method is that of Walker as Vose has it, "A linear algorithm for generating random numbers with a given
distribution" (IEEE Trans. Software Eng. 17, 1991): each of some equal bins is cut in two, its own part and
that of an alias. Weights are decimals, which round alike everywhere; all the rest is whole numbers.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kvmpfn.core import layout as L

__all__ = ["alias_table", "rank_bins"]

_DECIMAL = Context(prec=28, rounding=ROUND_HALF_EVEN)
_WEIGHT_ONE = 1 << 60


def rank_bins(count: int) -> list[tuple[int, int]]:
    """Divide ranks into bins.

    Parameters
    ----------
    count : int
        How many ranks there are.

    Returns
    -------
    list of tuple of int
        The first rank and the number of ranks of each bin: single ranks first, then as many bins an octave.
    """
    singles, octave = 1 << L.ZIPF_SINGLE_BITS, 1 << L.ZIPF_OCTAVE_BITS
    bins = [(rank, 1) for rank in range(min(count, singles))]
    first, size = singles, singles // octave
    while first < count:
        bins += [(f, min(size, count - f)) for f in range(first, min(2 * first, count), size)]
        first, size = 2 * first, 2 * size
    return bins


@lru_cache(maxsize=8)
def alias_table(exponent: float, count: int) -> NDArray[np.int64]:
    """Make the table that ranks are drawn from.

    Parameters
    ----------
    exponent : float
        Rank k of 0, 1, ... has the weight (k + 1)**-exponent.
    count : int
        How many ranks there are.

    Returns
    -------
    ndarray of int64, shape (bins, 2)
        For each bin of `rank_bins` its threshold, in units of 2**-48, and its alias.
    """
    power = Decimal(str(exponent)).copy_negate()
    weights = []
    for first, size in rank_bins(count):
        middle = _DECIMAL.multiply(2 * first + size + 1, Decimal("0.5"))
        weight = _DECIMAL.exp(_DECIMAL.multiply(power, _DECIMAL.ln(middle)))
        weights.append(round(Fraction(_DECIMAL.multiply(weight, size)) * _WEIGHT_ONE))
    table = np.array(_alias(weights), dtype=np.int64)
    table.setflags(write=False)
    return table


def _alias(weights: list[int]) -> list[tuple[int, int]]:
    """Cut bins of equal mass in two; exact until the thresholds are rounded down."""
    total = sum(weights)
    mass = [weight * len(weights) for weight in weights]
    rows = [(1 << L.FRACTION_BITS, bin) for bin in range(len(weights))]
    small = [bin for bin, part in enumerate(mass) if part < total]
    large = [bin for bin, part in enumerate(mass) if part >= total]
    while small and large:
        one, other = small.pop(), large[-1]
        rows[one] = ((mass[one] << L.FRACTION_BITS) // total, other)
        mass[other] -= total - mass[one]
        if mass[other] < total:
            small.append(large.pop())
    return rows
