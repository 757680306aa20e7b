"""Clean lines read by their bytes, compiled; whatever is odd in any way is left to `read`.

A line is taken here only if the careful way would read the same from it; a test holds the two together. The
shapes of lines are told in `ftrace` and `perf`. The stamp ``SECONDS.FRACTION:`` is the anchor: what stands
left of it is read from right to left, since the name of a thread is free text; what stands right of it by
the templates of `texts`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kvmpfn.core.jit import jit, kernel, memory
from kvmpfn.traces.events.block import BLANK, NO_NAME, ODD, PLAIN, UNUSED, Block
from kvmpfn.traces.events.records import CODE, EVENT_FIELDS, EVENTS
from kvmpfn.traces.events.texts import (
    BIN,
    END_OF_LINE,
    ISA,
    LITERAL,
    NAME,
    NUMBER,
    OPTIONAL,
    PARENTHESES,
    SLOTS,
    WORD,
    programs,
    raw_fields,
)

UNMET = 1 << 8
"""A field that no record has: this event is not read field by field."""

MARKED = -2
"""Code of an event whose text is wanted: the careful way reads it."""

NAMES = 512
NAME_BYTES = 40
LINE_BYTES = 1000
COMM_BYTES = 48
FAR = 9_000_000
"""Seconds that 64 bits hold in picoseconds."""

PAGE_FAULT, ENTRY = CODE["kvm_page_fault"], CODE["kvm_entry"]
THREAD, CPU, LEFT, RIGHT, PERF = range(5)
"""Where an event happened, as `_place` finds it: the thread's name is from LEFT up to RIGHT."""


class Names:
    """Byte strings numbered in the order they were met, in arrays that compiled code reads and grows.

    Attributes
    ----------
    letters : ndarray of uint8, shape (NAMES * NAME_BYTES,)
        The strings, each in NAME_BYTES.
    length : ndarray of int64, shape (NAMES + 1,)
        Their lengths; the last counts the strings.
    table : ndarray of int64, shape (4 * NAMES,)
        Their numbers by hash, open addressing; -1 where empty.
    """

    def __init__(self) -> None:
        self.letters = np.zeros(NAMES * NAME_BYTES, "u1")
        self.length = np.zeros(NAMES + 1, "i8")
        self.table = np.full(4 * NAMES, -1, "i8")

    def __len__(self) -> int:
        return int(self.length[NAMES])

    def __getitem__(self, number: int) -> str:
        return self.letters[number * NAME_BYTES :][: self.length[number]].tobytes().decode()

    def add(self, name: str) -> int:
        """Number a string; -1 if there is no room for it."""
        data = np.frombuffer(name.encode(), "u1")
        return int(_number_of(data, 0, len(data), self.letters, self.length, self.table))


@jit
def _find(data, low, high, letters, length, table):
    """Number of a string, new or not; -1 if it does not fit."""
    size = high - low
    if size > NAME_BYTES or size == 0:
        return -1
    code = np.int64(1469598103934665603)
    for at in range(low, high):
        code = (code ^ np.int64(data[at])) * np.int64(1099511628211)
    place = (code ^ (code >> 29)) & (4 * NAMES - 1)
    while table[place] >= 0:
        number = table[place]
        if length[number] == size:
            same = True
            for at in range(size):
                if letters[number * NAME_BYTES + at] != data[low + at]:
                    same = False
                    break
            if same:
                return number
        place = (place + 1) & (4 * NAMES - 1)
    number = length[NAMES]
    if number == NAMES:
        return -1
    for at in range(size):
        letters[number * NAME_BYTES + at] = data[low + at]
    length[number] = size
    length[NAMES] = number + 1
    table[place] = number
    return number


@kernel
def _number_of(data, low, high, letters, length, table):
    return _find(memory(data), low, high, memory(letters), memory(length), memory(table))


@jit
def _is_word(byte):
    return 48 <= byte <= 57 or 65 <= byte <= 90 or byte == 95 or 97 <= byte <= 122


