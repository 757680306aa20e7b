"""Clean lines read by their bytes, compiled; whatever is odd in any way is left to `kvmpfn.traces.read`.

A line is taken here only if the careful way would read the same from it; a test holds the two together. The
stamp ``SECONDS.FRACTION:`` is the anchor: what stands left of it is read from right to left, since the name
of a thread is free text; what stands right of it by the templates of `kvmpfn.traces.texts`.
"""

from __future__ import annotations

import numpy as np

from kvmpfn.core.jit import jit, kernel, memory
from kvmpfn.traces.texts import BIN, END_OF_LINE, ISA, LITERAL, NAME, NUMBER, SLOTS, WORD
from kvmpfn.traces.texts import PARENTHESIS as PARENTHESES

ODD, UNUSED, BLANK = 255, 254, 253
"""What became of a line that is no event: left to the careful way, an event not used, blank."""

MARKED = -2
"""Code of an event whose text is wanted: the careful way reads it."""

NAMES = 512
NAME_BYTES = 40
LINE_BYTES = 1000
COMM_BYTES = 48


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


@kernel
def scan(
    data, size, hertz, origin, first, begin, steps, blank, literals, codes, counts,
    events, event_length, event_table, exits, exit_length, exit_table,
    bounds, event, time, pid, cpu, words, comm, word,
):  # fmt: skip
    """Read the clean lines of a block of whole lines.

    Of each line `bounds` get the first byte and the end, `event` the code or what became of it, `words` the
    fields, and `comm` where its thread's name lies, from -1 if ftrace did not know it. `counts` count the
    events not used. `word` holds the fields of one line.
    """
    _lines(
        memory(data), size, hertz, origin, memory(first), memory(begin), memory(steps), memory(blank),
        memory(literals), memory(codes), memory(counts),
        memory(events), memory(event_length), memory(event_table),
        memory(exits), memory(exit_length), memory(exit_table),
        memory(bounds), memory(event), memory(time), memory(pid), memory(cpu), memory(words), memory(comm),
        memory(word),
    )  # fmt: skip


