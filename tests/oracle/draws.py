"""Random numbers (docs/model.md 3): Philox4x32-10, a pure function of seed, actor, purpose and index."""

from __future__ import annotations

from functools import lru_cache

from kvmpfn.core.ln_table import LN2_Q40, MINUS_LN_Q40

GFN, KIND, THINK, GAP, PLACE, SPAN, HOLD, START, CHOICE = range(9)
WORD = (1 << 32) - 1


@lru_cache(maxsize=1 << 16)
def philox(seed: int, n: int, actor: int, purpose: int) -> tuple[int, int]:
    """Return the first two of the four output words."""
    a, b, c, d = n & WORD, n >> 32, actor, purpose
    low, high = seed & WORD, seed >> 32
    for _ in range(10):
        x, y = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (y >> 32) ^ b ^ low, y & WORD, (x >> 32) ^ d ^ high, x & WORD
        low, high = (low + 0x9E3779B9) & WORD, (high + 0xBB67AE85) & WORD
    return a, b


class Draws:
    """The draws of one seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def below(self, actor: int, purpose: int, n: int, bound: int) -> int:
        """Return a whole number from 0 to `bound` - 1."""
        high, low = philox(self.seed, n, actor, purpose)
        return (high << 32 | low) * bound >> 64

    def split(self, actor: int, purpose: int, n: int, bound: int) -> tuple[int, int]:
        """Return `below`, and what remains of the draw as a fraction in units of 2^-48."""
        high, low = philox(self.seed, n, actor, purpose)
        product = (high << 32 | low) * bound
        return product >> 64, product % (1 << 64) >> 16

    def chance(self, actor: int, purpose: int, n: int, q: int) -> bool:
        """Return true with a probability of `q` in units of 2^-32."""
        return philox(self.seed, n, actor, purpose)[0] < q

    def exponential(self, actor: int, purpose: int, n: int, mean: int) -> int:
        """Return a time of that mean; -ln is interpolated in the committed table, in integers."""
        high, low = philox(self.seed, n, actor, purpose)
        u = max((high << 32 | low) >> 1, 1)
        z = 63 - u.bit_length()
        u <<= z
        i, f = u >> 54 & 0xFF, u >> 34 & 0xFFFFF
        here, there = MINUS_LN_Q40[i], MINUS_LN_Q40[i + 1]
        q = (z * LN2_Q40 + here - ((here - there) * f >> 20)) >> 10
        return ((mean >> 20) * q >> 10) + ((mean & 0xFFFFF) * q >> 30)

    def permute(self, actor: int, index: int, count: int) -> int:
        """Return the place of `index` in a random order of 0 to `count` - 1: a walking Feistel network."""
        h = 1
        while 4**h < count:
            h += 1
        mask = (1 << h) - 1
        while True:
            left, right = index >> h, index & mask
            for r in range(4):
                m = philox(self.seed, r << 32 | right, actor, GFN)[0]
                left, right = right, left ^ (m & mask)
            index = left << h | right
            if index < count:
                return index
