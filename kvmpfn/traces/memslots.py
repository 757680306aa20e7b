"""Where guest memory lies in the host: the map from host addresses to gfns."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kvmpfn.units import PAGE, PAGE_SHIFT, InputError, nearest

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    Words = NDArray[np.int64]

__all__ = ["Memslots"]

FIELDS = ("gfn", "hva", "pages")
PAGES_LIMIT = 1 << 52


class Memslots:
    """The memslots of a VM, in the order of gfns.

    Parameters
    ----------
    slots : DataFrame, path-like or iterable
        A row a slot: first `gfn`, first host virtual address `hva` in bytes, and `pages` of 4 KiB. A table, a
        CSV file with these three columns (decimal, or hexadecimal with 0x), or triples.

    Raises
    ------
    InputError
        A slot is none, or two overlap in guest memory.
    """

    def __init__(self, slots: Memslots | pd.DataFrame | str | os.PathLike[str] | Iterable[Any]) -> None:
        rows = sorted(_rows(slots))
        for number, (gfn, hva, pages) in enumerate(rows):
            what = f"memslots: gfn {gfn:#x}, hva {hva:#x}, {pages} pages"
            if not (0 <= gfn < PAGES_LIMIT and 0 < pages < PAGES_LIMIT and 0 <= hva < 1 << 63):
                raise InputError(f"{what}: no memslot; nearest valid: (0x100000, 0x7f0000000000, 262144)")
            if hva % PAGE:
                raise InputError(f"{what}: hva is not the start of a page; nearest is {hva - hva % PAGE:#x}")
            if number and rows[number - 1][0] + rows[number - 1][2] > gfn:
                raise InputError(
                    f"{what}: overlaps the slot before; nearest gfn is {sum(rows[number - 1][::2]):#x}"
                )
        if not rows:
            raise InputError("memslots: none; nearest valid: (0x100000, 0x7f0000000000, 262144)")
        table = np.array(rows, dtype=np.int64)
        self.gfn, self.page, self.pages = table[:, 0], table[:, 1] >> PAGE_SHIFT, table[:, 2]

    def __repr__(self) -> str:
        return f"Memslots({self.rows()})"

    def __len__(self) -> int:
        return len(self.gfn)

    def rows(self) -> list[tuple[int, int, int]]:
        """Return gfn, hva and pages of each slot."""
        hva = (self.page << PAGE_SHIFT).tolist()
        return list(zip(self.gfn.tolist(), hva, self.pages.tolist(), strict=True))

    @property
    def total(self) -> int:
        """Pages of all slots."""
        return int(self.pages.sum())

    def gfns(self, start: NDArray[np.uint64], end: NDArray[np.uint64]) -> tuple[Words, Words]:
        """Return the first and the last gfn plus one of ranges of host addresses; -1 if none is the guest's.

        A range that meets several slots gets the smallest range of gfns with all of them in it, which is what
        KVM notes too (mmu_invalidate_range_add, virt/kvm/kvm_main.c).

        Parameters
        ----------
        start, end : ndarray of uint64
            First byte, and the byte after the last.
        """
        first = np.minimum(start >> np.uint64(PAGE_SHIFT), np.uint64(PAGES_LIMIT)).astype(np.int64)
        after = np.minimum(_pages_up(end), PAGES_LIMIT)
        low = np.full(len(start), PAGES_LIMIT << 1, dtype=np.int64)
        high = np.full(len(start), -1, dtype=np.int64)
        for gfn, page, pages in zip(self.gfn.tolist(), self.page.tolist(), self.pages.tolist(), strict=True):
            begin, stop = np.maximum(first, page), np.minimum(after, page + pages)
            meets = begin < stop
            low = np.where(meets, np.minimum(low, begin + (gfn - page)), low)
            high = np.where(meets, np.maximum(high, stop + (gfn - page)), high)
        return np.where(high < 0, -1, low), high

    def place(self, gfn: Words) -> Words:
        """Return the place of pages when all slots are put one after the other; -1 outside of them."""
        slot = np.searchsorted(self.gfn, gfn, side="right") - 1
        before = np.concatenate([[0], np.cumsum(self.pages)[:-1]])
        offset = gfn - self.gfn[slot]
        return np.where((slot >= 0) & (offset < self.pages[slot]), before[slot] + offset, -1)


def _pages_up(end: NDArray[np.uint64]) -> Words:
    """Return ends of ranges in pages, a begun one whole."""
    return (end >> np.uint64(PAGE_SHIFT)).astype(np.int64) + ((end % np.uint64(PAGE)) > 0)


def _rows(slots: Any) -> list[tuple[int, int, int]]:
    """Read slots of any form."""
    import pandas as pd

    if isinstance(slots, Memslots):
        return slots.rows()
    if isinstance(slots, str | os.PathLike):
        path = Path(slots)
        if not path.is_file():
            raise InputError(
                f"memslots: {path}: no such file; nearest valid: a CSV file of {', '.join(FIELDS)}"
            )
        try:
            slots = pd.read_csv(path, dtype=str, comment="#", skipinitialspace=True)
        except (ValueError, UnicodeDecodeError):
            raise InputError(f"memslots: {path.name}: not a CSV file of {', '.join(FIELDS)}") from None
    if isinstance(slots, pd.DataFrame):
        names = [str(name).strip() for name in slots.columns]
        for field in FIELDS:
            if field not in names:
                near = nearest(field, names) if names else "none"
                raise InputError(f"memslots: no column {field!r}; nearest is {near!r}")
        slots = slots.set_axis(names, axis=1)[list(FIELDS)].itertuples(index=False)
    rows = []
    for number, row in enumerate(slots):
        try:
            gfn, hva, pages = (int(value, 0) if isinstance(value, str) else int(value) for value in row)
        except (TypeError, ValueError):
            raise InputError(f"memslots: row {number}, {row!r}, is not gfn, hva, pages") from None
        rows.append((gfn, hva, pages))
    return rows
