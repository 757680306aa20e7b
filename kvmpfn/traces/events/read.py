"""From a file to `Records`: each line by its bytes where it is clean, by patterns and patience where not.

The careful way knows what mail and tools do to lines: quoting, wrapping, quoted-printable, NUL bytes, the
kernel log's stamps. It joins an event with the line after only while the event's fields are incomplete. Every
line is an event or is counted with a reason.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kvmpfn.traces.events import ftrace, perf
from kvmpfn.traces.events.block import BLANK, NO_NAME, ODD, PLAIN, UNUSED, Block
from kvmpfn.traces.events.exits import exit_name
from kvmpfn.traces.events.ftrace import Place
from kvmpfn.traces.events.records import (
    CODE,
    COLUMNS,
    EVENTS,
    NOT_UNDERSTOOD,
    NOT_USED,
    TIMELESS,
    UNNAMED,
    Records,
    write_parquet,
)
from kvmpfn.traces.events.texts import ISA, Unreadable, Words, read_arguments, read_fields
from kvmpfn.traces.lines import LONG, unescape
from kvmpfn.traces.source import PARQUET, Source
from kvmpfn.units import InputError, nearest

if TYPE_CHECKING:
    from kvmpfn.traces.events.scan import Scanner

__all__ = ["convert", "read_blocks", "read_records"]

TAILS = 4
"""Lines that an event may be wrapped over, less one."""

REASONS_LIMIT = 1000
"""Different reasons for skipping that are told apart, and exit reasons likewise."""

FIRST_BYTES = 1 << 16
"""Of a block, looked at to find when it is."""

FAR_S = 4_600_000
"""Seconds from which times are counted from the first of them, so that 64 bits hold them in picoseconds."""

PID_LIMIT = 1 << 22
"""Linux numbers threads below this (PID_MAX_LIMIT of include/linux/threads.h on 64 bits)."""

MANY = 1 << 13
"""Rows from which a table of all threads is faster than sorting."""

NOT_EVENT = "not an event"
LOST = "lost events"
TICKS = "time in clock ticks"
TAIL = "rest of the event above"
BACKWARD = "time runs backward"

_QUOTED = re.compile(r"(?:\s{0,3}>)+ ?")
_LOGGED = re.compile(r"(?:<\d+>)?\[ *\d+\.\d{3,6}\] ")
_NOTE = re.compile(r"(?<!\s)\s+<--")
_STAMPS = re.compile(rb"[ \]](\d{1,19})(\.\d{1,12})?: ")
_TIMELESS = re.compile(r"\s*(?:[\w-]+:)?([A-Za-z_]\w{0,99}):(?=\s|$)", re.ASCII)
_FILE = re.compile(r"(\S+):\s+(.*)")


class Event(NamedTuple):
    """An event as the careful way reads it."""

    code: int
    time_ps: int
    place: Place
    words: Words
    mark: str | None = None


class Skip(NamedTuple):
    """A line that is no event: why, whether the next line may complete it, and what it tells of losses."""

    reason: str
    cut: bool = False
    lost: int = 0
    losses: int = 0
    cpu: int = -1


class Reader:
    """Reads the blocks of one file.

    Parameters
    ----------
    name : str
        The file, for messages.
    clock_hz : float, optional
        Rate of a clock that counts ticks.
    names : mapping of str to str, optional
        Events of `EVENTS` by the names that the file has for them.
    fast : bool
        Whether clean lines are read by their bytes.
    """

    def __init__(
        self,
        name: str,
        clock_hz: float | None = None,
        names: Mapping[str, str] | None = None,
        *,
        fast: bool = True,
    ) -> None:
        self.name = name
        self._hertz = _hertz(clock_hz)
        self._codes = dict(CODE)
        for told, event in (names or {}).items():
            if event not in CODE:
                raise InputError(f"{event!r} is no event; nearest valid: {nearest(event, CODE)}", "names")
            self._codes[told] = CODE[event]
        self._reasons: list[str] = []
        self._exits: dict[str, int] = {}
        self._seen: set[str] = set()
        self._files: set[str] = set()
        self._columns: set[tuple[str, int]] = set()
        self._origin: int | None = None
        self._latest: int | None = None
        self._latency = False
        self._ticks = False
        self._events = 0
        self._scanner = _scanner(self._codes) if fast else None
        self._notes = Records()

    def take(self, data: bytes, last: bool) -> tuple[Records, bytes]:
        """Read whole lines; return what they hold and the lines that the next block may complete."""
        self._notes = notes = Records(reasons=self._reasons)
        self._settle_origin(data)
        block = Block(data)
        if self._scanner is None:
            block.split()
        else:
            self._scanner.scan(block, self._hertz, self._origin or 0)
        kept = self._read_odd(block, last)
        if self._scanner is not None:
            for name, number in self._scanner.unused():
                self._skip(f"{NOT_USED}: {name}", number)
        for reason, code in (("blank", BLANK), (NOT_EVENT, PLAIN)):
            if number := int(np.count_nonzero(block.event[:kept] == code)):
                self._skip(reason, number)
        notes.lines = kept
        self._fill(block, kept)
        if last and kept and not data.endswith(b"\n") and block.event[kept - 1] < len(EVENTS):
            notes.guessed["last line, perhaps cut"] += 1
        notes.origin_s = self._origin or 0
        rest = data[int(block.bounds[kept, 0]) :] if kept < block.lines else b""
        return notes, rest

    def finish(self) -> None:
        """Say in one line why a file had no event, if one thing is the reason."""
        if self._events:
            return
        if self._ticks:
            right = "clock_hz=..., or a recording with trace_clock mono"
            raise InputError(f"{self.name}: time in clock ticks of unknown rate; nearest valid: {right}")
        if self._latency:
            right = "the trace file without that option"
            raise InputError(f"{self.name}: latency-format text; nearest valid: {right}")

    def _settle_origin(self, data: bytes) -> None:
        """Decide from the first stamps seen whether times must be counted from a later second."""
        if self._origin is None:
            stamps = [
                int(found[1]) // (1 if found[2] else self._hertz or 1)
                for found in islice(_STAMPS.finditer(data, 0, FIRST_BYTES), 101)
            ]
            if stamps:
                first = median_low(stamps)
                self._origin = first if first >= FAR_S else 0

    def _skip(self, reason: str, number: int = 1) -> None:
        if reason not in self._seen:
            if len(self._seen) >= REASONS_LIMIT:
                reason = f"{reason.partition(': ')[0]}: (others)"
            self._seen.add(reason)
        self._notes.skipped[reason] += number

    def _exit(self, name: str) -> int:
        """Give the code of an exit reason."""
        code = self._exits.get(name)
        if code is None:
            if len(self._reasons) >= REASONS_LIMIT:
                name = "(others)"
            code = self._exits.setdefault(name, len(self._reasons))
            if code == len(self._reasons):
                self._reasons.append(name)
        return code

    def _read_odd(self, block: Block, last: bool) -> int:
        """Read the lines that are left; return how many lines of the block are done with."""
        odd = np.flatnonzero(block.event[: block.lines] == ODD).tolist()
        place = 0
        while place < len(odd):
            line = odd[place]
            place += 1
            text = self._text(block, line)
            found = self._parse(text)
            if isinstance(found, Skip) and found.cut:
                joined = self._join(block, line, text, found, last)
                if joined is None:
                    return line
                found, tails = joined
                if tails:
                    block.event[line + 1 : line + 1 + tails] = UNUSED
                    while place < len(odd) and odd[place] <= line + tails:
                        place += 1
                    self._skip(TAIL, tails)
                    self._notes.guessed["wrapped lines put together"] += 1
            if isinstance(found, Event):
                block.put(line, found.code, found.time_ps, found.place, found.words)
                if found.mark is not None:
                    self._notes.marks.append(found.mark)
            else:
                block.event[line] = UNUSED
                self._skip(found.reason)
                self._notes.lost += found.lost
                self._notes.lost_unknown += found.losses
                if found.reason == LOST:
                    block.losses.append((line, found.cpu))
        return block.lines

    def _join(
        self, block: Block, line: int, text: str, found: Skip, last: bool
    ) -> tuple[Event | Skip, int] | None:
        """Put a cut event and the lines after it together; None if those are in the next block.

        Returns what the lines are together and how many of them are tails: 0 if they do not make an event.
        """
        in_fields = found.reason != NOT_EVENT
        for tail in range(line + 1, line + 1 + TAILS):
            if tail >= block.lines:
                return (found, 0) if last else None
            if block.event[tail] not in (ODD, PLAIN):
                break
            more = self._text(block, tail)
            alone = self._parse(more)
            if isinstance(alone, Event) or (in_fields and alone.cut and not more.endswith("=")):
                break
            if alone.reason != NOT_EVENT and (in_fields or not alone.reason.startswith(TIMELESS)):
                break
            text = text[:-1] + more.strip() if text.endswith("=") else f"{text} {more.strip()}"
            whole = self._parse(text)
            if isinstance(whole, Event) or (not whole.cut and whole.reason != NOT_EVENT):
                return whole, tail - line
            in_fields = whole.reason != NOT_EVENT
        return found, 0

    def _text(self, block: Block, line: int) -> str:
        """Decode a line, without what was put around it."""
        low, high = block.bounds[line].tolist()
        raw = block.data[low : min(high, low + LONG + 1)]
        if b"\0" in raw:
            raw = raw.replace(b"\0", b"")
        text = raw.decode("utf-8", "replace").removeprefix("\ufeff").rstrip()
        if text.startswith((">", " >", "  >", "   >")):
            text = _QUOTED.sub("", text, count=1)
        if text.startswith(("[", "<")):
            text = _LOGGED.sub("", text, count=1)
        return text

    def _parse(self, text: str) -> Event | Skip:
        """Read one line, or an event and its tails."""
        if not text or text.isspace():
            return Skip("blank")
        if len(text) > LONG:
            return Skip("line too long")
        found = self._parse_plain(text)
        if isinstance(found, Skip) and "=" in text and (text.endswith(("=", "=20")) or "=3D" in text):
            decoded = unescape(text).rstrip()
            again = self._parse_plain(decoded) if decoded else found
            if isinstance(again, Event):
                return again
            cut = found.cut or (found.reason == NOT_EVENT and text.endswith("="))
            return found._replace(cut=cut)
        return found

    def _parse_plain(self, text: str) -> Event | Skip:
        if text[0] == "#":
            return self._comment(text)
        for stamp in ftrace.STAMP.finditer(text):
            before, after = text[: stamp.start()], text[stamp.end() :]
            event = ftrace.EVENT.match(after)
            if event is None:
                if stamp[2] and not after.strip() and (ftrace.place(before) or perf.place(before)):
                    return Skip(NOT_EVENT, cut=True)
                continue
            where = ftrace.place(before)
            if where is None and event[1] and stamp[2]:
                where = perf.place(before)
            if where is not None:
                return self._event(stamp[1], stamp[2], stamp[3], where, event[2], event[3].strip())
        if one := perf.traced(text):
            return self._traced(one)
        if loss := ftrace.LOST.search(text):
            return _loss(loss[2], int(loss[1]))
        if loss := perf.LOST.search(text):
            return _loss(loss[1] or loss[2])
        if ":" in text:
            if (bare := _TIMELESS.match(text)) and (bare[1] in self._codes or bare[1].startswith("kvm_")):
                return Skip(f"{TIMELESS}: {bare[1]}")
        if header := ftrace.HEADER.fullmatch(text.strip()):
            if header[1]:
                self._files.add(header[1])
            return Skip("header")
        return Skip(NOT_EVENT, cut=ftrace.is_cut(text))

    def _comment(self, text: str) -> Skip:
        if written := ftrace.OVERWRITTEN.match(text):
            return Skip("comment", lost=max(0, int(written[2]) - int(written[1])))
        self._latency |= ftrace.LATENCY.match(text) is not None
        return Skip("comment")

    def _event(
        self, number: str, fraction: str | None, micro: str | None, where: Place, name: str, text: str
    ) -> Event | Skip:
        """Read an event whose stamp and place are known."""
        code = self._codes.get(name)
        if name == "print" and text.startswith("tracing_mark_write: "):
            code, text = CODE["tracing_mark_write"], text.partition(" ")[2]
        if code is None:
            return Skip(f"{NOT_USED}: {name}")
        if fraction:
            time_ps = int(number) * 10**12 + int(fraction) * 10 ** (12 - len(fraction))
        elif micro:
            time_ps = int(number) * 10**6
        elif self._hertz:
            time_ps = int(number) * 10**12 // self._hertz
        else:
            self._ticks = True
            return Skip(TICKS)
        return self._made(code, time_ps - (self._origin or 0) * 10**12, where, text)

    def _made(
        self, code: int, time_ps: int, where: Place, text: str, arguments: bool = False
    ) -> Event | Skip:
        if not -9 * 10**18 < time_ps < 9 * 10**18:
            return Skip("time out of range")
        if EVENTS[code] == "tracing_mark_write":
            return Event(code, time_ps, where, (0, 0, 0, 0), text)
        read = read_arguments if arguments else read_fields
        try:
            return Event(code, time_ps, where, read(code, text, self._exit))
        except Unreadable:
            pass
        if note := _NOTE.search(text):
            try:
                return Event(code, time_ps, where, read(code, text[: note.start()], self._exit))
            except Unreadable:
                pass
        return Skip(f"{NOT_UNDERSTOOD}: {EVENTS[code]}", cut=True)

    def _traced(self, one: perf.Traced) -> Event | Skip:
        """Read a line of ``perf trace``."""
        code = self._codes.get(one.event)
        if code is None:
            return Skip(f"{NOT_USED}: {one.event}")
        found = self._made(code, one.time_ps, one.place, one.text, one.arguments)
        if isinstance(found, Skip) and one.arguments:
            return self._made(code, one.time_ps, one.place, one.text)
        return found

    def _fill(self, block: Block, kept: int) -> None:
        """Move a block's events into the notes."""
        notes = self._notes
        rows = np.flatnonzero(block.event[:kept] < len(EVENTS))
        self._events += len(rows)
        if block.losses:
            losses = np.array(block.losses, "i8")
            losses[:, 0] = np.searchsorted(rows, losses[:, 0])
            notes.losses = np.unique(losses, axis=0)
        if not len(rows):
            return
        self._origin = self._origin or 0  # from here on it must not change
        for name in ("time_ps", "pid", "cpu", "event"):
            setattr(notes, name, getattr(block, name)[rows].astype(COLUMNS[name], copy=False))
        words = block.words[rows]
        if self._scanner is not None:
            exits = np.flatnonzero((notes.event == CODE["kvm_exit"]) & ~block.careful[rows])
            if len(exits):
                words[exits, 1] = self._exit_codes(words[exits, 1], words[exits, ISA])
        for place, name in enumerate("abcd"):
            setattr(notes, name, words[:, place].copy().view("u8"))
        self._name_tasks(block, rows)
        before = self._latest if self._latest is not None else notes.time_ps[0]
        if backward := int(np.count_nonzero(np.diff(notes.time_ps, prepend=before) < 0)):
            notes.guessed[BACKWARD] += backward
        self._latest = int(notes.time_ps[-1])
        if untold := int(np.count_nonzero(notes.pid < 0)):
            notes.guessed["thread not told"] += untold

    def _exit_codes(self, reasons: Any, sets: Any) -> Any:
        """Turn the scanner's reasons, names by its own numbers or the hardware's, into codes."""
        assert self._scanner is not None
        codes = np.empty(len(reasons), "i8")
        named = sets < 0
        numbers = np.zeros(len(self._scanner.exits), "i8")
        for number in np.flatnonzero(np.bincount(reasons[named])).tolist():
            numbers[number] = self._exit(self._scanner.exits[number])
        codes[named] = numbers[reasons[named]]
        for isa in np.unique(sets[~named]).tolist():
            rows = np.flatnonzero(sets == isa)
            found, where = np.unique(reasons[rows], return_inverse=True)
            words = (reason % (1 << 64) for reason in found.tolist())
            names = np.array([self._exit(exit_name(isa, reason)) for reason in words], "i8")
            codes[rows] = names[where]
        return codes

    def _name_tasks(self, block: Block, rows: Any) -> None:
        """Note the last name of each thread that has one."""
        notes = self._notes
        begin = block.comm[rows, 0]
        for row in _last_of_each(np.where(begin == NO_NAME, -1, notes.pid)):
            pid, task = int(notes.pid[row]), block.task(int(rows[row]))
            if (column := _FILE.fullmatch(task)) and (".dat" in column[1] or column[1] in self._files):
                task = column[2]
                if (column[1], pid) not in self._columns and len(self._columns) < REASONS_LIMIT:
                    self._columns.add((column[1], pid))
                    notes.guessed[f"threads after a file's name: {column[1]}"] += 1
            notes.name_task(pid, task)
        for row in _last_of_each(np.where(begin == NO_NAME, notes.pid, -1)):
            notes.name_task(int(notes.pid[row]), UNNAMED)


