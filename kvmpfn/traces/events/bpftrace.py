"""What a bpftrace script prints, by a pattern; and one pattern for docs/kvm-faults.bt.

bpftrace prints whatever its script says, so that the user says what is what: by the named groups of a regular
expression. What bpftrace adds of its own (``Attaching 7 probes...``, maps and histograms at the end, lost
events) is counted as skipped.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from kvmpfn.traces.events.records import (
    ABSENT,
    CODE,
    COLUMNS,
    EVENT_FIELDS,
    EVENTS,
    NOT_UNDERSTOOD,
    NOT_USED,
    Records,
)
from kvmpfn.traces.lines import LONG, Lines
from kvmpfn.traces.source import PARQUET, TOOLS
from kvmpfn.units import PAGE_SHIFT, TIMES, InputError, nearest, round_half_even

PRESET = (
    r"^(?P<time>\d+) (?P<cpu>\d+) (?P<tid>\d+) (?P<event>\w+)(?: vcpu (?P<vcpu>\d+))?(?: rip (?P<rip>\w+))?"
    r"(?: address (?P<address>\w+))?(?: error_code (?P<error_code>\w+))?(?: gfn (?P<gfn>\w+))?"
    r"(?: pfn (?P<pfn>\w+))?(?: level (?P<level>\d+))?(?: start (?P<start>\w+) end (?P<end>\w+))?"
    r"(?: ret (?P<ret>-?\d+))? \((?P<comm>.*)\)$"
)
"""The lines of docs/kvm-faults.bt."""

ALIASES = {"address": ("gpa", "gfn"), "ipa": ("gpa",)}
"""What stands for a field of `EVENT_FIELDS` too; a gfn is an address without its last 12 bits."""

MAY_LACK = (
    "vcpu",
    "rip",
    "error_code",
    "info1",
    "info2",
    "hsr",
    "hxfar",
    "pc",
    "old_spte",
    "fixed",
    "spurious",
)
DECIMAL = ("vcpu", "level", "ret", "spurious", "fixed", "errno", "vector")
"""Fields whose numbers are decimal unless they begin with 0x; all others are hexadecimal."""

GROUPS = sorted({"time", "event", "pid", "tid", "comm", "cpu", "gpa", "access"}.union(*EVENT_FIELDS.values()))

MOST_NAMES = 1 << 12
"""Exit reasons, and names of events that are not used, that are kept apart."""

HEAD = 100

BLOCK = 1 << 12
"""Lines of a block: few enough that what is held of them stays in the caches."""

DAY = 86400 * 10**12
MOST_TIME = 100 * 365 * DAY
ORIGIN = 53 * DAY
"""From here on times are counted from the first event's second (`Records.origin_s`)."""

ACCESS = {"r": 0x81, "w": 0x82, "x": 0x84, "e": 0x84, "f": 0x84}
"""Error code of an access by its first letter (read, write, execute, fetch): an EPT qualification, which its
bit 7 tells it to be."""

NO_MATCH = "not the pattern"

DIRECTIVES = {"H": 3600 * 10**12, "M": 60 * 10**12, "S": 10**12, "s": 10**12}

_LOST = re.compile(r"(?:WARNING: )?(?:Lost|Skipped) (\d{1,18}) events?.*", re.IGNORECASE)
_OWN = (
    (re.compile(r"Attaching \d+ probes?\.\.\."), "of bpftrace itself"),
    (re.compile(r"(?:\S+:\d+:\d+(?:-\d+)?: )?(?:WARNING|ERROR): .*"), "of bpftrace itself"),
    (re.compile(r"@\w*(?:\[.*\])?:.*|[\[(]\S+(?:, \S+)?[\])]\s+\d+\s+\|[@ ]*\|"), "map"),
    (re.compile(r"#.*|//.*"), "comment"),
    (re.compile(r"\.{2,}"), "left out"),
)


