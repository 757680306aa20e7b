"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvmpfn.units import InputError

__all__ = ["whole", "written"]


@contextmanager
def whole(*files: Path) -> Iterator[list[Path]]:
    """Give a name to write to for each file; all are put in place together at the end, or none is left."""
    parts = [file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}") for file in files]
    try:
        yield parts
        for part, file in zip(parts, files, strict=True):
            os.replace(part, file)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


@contextmanager
def written(*files: Path) -> Iterator[list[Path]]:
    """Do as `whole` does where nothing but these files can fail.

    Raises
    ------
    InputError
        They cannot be written.
    """
    try:
        with whole(*files) as parts:
            yield parts
    except OSError as error:
        raise InputError(f"{files[0]}: cannot be written: {error.strerror or error}") from None