@jit
def _is_digit(byte):
    return 48 <= byte <= 57


@jit
def _digits_back(data, at, low):
    """Value and first place of the digits that end at `at`; the place is after `at` if there are none."""
    value, scale, count = np.int64(0), np.int64(1), 0
    while at >= low and _is_digit(data[at]):
        count += 1
        if count > 10:
            return np.int64(0), np.int64(-1)
        value += scale * np.int64(data[at] - 48)
        scale *= 10
        at -= 1
    return value, np.int64(at + 1)


@jit
def _read_number(data, at, end, kind, words, slot):
    """Read a number into a word; the place after it, or -1."""
    negative = False
    base = np.int64(10)
    if kind == 2 and at < end and data[at] == 45:
        negative = True
        at += 1
    if kind != 1 and at + 2 < end and data[at] == 48 and data[at + 1] == 120:
        base = np.int64(16)
        at += 2
    elif kind == 0:
        base = np.int64(16)
    value, start = np.int64(0), at
    while at < end:
        byte = np.int64(data[at])
        if 48 <= byte <= 57:
            byte -= 48
        elif base == 16 and 97 <= byte <= 102:
            byte -= 87
        else:
            break
        value = value * base + byte
        at += 1
    size = at - start
    if size == 0 or size > (16 if base == 16 else 18) or (negative and base == 16):
        return -1
    if at < end and (_is_word(data[at]) or data[at] == 61 or data[at] >= 128):
        return -1
    words[slot] = -value if negative else value
    return at


@jit
def _read_text(data, at, end, step, steps, letters, words, names, length, table):
    """Follow a template over an event's text; whether all of it was there."""
    while True:
        kind, first, second = steps[step], steps[step + 1], steps[step + 2]
        step += 3
        if kind == LITERAL:
            if at + second > end:
                return False
            for place in range(second):
                if data[at + place] != letters[first + place]:
                    return False
            at += second
        elif kind == NUMBER:
            at = _read_number(data, at, end, second, words, first)
            if at < 0:
                return False
        elif kind == NAME:
            start = at
            while at < end and _is_word(data[at]):
                at += 1
            number = _find(data, start, at, names, length, table)
            if number < 0:
                return False
            words[first] = number
        elif kind == WORD:
            start = at
            while at < end and data[at] > 32:
                at += 1
            if second == 4 and at == start:
                return False
        elif kind == PARENTHESES:
            while at < end and data[at] != 41:
                at += 1
        elif kind == END_OF_LINE:
            return at == end
        else:
            return True


@jit
def _back(data, at, low):
    """Skip blanks to the left."""
    while at >= low and data[at] == 32:
        at -= 1
    return at


@jit
def _on(data, at, end):
    """Skip blanks to the right."""
    while at < end and data[at] == 32:
        at += 1
    return at


@jit
def _past_word(data, at, end):
    while at < end and _is_word(data[at]):
        at += 1
    return at


@jit
def _stamp(data, low, colon, hertz, origin):
    """Time of the stamp that ends at a colon, and the place before it, or -2."""
    at = colon - 1
    count, fraction, scale = 0, np.int64(0), np.int64(1)
    while at >= low and _is_digit(data[at]) and count < 18:
        fraction += scale * np.int64(data[at] - 48)
        scale *= 10
        count += 1
        at -= 1
    if at > low and data[at] == 46:
        seconds, at = _digits_back(data, at - 1, low)
        if count > 12 or at < 0 or data[at] == 46:
            return np.int64(0), -2
        seconds -= origin
        if not -FAR < seconds < FAR:
            return np.int64(0), -2
        for _ in range(12 - count):
            fraction *= 10
        return seconds * 1000000000000 + fraction, at - 1
    if hertz == 0 or count == 18:
        return np.int64(0), -2
    whole, part = fraction // hertz - origin, fraction % hertz
    if not -FAR < whole < FAR:
        return np.int64(0), -2
    # In two steps of 10^6, since the ticks of a second times 10^12 are beyond 64 bits.
    part *= 1000000
    rest = part // hertz * 1000000 + part % hertz * 1000000 // hertz
    return whole * 1000000000000 + rest, at


