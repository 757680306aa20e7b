"""Which page each access of a phase touches, and how many there are (docs/model.md 12)."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

from oracle import zipf
from oracle.draws import CHOICE, GFN, Draws

IMAGE = 2047  # the actor number whose permutation orders every VM's image
PAGE = 4096


class Who(NamedTuple):
    """A vCPU: actor `number`, the `index`-th of `vcpus` in a VM of `pages` pages."""

    number: int
    index: int
    vcpus: int
    pages: int
    draws: Draws

    def part(self, count: int) -> tuple[int, int]:
        """Return the first of the things that are its share of `count`, and how many they are."""
        first = self.index * count // self.vcpus
        return first, (self.index + 1) * count // self.vcpus - first

    def own(self, share: str) -> tuple[int, int]:
        """Return the first of its pages, and how many they are."""
        return self.part(self.pages) if share == "partitioned" else (0, self.pages)

    def below(self, n: int, bound: int) -> int:
        return self.draws.below(self.number, GFN, n, bound)

    def shared_order(self, order: str, index: int) -> int:
        """Return a page by its place in the order that all VMs have."""
        return self.draws.permute(IMAGE, index, self.pages) if order == "random" else index


class Pages(NamedTuple):
    """How many accesses there are (None: no end), and the page of access `n`, the phase's `m`-th."""

    end: int | None
    page: Callable[[int, int], int]


def demand_paging(phase: Any, who: Who) -> Pages:
    base, count = who.own(phase.share)

    def page(n: int, m: int) -> int:
        place = m % count
        return base + (who.draws.permute(who.number, place, count) if phase.order == "random" else place)

    return Pages(phase.passes * count, page)


def strided(phase: Any, who: Who) -> Pages:
    base, count = who.own(phase.share)
    end = phase.passes * count if phase.accesses is None else phase.accesses
    return Pages(end if count else 0, lambda n, m: base + lane(m % count, count, phase.stride_pages))


def lane(j: int, count: int, stride: int) -> int:
    """Return the j-th page in strides: lane after lane, of which the first have one page more."""
    q, e = divmod(count, stride)
    if j < e * (q + 1):
        return j // (q + 1) + stride * (j % (q + 1))
    k = j - e * (q + 1)
    return e + k // q + stride * (k % q)


def uniform(phase: Any, who: Who) -> Pages:
    return Pages(phase.accesses, lambda n, m: who.below(n, who.pages))


def zipf_law(phase: Any, who: Who) -> Pages:
    table = zipf.table(phase.exponent, who.pages)

    def page(n: int, m: int) -> int:
        number, fraction = who.draws.split(who.number, CHOICE, n, len(table))
        if fraction >= table[number].threshold:
            number = table[number].alias
        first, size = table[number].first, table[number].size
        return who.shared_order(phase.order, first + (who.below(n, size) if size > 1 else 0))

    return Pages(phase.accesses, page)


def hot_cold(phase: Any, who: Who) -> Pages:
    total = who.pages
    window = max(1, int(Fraction(repr(phase.hot_memory)) * total))
    share = int(phase.hot_accesses * (1 << 32))

    def page(n: int, m: int) -> int:
        start = m // phase.drift_every * phase.drift_pages % total
        if window == total or who.draws.chance(who.number, CHOICE, n, share):
            return (start + who.below(n, window)) % total
        return (start + window + who.below(n, total - window)) % total

    return Pages(phase.accesses, page)


def pointer_chase(phase: Any, who: Who) -> Pages:
    footprint = who.pages if phase.footprint_bytes is None else phase.footprint_bytes // PAGE
    first, _ = who.part(footprint)
    return Pages(phase.accesses, lambda n, m: who.draws.permute(IMAGE, (first + m) % footprint, footprint))


def snapshot_restore(phase: Any, who: Who) -> Pages:
    first, count = who.part(phase.working_set_pages)
    return Pages(count, lambda n, m: who.shared_order(phase.order, (first + m) % who.pages))


def replay(phase: Any, who: Who) -> Pages:
    rows = phase.vcpus[who.index]
    return Pages(len(rows), lambda n, m: rows[m][0])


KINDS = {
    "demand_paging": demand_paging,
    "strided": strided,
    "uniform": uniform,
    "zipf": zipf_law,
    "hot_cold": hot_cold,
    "pointer_chase": pointer_chase,
    "snapshot_restore": snapshot_restore,
    "replay": replay,
}
