"""A recording's bytes in blocks of whole lines, whatever the file is packed in, with a bar to watch."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from kvmpfn.units import InputError

BLOCK = 1 << 20
"""Bytes of a block; memory in use while reading is a few times as much."""

LINE_LIMIT = 1 << 16
"""Bytes of a line that are kept; no tool writes such a line."""

PIECE = 1 << 16

PARQUET = b"PAR1"

TOOLS = {
    b"\x17\x08\x44tracing": ("trace-cmd", "report", "-t", "-R", "-i"),
    b"PERFILE2": (
        "perf",
        "script",
        "--ns",
        "--show-lost-events",
        "-F",
        "comm,pid,tid,cpu,time,event,trace",
        "-i",
    ),
}
"""Binary recordings by their first bytes, and the program and arguments that make text of them."""


def text_beside(file: Path) -> Path:
    """Return the text file that may stand beside a recording, with its set-up, memory map and counters."""
    stem = re.sub(r"(\.trace)?(\.txt|\.dat)?(\.gz|\.xz|\.zst)?$", "", file.name, count=1)
    return file.with_name(f"{stem}.txt")


class Source:
    """The text of a recording.

    Attributes
    ----------
    cut : bool
        Whether the packed file ended too early.
    """

    def __init__(self, path: str | os.PathLike[str], progress: bool | None = None) -> None:
        self.path = Path(path)
        self.cut = False
        self._progress = progress

    def blocks(self) -> Iterator[tuple[bytes, bool]]:
        """Yield blocks of whole lines, at most `BLOCK` and a line long, and whether it is the last.

        Raises
        ------
        InputError
            The packed file is damaged, or a binary recording whose program is not installed or fails.
        """
        rest = b""
        for piece in self._pieces():
            data = rest + piece
            end = data.rfind(b"\n") + 1
            rest = data[end:]
            if len(rest) > LINE_LIMIT:
                rest = rest[:LINE_LIMIT]
            if end:
                yield data[:end], False
        yield rest, True

    def _pieces(self) -> Iterator[bytes]:
        """Yield unpacked bytes, and show how far the file is read."""
        from tqdm import tqdm

        with self.path.open("rb") as raw:
            magic = raw.read(16)
            raw.seek(0)
            size = os.fstat(raw.fileno()).st_size or None
            disable = None if self._progress is None else not self._progress
            with (
                self._open(raw, magic) as stream,
                tqdm(total=size, unit="B", unit_scale=True, disable=disable, leave=False) as bar,
            ):
                first = True
                while data := self._read(stream):
                    if first and stream is not raw and any(data.startswith(one) for one in TOOLS):
                        raise InputError(
                            f"{self.path.name}: a packed binary recording; nearest valid: unpack it"
                        )
                    first = False
                    bar.update((raw.tell() if size else 0) - bar.n)
                    yield data

    @contextmanager
    def _open(self, raw: IO[bytes], magic: bytes) -> Iterator[IO[bytes]]:
        """Open the text that is in the file."""
        if magic.startswith(b"\x1f\x8b"):
            with gzip.open(raw) as unpacked:
                yield cast(IO[bytes], unpacked)
        elif magic.startswith(b"\xfd7zXZ\0"):
            with lzma.open(raw) as unpacked:
                yield cast(IO[bytes], unpacked)
        elif magic.startswith(b"\x28\xb5\x2f\xfd"):
            import pyarrow as pa

            with pa.CompressedInputStream(raw, "zstd") as unpacked:
                yield cast(IO[bytes], unpacked)
        elif tool := next((tool for start, tool in TOOLS.items() if magic.startswith(start)), None):
            with self._run(tool) as text:
                yield text
        else:
            yield raw

    def _read(self, stream: IO[bytes]) -> bytes:
        """Read about a block; less where the packed file ends too early."""
        # read1, since read of a packed file that ends too early would lose what it had.
        read = cast(Any, stream).read1 if hasattr(stream, "read1") else stream.read
        parts, size = [], 0
        try:
            while not self.cut and size < BLOCK and (data := read(PIECE)):
                parts.append(data)
                size += len(data)
        except EOFError:
            self.cut = True
        except (zlib.error, lzma.LZMAError, OSError) as error:
            if "truncated" not in str(error).lower():
                what = " ".join(str(error).split())
                raise InputError(
                    f"{self.path.name}: damaged ({what}); nearest valid: a whole copy"
                ) from error
            self.cut = True
        return b"".join(parts)

    @contextmanager
    def _run(self, tool: tuple[str, ...]) -> Iterator[IO[bytes]]:
        """Let a program make text of a binary recording."""
        command = [*tool, str(self.path)]
        if shutil.which(tool[0]) is None:
            told = " ".join([*tool, self.path.name])
            raise InputError(
                f"{self.path.name}: a binary recording and no {tool[0]}; nearest valid: text of `{told}`"
            )
        with tempfile.TemporaryFile() as errors:
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process:
                try:
                    yield cast(IO[bytes], process.stdout)
                    ended = process.wait()
                finally:
                    process.kill()
            if ended:
                errors.seek(0)
                said = errors.read().decode(errors="replace").split("\n")
                why = next((line.strip() for line in reversed(said) if line.strip()), f"exit code {ended}")
                raise InputError(f"{self.path.name}: {tool[0]}: {why}; nearest valid: text of a recording")
