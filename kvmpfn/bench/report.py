"""What was measured: tables with units, as text, as JSON and as the README shows it."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvmpfn.units import InputError, nearest
from kvmpfn.versions import versions

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SCHEMA", "Report", "split_readme", "write_readme"]

SCHEMA = 2
"""Version of the JSON, which every file names."""

# All rates are a second of one processor's time.
TITLES = {
    "yardsticks": "the same scenario in other programs (of_engine: their rate by the engine's)",
    "sizes": "by size, v6.1, two storms (bytes: of this run; c: in C, prefetching; updates: of random lines)",
    "presets": "by fault path, 64 vCPUs, 16GiB",
    "footprint": "the simulator's memory when every page is mapped",
    "parallel": "independent runs in threads, by the clock (got: processors at work, of those there are)",
    "start": "waiting times, by the clock",
}

BEGIN, END = "<!-- kvmpfn bench -->\n", "<!-- end of kvmpfn bench -->"


@dataclass(frozen=True, slots=True)
class Report:
    """Measurements of one machine.

    Attributes
    ----------
    machine : dict
        ``cpu`` (the processor's name) and ``processors`` (that could be used).
    versions : dict of str
        As `kvmpfn.versions.versions` has them.
    tables : dict of DataFrame
        By the names of `TITLES`; each has its units in ``.attrs["units"]``. `low` and `high` are the least
        and the greatest of the repetitions, and belong to the column before them.
    notes : list of str
        What was left out, and why.
    """

    machine: dict[str, Any]
    versions: dict[str, str]
    tables: dict[str, pd.DataFrame]
    notes: list[str]

    @classmethod
    def now(cls, tables: Mapping[str, pd.DataFrame], notes: Sequence[str]) -> Report:
        """Return measurements that were made here."""
        machine = {"cpu": _cpu(), "processors": os.cpu_count()}
        return cls(machine, versions(), dict(tables), list(notes))

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON knows it, with its schema; a number that is not there is None."""
        tables = {
            name: {"units": table.attrs["units"], "rows": [_plain(row) for row in table.to_dict("records")]}
            for name, table in self.tables.items()
        }
        return {
            "schema": SCHEMA,
            "machine": self.machine,
            "versions": self.versions,
            "notes": self.notes,
            "tables": tables,
        }

    def to_json(self) -> str:
        """Return `to_dict` as text, which ends with a newline."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """Read what `to_json` wrote.

        Raises
        ------
        InputError
            There is no such file, or it holds something else.
        """
        import pandas as pd

        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "is not JSON"
            raise InputError(f"{path}: {why}; nearest is a file that 'kvmpfn bench --output' wrote") from None
        schema = found.get("schema") if isinstance(found, dict) else None
        if schema != SCHEMA or "tables" not in found:
            raise InputError(f"{path}: is no benchmark of schema {SCHEMA}; nearest is one made anew")
        tables = {}
        for name, table in found["tables"].items():
            tables[name] = pd.DataFrame(table["rows"]).infer_objects()
            tables[name].attrs["units"] = table["units"]
        return cls(found["machine"], found["versions"], tables, found["notes"])

    def __str__(self) -> str:
        """Show all tables."""
        head = f"{self.machine['cpu']}, {self.machine['processors']} processors"
        used = ("kvmpfn", "python", "numba")
        lines = [f"{head}; {', '.join(f'{name} {self.versions[name]}' for name in used)}"]
        for name, table in self.tables.items():
            if table.empty:
                continue
            names = {column: _named(column, table.attrs["units"]) for column in map(str, table.columns)}
            shown = table.rename(columns=names)
            text = shown.to_string(index=False, float_format=lambda number: f"{number:.4g}", na_rep="-")
            lines += ["", f"{TITLES[name]}:", text]
        return "\n".join([*lines, *([""] if self.notes else []), *self.notes])

    def markdown(self) -> str:
        """Return the README's tables: the standard workload, its ends of the grid, threads, waiting times."""
        rows: list[tuple[str, ...]] = [
            (
                "faults taken a second of one processor",
                "median",
                "least to most",
                "by engine",
                "events",
                "a fault",
                "hand-offs",
                "RETRY",
            ),
            ("---", "---:", "---:", "---:", "---:", "---:", "---:", "---:"),
        ]
        for row in self.tables["yardsticks"].to_dict("records"):
            rows.append((f"{row['scenario']}: {row['program']}", *_rates(row, f"{row['of_engine']:.3g}")))
        sizes = self.tables["sizes"].to_dict("records")
        for row in (sizes[0], sizes[-1]) if sizes else ():
            rows.append((f"{row['vcpus']} vCPUs, {row['memory']}: engine", *_rates(row, "")))
        text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        (memory,) = self.tables["footprint"].to_dict("records")
        (threads,) = self.tables["parallel"].to_dict("records")
        said = [
            f"Memory of the simulator: {memory['bytes_per_page']:.1f} B a 4K page of a guest all mapped.",
            f"{threads['replicas']} runs in {threads['threads']} threads: {threads['speedup']:.2f} times as "
            f"fast as one after the other ({threads['low']:.2f} to {threads['high']:.2f}); they got "
            f"{threads['threads_got']:.2f} processors, and one after the other {threads['serial_got']:.2f}."
            + (
                ""
                if _missing(threads["c_speedup"])
                else f" Processes of C: {threads['c_speedup']:.2f} times."
            ),
        ]
        if "start" in self.tables:
            for row in self.tables["start"].to_dict("records"):
                spread = "" if row["low"] == row["high"] else f" ({row['low']:.2g} to {row['high']:.2g})"
                said.append(f"{row['what'][:1].upper()}{row['what'][1:]}: {row['seconds']:.2g} s{spread}.")
        machine = f"{self.machine['cpu']}, {self.machine['processors']} processors"
        items = "\n".join(f"- {line}" for line in said)
        return f"{text}\n\n{items}\n\nMeasured on: {machine}, numba {self.versions['numba']}.\n"


def split_readme(path: str | os.PathLike[str]) -> tuple[str, str]:
    """Return what stands before and after the place that a document keeps for a report, marks included.

    Raises
    ------
    InputError
        The document is not there, or has no marks.
    """
    file = Path(path)
    if not file.is_file():
        near = nearest(file.name, [other.name for other in file.parent.glob("*.md")] or ["README.md"])
        raise InputError(f"{path}: no such file; nearest is {near}")
    before, begin, rest = file.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"{path}: has no lines {BEGIN.strip()!r} and {END!r}; nearest is README.md")
    return before + begin, end + after