@jit
def _place(data, low, at, spot):
    """Read what stands left of a stamp, up to `at`; whether it is one of the common forms."""
    spot[THREAD] = spot[CPU] = -1
    spot[LEFT] = spot[RIGHT] = low
    spot[PERF] = 1
    if at < low:
        return at == low - 1
    glued = data[at] == 93
    if not glued and data[at] != 32:
        return False
    at = _back(data, at, low)
    if at < low:
        return True
    flags = latency = digits = False
    if data[at] != 93:
        right = at
        while at >= low and data[at] != 32:
            letter = data[at]
            if letter == 58 or letter == 91 or letter == 93 or letter >= 128 or letter < 32:
                return False
            at -= 1
        left = at + 1
        while left <= right and _is_digit(data[left]):
            left += 1
        width = right - left + 1
        if width == 0 or (data[left] == 47 and left > at + 1):
            # perf without a CPU: the thread stands here.
            digits = True
            at = right
        elif left > at + 1:
            # trace-cmd's latency form: the CPU's digits, then flags.
            if not 4 <= width <= 8 or left - at > 6 or at < low:
                return False
            if not (data[left] == 46 or 65 <= data[left] <= 90 or 97 <= data[left] <= 122):
                return False
            where = 0
            for digit in range(at + 1, left):
                where = where * 10 + data[digit] - 48
            spot[CPU] = where
            latency = True
            at = _back(data, at, low)
        elif 4 <= width <= 8:
            flags = True
            at = _back(data, at, low)
        else:
            return False
        if at < low:
            return False
    if not latency and not digits:
        if data[at] != 93:
            return False
        right = at
        where, at = _digits_back(data, at - 1, low)
        if at < 0 or at == right or right - at > 5 or at <= low or data[at - 1] != 91:
            return False
        spot[CPU] = where
        at -= 2
        if at < low:
            return not flags
        if data[at] != 32:
            return False
        at = _back(data, at, low)
        if at < low:
            return not flags
        if data[at] == 41:
            # ftrace's TGID
            right = at - 1
            at = right
            while at > low and (_is_digit(data[at]) or data[at] == 45):
                at -= 1
            if at == right:
                return False
            at = _back(data, at, low + 1)
            if at <= low + 1 or data[at] != 40 or data[at - 1] != 32:
                return False
            flags = True
            at = _back(data, at - 1, low)
    right = at
    thread, at = _digits_back(data, at, low)
    if at < 0 or at == right + 1:
        return False
    spot[THREAD] = thread
    perf = at <= low or data[at - 1] != 45
    if perf:
        if flags or latency:
            return False
        if at > low and data[at - 1] == 47:
            right = at - 2
            _, at = _digits_back(data, right, low)
            if at < 0 or at == right + 1:
                return False
        if at > low and data[at - 1] != 32:
            return False
        right = _back(data, at - 1, low) + 1
    else:
        if digits or at <= low + 1:
            return False
        right = at - 1
        spot[PERF] = 0
    left = _on(data, low, right)
    spot[LEFT], spot[RIGHT] = left, right
    if left >= right:
        return perf
    return data[right - 1] != 32 and _is_name(data, left, right)


@jit
def _is_name(data, left, right):
    """Whether a thread's name has nothing in it that might be another stamp or a quote."""
    if right - left > COMM_BYTES or data[left] == 62:
        return False
    for at in range(left, right):
        letter = data[at]
        if letter < 32 or letter >= 127 or letter == 91 or letter == 93 or letter == 40:
            return False
        if letter == 58:
            before = data[at - 1] if at > left else 32
            if _is_digit(before) or before == 32 or before == 115:
                return False
    return True