def read_bpftrace(
    path: str | os.PathLike[str],
    pattern: str = PRESET,
    *,
    time: str = "ns",
    event: str | None = None,
    events: Mapping[str, str] | None = None,
    decimal: tuple[str, ...] = (),
    progress: bool | None = None,
) -> Records:
    r"""Read what a bpftrace script printed.

    Parameters
    ----------
    path : path-like
        Text, plain or packed by gzip, xz or zstd.
    pattern : str
        A regular expression that is looked for in each line. Its named groups are some of `GROUPS`:
        ``time``, which must be there; ``event``; who (``tid``, else ``pid``; ``comm``, ``cpu``); and the
        fields of `kvmpfn.traces.events.records.EVENT_FIELDS`, where ``gpa`` or ``gfn`` may stand for
        ``address``, and for ``error_code`` ``access``, a word that begins with r, w or x. The default is for
        the lines of docs/kvm-faults.bt.
    time : str
        The unit of ``time`` (``ns``, as `nsecs` and `elapsed` print; ``us``, ``ms``, ``s``), or what strftime
        was told, such as ``%H:%M:%S:%f``, whose days go on at midnight.
    event : str, optional
        The event of all lines, if the pattern has no group for it; ``kvm_page_fault`` if not given.
    events : mapping of str to str, optional
        Which event each text of the group ``event`` is; texts that are missing are names of events.
    decimal : tuple of str
        Groups whose numbers are decimal though such numbers are hexadecimal elsewhere.
    progress : bool, optional
        Whether a bar shows how far the file is read; if not given, if a terminal looks.

    Returns
    -------
    Records
        The events, in the order of the lines.

    Raises
    ------
    InputError
        The pattern cannot be used, or no line of the file matches it.

    Examples
    --------
    >>> pattern = r"(?P<time>[\d:]+) tid\[(?P<tid>\d+)\].*gpa = (?P<gpa>\w+)"
    >>> read_bpftrace("log.txt", pattern, time="%H:%M:%S:%f")  # doctest: +SKIP
    """
    return Records.join(
        bpftrace_blocks(
            path, pattern, time=time, event=event, events=events, decimal=decimal, progress=progress
        )
    )


def bpftrace_blocks(
    path: str | os.PathLike[str],
    pattern: str = PRESET,
    *,
    time: str = "ns",
    event: str | None = None,
    events: Mapping[str, str] | None = None,
    decimal: tuple[str, ...] = (),
    progress: bool | None = None,
) -> Iterator[Records]:
    """Yield what `read_bpftrace` returns in blocks, so that memory does not grow with the file.

    `kvmpfn.traces.events.records.write_parquet` takes them.
    """
    form = _Form(pattern, time, event, events or {}, decimal)
    file, matched, first = Path(path), 0, ""
    lines = Lines(file, progress)
    texts, block = iter(lines), _Block(form)
    while some := list(islice(texts, BLOCK)):
        if block.lines:
            yield block.records()
        block = _Block(form)
        block.take(some)
        matched += block.matched
        first = first or next((text[:80] for text in block.strange if text), "")
    if not matched:
        raise InputError(f"{file.name}: no line matches the pattern; nearest valid: one for {first!r}")
    records = block.records()
    if lines.cut:
        records.lost_unknown += 1
        records.guessed["packed file that ends too early"] += 1
    yield records


def is_preset(path: str | os.PathLike[str]) -> bool:
    """Say whether a file holds lines of docs/kvm-faults.bt: by its first `HEAD` lines of text."""
    with Path(path).open("rb") as file:
        magic = file.read(16)
    if magic.startswith((PARQUET, *TOOLS)):
        return False
    return any(re.search(PRESET, text) for text in islice(Lines(Path(path)), HEAD) if len(text) <= LONG)


Plan = list[tuple[int, int, int, int | None]]