def write_readme(report: Report, path: str | os.PathLike[str]) -> None:
    """Put a report's tables into a document, in place of those that stood there; see `split_readme`."""
    before, after = split_readme(path)
    Path(path).write_text(before + report.markdown() + after, encoding="utf-8")


def _rates(row: Mapping[Any, Any], ratio: str) -> tuple[str, ...]:
    spread = f"{_short(row['low'])} to {_short(row['high'])}"
    handoffs = row.get("handoffs_per_fault")
    return (
        _short(row["taken_per_s"]),
        spread,
        ratio,
        _short(row["events_per_s"]),
        f"{row['events_per_fault']:.1f}",
        "" if _missing(handoffs) else f"{handoffs:.1f}",
        f"{row['retry_share']:.1%}",
    )


def _short(number: float) -> str:
    """Write a rate with three digits, in millions or thousands."""
    for unit, sign in ((1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:.3g}{sign}"
    return f"{number:.3g}"


def _named(column: str, units: Mapping[str, str]) -> str:
    unit = units.get(column, "1")
    return column if unit == "1" or column.endswith(("_per_s", "_s")) else f"{column} ({unit})"


def _missing(number: float | None) -> bool:
    return number is None or math.isnan(number)


def _plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        str(name): None if isinstance(value, float) and math.isnan(value) else value
        for name, value in row.items()
    }


def _cpu() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model", "cpu model"):
                return value.strip()
    return platform.processor() or platform.machine()