@jit
def _read_pairs(data, at, end, code, traced, slots, optional, whole, raw, raw_length, raw_table, words):
    """Read ``name=value ...`` or, of perf trace, ``name: value, ...`` up to the end; whether that is all."""
    if whole[code] & UNMET:
        return False
    for slot in range(SLOTS):
        words[slot] = 0
    seen = np.int64(0)
    while True:
        start = at
        at = _past_word(data, at, end)
        if at == start or at + 1 >= end or data[at] != (58 if traced else 61):
            return False
        if traced and data[at + 1] != 32:
            return False
        name = _find(data, start, at, raw, raw_length, raw_table)
        field = slots[code * NAMES + name] if name >= 0 else BIN
        slot = field & 15
        if seen >> slot & 1 and slot != BIN:
            return False
        seen |= np.int64(1) << slot
        # perf trace writes all numbers as C does.
        at = _read_number(data, at + 2 if traced else at + 1, end, 2 if traced else field >> 4, words, slot)
        if at < 0:
            return False
        if at == end:
            break
        if traced:
            if at + 1 >= end or data[at] != 44 or data[at + 1] != 32:
                return False
            at += 2
        elif data[at] == 32:
            at = _on(data, at, end)
        else:
            return False
    absent = optional[code] & ~seen
    if not traced and whole[code] & ~(seen | absent):
        return False
    if traced and (code == ENTRY or (code == PAGE_FAULT and seen >> 1 & 1)):
        # perf trace leaves out zeros, and these kernels do record the vCPU.
        absent &= ~1
    for slot in range(ISA):
        if absent >> slot & 1:
            words[slot] = -1
    return True


@jit
def _traced(data, low, end, spot):
    """Time in us of a line of ``perf trace``, and where its event is, or -1; its thread goes into `spot`."""
    nothing = np.int64(0), -1
    start = at = _on(data, low, end)
    value = np.int64(0)
    while at < end and _is_digit(data[at]) and at - start < 12:
        value = value * 10 + data[at] - 48
        at += 1
    if at == start or at + 4 >= end or data[at] != 46 or data[at + 4] != 32:
        return nothing
    for place in range(at + 1, at + 4):
        if not _is_digit(data[place]):
            return nothing
        value = value * 10 + data[place] - 48
    at = _on(data, at + 4, end)
    if at < end and data[at] == 40:
        at = _on(data, at + 1, end)
        start = at
        while at < end and (_is_digit(data[at]) or data[at] == 46):
            at += 1
        if at > start:
            if at + 2 >= end or data[at] != 32 or data[at + 1] != 109 or data[at + 2] != 115:
                return nothing
            at += 3
        at = _on(data, at, end)
        if at + 1 >= end or data[at] != 41:
            return nothing
        at += 2 if data[at + 1] == 58 else 1
        if at >= end or data[at] != 32:
            return nothing
        at = _on(data, at, end)
    spot[THREAD] = spot[CPU] = -1
    spot[PERF] = 1
    spot[LEFT] = spot[RIGHT] = at
    slash = False
    for place in range(at, end):
        if data[place] == 47:
            slash = True
            thread, after = np.int64(0), place + 1
            while after < end and _is_digit(data[after]) and after - place < 11:
                thread = thread * 10 + data[after] - 48
                after += 1
            if after > place + 1 and after < end and data[after] == 32:
                spot[THREAD], spot[RIGHT] = thread, place
                if place == at or data[place - 1] == 32 or not _is_name(data, at, place):
                    return nothing
                return value, _on(data, after, end)
    return nothing if slash else (value, at)


@jit
def _is_plain(data, low, end):
    """Whether a line without a stamp has no sign of an event, a loss, a header or a mail's coding."""
    first = data[_on(data, low, end)]
    if end - low > LINE_BYTES or first == 35 or first == 67 or data[low] == 91 or data[low] == 60:
        return False
    for at in range(low, end):
        letter, after = data[at], data[at + 1] if at + 1 < end else 32
        if letter == 58 or letter >= 127 or (letter == 62 and (at < low + 4 or data[at - 1] != 61)):
            return False
        if (letter < 32 and letter != 9) or (letter == 61 and after != 62) or (letter == 76 and after == 79):
            return False
        if letter == 93 and (at == low or _is_digit(data[at - 1])):
            return False
    return True


