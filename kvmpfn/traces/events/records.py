"""The events of a recording as columns, and what was left out, lost or guessed in reading them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kvmpfn.files import whole
from kvmpfn.units import InputError

EVENT_FIELDS: dict[str, tuple[str, ...]] = {
    "kvm_page_fault": ("vcpu", "rip", "address", "error_code"),
    "fast_page_fault": ("vcpu", "address", "spurious", "fixed"),
    "kvm_mmu_spte_requested": ("gfn", "pfn", "level"),
    "kvm_mmu_set_spte": ("gfn", "new_spte", "level"),
    "kvm_tdp_mmu_spte_changed": ("gfn", "level", "old_spte", "new_spte"),
    "mark_mmio_spte": ("gfn",),
    "kvm_entry": ("vcpu",),
    "kvm_unmap_hva_range": ("start", "end"),
    "kvm_age_hva": ("start", "end"),
    "pf_ret": ("ret",),
    "faultin_ret": ("ret",),
    "stale_ret": ("ret",),
    "map_ret": ("ret",),
    "inv_start_ret": ("ret",),
    "gup": (),
    "inv_end": (),
    "inv_seq": (),
    "inv_end_ret": (),
    "flush": (),
    "rlock_slow": (),
    "wlock_slow": (),
    "tracing_mark_write": (),
    "kvm_exit": ("vcpu", "reason", "info1", "info2"),
    "kvm_guest_fault": ("ipa", "hsr", "hxfar", "pc"),
    "kvm_test_age_hva": ("start",),
    "kvm_mmu_split_huge_page": ("gfn", "spte", "level", "errno"),
    "kvm_inj_virq": ("vector",),
    "inv_begin": (),
}
"""The events that are read and what each carries; all others are counted as skipped."""

EVENTS = tuple(EVENT_FIELDS)
CODE = {name: code for code, name in enumerate(EVENTS)}
ABSENT = (1 << 64) - 1
"""Stands for a field that an older format does not have."""

COLUMNS = {
    "time_ps": "i8", "pid": "i8", "cpu": "i4", "event": "u1", "a": "u8", "b": "u8", "c": "u8", "d": "u8",
}  # fmt: skip

TASKS_LIMIT = 1 << 16
"""Threads whose names are kept, so that no file can fill memory with them."""

MARKS_LIMIT = 1 << 12
"""Marks kept; of more, the first half and the last."""

GROUP = 1 << 17
"""Rows of a Parquet row group, at least."""

UNNAMED = "<...>"
"""What ftrace writes for a thread whose name it no longer knows."""


Column = np.ndarray[Any, np.dtype[Any]]


def _empty(kind: str) -> Any:
    return partial(np.zeros, 0, kind)


@dataclass
class Records:
    """The events of one recording, a column an attribute, in the order of the file.

    Attributes
    ----------
    time_ps : ndarray of int64
        Picoseconds of the recording's clock, less `origin_s`.
    pid : ndarray of int64
        Thread; -1 where the text does not tell it.
    cpu : ndarray of int32
        CPU; -1 where the text does not tell it.
    event : ndarray of uint8
        Index into `EVENTS`.
    a, b, c, d : ndarray of uint64
        The fields that `EVENT_FIELDS` names, in its order; negative numbers as two's complement, `ABSENT` for
        what an older format lacks, 0 where the event has no such field. The reason of a ``kvm_exit`` is an
        index into `reasons`.
    tasks : dict of int to str
        Name of each thread: the last that was told.
    reasons : list of str
        Exit reasons as the kernel or a plugin of trace-cmd names them.
    marks : list of str
        Texts written to trace_marker.
    lines : int
        Lines of the file: the events here and the sum of `skipped`.
    skipped : Counter of str
        Lines that are no event here, by reason.
    guessed : Counter of str
        What was taken to be so though the text does not say it, and what looks odd, each with its count.
    lost : int
        Events known to be lost or overwritten; `lost_unknown` counts losses of unknown size.
    losses : ndarray of int64, shape (losses, 2)
        Event before which events were lost, and the CPU whose they were; -1 where the text does not tell it.
    origin_s : int
        Seconds to add to `time_ps`; not 0 only where 64 bits might not hold the time (53 days and more).
    """

    time_ps: Column = field(default_factory=_empty("i8"))
    pid: Column = field(default_factory=_empty("i8"))
    cpu: Column = field(default_factory=_empty("i4"))
    event: Column = field(default_factory=_empty("u1"))
    a: Column = field(default_factory=_empty("u8"))
    b: Column = field(default_factory=_empty("u8"))
    c: Column = field(default_factory=_empty("u8"))
    d: Column = field(default_factory=_empty("u8"))
    tasks: dict[int, str] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    lines: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    guessed: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    lost_unknown: int = 0
    losses: Any = field(default_factory=lambda: np.zeros((0, 2), "i8"))
    origin_s: int = 0

    def __len__(self) -> int:
        return len(self.event)

    @classmethod
    def join(cls, blocks: Iterable[Records]) -> Records:
        """Put blocks of one file together, in order."""
        whole = cls()
        columns: dict[str, list[Column]] = {name: [] for name in COLUMNS}
        events = 0
        for block in blocks:
            for name, parts in columns.items():
                parts.append(getattr(block, name))
            whole.take_notes(block, events)
            events += len(block)
        for name, parts in columns.items():
            setattr(whole, name, np.concatenate(parts) if parts else np.zeros(0, COLUMNS[name]))
        return whole

    def take_notes(self, block: Records, events: int) -> None:
        """Add what was noted beside the events of a later block of the same file, after so many events."""
        for pid, task in block.tasks.items():
            self.name_task(pid, task)
        self.reasons = block.reasons
        self.marks += block.marks
        if len(self.marks) > MARKS_LIMIT:
            dropped = len(self.marks) - MARKS_LIMIT
            del self.marks[MARKS_LIMIT // 2 : MARKS_LIMIT // 2 + dropped]
            self.guessed["marks that were not kept"] += dropped
        self.lines += block.lines
        self.skipped += block.skipped
        self.guessed += block.guessed
        self.lost += block.lost
        self.lost_unknown += block.lost_unknown
        self.losses = np.concatenate([self.losses, block.losses + np.array([events, 0], dtype="i8")])
        self.origin_s = block.origin_s

    def name_task(self, pid: int, task: str) -> None:
        """Note a thread's name; `UNNAMED` replaces none."""
        if pid in self.tasks:
            if task != UNNAMED:
                self.tasks[pid] = task
        elif len(self.tasks) < TASKS_LIMIT:
            self.tasks[pid] = task
        else:
            self.guessed["threads whose names were not kept"] += 1

    def counts(self) -> Counter[str]:
        """Count the events seen by name, used or not."""
        found: Counter[str] = Counter()
        for code, number in enumerate(np.bincount(self.event, minlength=len(EVENTS)).tolist()):
            if number:
                found[EVENTS[code]] = number
        for reason, number in self.skipped.items():
            kind, colon, name = reason.partition(": ")
            if colon and kind in EVENT_REASONS:
                found[name] += number
        return found

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write the events and the notes into a Parquet file."""
        write_parquet(path, [self])

    @classmethod
    def from_parquet(cls, path: str | os.PathLike[str]) -> Records:
        """Read what `to_parquet` or `kvmpfn.traces.events.read.convert` wrote."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
            notes = json.loads((pq.read_metadata(path).metadata or {})[NOTES])
        except (pa.ArrowException, KeyError, ValueError, OSError) as error:
            name = Path(path).name
            raise InputError(f"{name}: no recording; nearest valid: Parquet of kvmpfn's convert") from error
        records = cls(
            tasks={int(pid): task for pid, task in notes.pop("tasks").items()},
            skipped=Counter(notes.pop("skipped")),
            guessed=Counter(notes.pop("guessed")),
            losses=np.array(notes.pop("losses"), dtype="i8").reshape(-1, 2),
            **notes,
        )
        for name, kind in COLUMNS.items():
            column = table[name].combine_chunks()
            if name == "event":
                codes = np.array([CODE[event] for event in column.dictionary.to_pylist()], "u1")
                setattr(records, name, codes[column.indices.to_numpy(zero_copy_only=False)])
            else:
                setattr(records, name, column.to_numpy(zero_copy_only=False).astype(kind, copy=False))
        return records


