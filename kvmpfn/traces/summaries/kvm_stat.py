"""`kvm_stat`: counts of KVM's events since the tool was started, or of each interval.

The forms are those of tools/kvm/kvm_stat: a screen (``Event Total %Total CurAvg/s``; the oldest have a total
and a rate only), the batch form (``-1``: a total and what the last second added) and the log (``-l``, ``-c``,
``-L``: names once, then a line an interval). Events with an exit reason in parentheses are part of the event
they are named after. With ``-d``, counters of debugfs stand in place of events.
"""

from __future__ import annotations

import re

from kvmpfn.traces.summaries.counters import NUMBER, STATISTICS, Table
from kvmpfn.traces.summaries.reader import Reader

_EVENT = r"[a-z][a-z0-9_]*(?:\([A-Za-z0-9_]+\))?"
_TITLE = re.compile(r"kvm statistics(?: - (summary|pid (\d{1,10})(?: \((.*)\))?))?(?:\s+Guest is DEAD)?")
_HEAD = re.compile(r"(Event|Guest Name)\s+Total(?:\s+%Total)?\s+(?:CurAvg/s|Current)|(?:regex filter: .*)")
# A stray capital is what is left of a terminal's escape sequence.
_ROW = re.compile(rf"({_EVENT})(?:\s+[A-Z])?\s+({NUMBER})(?:\s+({NUMBER}\.\d))?(?:\s+({NUMBER}))?")
_TOTAL = re.compile(rf"Total\s+({NUMBER})(?:\s+({NUMBER}))?")
_GUEST = re.compile(rf"(\S.*?)\s+({NUMBER})\s+({NUMBER}\.\d)(?:\s+({NUMBER}))?")
_NAMES = re.compile(rf"(?:timestamp,)?{_EVENT}(?:[ ,]+{_EVENT})*")
_LINE = re.compile(rf"(\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d)?[ ,]*(-?{NUMBER}(?:[ ,]+-?{NUMBER})*)")
_NOTHING = ("Collecting data...", "No matching events reported yet", "Guest removed, updating...")


class KvmStat(Reader):
    """Reads the screens and logs of `kvm_stat`."""

    source = "kvm_stat"

    def __init__(self, tables: list[Table]) -> None:
        super().__init__(tables)
        self._scope = "all"
        self._guests = False
        self._names: list[str] = []

    def take(self, line: str) -> bool | str:
        """Read a line."""
        if title := _TITLE.fullmatch(line):
            self._scope = f"pid {int(title[2])}" if title[2] else "all"
            self._guests = False
            self.begin().facts["of"] = title[3] or title[1] or "all"
        elif head := _HEAD.fullmatch(line):
            if self.table is None or self.table.values:
                self.begin()
            self._guests = head[1] == "Guest Name"
        elif logged := self.log(line):
            return logged
        elif self.table and (total := _TOTAL.fullmatch(line)):
            self._total(self.table, int(total[1]), total[2])
        elif (row := _ROW.fullmatch(line)) and self._is_row(row):
            self._row(row[1], int(row[2]), row[3], row[4])
        elif self._guests and (guest := _GUEST.fullmatch(line)):
            self._row(guest[1], int(guest[2]), guest[3], guest[4])
        elif self.table and line in _NOTHING:
            return "nothing counted"
        else:
            return False
        return True

    def log(self, line: str) -> bool | str:
        """Read a line of a log."""
        return (self._line(line) if self._names else False) or self._banner(line)

    def _is_row(self, row: re.Match[str]) -> bool:
        """Say whether a name with numbers is a row: in a table, or in the batch form, which has no header."""
        alone = row[1].startswith("kvm_") or row[1] in STATISTICS
        return (row[3] or row[4]) is not None and (self.table is not None or alone)

    def _row(self, name: str, total: int, share: str | None, rate: str | None) -> None:
        table = self.table
        if table is None or table.totals or (self._scope, name) in table.read:
            table = self.begin()
        table.add(self._scope, name, "count", total)
        if share is not None:
            table.add(self._scope, name, "share", float(share), "%")
        if rate is not None:
            table.add(self._scope, name, "rate", int(rate), "1/s")

    def _total(self, table: Table, total: int, rate: str | None) -> None:
        """End a table with its own sums."""
        table.totals["count"] = total
        if rate is not None:
            table.totals["rate"] = int(rate)
        rows = sum(int(one.value) for one in table.values if one.measure == "count" and "(" not in one.name)
        if rows != total:
            self.warnings.append(f"{self.source}: rows add up to {rows:,d} of {total:,d} events")

    def _banner(self, line: str) -> bool:
        """Read the names of a log; at least half of them are of KVM, unlike words of prose."""
        if not _NAMES.fullmatch(line):
            return False
        names = line.removeprefix("timestamp,").replace(",", " ").split()
        known = sum(name in STATISTICS or name.startswith("kvm_") for name in names)
        if 2 * known < len(names):
            return False
        self._names = names
        self.table = None
        return True

    def _line(self, line: str) -> bool | str:
        """Read an interval of a log."""
        found = _LINE.fullmatch(line)
        if found is None:
            return False
        values = found[2].replace(",", " ").split()
        if len(values) != len(self._names):
            return "interval cut short"
        table = Table(self.source, found[1] or "")
        self._tables.append(table)
        for name, value in zip(self._names, values, strict=True):
            table.add("all", name, "delta", int(value))
        return True
