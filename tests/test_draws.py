"""The random draws: known answers of the generator, and the distributions made of it."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvmpfn.core import draws
from kvmpfn.core import layout as L
from kvmpfn.core.draws import GAP, GFN, KIND, PLACE
from kvmpfn.core.jit import kernel
from kvmpfn.core.ln_table import LN2_Q40, MINUS_LN_Q40

DRAWS = 20_000

below, chance, exponential = kernel(draws.below), kernel(draws.chance), kernel(draws.exponential)
permute, philox, split = kernel(draws.permute), kernel(draws.philox), kernel(draws.split)
word = kernel(draws.word)


def words(seed: int) -> NDArray[np.int64]:
    """As much of the engine's memory as a draw reads: the seed."""
    w = np.zeros(L.HEADER_WORDS, dtype=np.int64)
    w[L.SEED_LOW], w[L.SEED_HIGH] = seed & 0xFFFFFFFF, seed >> 32
    return w


def raw(w: NDArray[np.int64], actor: int, purpose: int, n: int) -> int:
    """The 64 bits that a draw is made of."""
    high, low = philox(n & 0xFFFFFFFF, n >> 32, actor, purpose, int(w[L.SEED_LOW]), int(w[L.SEED_HIGH]))
    return int(high) << 32 | int(low)


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_known_answers(
    counter: tuple[int, ...], key: tuple[int, ...], answer: tuple[int, int]
) -> None:
    """The known-answer vectors that the generator's authors publish."""
    assert tuple(int(x) for x in philox(*counter, *key)) == answer


@given(
    seed=st.integers(0, (1 << 64) - 1),
    actor=st.integers(0, 1023),
    n=st.integers(0, (1 << 62) - 1),
    bound=st.integers(1, (1 << 31) - 1),
)
def test_below_is_the_high_half_of_a_product(seed: int, actor: int, n: int, bound: int) -> None:
    """A range is (u64 * bound) >> 64, without the overflow."""
    w = words(seed)
    assert below(w, actor, PLACE, n, bound) == raw(w, actor, PLACE, n) * bound >> 64
    product = raw(w, actor, PLACE, n) * bound
    assert split(w, actor, PLACE, n, bound) == (product >> 64, product % (1 << 64) >> 16)
    assert word(w, actor, PLACE, n) == raw(w, actor, PLACE, n) >> 32


@pytest.mark.parametrize("bound", [2, 10, 97])
def test_below_is_uniform(bound: int) -> None:
    """Chi squared within five standard deviations of its mean."""
    w = words(7)
    seen = np.bincount([below(w, 3, GFN, n, bound) for n in range(DRAWS)], minlength=bound)
    expected = DRAWS / bound
    chi2 = ((seen - expected) ** 2 / expected).sum()
    assert len(seen) == bound
    assert chi2 < bound - 1 + 5 * (2 * (bound - 1)) ** 0.5


def test_chance() -> None:
    """A share of 0 never happens, a share of 1 always, a quarter a quarter of the time."""
    w = words(7)
    assert not any(chance(w, 1, KIND, n, 0) for n in range(100))
    assert all(chance(w, 1, KIND, n, 1 << 32) for n in range(100))
    share = sum(chance(w, 1, KIND, n, 1 << 30) for n in range(DRAWS)) / DRAWS
    assert share == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / DRAWS) ** 0.5)


def test_logarithm_table() -> None:
    """Every entry is -ln(1/2 + i/512) in units of 2**-40, rounded."""
    assert Decimal(2).ln() * 2**40 - LN2_Q40 < Decimal("0.5")
    assert len(MINUS_LN_Q40) == 257
    for i, entry in enumerate(MINUS_LN_Q40):
        exact = -(Decimal(256 + i) / 512).ln() * 2**40
        assert abs(entry - exact) <= Decimal("0.5")


@pytest.mark.parametrize("mean", [1, 999, 1 << 20, 20_000_000, (1 << 46) - 1])
def test_exponential_is_minus_ln_of_its_bits(mean: int) -> None:
    """Each draw is -ln(u) * mean to two millionths of the mean and the rounding of two products."""
    w = words(2**64 - 1)
    for n in range(500):
        u = Decimal(max(raw(w, 5, GAP, n) >> 1, 1)) / 2**63
        exact = -u.ln() * mean
        assert abs(exponential(w, 5, GAP, n, mean) - exact) <= Decimal("2e-6") * mean + 2


def test_exponential_mean_and_quantiles() -> None:
    """The sample's mean and quantiles lie within five standard errors."""
    w = words(11)
    mean = 20_000_000
    draws = np.sort([exponential(w, 2, GAP, n, mean) for n in range(DRAWS)])
    assert draws.min() >= 0
    assert draws.mean() == pytest.approx(mean, rel=5 / DRAWS**0.5)
    for q in (0.1, 0.5, 0.9, 0.99):
        at = float(-(1 - Decimal(str(q))).ln() * mean)
        assert (draws <= at).mean() == pytest.approx(q, abs=5 * (q * (1 - q) / DRAWS) ** 0.5)


@given(seed=st.integers(0, (1 << 64) - 1), actor=st.integers(0, 1023), count=st.integers(1, 600))
def test_permutation_is_a_bijection(seed: int, actor: int, count: int) -> None:
    """Each index has an image of its own, in range."""
    w = words(seed)
    assert sorted(permute(w, actor, i, count) for i in range(count)) == list(range(count))


def test_permutation_differs_by_actor_and_seed() -> None:
    """Two actors, or two seeds, go through the same pages in orders of their own."""
    orders = {
        tuple(permute(words(seed), actor, i, 1000) for i in range(1000))
        for seed in (1, 2)
        for actor in (0, 1)
    }
    assert len(orders) == 4
    assert tuple(range(1000)) not in orders


def test_draws_differ_by_actor_purpose_and_index() -> None:
    """Every part of a draw's name changes it."""
    w = words(1)
    names = [(actor, purpose, n) for actor in (0, 1) for purpose in (GFN, KIND) for n in (0, 1, 1 << 32)]
    assert len({raw(w, *name) for name in names}) == len(names)
