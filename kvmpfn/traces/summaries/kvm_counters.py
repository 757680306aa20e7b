"""KVM's own statistics as text: debugfs, QEMU's monitor, and this project's recorder.

* debugfs: ``grep . /sys/kernel/debug/kvm/*/*`` (a folder a VM, ``PID-FD``, and in it ``vcpuN``), ``head`` or
  ``tail`` of several files (``==> pf_fixed <==``), plain ``pf_fixed 123``, and differences that somebody took
  (``diff=123``);
* QEMU: ``info stats vm`` and ``info stats vcpu`` (stats/stats-hmp-cmds.c), which show the binary statistics;
* the recorder of data/recordings: ``CONFIG``, ``STAT RUN before|after WHO NAME VALUE``, ``RESULT``.

A name that comes again begins another dump.
"""

from __future__ import annotations

import re

from kvmpfn.traces.summaries.counters import NUMBER, READING, STATISTICS, Table
from kvmpfn.traces.summaries.reader import Reader

_NAME = r"[a-z][a-z0-9_-]{1,63}"
_PATH = rf"((?:\S*/)?kvm/|\./)?((?:\d{{1,10}}-\d{{1,10}}/)?(?:vcpu\d{{1,5}}/)?)({_NAME})"
_LINE = re.compile(rf"{_PATH}(?:\s*[:=]\s*|\s+)(diff=)?(-?{NUMBER})")
_FILE = re.compile(rf"==> {_PATH} <==")
_ALONE = re.compile(rf"-?{NUMBER}")

_PROVIDER = re.compile(r"provider: (\w+)")
_PROMPT = re.compile(r"\(qemu\) (?:cpu (\d{1,5})|info stats.*)")
_QEMU = re.compile(
    rf"({_NAME}) \((?:cumulative|instant|peak|linear-histogram|log2-histogram)(?:, ([^,()]+))?"
    rf"(?:, bucket size={NUMBER})?\): (?:(-?{NUMBER})|(yes|no)|((?:\[\d{{1,4}}\]=-?{NUMBER} ?)+))"
)
_BUCKET = re.compile(rf"\[(\d{{1,4}})\]=(-?{NUMBER})")
_OF_THE_VM = re.compile(r"remote_|mmu_|pages_|nx_|max_|lpages")

_STAT = re.compile(rf"STAT (\S+) (before|after) (vm|vcpu\d{{1,5}}) (\w{{1,64}}) ({NUMBER})")
_RUN = re.compile(r"(CONFIG|RESULT|VCPU) (\S+) (.+)")
_VERIFY = re.compile(rf"VERIFY (\S+) bad_pages=({NUMBER}) of {NUMBER}")
_LOST = re.compile(rf"lost ({NUMBER})")
_WHOLE = re.compile(NUMBER)

