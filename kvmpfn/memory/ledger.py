"""What a ledger is: rows of bytes that add up, each with its formula."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["GIB", "Entry", "Ledger"]

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Entry:
    """One structure's bytes.

    Attributes
    ----------
    name : str
        The structure.
    bytes : int
        Its size for the whole guest.
    formula : str
        How the size follows, with the numbers in place.
    source : str
        Where the factors come from.
    """

    name: str
    bytes: int
    formula: str
    source: str


@dataclass(frozen=True, slots=True)
class Ledger:
    """All structures that one guest's memory needs beside the memory itself.

    Attributes
    ----------
    guest_bytes : int
        Guest memory.
    backing_bytes : int
        Memory of the host, or of a device, that holds the guest's pages: `guest_bytes`, less where pages are
        shared, and 0 where the host's zero page stands for all.
    rows : tuple of Entry
        One entry a structure; structures that do not exist in the configuration have 0 bytes.
    """

    guest_bytes: int
    backing_bytes: int
    rows: tuple[Entry, ...]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.rows)

    def __getitem__(self, name: str) -> int:
        """Bytes of the structure called `name`."""
        for row in self.rows:
            if row.name == name:
                return row.bytes
        raise KeyError(f"no structure {name!r}; there are: {', '.join(row.name for row in self.rows)}")

    @property
    def total(self) -> int:
        """Bytes of all structures together."""
        return sum(row.bytes for row in self.rows)

    @property
    def per_gib(self) -> float:
        """Bytes of all structures for each GiB of guest memory."""
        return self.total * GIB / self.guest_bytes

    @property
    def frame(self) -> pd.DataFrame:
        """The ledger as a table, indexed by structure; units are in ``.attrs["units"]``."""
        import pandas as pd

        frame = pd.DataFrame(
            {
                "bytes": [row.bytes for row in self.rows],
                "bytes_per_gib": [row.bytes * GIB / self.guest_bytes for row in self.rows],
                "percent": [100 * row.bytes / self.guest_bytes for row in self.rows],
                "formula": [row.formula for row in self.rows],
                "source": [row.source for row in self.rows],
            },
            index=pd.Index([row.name for row in self.rows], name="structure"),
        )
        frame.attrs["units"] = {"bytes": "B", "bytes_per_gib": "B/GiB", "percent": "% of guest memory"}
        return frame

    def __repr__(self) -> str:
        rows = "".join(f"\n  {row.name:28s} {row.bytes:>16,d}  {row.formula}" for row in self.rows)
        share = 100 * self.total / self.guest_bytes
        total = f"\n  {'total':28s} {self.total:>16,d}  {share:.4f} %"
        held = f", held in {self.backing_bytes:,d}" if self.backing_bytes != self.guest_bytes else ""
        return f"Ledger of {self.guest_bytes:,d} bytes of guest memory{held}{rows}{total}"

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td>{escape(row.name)}</td><td style='text-align:right'>{row.bytes:,d}</td>"
            f"<td>{escape(row.formula)}</td></tr>"
            for row in self.rows
        )
        return (
            "<table><thead><tr><th>structure</th><th>bytes</th><th>formula</th></tr></thead>"
            f"<tbody>{cells}<tr><th>total</th><th style='text-align:right'>{self.total:,d}</th>"
            f"<th>{100 * self.total / self.guest_bytes:.4f} % of guest memory</th></tr></tbody></table>"
        )