@jit
def _lines(
    data, size, hertz, origin, first, begin, steps, blank, literals, codes, counts,
    events, event_length, event_table, exits, exit_length, exit_table,
    bounds, event, time, pid, cpu, words, comm, word,
):  # fmt: skip
    at, line = 0, 0
    while at < size:
        low = at
        nul = False
        stamp = -1
        while at < size and data[at] != 10:
            byte = data[at]
            if byte == 58 and stamp < 0:
                # The first colon behind a number and before a blank ends the stamp.
                if at > low and _is_digit(data[at - 1]) and at + 1 < size and data[at + 1] == 32:
                    stamp = at
            elif byte == 0:
                nul = True
            at += 1
        end = at
        at += 1
        bounds[2 * line], bounds[2 * line + 1] = low, end
        event[line] = ODD
        line += 1
        here = line - 1
        while end > low and (data[end - 1] == 13 or data[end - 1] == 32 or data[end - 1] == 9):
            end -= 1
        if end == low:
            event[here] = ODD if nul else BLANK
            continue
        if nul or stamp < 0 or end - low > LINE_BYTES or stamp >= end:
            continue

        # The stamp: SECONDS.FRACTION, or a number of ticks.
        place = stamp - 1
        count, fraction = 0, np.int64(0)
        scale = np.int64(1)
        while place >= low and _is_digit(data[place]) and count < 18:
            fraction += scale * np.int64(data[place] - 48)
            scale *= 10
            count += 1
            place -= 1
        if place > low and data[place] == 46 and count <= 12:
            seconds, place = _digits_back(data, place - 1, low)
            if place < 0 or data[place] == 46:
                continue
            seconds -= origin
            if not -9000000 < seconds < 9000000:
                continue
            for _ in range(12 - count):
                fraction *= 10
            when = seconds * 1000000000000 + fraction
        else:
            if hertz == 0 or count == 18:
                continue
            place += 1
            whole, part = fraction // hertz, fraction % hertz
            whole -= origin
            if not -9000000 < whole < 9000000:
                continue
            part *= 1000000
            when = whole * 1000000000000 + part // hertz * 1000000 + part % hertz * 1000000 // hertz
        place -= 1

        # Left of it: flags, [CPU] or CPU and flags in one word, TGID, PID, the thread's name.
        if place < low:
            continue
        flags, latency = False, False
        glued = data[place] == 93
        while place >= low and data[place] == 32:
            place -= 1
        if place < low:
            continue
        if not glued and data[place + 1] != 32:
            continue
        where = -1
        if data[place] != 93:
            right = place
            while place >= low and data[place] != 32:
                if (
                    data[place] == 58
                    or data[place] == 91
                    or data[place] == 93
                    or data[place] >= 128
                    or data[place] < 32
                ):
                    right = -1
                    break
                place -= 1
            if right < 0 or place < low:
                continue
            left = place + 1
            while left <= right and _is_digit(data[left]):
                left += 1
            width = right - left + 1
            if left > place + 1:
                # Digits, then flags: the latency form.
                if not 4 <= width <= 8 or left - place > 6:
                    continue
                if not (data[left] == 46 or 65 <= data[left] <= 90 or 97 <= data[left] <= 122):
                    continue
                where = 0
                for digit in range(place + 1, left):
                    where = where * 10 + data[digit] - 48
                latency = True
            elif 4 <= width <= 8:
                flags = True
            else:
                continue
            while place >= low and data[place] == 32:
                place -= 1
            if place < low:
                continue
        if not latency:
            if data[place] != 93:
                continue
            right = place
            where, place = _digits_back(data, place - 1, low)
            if place < 0 or place == right or right - place > 5 or place <= low + 1 or data[place - 1] != 91:
                continue
            place -= 2
            if data[place] != 32:
                continue
            while place >= low and data[place] == 32:
                place -= 1
            if place < low:
                continue
            if data[place] == 41:
                place -= 1
                right = place
                while place > low and (_is_digit(data[place]) or data[place] == 45):
                    place -= 1
                if place == right:
                    continue
                while place > low and data[place] == 32:
                    place -= 1
                if place <= low + 1 or data[place] != 40 or data[place - 1] != 32:
                    continue
                place -= 1
                flags = True
                while place >= low and data[place] == 32:
                    place -= 1
        right = place
        thread, place = _digits_back(data, place, low)
        if place < 0 or place == right + 1 or place <= low + 1:
            continue
        perf = data[place - 1] != 45
        if perf:
            if flags or latency:
                continue
            if data[place - 1] == 47:
                right = place - 2
                _, place = _digits_back(data, right, low)
                if place < 0 or place == right + 1 or place <= low + 1:
                    continue
            if data[place - 1] != 32:
                continue
        right = place - 1
        if perf:
            while right > low and data[right - 1] == 32:
                right -= 1
        left = low
        while left < right and data[left] == 32:
            left += 1
        if left == right or right - left > COMM_BYTES or data[right - 1] == 32 or data[left] == 62:
            continue
        odd = False
        for column in range(left, right):
            letter = data[column]
            odd |= letter < 32 or letter >= 127 or letter == 91 or letter == 93 or letter == 40
            if letter == 58:
                before = data[column - 1] if column > left else 32
                odd |= _is_digit(before) or before == 32 or before == 115
        if odd:
            continue

        # Right of it: the event and its text.
        place = stamp + 1
        while place < end and data[place] == 32:
            place += 1
        if place + 2 < end and data[place] == 40 and data[place + 1] == 43 and _is_digit(data[place + 2]):
            # trace-cmd's --ts-diff
            place += 2
            while place < end and _is_digit(data[place]):
                place += 1
            if place + 1 >= end or data[place] != 41 or data[place + 1] != 32:
                continue
            place += 1
            while place < end and data[place] == 32:
                place += 1
        start = place
        while place < end and _is_word(data[place]):
            place += 1
        if place == start or place >= end or data[place] != 58:
            continue
        system = False
        if place + 1 < end and _is_word(data[place + 1]):
            system = True
            place += 1
            start = place
            while place < end and _is_word(data[place]):
                place += 1
            if place == start or place >= end or data[place] != 58:
                continue
        if _is_digit(data[start]) or (perf and not system):
            continue
        name = _find(data, start, place, events, event_length, event_table)
        if name < 0:
            continue
        place += 1
        if place < end and data[place] != 32:
            continue
        code = codes[name]
        if code == MARKED:
            continue
        if code < 0:
            counts[name] += 1
            event[here] = UNUSED
            continue
        while place < end and data[place] == 32:
            place += 1
        found = first[code] == first[code + 1]
        if found:
            for slot in range(SLOTS):
                word[slot] = 0
            word[ISA] = -1
        for template in range(first[code], first[code + 1]):
            for slot in range(SLOTS):
                word[slot] = blank[template * SLOTS + slot]
            if _read_text(
                data, place, end, begin[template], steps, literals, word, exits, exit_length, exit_table
            ):
                found = True
                break
        if not found:
            continue
        event[here] = code
        time[here] = when
        pid[here] = thread
        cpu[here] = where
        for slot in range(BIN):
            words[here * BIN + slot] = word[slot]
        unnamed = right - left == 5 and data[left] == 60 and data[left + 1] == 46
        comm[2 * here], comm[2 * here + 1] = -1 if unnamed else left, right
