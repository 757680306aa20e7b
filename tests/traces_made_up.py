"""Recordings made up for tests: lines of text, or columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kvmpfn.traces import Trace, read_trace
from kvmpfn.traces.events.records import CODE, Records

US = 10**6
SLOT = (0x100000, 0x7F0000000000, 4096)


def line(task: str, pid: int, cpu: int, us: int, text: str) -> str:
    return f"{task:>16}-{pid:<7d} [{cpu:03d}] ..... {us // 10**6:5d}.{us % 10**6:06d}: {text}\n"


def recorded(folder: Path, *lines: str, name: str = "one.trace", **options: Any) -> Trace:
    path = folder / name
    path.write_text("".join(lines))
    return read_trace(path, **options)


def fault(pid: int, cpu: int, us: int, gfn: int, code: str = "0x182", vcpu: int | None = None) -> str:
    who = "" if vcpu is None else f"vcpu {vcpu} rip 0x1 "
    return line(
        f"CPU {vcpu or 0}/KVM", pid, cpu, us, f"kvm_page_fault: {who}address {gfn << 12:#x} error_code {code}"
    )


PROBES = (
    "pf_ret", "gup", "faultin_ret", "stale_ret", "map_ret",
    "inv_start_ret", "inv_end", "inv_seq", "inv_end_ret",
)  # fmt: skip


def without(trace: Trace, events: Sequence[str]) -> Trace:
    """The same recording, had some events not been recorded."""
    records = trace._records
    kept = ~np.isin(records.event, [CODE[name] for name in events])
    names = ("time_ps", "pid", "cpu", "event", *"abcd")
    less = Records(**{name: getattr(records, name)[kept] for name in names}, tasks=records.tasks)
    return Trace(trace.name, trace.kernel, less, trace.statistics, trace.memslots)


def columns(rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Columns of time, thread, event and words."""
    time, pid, names, *words = zip(*rows, strict=True) if rows else ((),) * 7
    block = {
        "time_ps": np.array(time, dtype="i8"),
        "pid": np.array(pid, dtype="i8"),
        "cpu": np.array(pid, dtype="i4") % 4,
        "event": np.array([CODE[name] for name in names], dtype="u1"),
    }
    return block | {key: np.array(word, dtype="u8") for key, word in zip("abcd", words, strict=True)}