class _Form:
    """What the user said of the lines, checked, and what one line leaves for the next."""

    def __init__(
        self,
        pattern: str,
        time: str,
        event: str | None,
        events: Mapping[str, str],
        decimal: tuple[str, ...],
    ) -> None:
        try:
            self.pattern = re.compile(pattern)
        except re.error as error:
            raise InputError(rf"{error}; nearest valid: (?P<time>\d+) (?P<gpa>\w+)", "pattern") from None
        groups = self.groups = set(self.pattern.groupindex)
        for name in sorted(groups - set(GROUPS)):
            raise InputError(f"unknown group <{name}>; nearest valid: <{nearest(name, GROUPS)}>", "pattern")
        if "time" not in groups:
            raise InputError(r"no group <time>; nearest valid: (?P<time>\d+)", "pattern")
        for name in decimal:
            if name not in groups:
                raise InputError(f"no group <{name}>; nearest valid: {nearest(name, groups)}", "decimal")
        for meant in (event, *events.values()):
            if meant is not None and meant not in CODE:
                raise InputError(f"{meant!r} is no event; nearest valid: {nearest(meant, CODE)}", "event")
        self.event = None if "event" in groups else event or "kvm_page_fault"
        self.events = events
        self.decimal = {*DECIMAL, *decimal}
        self.clock = _Clock(time)
        self.thread = self.group("tid" if "tid" in groups else "pid")
        self.plans = {name: self._plan(name) for name in CODE}
        self.reasons: list[str] = []
        self.origin_s: int | None = None
        if self.event:
            for field, (group, *_, absent) in zip(
                EVENT_FIELDS[self.event], self.plans[self.event], strict=True
            ):
                if absent is None and group < 0:
                    what = f"{self.event} needs a group <{field}>"
                    raise InputError(f"{what}; nearest valid: (?P<{field}>\\w+)", "pattern")

    def _source(self, field: str) -> str | None:
        """Return the group that a field is read from."""
        return next((name for name in (field, *ALIASES.get(field, ())) if name in self.groups), None)

    def group(self, name: str | None) -> int:
        """Return the place of a named group among all, or -1."""
        return self.pattern.groupindex[name] - 1 if name in self.groups else -1

    def _plan(self, event: str) -> Plan:
        """Say how each field is read: its group, the base (0: a word), a shift, and what stands if absent."""
        plan = []
        for field in EVENT_FIELDS[event]:
            source = self._source(field)
            base = 0 if field == "reason" else 10 if source in self.decimal else 16
            shift = PAGE_SHIFT if source == "gfn" != field else 0
            absent = None if field not in MAY_LACK else ABSENT if field in ("vcpu", "rip") else 0
            plan.append((self.group(source), base, shift, absent))
        return plan

    def words(self, plan: Plan, groups: tuple[str | None, ...]) -> list[int]:
        """Return the fields of an event, 64 bits each; raise ValueError where the line does not have one."""
        words = [0, 0, 0, 0]
        for place, (group, base, shift, absent) in enumerate(plan):
            text = groups[group] if group >= 0 else None
            if text is None:
                if absent is None:
                    raise ValueError
                words[place] = absent
            elif base:
                value = int(text, 16 if text[:2] == "0x" else base) << shift
                if not -(1 << 63) <= value <= ABSENT:
                    raise ValueError
                words[place] = value & ABSENT
            else:
                words[place] = self._reason(text)
        return words

    def _reason(self, text: str) -> int:
        if text not in self.reasons:
            if len(self.reasons) >= MOST_NAMES:
                raise ValueError
            self.reasons.append(text)
        return self.reasons.index(text)


