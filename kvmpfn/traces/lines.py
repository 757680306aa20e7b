"""Lines of text as files, terminals and mail have them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from kvmpfn.traces.source import Source
from kvmpfn.units import InputError

LONG = 4096
"""Characters of a line that patterns are tried on: so that no line takes long, whatever the pattern. The
kernel's longest is a fourth of it."""

_QUOTES = re.compile(r"(?:[>|]\s?)+")
_PRINTABLE = re.compile(r"=([\dA-F]{2})", re.ASCII)
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|[()][A-Z0-9]|[=>])|\x00")


def unescape(text: str) -> str:
    """Undo the escapes of quoted-printable."""
    return _PRINTABLE.sub(lambda found: chr(int(found[1], 16)), text)


class Lines:
    """The lines of a text file, whatever packs it.

    Parameters
    ----------
    file : Path
        The file.
    progress : bool, optional
        Whether a bar shows how far it is read; not if not given.

    Attributes
    ----------
    cut : bool
        Whether the packed file turned out to end too early.
    """

    def __init__(self, file: Path, progress: bool | None = False) -> None:
        self._source = Source(file, progress)

    @property
    def cut(self) -> bool:
        """Whether the packed file turned out to end too early."""
        return self._source.cut

    def __iter__(self) -> Iterator[str]:
        """Yield lines, without what `clean` removes.

        Raises
        ------
        InputError
            The file does not exist, cannot be read or is damaged, whenever that shows.
        """
        file = self._source.path
        try:
            for block, _ in self._source.blocks():
                if block:
                    for raw in block.removesuffix(b"\n").split(b"\n"):
                        yield clean(raw)
        except FileNotFoundError:
            raise InputError(f"{file.name}: no such file; nearest valid: the path of a recording") from None
        except OSError as error:
            what = (error.strerror or "cannot be read").lower()
            raise InputError(f"{file.name}: {what}; nearest valid: a file of text") from None


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
