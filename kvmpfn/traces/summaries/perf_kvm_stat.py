"""`perf kvm stat report` and `perf kvm stat live`: how many exits of each kind, and how long they took.

The text is print_result's of tools/perf/builtin-kvm.c: a line that says of whom, a header, a row an exit, a
foot. Older versions have no columns of least and greatest times. Live mode prints the time of day and a
table, again and again.
"""

from __future__ import annotations

import re

from kvmpfn.traces.summaries.counters import DECIMAL, NUMBER, Table, picoseconds
from kvmpfn.traces.summaries.reader import Reader

_OF = re.compile(r"Analyze events for (?:(.*), )?(all VCPUs|VCPU (\d{1,6})):|(?:# )?(VCPU (\d{1,6})):")
_HEAD = re.compile(r"(.*?)\s*Samples\s+Samples%\s+Time%(?:\s+Min Time\s+Max Time)?\s+Avg time")
_ROW = re.compile(
    rf"(\S+)\s+({NUMBER})\s+({DECIMAL})%\s+({DECIMAL})%\s+(?:({DECIMAL})us\s+({DECIMAL})us\s+)?({DECIMAL})us"
    rf"\s*\(\s*\+-\s*({DECIMAL}|-?nan)%\s*\)"
)
_CUT = re.compile(rf"\S+\s+{NUMBER}\s+{DECIMAL}%.*")
_FOOT = re.compile(rf"Total Samples:({NUMBER}), Total events handled time:({DECIMAL})us\.?")
_LOST = re.compile(rf"Lost events: ({NUMBER})")
_CLOCK = re.compile(r"\d\d:\d\d:\d\d\.\d{6}")
_LONG = re.compile(rf"{NUMBER} VM -?\d+, vcpu -?\d+: \S+ event took {NUMBER}usec")


class PerfKvmStat(Reader):
    """Reads the tables of `perf kvm stat`."""

    source = "perf kvm stat"

    def __init__(self, tables: list[Table]) -> None:
        super().__init__(tables)
        self._scope = "all"
        self._of = ""
        self._clock = ""

    def take(self, line: str) -> bool | str:
        """Read a line."""
        if row := _ROW.fullmatch(line):
            self._row(*row.groups())
        elif of := _OF.fullmatch(line):
            vcpu = of[3] or of[5]
            self._scope = f"vcpu{int(vcpu)}" if vcpu else "all"
            self._of = ", ".join(part for part in (of[1], of[2] or of[4]) if part)
            self.table = None
        elif head := _HEAD.fullmatch(line):
            self._begin().facts["events"] = head[1]
        elif foot := _FOOT.fullmatch(line):
            self._close(self.table or self._begin(), int(foot[1]), picoseconds(foot[2], "us"))
        elif lost := _LOST.fullmatch(line):
            self.lost += int(lost[1])
        elif _CLOCK.fullmatch(line):
            self._clock = line
        elif _LONG.fullmatch(line):
            return "an exit longer than asked for"
        elif _CUT.fullmatch(line):
            return "row cut short"
        else:
            return False
        return True

    def _begin(self) -> Table:
        table = self.begin(self._clock)
        if self._of:
            table.facts["of"] = self._of
        self._of = self._clock = ""
        return table

    def _row(
        self, name: str, samples: str, share: str, time: str, low: str, high: str, mean: str, spread: str
    ) -> None:
        table, scope = self.table or self._begin(), self._scope
        table.add(scope, name, "samples", int(samples))
        table.add(scope, name, "samples_share", float(share), "%")
        table.add(scope, name, "time_share", float(time), "%")
        for measure, text in (("min", low), ("max", high), ("mean", mean)):
            if text:
                table.add(scope, name, measure, picoseconds(text, "us"), "ps")
        if "nan" not in spread:
            table.add(scope, name, "mean_error", float(spread), "%")

    def _close(self, table: Table, samples: int, time: int) -> None:
        """End a table with its own sums."""
        table.totals |= {"samples": samples, "time": time}
        rows = sum(int(one.value) for one in table.values if one.measure == "samples")
        if rows != samples:
            self.warnings.append(f"{self.source}: rows add up to {rows:,d} of {samples:,d} samples")
        self.table = None
