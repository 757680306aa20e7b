"""How many page tables a guest that has touched some of its pages has, and their bytes.

`kvmpfn.memory_ledger` counts a guest mapped whole; this is the same count for one mapped in part, at random,
and equal to it when every page was touched.
"""

from __future__ import annotations

import math
from typing import Literal

from kvmpfn.units import InputError

__all__ = ["expected_tables", "table_bytes"]

TABLE = 4096
HEADER = 184  # struct kvm_mmu_page, 64-bit v6.1 and v6.12
LEVEL = {"4k": 1, "2m": 2, "1g": 3}


def expected_tables(pages: int, touched: int, span: int) -> float:
    """Return the mean number of tables that `touched` different random pages need at one level.

    A table that covers c of P pages is there unless all n touched pages lie elsewhere, which has probability
    C(P-c, n) / C(P, n); the mean of the sum is the sum of the means, dependent or not.

    Parameters
    ----------
    pages : int
        P, pages of a region that starts at a multiple of `span`.
    touched : int
        n, different pages of it, each set of n as likely as any other.
    span : int
        Pages that one table covers: 512 for the last level, 512 times more for each above.

    Returns
    -------
    float
        Mean number of tables.

    Raises
    ------
    InputError
        More pages are touched than there are, or a number is none.

    Notes
    -----
    The occupancy problem without replacement (hypergeometric distribution).
    """
    if pages < 1 or span < 1:
        raise InputError(f"{min(pages, span)} pages; nearest is 1", "pages")
    if not 0 <= touched <= pages:
        raise InputError(f"{touched} of {pages} pages; nearest is {min(max(touched, 0), pages)}", "touched")
    whole, rest = divmod(pages, span)
    covers = [(whole, span), (int(rest > 0), rest)]
    return math.fsum(count * (1 - _untouched(pages, touched, cover)) for count, cover in covers if count)


def _untouched(pages: int, touched: int, cover: int) -> float:
    """Probability that none of `touched` of `pages` pages is among `cover` given ones."""
    if touched > pages - cover:
        return 0.0
    # C(P-c, n) / C(P, n) = (P-c)! (P-n)! / (P! (P-c-n)!)
    return math.exp(
        math.lgamma(pages - cover + 1)
        + math.lgamma(pages - touched + 1)
        - math.lgamma(pages + 1)
        - math.lgamma(pages - cover - touched + 1)
    )


def table_bytes(
    pages: int, touched: int | None = None, level: Literal["4k", "2m", "1g"] = "4k", levels: int = 4
) -> float:
    """Return the mean bytes of EPT or NPT tables and their headers, the root included.

    The sum over levels of (4096 + 184) * `expected_tables`, from the level whose entries are leaves. Mapped
    whole at 4K that is (1/512 + 1/512^2 + ...) = 1/511 of the guest's pages, plus what is begun of each.

    Parameters
    ----------
    pages : int
        4K pages of a region that starts at guest address 0 (or a multiple of what the root covers).
    touched : int, optional
        Different pages of mapping size touched at random; all if not given.
    level : {"4k", "2m", "1g"}
        Size of a mapping.
    levels : {4, 5}
        Depth of the tables.

    Returns
    -------
    float
        Bytes; a whole number if all is touched.

    Raises
    ------
    InputError
        The region is no multiple of the mapping size or more than the tables can map, or a number is none.

    Notes
    -----
    x86-64: 512 entries of 8 bytes a table. Tables stay when their entries are zapped, so this counts pages
    ever touched; splitting of huge mappings is not in it.
    """
    if level not in LEVEL:
        raise InputError(f"{level!r} is not one of {', '.join(LEVEL)}; nearest is '4k'", "level")
    if levels not in (4, 5):
        raise InputError(f"{levels} is not 4 or 5; nearest is {4 + (levels > 4)}", "levels")
    unit = 512 ** (LEVEL[level] - 1)
    if pages < unit or pages % unit or pages > 512**levels:
        near = min(max(1, round(pages / unit)) * unit, 512**levels)
        raise InputError(f"{pages} pages is no multiple of {unit}, or too much; nearest is {near}", "pages")
    leaves = pages // unit
    count = leaves if touched is None else touched
    total = math.fsum(
        max(expected_tables(leaves, count, 512**depth), float(depth == levels - LEVEL[level] + 1))
        for depth in range(1, levels - LEVEL[level] + 2)
    )
    return (TABLE + HEADER) * total