class _Clock:
    """Reads times, each in picoseconds."""

    def __init__(self, time: str) -> None:
        self.unit = TIMES.get(time, 0)
        self.midnights = 0
        self._last = -1
        self._daily = "%H" in time and "%s" not in time and "%d" not in time
        if self.unit:
            return
        self._factors: list[int] = []
        pieces: list[str] = []
        for literal, letter in re.findall("([^%]*)(?:%(.))?", time):
            pieces.append(re.escape(literal))
            if not letter:
                continue
            if letter != "f" and letter not in DIRECTIVES:
                raise InputError(f"%{letter} is not read; nearest valid: %H:%M:%S:%f", "time")
            self._factors.append(DIRECTIVES.get(letter, 0))
            pieces.append(r"(\d{1,12})" if letter in "sf" else r"(\d{1,2})")
        if not any(self._factors):
            near = nearest(time, TIMES)
            raise InputError(f"{time!r} is no unit of time; nearest valid: {near} or %H:%M:%S:%f", "time")
        self._form = re.compile("".join(pieces))

    def read_all(self, texts: tuple[str, ...]) -> list[int]:
        """Return times that are whole numbers of a unit; raise ValueError or TypeError if one is not."""
        if not self.unit or not "".join(texts).isdecimal():
            raise ValueError
        return [int(text) * self.unit for text in texts]

    def read(self, text: str) -> int:
        """Return a time; raise ValueError if it is none."""
        if self.unit:
            return int(text) * self.unit if text.isdecimal() else self._fraction(text)
        found = self._form.fullmatch(text)
        if found is None:
            raise ValueError
        now = 0
        for digits, factor in zip(found.groups(), self._factors, strict=True):
            now += int(digits) * (factor or 10 ** (12 - len(digits)))
        return self._go_on(now) if self._daily else now

    def _fraction(self, text: str) -> int:
        number = re.fullmatch(r"\d{1,20}\.\d{1,12}", text)
        if number is None:
            raise ValueError
        return round_half_even(Decimal(text) * self.unit)

    def _go_on(self, now: int) -> int:
        """Let days follow each other; lines that swapped places at midnight stay apart as they are."""
        now += self.midnights * DAY
        if self._last - now > DAY // 2:
            self.midnights += 1
            now += DAY
        elif now - self._last > DAY // 2 and self.midnights:
            return now - DAY
        self._last = now
        return now


