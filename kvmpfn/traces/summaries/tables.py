"""Summaries of faults and exits, whatever tool printed them: one reader, which looks at the content.

Each line is offered to the readers of `READERS` in turn. What mail and terminals do to text is undone where
it makes the difference: quoting, kselftest's ``#``, escape sequences, quoted-printable, and a line that was
wrapped in two. Every line is either used or counted as skipped, by reason.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

from kvmpfn.traces.lines import LONG, Lines, unescape
from kvmpfn.traces.summaries.binary_stats import is_binary, read_binary
from kvmpfn.traces.summaries.counters import Counters, Table
from kvmpfn.traces.summaries.kvm_counters import Debugfs, QemuStats, Recorder
from kvmpfn.traces.summaries.kvm_stat import KvmStat
from kvmpfn.traces.summaries.perf_kvm_stat import PerfKvmStat
from kvmpfn.traces.summaries.reader import Reader
from kvmpfn.traces.summaries.selftest_output import SelftestOutput
from kvmpfn.units import InputError

READERS = (Recorder, PerfKvmStat, SelftestOutput, QemuStats, Debugfs, KvmStat)

HEAD = 1 << 16
MOST_BINARY = 1 << 26
CUT = ("packed file that ends too early",)

_KERNEL = re.compile(r"(?:Linux version|os release :|Linux \S+) (\d{1,3}\.\d{1,3}[\w.+-]{0,64}).*")


def read_counters(path: str | os.PathLike[str], *, progress: bool | None = False) -> Counters:
    """Read a summary: tables of `perf kvm stat`, `kvm_stat`, KVM's statistics, or output of its selftests.

    Parameters
    ----------
    path : path-like
        Text, plain or packed by gzip, xz or zstd, or a binary statistics file. Its name does not matter.
    progress : bool, optional
        Whether a bar shows how far the file is read; None: if a terminal looks.

    Returns
    -------
    Counters
        The tables, and what became of each line.

    Raises
    ------
    InputError
        The file cannot be read, or there is no summary in it.
    """
    file = Path(path)
    if data := _binary_data(file):
        return _binary(file.name, data)
    found = _text(file.name, Lines(file, progress))
    if not any(table.values or table.totals for table in found.tables) and not found.config:
        raise InputError(
            f"{file.name}: no summary in {found.lines:,d} lines; nearest valid: output of perf kvm stat, "
            "kvm_stat, KVM's statistics or selftests"
        )
    return found


def _binary_data(file: Path) -> bytes:
    """Return the bytes of a binary statistics file; of another file, none."""
    if not file.is_file():
        return b""
    with file.open("rb") as stream:
        head = stream.read(HEAD)
        return head + stream.read(MOST_BINARY) if is_binary(head) else b""


def _binary(name: str, data: bytes) -> Counters:
    """Read a binary statistics file."""
    table, count, skipped = read_binary(data)
    used = count - sum(skipped.values())
    return Counters(name, (table,), count, used, dict(skipped), 0, "", ())


def _text(name: str, texts: Lines) -> Counters:
    """Read lines of text."""
    tables: list[Table] = []
    readers: list[Reader] = [reader(tables) for reader in READERS]
    skipped: Counter[str] = Counter()
    lines = used = 0
    kernel = pending = why = ""
    for text in texts:
        lines += 1
        if text.startswith("#"):
            text = text[1:].lstrip()
        taken: bool | str = _offer(readers, text) if text else "blank"
        if taken is not True and text and pending:
            # The line before meant nothing by itself: mail may have wrapped one line in two.
            whole = pending[:-1] + text if pending.endswith("=") else f"{pending} {text}"
            if _offer(readers, whole) is True:
                taken, pending = True, ""
                used += 1
        if pending:
            skipped[why] += 1
        pending = ""
        if taken is True:
            used += 1
        elif not text:
            skipped["blank"] += 1
        else:
            pending, why = text, taken or "not understood"
            if not kernel and (found := _KERNEL.fullmatch(text)):
                kernel, why = found[1], "tells the kernel"
    if pending:
        skipped[why] += 1
    for reader in readers:
        reader.finish()
    return Counters(
        name,
        tuple(table for table in tables if table.values or table.totals or table.facts),
        lines,
        used,
        dict(skipped),
        sum(reader.lost for reader in readers),
        kernel,
        tuple(warning for reader in readers for warning in reader.warnings) + CUT * texts.cut,
    )


def _offer(readers: list[Reader], line: str) -> bool | str:
    """Offer a line to each reader until it is one's; only logs have long lines."""
    if len(line) > LONG:
        return next(reader for reader in readers if isinstance(reader, KvmStat)).log(line)
    for reader in readers:
        if taken := reader.take(line):
            return taken
    if (decoded := unescape(line)) != line:
        plain = decoded.strip()
        for reader in readers:
            if taken := reader.take(plain):
                return taken
    return False
