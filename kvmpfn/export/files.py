"""Which format a file of events has, and how it comes to be: whole or not at all."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from kvmpfn.explain.actors import actor_names
from kvmpfn.export.chrome import Chrome
from kvmpfn.export.dat import Dat
from kvmpfn.export.ftrace import Ftrace, Text, header, memory_map
from kvmpfn.export.steps import PIDS_A_VM, follow
from kvmpfn.files import written
from kvmpfn.traces.source import text_beside
from kvmpfn.units import InputError, nearest

if TYPE_CHECKING:
    from kvmpfn.results import EventFormat, Run

__all__ = ["FORMATS", "check_events_file", "write_events"]

FORMATS: dict[str, EventFormat] = {
    ".parquet": "parquet",
    ".trace": "ftrace",
    ".dat": "trace.dat",
    ".json": "chrome",
}
"""What a file's suffix says."""

PACKED: tuple[EventFormat, ...] = ("ftrace", "chrome")
"""What may be packed, with ``.gz`` behind the suffix."""

LEVEL = 6
PROCESS = PIDS_A_VM
"""The first VM's, which marks are of."""


def write_events(run: Run, path: str | os.PathLike[str], format: EventFormat | None = None) -> None:
    """Write a run's kept events to a file; see `Run.write_events`."""
    file, kind = check_events_file(path, format)
    kept = len(run.arrays["log"])
    if not kept:
        raise InputError("write_events: the run has kept no events; nearest is simulate(..., log=1_000_000)")
    if kind == "parquet":
        _parquet(run, file)
    elif kind == "ftrace":
        _ftrace(run, file)
    elif kind == "trace.dat":
        _dat(run, file)
    else:
        _chrome(run, file)


def check_events_file(
    path: str | os.PathLike[str], format: EventFormat | None = None
) -> tuple[Path, EventFormat]:
    """Say which format a file of events will have.

    Parameters
    ----------
    path : path
        The file.
    format : {"parquet", "ftrace", "trace.dat", "chrome"}, optional
        What it is to be, whatever its name.

    Returns
    -------
    path : Path
        The file.
    format : str
        One of the values of `FORMATS`.

    Raises
    ------
    InputError
        There is no such format, the name tells none, or a file stands where the memory map has to be.
    """
    file = Path(path)
    known = list(FORMATS.values())
    if format is not None and format not in known:
        raise InputError(
            f"format: no {format!r}; nearest is {nearest(format, known)!r} of {', '.join(known)}"
        )
    plain = file.with_suffix("") if file.suffix == ".gz" else file
    kind = format or FORMATS.get(plain.suffix)
    if kind is None or (plain != file and kind not in PACKED):
        near = plain.with_suffix(f".{nearest(plain.suffix[1:], [name[1:] for name in FORMATS])}").name
        raise InputError(
            f"{file}: its suffix is none of {', '.join(FORMATS)}, .trace.gz, .json.gz; nearest is {near}"
        )
    if kind in ("ftrace", "trace.dat"):
        beside = text_beside(file)
        if beside == file or (beside.exists() and not _is_map(beside)):
            raise InputError(f"{beside}: is needed for the memory map beside {file.name}; take another name")
    return file, kind


def _is_map(file: Path) -> bool:
    """Whether a text file is one that we wrote."""
    with file.open("rb") as stream:
        return stream.read(13) == b"CONFIG kvmpfn"


def _metadata(run: Run) -> dict[str, str]:
    """Say of a file's events which run they are of."""
    return {
        "kvmpfn.version": run.version,
        "kvmpfn.scenario": run.scenario.to_json(),
        "kvmpfn.digest": run.digest,
        "kvmpfn.log_seen": str(run.meta["log_seen"]),
    }


def _parquet(run: Run, file: Path) -> None:
    """Write the table of `Run.events`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    frame = run.events
    table = pa.Table.from_pandas(frame, preserve_index=False)
    metadata = {**(table.schema.metadata or {}), **_metadata(run)}
    metadata["kvmpfn.actors"] = json.dumps(actor_names(run.scenario))
    metadata["kvmpfn.units"] = json.dumps(frame.attrs["units"])
    with written(file) as (part,):
        pq.write_table(table.replace_schema_metadata(metadata), part, row_group_size=1 << 20)


def _ftrace(run: Run, file: Path) -> None:
    """Write ftrace text, whose first lines count the others, and the memory map beside it."""
    with written(file, text_beside(file)) as (part, beside), tempfile.TemporaryFile(dir=file.parent) as body:
        text = io.TextIOWrapper(body, encoding="utf-8", newline="\n")
        lines = Text(text)
        lines.mark(0, PROCESS, "kvmpfn_go")
        events, end = follow(run, lambda machine: Ftrace(machine, lines))
        if len(run.arrays["log"]) == run.meta["log_seen"]:
            lines.mark(end, PROCESS, "kvmpfn_done")
        text.flush()
        body.seek(0)
        with _packed(part, file) as out:
            out.write(header(run, lines.events).encode())
            shutil.copyfileobj(body, out)
        beside.write_text(memory_map(run, events.machine), encoding="utf-8")
        text.detach()


def _dat(run: Run, file: Path) -> None:
    """Write the file of trace-cmd, and the memory map beside it."""
    with written(file, text_beside(file)) as (part, beside), tempfile.TemporaryFile(dir=file.parent) as pages:
        packed = Dat(pages)
        events, _ = follow(run, lambda machine: Ftrace(machine, packed))
        with part.open("wb") as out:
            packed.write(out, run.scenario.machine.threads)
        beside.write_text(memory_map(run, events.machine), encoding="utf-8")


def _chrome(run: Run, file: Path) -> None:
    """Write the Trace Event Format."""
    with written(file) as (part,), _packed(part, file) as out:
        text = io.TextIOWrapper(out, encoding="utf-8", newline="\n")
        told = {name.removeprefix("kvmpfn."): value for name, value in _metadata(run).items()}
        told["log_kept"] = str(len(run.arrays["log"]))
        events, end = follow(run, lambda machine: Chrome(machine, text, told))
        events.close(end)
        text.flush()
        text.detach()


@contextmanager
def _packed(part: Path, file: Path) -> Iterator[IO[bytes]]:
    """Open a part of a file to write, through gzip if the file's name says so; without name or time in it."""
    with part.open("wb") as raw:
        if file.suffix == ".gz":
            with gzip.GzipFile("", "wb", LEVEL, raw, mtime=0) as packed:
                yield cast(IO[bytes], packed)
        else:
            yield raw