SECONDS = {"ns": 10**3, "us": 10**6, "μs": 10**6, "ms": 10**9, "s": 10**12, "seconds": 10**12}
BYTES = {"B": 1, "bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class Debugfs(Reader):
    """Reads KVM's statistics as debugfs has them."""

    source = "debugfs"

    def __init__(self, tables: list[Table]) -> None:
        super().__init__(tables)
        self._file: tuple[str, str] | None = None
        self._listing = False

    def take(self, line: str) -> bool | str:
        """Read a line; within a listing any compound is taken for a name."""
        file, self._file = self._file, None
        listing, self._listing = self._listing, True
        if file and _ALONE.fullmatch(line):
            self._value(*file, READING, int(line))
            return True
        if found := _FILE.fullmatch(line):
            self._file = found[2].rstrip("/") or "all", found[3]
            return True
        found = _LINE.fullmatch(line)
        listed = found is not None and listing and "_" in found[3]
        if found and (listed or found[1] or found[2] or found[3] in STATISTICS):
            if found[3].startswith(("pid", "tsc-", "lapic_timer")):
                return "not a counter"
            measure = "delta" if found[4] else READING
            self._value(found[2].rstrip("/") or "all", found[3], measure, int(found[5]))
            return True
        self._listing = False
        return False

    def _value(self, scope: str, name: str, measure: str, value: int) -> None:
        table = self.table
        if table is None or (scope, name) in table.read:
            table = self.begin()
        table.add(scope, name, measure, value)


class QemuStats(Reader):
    """Reads the binary statistics as QEMU's monitor prints them; histograms a bucket a value."""

    source = "QEMU info stats"

    def __init__(self, tables: list[Table]) -> None:
        super().__init__(tables)
        self._vcpu = "vcpu"

    def take(self, line: str) -> bool | str:
        """Read a line; the monitor does not say of which vCPU, but the prompt before may."""
        if provider := _PROVIDER.fullmatch(line):
            self.begin(provider=provider[1])
        elif prompt := _PROMPT.fullmatch(line):
            self._vcpu = f"vcpu{int(prompt[1])}" if prompt[1] else self._vcpu
            self.table = None
        elif found := _QEMU.fullmatch(line):
            name, unit, number, word, buckets = found.groups()
            scope = "vm" if _OF_THE_VM.match(name) else self._vcpu
            if self.table is None or (scope, name) in self.table.read:
                self.begin()
            for measure, value in _BUCKET.findall(buckets) if buckets else [("", number or word)]:
                self._value(scope, name, measure, value, unit or "")
        else:
            return False
        return True

    def _value(self, scope: str, name: str, bucket: str, text: str, unit: str) -> None:
        assert self.table is not None
        if bucket:
            self.table.add(scope, name, f"bucket {bucket}", int(text))
            return
        value = int(text == "yes") if text in ("yes", "no") else int(text)
        if unit in SECONDS:
            value, unit = value * SECONDS[unit], "ps"
        elif unit in BYTES:
            value, unit = value * BYTES[unit], "B"
        self.table.add(scope, name, READING, value, unit if unit not in ("", "boolean") else "1")


class Recorder(Reader):
    """Reads the text files of data/recordings: two tables a run, before and after.

    Statistics that are zero have no line: what only one of the tables has is 0 in the other.
    """

    source = "recorder"

    def __init__(self, tables: list[Table]) -> None:
        super().__init__(tables)
        self._runs: dict[str, tuple[Table, Table]] = {}

    def take(self, line: str) -> bool | str:
        """Read a line."""
        if stat := _STAT.fullmatch(line):
            table = self._run(stat[1])[stat[2] == "after"]
            table.add(stat[3], stat[4], READING, int(stat[5]))
        elif run := _RUN.fullmatch(line):
            self._words(run[1], *self._run(run[2]), run[3].split())
        elif verify := _VERIFY.fullmatch(line):
            self._run(verify[1])[1].facts["bad_pages"] = verify[2]
        elif self._runs and (lost := _LOST.fullmatch(line)):
            self.lost += int(lost[1])
        else:
            return False
        return True

    def finish(self) -> None:
        """Fill in the zeros."""
        for pair in self._runs.values():
            for table, other in (pair, pair[::-1]):
                named = {(one.scope, one.name) for one in table.values if one.measure == READING}
                for scope, name, measure, _, unit in list(other.values):
                    if measure == READING and (scope, name) not in named:
                        table.add(scope, name, READING, 0, unit)

    def _run(self, run: str) -> tuple[Table, Table]:
        """Return both tables of a run."""
        if run not in self._runs:
            self._runs[run] = self.begin("before", run=run), self.begin("after")
        return self._runs[run]

    def _words(self, kind: str, before: Table, after: Table, words: list[str]) -> None:
        """Read words of the form key=value; one alone is an option that is set."""
        if kind == "CONFIG":
            before.facts |= {key: value or "1" for key, _, value in (word.partition("=") for word in words)}
            return
        scope = f"vcpu{words[0]}" if kind == "VCPU" else "vm"
        for key, _, value in (word.partition("=") for word in words):
            if _WHOLE.fullmatch(value):
                time = key == "ns" or "_ns" in key
                after.add(scope, key, "result", int(value) * (1000 if time else 1), "ps" if time else "1")
