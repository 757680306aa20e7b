"""What the presets of storms share: spelling their fields out, and holding knobs to what the kernel takes."""

from __future__ import annotations

from typing import Any

from kvmpfn.storms.storm import Storm
from kvmpfn.units import PAGE, InputError, format_size, format_time, parse_size

__all__ = [
    "MAX_PAGE_ORDER",
    "PASS_PS",
    "at_least",
    "blocks_of",
    "buddy_order",
    "passes",
    "per_second",
    "preset",
    "scan",
]

MAX_PAGE_ORDER = 10
"""The buddy allocator's largest block on x86, as a power of two (include/linux/mmzone.h)."""

PASS_PS = 10**9
"""How long the arrivals of a pass are spread over (1 ms); they wait for each other and are done back to
back."""


def preset(arrival: str, others: dict[str, Any], **fields: Any) -> Storm:
    """Return a storm without a hold of its own; what the user says goes before a preset's fields."""
    return Storm(**{"arrival": arrival, "hold": "0ns"} | fields | others)


def passes(calls: int, interval_ps: int) -> dict[str, str]:
    """Return the fields of bursts that have on average so many calls an interval."""
    off = format_time(interval_ps - PASS_PS)
    return {"rate": per_second(calls, PASS_PS), "on": format_time(PASS_PS), "off": off}


def per_second(calls: int, time_ps: int) -> str:
    """Return a rate of so many calls in a time, to a millionth of a call a second."""
    millionths = (calls * 10**18 + time_ps // 2) // time_ps
    return f"{millionths // 10**6}.{millionths % 10**6:06d}".rstrip("0").rstrip(".") + "/s"


def at_least(least: int, value: int, name: str) -> int:
    """Return a number that is one and not too small."""
    if type(value) is not int or value < least:
        raise InputError(f"{value!r} is not a whole number of at least {least}; nearest is {least}", name)
    return value


def buddy_order(order: int, name: str) -> None:
    """Hold an order to what the buddy allocator has."""
    if type(order) is not int or not 0 <= order <= MAX_PAGE_ORDER:
        near = MAX_PAGE_ORDER if type(order) is int and order > 0 else 0
        raise InputError(f"{order!r} is not from 0 to {MAX_PAGE_ORDER}; nearest is {near}", name)


def blocks_of(size: int | str, order: int, name: str = "size") -> int:
    """Return how many blocks a size has."""
    count, rest = divmod(parse_size(size), PAGE << order)
    if rest or not count:
        near, block = format_size(max(1, count) * (PAGE << order)), format_size(PAGE << order)
        raise InputError(f"{size!r} is not a multiple of {block}; nearest is {near!r}", name)
    return count


def scan(others: dict[str, Any]) -> dict[str, str]:
    """Return the place of who goes through memory in order, unless it is said to stay at one."""
    return {} if "offset" in others else {"place": "scan"}
