"""What remembering that a mapping's page is reference counted would cost, in one place or another."""

from __future__ import annotations

from dataclasses import dataclass

from kvmpfn.memory.structures import SPAN, bitmap
from kvmpfn.units import InputError, parse_size

__all__ = ["Alternative", "reference_alternatives"]

LINE = 64


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way to know, when a page is zapped, whether its mapping had a usable reference count.

    Attributes
    ----------
    name : str
        Where the fact is kept.
    bytes : int
        Memory it needs for the whole guest.
    lines_per_page : int
        64-byte lines that zapping one 4K page touches because of it.
    lines_per_2m : int
        The same for 512 neighbouring 4K pages.
    formula : str
        How the size follows.
    source : str
        Where the factors come from.
    """

    name: str
    bytes: int
    lines_per_page: int
    lines_per_2m: int
    formula: str
    source: str


def reference_alternatives(guest_bytes: int | str) -> tuple[Alternative, ...]:
    """Compare the ways to record, for each 4K mapping, that its page is reference counted.

    Parameters
    ----------
    guest_bytes : int or str
        Guest memory mapped at 4K; ``"16GiB"`` is understood.

    Returns
    -------
    tuple of Alternative
        The software bit in the entry itself, a bitmap beside the table, and asking the struct page.

    Raises
    ------
    InputError
        The memory is no multiple of a page.
    """
    size = parse_size(guest_bytes) if isinstance(guest_bytes, str) else guest_bytes
    if size < SPAN["4k"] or size % SPAN["4k"]:
        near = max(1, round(size / SPAN["4k"])) * SPAN["4k"]
        raise InputError(f"{size} is not a positive multiple of 4096; nearest is {near}", "guest_bytes")
    pages = size // SPAN["4k"]
    per_table = SPAN["2m"] // SPAN["4k"]
    return (
        Alternative(
            "SPTE bit",
            0,
            0,
            0,
            "bit 59 of an entry that exists anyway, read by the zap in any case",
            "LKML v7 to v11 of the series: a software-available bit of 64-bit EPT and NPT entries",
        ),
        Alternative(
            "side bitmap",
            bitmap(pages),
            1,
            per_table // (8 * LINE),
            f"1 bit for each of {pages:,d} pages, in 8-byte words",
            "derived: as KVM's dirty bitmap, with 512 pages a line",
        ),
        Alternative(
            "struct page lookup",
            0,
            1,
            per_table,
            "nothing stored: the zap reads one 64-byte struct page for each page",
            "include/linux/mm_types.h: one line a page; impossible where there is no struct page",
        ),
    )