NOT_USED = "event not used"
NOT_UNDERSTOOD = "fields not understood"
TIMELESS = "event without a time"
EVENT_REASONS = (NOT_USED, NOT_UNDERSTOOD, TIMELESS)
"""Reasons that are followed by the event's name."""

NOTES = b"kvmpfn.notes"


def write_parquet(path: str | os.PathLike[str], blocks: Iterable[Records]) -> Records:
    """Write the blocks of one file into a Parquet file; return the notes of the whole.

    The file appears whole or not at all: it is written beside its place and renamed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {name: pa.from_numpy_dtype(kind) for name, kind in COLUMNS.items()}
    schema = pa.schema(kinds | {"event": pa.dictionary(pa.int32(), pa.string())})
    names = pa.array(EVENTS)
    notes, events = Records(), 0
    with whole(Path(path)) as (part,), pq.ParquetWriter(part, schema, compression="zstd") as writer:
        for group in _groups(blocks):
            columns = [getattr(group, name) for name in COLUMNS]
            codes = pa.array(group.event.astype("i4"))
            columns[list(COLUMNS).index("event")] = pa.DictionaryArray.from_arrays(codes, names)
            if len(group):
                writer.write_table(pa.table(columns, schema=schema))
            notes.take_notes(group, events)
            events += len(group)
        kept = {name: value for name, value in vars(notes).items() if name not in COLUMNS}
        kept["losses"] = notes.losses.tolist()
        writer.add_key_value_metadata({NOTES: json.dumps(kept)})
    return notes


def _groups(blocks: Iterable[Records]) -> Iterator[Records]:
    """Join blocks to row groups of a size that is worth their heads."""
    group: list[Records] = []
    for block in blocks:
        group.append(block)
        if sum(map(len, group)) >= GROUP:
            yield Records.join(group)
            group = []
    if group:
        yield Records.join(group)