class _Block:
    """The events of some lines."""

    def __init__(self, form: _Form) -> None:
        self.form = form
        self.lines = self.matched = self.lost = 0
        self.skipped: Counter[str] = Counter()
        self.guessed: Counter[str] = Counter()
        self.tasks: dict[int, str] = {}
        self.strange: list[str] = []
        self.columns: list[Any] = [()] * len(COLUMNS)
        self._groups = [form.group(name) for name in ("time", "event", "cpu", "comm", "access")]

    def take(self, texts: list[str]) -> None:
        """Read lines: all at once, or if one of them is out of the ordinary, each by itself."""
        self.lines = len(texts)
        search = self.form.pattern.search
        found = [search(text) if len(text) <= LONG else None for text in texts]
        groups = [one.groups() for one in found if one is not None]
        self.matched = len(groups)
        for text in (text for text, one in zip(texts, found, strict=True) if one is None):
            why = self._why(text) if len(text) <= LONG else "too long"
            self.skipped[why] += 1
            if why == NO_MATCH and not self.strange:
                self.strange.append(text)
        try:
            self._take_columns(groups)
        except (ValueError, KeyError, TypeError, OverflowError):
            rows = [row for row in map(self._take_row, groups) if row is not None]
            self.columns = list(zip(*rows, strict=True)) if rows else self.columns

    def _take_columns(self, groups: list[tuple[str | None, ...]]) -> None:
        """Read all lines by column; if that cannot be, raise one of four errors, having noted nothing."""
        if not groups:
            return
        form = self.form
        at, event_at, cpu_at, comm_at, _ = self._groups
        texts: list[Any] = list(zip(*groups, strict=True))
        size = len(groups)
        if form.event:
            code = np.full(size, CODE[form.event], "u1")
        else:
            code = np.array([CODE[form.events.get(said, said)] for said in texts[event_at]], "u1")
        times = form.clock.read_all(texts[at])
        origin_s = form.origin_s
        if origin_s is None:
            if times[0] >= MOST_TIME:
                raise ValueError
            origin_s = times[0] // 10**12 if times[0] > ORIGIN else 0
        time = np.array([one - origin_s * 10**12 for one in times], "i8")
        nobody = np.full(size, -1, "i8")
        pid = np.array([int(one or -1) for one in texts[form.thread]]) if form.thread >= 0 else nobody
        cpu = np.array([int(one or -1) for one in texts[cpu_at]]) if cpu_at >= 0 else nobody
        if any(column.min() < -1 or column.max() >> 31 for column in (pid, cpu)):
            raise ValueError
        words = np.zeros((4, size), "u8")
        for number in np.unique(code).tolist():
            rows = np.flatnonzero(code == number)
            places = rows.tolist()
            name = EVENTS[number]
            plan = form.plans[name]
            if name == "kvm_page_fault" and plan[3][0] < 0:
                raise ValueError  # the access is to be read
            for place, (group, base, shift, absent) in enumerate(plan):
                if group < 0:
                    if absent is None:
                        raise ValueError
                    words[place, rows] = absent
                    continue
                if not base:
                    raise ValueError  # a word
                column = texts[group]
                values = [int(column[row], base) << shift for row in places]
                if min(values) < -(1 << 63) or max(values) > ABSENT:
                    raise ValueError
                words[place, rows] = np.array([value & ABSENT for value in values], "u8")
        form.origin_s = origin_s
        if comm_at >= 0:
            self.tasks = {who: comm for who, comm in zip(pid.tolist(), texts[comm_at], strict=True) if comm}
            self.tasks.pop(-1, None)
        self.columns = [time, pid, cpu, code, *words]

    def _take_row(self, groups: tuple[str | None, ...]) -> tuple[int, ...] | None:
        """Read a line; None if it is not used."""
        form = self.form
        name = form.event
        if name is None:
            said = groups[self._groups[1]] or ""
            name = form.events.get(said, said)
            if name not in CODE:
                name = name[:64] if len(self.skipped) < MOST_NAMES else "others"
                self.skipped[f"{NOT_USED}: {name}"] += 1
                return None
        try:
            return self._row(name, groups)
        except (ValueError, KeyError):
            self.skipped[f"{NOT_UNDERSTOOD}: {name}"] += 1
            return None

    def _row(self, name: str, groups: tuple[str | None, ...]) -> tuple[int, ...]:
        """Return an event's columns; raise ValueError or KeyError where the line says what has no place."""
        form = self.form
        at, _, cpu_at, comm_at, access_at = self._groups
        pid = int(groups[form.thread] or -1) if form.thread >= 0 else -1
        cpu = int(groups[cpu_at] or -1) if cpu_at >= 0 else -1
        plan = form.plans[name]
        words = form.words(plan, groups)
        time = form.clock.read(groups[at] or "")
        if form.origin_s is None and time < MOST_TIME:
            form.origin_s = time // 10**12 if time > ORIGIN else 0
        time -= (form.origin_s or 0) * 10**12
        if not (-(1 << 63) <= time < 1 << 63 and -1 <= pid < 1 << 31 and -1 <= cpu < 1 << 31):
            raise ValueError
        if comm_at >= 0 and pid >= 0 and (comm := groups[comm_at]):
            self.tasks[pid] = comm
        if name == "kvm_page_fault" and plan[3][0] < 0:
            access = groups[access_at] if access_at >= 0 else None
            words[3] = ACCESS[access[0].lower()] if access else 0
            self.guessed["error code made of the access" if access else "access unknown"] += 1
        return time, pid, cpu, CODE[name], *words

    def _why(self, text: str) -> str:
        """Say why a line matches no pattern, and note losses it tells of."""
        if not text:
            return "blank"
        if lost := _LOST.fullmatch(text):
            self.lost += int(lost[1])
            return "lost events"
        return next((why for form, why in _OWN if form.fullmatch(text)), NO_MATCH)

    def records(self) -> Records:
        """Return what was read."""
        columns: Any = {}
        for (name, kind), part in zip(COLUMNS.items(), self.columns, strict=True):
            columns[name] = np.asarray(part, kind)
        return Records(
            **columns,
            tasks=self.tasks,
            reasons=self.form.reasons,
            lines=self.lines,
            skipped=self.skipped,
            guessed=self.guessed,
            lost=self.lost,
            origin_s=self.form.origin_s or 0,
        )