@kernel
def scan(
    data, size, zeros, hertz, origin, first, begin, steps, blank, literals,
    slots, optional, whole, codes, counts, events, event_length, event_table,
    exits, exit_length, exit_table, raw, raw_length, raw_table,
    bounds, event, time, pid, cpu, words, comm, word, spot,
):  # fmt: skip
    """Read the clean lines of a block of whole lines.

    Of each line `bounds` get the first byte and the end, `event` the code or what became of it, `words` the
    fields, and `comm` where its thread's name lies, from -1 if ftrace did not know it. `counts` count the
    events not used. `zeros` says whether there is a NUL in the block. `word` and `spot` hold the fields and
    the place of one line.
    """
    _lines(
        memory(data), size, zeros, hertz, origin, memory(first), memory(begin), memory(steps), memory(blank),
        memory(literals), memory(slots), memory(optional), memory(whole), memory(codes), memory(counts),
        memory(events), memory(event_length), memory(event_table),
        memory(exits), memory(exit_length), memory(exit_table),
        memory(raw), memory(raw_length), memory(raw_table),
        memory(bounds), memory(event), memory(time), memory(pid), memory(cpu), memory(words), memory(comm),
        memory(word), memory(spot),
    )  # fmt: skip


@jit
def _lines(
    data, size, zeros, hertz, origin, first, begin, steps, blank, literals,
    slots, optional, whole, codes, counts, events, event_length, event_table,
    exits, exit_length, exit_table, raw, raw_length, raw_table,
    bounds, event, time, pid, cpu, words, comm, word, spot,
):  # fmt: skip
    at, here = 0, -1
    while at < size:
        low = at
        colon = -1
        while at < size and data[at] != 10:
            if (
                data[at] == 58
                and at > low
                and _is_digit(data[at - 1])
                and at + 1 < size
                and data[at + 1] == 32
            ):
                # The first colon behind a number and before a blank ends the stamp.
                place = at - 1
                while place >= low and (_is_digit(data[place]) or data[place] == 46):
                    place -= 1
                if place < low or data[place] == 32 or data[place] == 93:
                    colon = at
                    break
            at += 1
        while at < size and data[at] != 10:
            at += 1
        end = at
        nul = False
        if zeros:
            for place in range(low, end):
                nul |= data[place] == 0
        at += 1
        here += 1
        bounds[2 * here], bounds[2 * here + 1] = low, end
        event[here] = ODD
        while end > low and (data[end - 1] == 13 or data[end - 1] == 32 or data[end - 1] == 9):
            end -= 1
        if nul:
            continue
        if end == low:
            event[here] = BLANK
            continue
        if end - low > LINE_BYTES or data[low] == 35:
            continue
        if colon >= 0:
            if colon >= end:
                continue
            when, place = _stamp(data, low, colon, hertz, origin)
            if place == -2 or not _place(data, low, place, spot):
                continue
            place = _on(data, colon + 1, end)
            if place + 2 < end and data[place] == 40 and data[place + 1] == 43 and _is_digit(data[place + 2]):
                # trace-cmd's --ts-diff
                place += 2
                while place < end and _is_digit(data[place]):
                    place += 1
                if place + 1 >= end or data[place] != 41 or data[place + 1] != 32:
                    continue
                place = _on(data, place + 1, end)
        else:
            when, place = _traced(data, low, end, spot)
            if place < 0:
                if _is_plain(data, low, end):
                    event[here] = PLAIN
                continue
            when *= 1000000

        # The event's name, after its system's if that is told.
        start = place
        place = _past_word(data, place, end)
        if place == start or place >= end or data[place] != 58:
            continue
        system = place + 1 < end and _is_word(data[place + 1])
        if system:
            start = place + 1
            place = _past_word(data, start, end)
            if place >= end or not (data[place] == 58 or (colon < 0 and data[place] == 40)):
                continue
        if _is_digit(data[start]) or (spot[PERF] and not system):
            continue
        name = _find(data, start, place, events, event_length, event_table)
        if name < 0:
            continue
        arguments = data[place] == 40
        place += 1
        if colon >= 0 and place < end and data[place] != 32:
            continue
        code = codes[name]
        if code == MARKED:
            continue
        if code < 0:
            counts[name] += 1
            event[here] = UNUSED
            continue

        # Its fields.
        if colon >= 0:
            place = _on(data, place, end)
        elif end > place and data[end - 1] == 41:
            end -= 1
        found = first[code] == first[code + 1]
        if found:
            for slot in range(SLOTS):
                word[slot] = 0
        for template in range(first[code], first[code + 1] if not arguments else 0):
            for slot in range(SLOTS):
                word[slot] = blank[template * SLOTS + slot]
            if _read_text(
                data, place, end, begin[template], steps, literals, word, exits, exit_length, exit_table
            ):
                found = True
                break
        if not found:
            found = _read_pairs(
                data, place, end, code, arguments, slots, optional, whole, raw, raw_length, raw_table, word
            )
        if not found:
            continue
        event[here] = code
        time[here] = when
        pid[here] = spot[THREAD]
        cpu[here] = spot[CPU]
        for slot in range(BIN):
            words[here * BIN + slot] = word[slot]
        left, right = spot[LEFT], spot[RIGHT]
        unnamed = right == left or (right - left == 5 and data[left] == 60 and data[left + 1] == 46)
        comm[2 * here], comm[2 * here + 1] = NO_NAME if unnamed else left, right


