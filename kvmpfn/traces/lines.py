"""Lines of text as files and mail have them."""

from __future__ import annotations

import gzip
import lzma
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from kvmpfn.units import InputError

MOST_LINE = 1 << 20

_QUOTES = re.compile(r"(?:[>|]\s?)+")
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|[()][A-Z0-9]|[=>])|\x00")


@contextmanager
def opened(file: Path) -> Iterator[IO[bytes]]:
    """Open a file, unpacking it if need be.

    Raises
    ------
    InputError
        It does not exist, cannot be read or is damaged, whenever that shows.
    """
    try:
        with file.open("rb") as probe:
            magic = probe.read(6)
        with _unpacked(file, magic) as stream:
            yield stream
    except FileNotFoundError:
        raise InputError(f"{file.name}: no such file; nearest valid: the path of a recording") from None
    except (OSError, EOFError, lzma.LZMAError) as error:
        what = (isinstance(error, OSError) and error.strerror) or "cannot be unpacked"
        raise InputError(f"{file.name}: {what.lower()}; nearest valid: plain text, gzip or xz") from None


def _unpacked(file: Path, magic: bytes) -> IO[bytes]:
    if magic[:2] == b"\x1f\x8b":
        return cast(IO[bytes], gzip.open(file))
    return cast(IO[bytes], lzma.open(file)) if magic == b"\xfd7zXZ\0" else file.open("rb")


def split(stream: IO[bytes], head: bytes = b"") -> Iterator[bytes]:
    """Yield the lines of `head` and what follows it; one longer than `MOST_LINE` comes in pieces."""
    *whole, rest = head.split(b"\n")
    yield from whole
    while piece := stream.readline(MOST_LINE):
        rest += piece
        if rest.endswith(b"\n") or len(rest) >= MOST_LINE:
            yield rest.removesuffix(b"\n")
            rest = b""
    if rest:
        yield rest


def clean(raw: bytes) -> str:
    """Return a line without what mail quotes it by, and without what only a terminal understands."""
    text = raw.decode("utf-8", "replace")
    if "\x1b" in text or "\0" in text:
        text = _ESCAPES.sub("", text)
    text = text.strip()
    if "\r" in text:
        text = text.rpartition("\r")[2].lstrip()
    if text.startswith((">", "|")) and (quotes := _QUOTES.match(text)):
        text = text[quotes.end() :].lstrip()
    return text
