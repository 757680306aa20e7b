"""The form that all readers of summaries have: they are offered each line, and say what it was to them."""

from __future__ import annotations

from abc import ABC, abstractmethod

from kvmpfn.traces.summaries.counters import Table


class Reader(ABC):
    """Reads one tool's output, line by line.

    Parameters
    ----------
    tables : list of Table
        Where tables go; readers of one file share it, so that they stay in the file's order.

    Attributes
    ----------
    source : str
        The tool.
    lost : int
        Events that the tool says it lost.
    warnings : list of str
        What does not add up.
    """

    source: str

    def __init__(self, tables: list[Table]) -> None:
        self._tables = tables
        self.table: Table | None = None
        self.lost = 0
        self.warnings: list[str] = []

    def begin(self, label: str = "", **facts: str) -> Table:
        """Begin a table."""
        self.table = Table(self.source, label, facts)
        self._tables.append(self.table)
        return self.table

    @abstractmethod
    def take(self, line: str) -> bool | str:
        """Read a line, without blanks at its ends.

        Returns
        -------
        bool or str
            True if it was used; False if it means nothing to this reader; else why it was not used, though
            it is this tool's.
        """

    def finish(self) -> None:  # noqa: B027
        """Settle what only the end of the file tells."""