class Scanner:
    """The compiled reader with its tables."""

    def __init__(self, codes: Mapping[str, int]) -> None:
        self._programs = programs()
        self._names, self.exits, self._raw = Names(), Names(), Names()
        self._fields = _field_tables(self._raw)
        self._codes = np.full(NAMES, -1, "i8")
        self._counts = np.zeros(NAMES, "i8")
        self._word, self._spot = np.zeros(SLOTS, "i8"), np.zeros(SLOTS, "i8")
        marks = CODE["tracing_mark_write"]
        for name, code in {**codes, "print": marks}.items():
            if (number := self._names.add(name)) >= 0:
                self._codes[number] = MARKED if code == marks else code

    def scan(self, block: Block, hertz: int, origin: int) -> None:
        """Read the clean lines of a block."""
        scan(
            block.bytes, len(block.bytes), b"\0" in block.data, hertz, origin,
            *self._programs, *self._fields, self._codes, self._counts,
            self._names.letters, self._names.length, self._names.table,
            self.exits.letters, self.exits.length, self.exits.table,
            self._raw.letters, self._raw.length, self._raw.table,
            block.bounds.ravel(), block.event, block.time_ps, block.pid, block.cpu, block.words.ravel(),
            block.comm.ravel(), self._word, self._spot,
        )  # fmt: skip

    def unused(self) -> Iterator[tuple[str, int]]:
        """Tell the events not used and how many of each, since last asked."""
        for number in np.flatnonzero(self._counts).tolist():
            yield self._names[number], int(self._counts[number])
        self._counts[:] = 0


def _field_tables(raw: Names) -> tuple[Any, Any, Any]:
    """Make tables of raw records: the slot of each event's fields, and which may and which must be told."""
    slots = np.full((len(EVENTS), NAMES), BIN, "i8")
    optional, whole = np.zeros(len(EVENTS), "i8"), np.zeros(len(EVENTS), "i8")
    fields = raw_fields()
    for code, (event, names) in enumerate(EVENT_FIELDS.items()):
        for name, slot in fields.get(event, {}).items():
            slots[code, raw.add(name)] = slot
        for place, name in enumerate(names):
            whole[code] |= 1 << place
            optional[code] |= (name in OPTIONAL) << place
        if event not in fields:
            whole[code] |= UNMET
    return slots.ravel(), optional, whole
