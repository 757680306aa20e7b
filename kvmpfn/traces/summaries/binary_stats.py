"""KVM's binary statistics file, what KVM_GET_STATS_FD opens, as bytes.

The layout is that of struct kvm_stats_header and kvm_stats_desc in include/uapi/linux/kvm.h, explained in
Documentation/virt/kvm/api.rst: a header, a string that names VM and vCPU, descriptors, data of 64 bits each;
all little-endian.
"""

from __future__ import annotations

import struct
from collections import Counter

from kvmpfn.traces.summaries.counters import READING, Table

HEADER = struct.Struct("<6I")
DESCRIPTOR = struct.Struct("<IhHII")
TYPES = ("cumulative", "instant", "peak", "linear histogram", "log histogram")
UNITS = ("1", "B", "s", "cycles", "1")
"""None, bytes, seconds, clock cycles, boolean."""

MOST_NAME = 4096
EXPONENTS = range(-18, 65)


def is_binary(head: bytes) -> bool:
    """Say whether a file that begins so is a binary statistics file: its string begins with ``kvm-``."""
    if len(head) < HEADER.size:
        return False
    flags, name_size, count, id_offset, *_ = HEADER.unpack_from(head)
    return (
        flags == 0 and 0 < name_size <= MOST_NAME and count > 0 and head[id_offset : id_offset + 4] == b"kvm-"
    )


def read_binary(data: bytes) -> tuple[Table, int, Counter[str]]:
    """Read a binary statistics file.

    Parameters
    ----------
    data : bytes
        The file, for which `is_binary` holds; what is cut off at its end is missing.

    Returns
    -------
    tuple of Table, int and Counter
        The values (times in picoseconds; histograms a bucket a value, with its bounds as measure), the number
        of descriptors, and those that were not read, by reason.
    """
    _, name_size, count, id_offset, desc_offset, data_offset = HEADER.unpack_from(data)
    identity = _text(data[id_offset : id_offset + name_size])
    vcpu = identity.rpartition("/vcpu-")
    scope = f"vcpu{vcpu[2]}" if vcpu[1] else "vm"
    table = Table("binary stats", "", {"id": identity})
    skipped: Counter[str] = Counter()
    step = DESCRIPTOR.size + name_size
    numbers = 0
    there = min(count, max(0, (len(data) - desc_offset) // step))
    if there < count:
        skipped["descriptor cut off"] = count - there
    for place in range(desc_offset, desc_offset + there * step, step):
        flags, exponent, size, offset, bucket = DESCRIPTOR.unpack_from(data, place)
        name = _text(data[place + DESCRIPTOR.size : place + step])
        kind, unit, base = flags & 15, flags >> 4 & 15, flags >> 8 & 15
        if kind >= len(TYPES) or unit >= len(UNITS) or base > 1 or exponent not in EXPONENTS or not name:
            skipped["descriptor not understood"] += 1
            continue
        begin = data_offset + offset
        if not size or begin + 8 * size > len(data):
            skipped["data cut off"] += 1
            continue
        numbers += size
        if 8 * numbers > len(data):
            skipped["data of another statistic"] += 1
            continue
        values = struct.unpack_from(f"<{size}Q", data, begin)
        for number, value in enumerate(values):
            if kind >= 3:
                table.add(scope, name, _bucket(kind, number, size, bucket), value)
            else:
                table.add(scope, name, READING, *_scaled(value, UNITS[unit], 2 if base else 10, exponent))
    return table, count, skipped


def _text(raw: bytes) -> str:
    """Return the string before the first zero byte."""
    return raw.partition(b"\0")[0].decode("utf-8", "replace")


def _scaled(value: int, unit: str, base: int, exponent: int) -> tuple[int | float, str]:
    """Return a value in its unit, seconds in picoseconds."""
    if unit == "s":
        value, unit = value * 10**12, "ps"
    if exponent >= 0:
        return value * base**exponent, unit
    whole, rest = divmod(value, base**-exponent)
    return (value / base**-exponent if rest else whole), unit


def _bucket(kind: int, number: int, buckets: int, size: int) -> str:
    """Name a bucket by its bounds; the last one is open (api.rst)."""
    if kind == 3:
        low, high = number * size, str((number + 1) * size)
    else:
        low, high = 1 << min(number - 1, 64) if number else 0, str(1 << min(number, 64))
    return f"[{low}, {'inf' if number == buckets - 1 else high})"
