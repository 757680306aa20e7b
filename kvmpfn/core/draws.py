"""Counter-based random draws: pure functions of (seed, actor, purpose, n).

Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC'11). Counter words are
n (two words), actor and purpose; the key is the 64-bit seed. Every fault path compared therefore sees the
same draws (common random numbers), whatever the order of events. No libm: the exponential comes from
an integer table. This is the one file with uint64; it hands out int64.
"""

import numpy as np

from . import layout as L
from .jit import jit
from .ln_table import LN2_Q40, MINUS_LN_Q40

GFN, KIND, THINK, GAP, PLACE, SPAN, HOLD, START, CHOICE = 0, 1, 2, 3, 4, 5, 6, 7, 8

_M0 = np.uint64(0xD2511F53)
_M1 = np.uint64(0xCD9E8D57)
_W0 = np.uint64(0x9E3779B9)
_W1 = np.uint64(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_TABLE = np.array(MINUS_LN_Q40, dtype=np.int64)


@jit
def philox(c0, c1, c2, c3, k0, k1):
    """Ten rounds of Philox4x32; six words in, the first two of four out, all 32-bit in int64."""
    x0, x1, x2, x3 = np.uint64(c0), np.uint64(c1), np.uint64(c2), np.uint64(c3)
    a, b = np.uint64(k0), np.uint64(k1)
    for _ in range(10):
        p0 = _M0 * x0
        p1 = _M1 * x2
        x0, x1, x2, x3 = (p1 >> _32) ^ x1 ^ a, p1 & _LOW, (p0 >> _32) ^ x3 ^ b, p0 & _LOW
        a = (a + _W0) & _LOW
        b = (b + _W1) & _LOW
    return np.int64(x0), np.int64(x1)


@jit
def below(w, actor, purpose, n, bound):
    """A uniform integer in [0, bound), bound < 2**31: (u64 * bound) >> 64."""
    high, low = philox(n & 0xFFFFFFFF, n >> 32, actor, purpose, w[L.SEED_LOW], w[L.SEED_HIGH])
    return (high * bound + ((low * bound) >> 32)) >> 32


@jit
def split(w, actor, purpose, n, bound):
    """`below`, and the fraction that it drops, in units of 2**-48: (u64 * bound mod 2**64) >> 16."""
    high, low = philox(n & 0xFFFFFFFF, n >> 32, actor, purpose, w[L.SEED_LOW], w[L.SEED_HIGH])
    product = high * bound + ((low * bound) >> 32)
    return product >> 32, (product & 0xFFFFFFFF) << 16 | ((low * bound) & 0xFFFFFFFF) >> 16


@jit
def word(w, actor, purpose, n):
    """A uniform integer in [0, 2**32): the draw's high word."""
    high, _ = philox(n & 0xFFFFFFFF, n >> 32, actor, purpose, w[L.SEED_LOW], w[L.SEED_HIGH])
    return high


@jit
def chance(w, actor, purpose, n, q32):
    """True with probability q32 / 2**32."""
    return word(w, actor, purpose, n) < q32


@jit
def exponential(w, actor, purpose, n, mean):
    """An exponential time in ps with the given mean (< 2**46 ps): -ln(u) * mean, in integers.

    -ln of the mantissa is interpolated linearly between 257 table entries (error below 2e-6).
    """
    high, low = philox(n & 0xFFFFFFFF, n >> 32, actor, purpose, w[L.SEED_LOW], w[L.SEED_HIGH])
    u = (high << 31) | (low >> 1)
    if u == 0:
        u = np.int64(1)
    zeros = 0
    while u < (1 << 62):
        u <<= 1
        zeros += 1
    index = (u >> 54) & 255
    fraction = (u >> 34) & 0xFFFFF
    step = _TABLE[index] - _TABLE[index + 1]
    q30 = (zeros * LN2_Q40 + _TABLE[index] - ((step * fraction) >> 20)) >> 10
    return (((mean >> 20) * q30) >> 10) + (((mean & 0xFFFFF) * q30) >> 30)


@jit
def permute(w, actor, index, count):
    """The image of index under a pseudo-random permutation of [0, count), count < 2**31.

    A four-round Feistel network on the next even number of bits, cycle-walked into range; round keys come
    from one draw each of (seed, actor, GFN), so no memory is needed for terabytes of pages.
    """
    half = 1
    while (1 << (2 * half)) < count:
        half += 1
    mask = (1 << half) - 1
    x = index
    while True:
        left, right = x >> half, x & mask
        for r in range(4):
            mixed, _ = philox(right, r, actor, GFN, w[L.SEED_LOW], w[L.SEED_HIGH])
            left, right = right, left ^ (mixed & mask)
        x = (left << half) | right
        if x < count:
            return x