def _last_of_each(pids: Any) -> list[int]:
    """Find the last place of each thread; -1 is none."""
    places = np.flatnonzero(pids >= 0)
    few = pids[places]
    if len(few) > MANY and int(few.max()) < PID_LIMIT:
        last = np.empty(PID_LIMIT, "i4")
        last[few] = places
        found = places[last[few] == places]
    else:
        found = places[::-1][np.unique(few[::-1], return_index=True)[1]]
    return sorted(found.tolist())


def _loss(told: str | None, cpu: int = -1) -> Skip:
    """Note events lost, how many if it is told."""
    return Skip(LOST, lost=int(told), cpu=cpu) if told else Skip(LOST, losses=1, cpu=cpu)


def _scanner(codes: Mapping[str, int]) -> Scanner:
    """Compile or load what reads clean lines."""
    from kvmpfn.traces.events.scan import Scanner

    return Scanner(codes)


def _hertz(clock_hz: float | None) -> int:
    if clock_hz is None:
        return 0
    if not 1 <= clock_hz <= 10**12:
        raise InputError(f"clock_hz={clock_hz!r}: no rate of a clock; nearest valid: 1000000000 (1 GHz)")
    return round(clock_hz)


def read_blocks(
    path: str | os.PathLike[str],
    *,
    clock_hz: float | None = None,
    names: Mapping[str, str] | None = None,
    progress: bool | None = None,
) -> Iterator[Records]:
    """Read a recording block by block; memory does not grow with the file.

    Parameters
    ----------
    path : path-like
        Text of ftrace, trace-cmd or perf, plain or packed by gzip, xz or zstd; a trace.dat or perf.data where
        trace-cmd or perf is installed; or the Parquet that `convert` made of one, which comes as one
        block. What it is, is found in its bytes.
    clock_hz : float, optional
        Rate of the clock, for recordings whose times are ticks.
    names : mapping of str to str, optional
        Events by the names that the recording has for them, such as ``{"my_ret": "pf_ret"}``.
    progress : bool, optional
        Whether to show a bar; by default only on a terminal.

    Yields
    ------
    Records
        The events of some lines, with notes on those lines alone; `reasons` is shared and grows.

    Raises
    ------
    InputError
        The file is damaged, needs a program that is not installed, or has times in ticks of unknown rate.
    """
    with Path(path).open("rb") as file:
        if file.read(4) == PARQUET:
            yield Records.from_parquet(path)
            return
    source = Source(path, progress)
    reader = Reader(source.path.name, clock_hz, names)
    rest = b""
    for data, last in source.blocks():
        records, rest = reader.take(rest + data, last)
        if last and source.cut:
            records.lost_unknown += 1
            records.guessed["packed file that ends too early"] += 1
        yield records
    reader.finish()


def read_records(
    path: str | os.PathLike[str],
    *,
    clock_hz: float | None = None,
    names: Mapping[str, str] | None = None,
    progress: bool | None = None,
) -> Records:
    """Read a whole recording; see `read_blocks`."""
    return Records.join(read_blocks(path, clock_hz=clock_hz, names=names, progress=progress))


def convert(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    clock_hz: float | None = None,
    names: Mapping[str, str] | None = None,
    progress: bool | None = None,
) -> Records:
    """Write a recording into a Parquet file that `read_records` reads; see `read_blocks`.

    Memory does not grow with the file. The Parquet file appears whole or not at all.

    Returns
    -------
    Records
        The notes on the whole file, without its events.
    """
    return write_parquet(out, read_blocks(path, clock_hz=clock_hz, names=names, progress=progress))
