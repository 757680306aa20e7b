"""ftrace text, line by line, into arrays: one pass, one pattern a line, no line kept.

A line is ``COMM-PID [TGID] [CPU] FLAGS SEC.FRACTION: EVENT: FIELDS``. COMM is free text with blanks and
dashes in it, so PID is what stands before ``[CPU]``; TGID and FLAGS may be missing.
"""

from __future__ import annotations

import gzip
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from kvmpfn.traces.records import ABSENT, CODE, COLUMNS, EVENT_FIELDS, EVENTS, Records
from kvmpfn.units import InputError

_LINE = re.compile(
    r"\s*(.*?)-(\d+)\s+(?:\(\s*[\d-]+\)\s+)?\[(\d+)\]\s+(?:[^\s:]{4,7}\s+)?(\d+)\.(\d+):\s(?:\w+:)?(\w+):\s*(.*)"
)
_TICKS = re.compile(r".*?-\d+\s+(?:\(\s*[\d-]+\)\s+)?\[\d+\]\s+(?:[^\s:]{4,7}\s+)?\d+:\s\w+:")
_LOST = re.compile(r"CPU:\d+ \[(?:LOST )?(?:(\d+) )?EVENTS(?: DROPPED)?\]")
_BUFFER = re.compile(r"# entries-in-buffer/entries-written: (\d+)/(\d+)")

_RET = re.compile(r"(?:\(.*\)\s*)?ret=(-?\w+)")
_RANGE = re.compile(r"(?:.*: )?(\w+) -- (\w+)")
_PATTERNS: dict[str, tuple[re.Pattern[str], tuple[int, ...]]] = {
    "kvm_page_fault": (
        re.compile(
            r"(?:vcpu (\d+) )?(?:rip (?:0x)?([\da-f]+) )?address (?:0x)?([\da-f]+) "
            r"error_code (?:0x)?([\da-f]+)"
        ),
        (10, 16, 16, 16),
    ),
    "fast_page_fault": (
        re.compile(r"vcpu (\d+) gva ([\da-f]+) .* spurious (\d) fixed (\d)"),
        (10, 16, 10, 10),
    ),
    "kvm_mmu_spte_requested": (re.compile(r"gfn ([\da-f]+) pfn ([\da-f]+) level (\d)"), (16, 16, 10)),
    "kvm_mmu_set_spte": (re.compile(r"gfn ([\da-f]+) spte ([\da-f]+) \(.*\) level (\d)"), (16, 16, 10)),
    "kvm_tdp_mmu_spte_changed": (
        re.compile(r"(?:as id \d+ )?gfn ([\da-f]+) level (\d) old_spte ([\da-f]+) new_spte ([\da-f]+)"),
        (16, 10, 16, 16),
    ),
    "mark_mmio_spte": (re.compile(r".*\bgfn ([\da-f]+)"), (16,)),
    "kvm_entry": (re.compile(r"vcpu (\d+)"), (10,)),
    "kvm_unmap_hva_range": (_RANGE, (16, 16)),
    "kvm_age_hva": (_RANGE, (16, 16)),
    "kvm_exit": (re.compile(r"$^"), ()),
    **{name: (_RET, (0,)) for name, fields in EVENT_FIELDS.items() if fields == ("ret",)},
}


@dataclass
class Lines:
    """Columns that grow by a line."""

    time_ps: array[int] = field(default_factory=lambda: array("q"))
    pid: array[int] = field(default_factory=lambda: array("q"))
    cpu: array[int] = field(default_factory=lambda: array("i"))
    event: array[int] = field(default_factory=lambda: array("B"))
    a: array[int] = field(default_factory=lambda: array("Q"))
    b: array[int] = field(default_factory=lambda: array("Q"))
    c: array[int] = field(default_factory=lambda: array("Q"))
    d: array[int] = field(default_factory=lambda: array("Q"))
    tasks: dict[int, str] = field(default_factory=dict)
    marks: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    lost_unknown: int = 0


def read_records(path: str | os.PathLike[str]) -> Records:
    """Read the events of one recording, plain text or gzip.

    Lines that are no event, events that are not used and fields in an unknown form are counted by reason.
    """
    lines = Lines()
    with _open(Path(path)) as stream:
        _consume(stream, Path(path).name, lines)
    parts: Any = {
        name: np.frombuffer(getattr(lines, name), kind).copy() if lines.event else np.zeros(0, kind)
        for name, kind in COLUMNS.items()
    }
    return Records(
        **parts,
        tasks=lines.tasks,
        marks=lines.marks,
        lines=len(lines.event) + lines.skipped.total(),
        skipped=lines.skipped,
        lost=lines.lost,
        lost_unknown=lines.lost_unknown,
    )


def _open(path: Path) -> IO[str]:
    """Open a recording as text, unpacking it if it is gzip."""
    with path.open("rb") as probe:
        packed = probe.read(2) == b"\x1f\x8b"
    if packed:
        return cast(IO[str], gzip.open(path, "rt", encoding="utf-8", errors="replace"))
    return path.open(encoding="utf-8", errors="replace")


def _consume(stream: Iterator[str], name: str, lines: Lines) -> None:
    """Parse all lines of a stream; the loop is flat because it runs for each of them."""
    match_line, codes = _LINE.match, CODE
    readers = [_PATTERNS.get(event) for event in EVENTS]
    times, pids, cpus, events = lines.time_ps, lines.pid, lines.cpu, lines.event
    columns = lines.a, lines.b, lines.c, lines.d
    tasks, skipped = lines.tasks, lines.skipped
    for text in stream:
        found = match_line(text)
        if found is None:
            skipped[_reason(text, name, lines)] += 1
            continue
        task, pid, cpu, seconds, fraction, event, rest = found.groups()
        code = codes.get(event)
        if code is None:
            skipped[f"event not used: {event}"] += 1
            continue
        values = [0, 0, 0, 0]
        reader = readers[code]
        if reader is not None:
            fields = reader[0].match(rest)
            if fields is None:
                skipped[f"fields not understood: {event}"] += 1
                continue
            for place, (word, base) in enumerate(zip(fields.groups(), reader[1], strict=True)):
                values[place] = ABSENT if word is None else int(word, base) & ABSENT
        elif event == "tracing_mark_write":
            lines.marks.append(rest)
        number = int(pid)
        if tasks.get(number) != task:
            tasks[number] = task
        times.append(int(seconds) * 10**12 + int(fraction) * 10 ** (12 - len(fraction)))
        pids.append(number)
        cpus.append(int(cpu))
        events.append(code)
        for column, value in zip(columns, values, strict=True):
            column.append(value)


def _reason(text: str, name: str, lines: Lines) -> str:
    """Say why a line is no event, and note losses it tells of."""
    if text.startswith("#"):
        if written := _BUFFER.match(text):
            lines.lost += int(written[2]) - int(written[1])
        if "latency trace" in text:
            raise InputError(
                f"{name}: latency-format text; nearest valid: the trace file without that option"
            )
        return "comment"
    if not text.strip():
        return "blank"
    if loss := _LOST.match(text.strip()):
        if loss[1] is None:
            lines.lost_unknown += 1
        else:
            lines.lost += int(loss[1])
        return "lost events"
    if _TICKS.match(text):
        raise InputError(f"{name}: time in clock ticks of unknown rate; nearest valid: trace_clock mono")
    return "not an event"
