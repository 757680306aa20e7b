"""Sizes, times and rates as users write them, and the one error for what users get wrong.

All arithmetic is exact: integers and Decimal, rounded half to even once, at the end.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from decimal import ROUND_HALF_EVEN, Context, Decimal

__all__ = [
    "PAGE",
    "PAGE_SHIFT",
    "TIME_LIMIT_PS",
    "InputError",
    "format_size",
    "format_time",
    "nearest",
    "parse_rate",
    "parse_size",
    "parse_time",
    "round_half_even",
]

PAGE_SHIFT = 12
PAGE = 1 << PAGE_SHIFT
"""Bytes of the smallest page."""

TIME_LIMIT_PS = 1 << 53
"""The engine's clock ends here (about two and a half hours)."""

SIZES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
TIMES = {"ps": 1, "ns": 10**3, "us": 10**6, "ms": 10**9, "s": 10**12}
MULTIPLES = {"": 1, "k": 10**3, "M": 10**6}

_NUMBER = r"\s*(\d[\d_]*(?:\.\d+)?)\s*"
_QUANTITY = re.compile(_NUMBER + r"([^\W\d_]*)\s*", re.ASCII)
_RATE = re.compile(_NUMBER + r"([^\W\d_]*)\s*(/?\s*[^\W\d_]*)\s*", re.ASCII)
_EXACT = Context(prec=60, rounding=ROUND_HALF_EVEN)


class InputError(ValueError):
    """What the user asked for cannot be: one line with what, where and the nearest valid value.

    Parameters
    ----------
    message : str
        What is wrong, and what would be right.
    where : str
        Dotted path of the value in the user's input, such as ``storms.0.rate``; empty if it has none.
    """

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(message, where)
        self.message = message
        self.where = where

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message

    def within(self, outer: str) -> InputError:
        """Return the same error seen from `outer`, in which the value lies.

        A class name, which stands where there is no path, gives way to the path.
        """
        inner = "" if self.where[:1].isupper() else self.where
        return InputError(self.message, ".".join(part for part in (outer, inner) if part))


def nearest(word: object, options: Iterable[object]) -> str:
    """Return the option most like `word`, whatever the case of its letters."""
    by_lower = {str(option).lower(): str(option) for option in reversed(list(options))}
    return by_lower[difflib.get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.0)[0]]


def round_half_even(value: Decimal) -> int:
    """Round to a whole number, ties to the even one."""
    return int(value.to_integral_value(ROUND_HALF_EVEN))


def parse_size(value: int | str) -> int:
    """Turn ``"16GiB"`` into bytes.

    Parameters
    ----------
    value : int or str
        A number with one of B, KiB, MiB, GiB, TiB; or plain bytes.

    Returns
    -------
    int
        Bytes.

    Examples
    --------
    >>> parse_size("1.5KiB")
    1536
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    number, unit = _split("size", value, SIZES, "B", "16GiB")
    size = _EXACT.multiply(number, Decimal(SIZES[unit]))
    if size != int(size):
        raise InputError(
            f"size {value!r}: not a whole number of bytes; nearest is '{round_half_even(size)}B'"
        )
    return int(size)


def parse_time(value: int | str) -> int:
    """Turn ``"4us"`` into picoseconds.

    Parameters
    ----------
    value : int or str
        A number with one of ps, ns, us, ms, s; or 0.

    Returns
    -------
    int
        Picoseconds, rounded half to even.

    Examples
    --------
    >>> parse_time("4us")
    4000000
    """
    if value == 0 and not isinstance(value, bool):
        return 0
    number, unit = _split("time", value, TIMES, "", "4us")
    time = round_half_even(_EXACT.multiply(number, Decimal(TIMES[unit])))
    if time >= TIME_LIMIT_PS:
        raise InputError(f"time {value!r}: longer than the clock runs; nearest is '9007s'")
    return time


def parse_rate(value: object) -> int:
    """Turn ``"50k/s"`` into the mean gap between events, in picoseconds.

    Parameters
    ----------
    value : str
        A number, perhaps with k or M, and ``/s``.

    Returns
    -------
    int
        Picoseconds, rounded half to even.

    Examples
    --------
    >>> parse_rate("50k/s")
    20000000
    """
    match = _RATE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise InputError(f"rate {value!r}: not a number of events a second; nearest valid is '50k/s'")
    digits, multiple, per = match[1], match[2], match[3].replace(" ", "")
    if multiple not in MULTIPLES or per != "/s":
        near = multiple if multiple in MULTIPLES else nearest(multiple, ("k", "M"))
        raise InputError(f"rate {value!r}: a rate ends in /s, k/s or M/s; nearest is '{digits}{near}/s'")
    rate = _EXACT.multiply(Decimal(digits), Decimal(MULTIPLES[multiple]))
    gap = round_half_even(_EXACT.divide(Decimal(10**12), rate)) if rate else TIME_LIMIT_PS
    if gap >= TIME_LIMIT_PS:
        raise InputError(f"rate {value!r}: less than once in the clock's run; nearest is '0.001/s'")
    if gap < 1:
        raise InputError(f"rate {value!r}: more than one a picosecond; nearest is '1000000M/s'")
    return gap


def format_size(size: int) -> str:
    """Write bytes in the largest unit that leaves a whole number.

    Examples
    --------
    >>> format_size(1 << 34)
    '16GiB'
    """
    unit = max(
        (unit for unit in SIZES if size % SIZES[unit] == 0 and size), key=SIZES.__getitem__, default="B"
    )
    return f"{size // SIZES[unit]}{unit}"


def format_time(time: int) -> str:
    """Write picoseconds in the largest unit that leaves at least one, exactly.

    Examples
    --------
    >>> format_time(4_500_000)
    '4.5us'
    """
    unit = max((unit for unit in TIMES if TIMES[unit] <= time), key=TIMES.__getitem__, default="ps")
    number = _EXACT.divide(Decimal(time), Decimal(TIMES[unit]))
    text = format(number, "f")
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text}{unit}"


def _split(
    what: str, value: object, units: dict[str, int], default: str, example: str
) -> tuple[Decimal, str]:
    """Split a quantity into its number and a known unit."""
    text = value.replace("µ", "u").replace("μ", "u") if isinstance(value, str) else ""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        near = f"{value}{nearest('n', units)}" if what == "time" and type(value) is int else example
        near = example if near.startswith("-") else near
        raise InputError(f"{what} {value!r}: not a number with a unit; nearest valid is {near!r}")
    unit = match[2] or default
    if unit not in units:
        near = match[1] + nearest(unit or "n", units)
        raise InputError(f"{what} {value!r}: unit is one of {', '.join(units)}; nearest is {near!r}")
    return Decimal(match[1]), unit
