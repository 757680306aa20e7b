"""LOCK-prefixed instructions a fault, counted on a real kernel, beside the model's own counts.

A count comes from an emulator's plugin: each executed instruction with a LOCK prefix, by function and
address. A table says for each function whose they are, and which of the model's lines
(`kvmpfn.core.names.RMW_LINES`) stands for them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from kvmpfn.core.names import RMW_LINES
from kvmpfn.units import InputError, nearest

if TYPE_CHECKING:
    import pandas as pd

    from kvmpfn.results import Run

__all__ = ["ACCESSES", "WHOSE", "read_locked", "reconcile"]

ACCESSES = {1: "write", 2: "read", 3: "huge"}
"""What the guest did in each of a count's windows: wrote absent pages, read them, wrote huge ones."""

WHOSE = ("kvm", "on its behalf", "host", "machine")
"""KVM's own code; the host's code for what KVM asked for (GUP, put, marks); the host's own fault; timer ticks
and scheduler."""

OTHERS = "(not listed)"

LEAST = 0.005
"""A function's rest that is named: half of what the count prints last."""

_WINDOW = re.compile(r"\S+ window (\d): faults (\d+); per fault: LOCK ([\d.]+)  XCHG-mem ([\d.]+)")
_SITE = re.compile(r"\s+([\d.]+)\s+(\S+)\s+sites (.*)")


def read_locked(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a count's text.

    Parameters
    ----------
    path : path-like
        The plugin's report: for each window a line with its faults and total, and a line a function.

    Returns
    -------
    DataFrame
        A row a function and window: `access`, `faults`, `function`, `each` (a fault), `sites` (how many
        addresses). Function `OTHERS` is what the printed total has beyond the functions that are listed.

    Raises
    ------
    InputError
        There is no window in the text.
    """
    import pandas as pd

    rows: list[tuple[str, int, str, float, int]] = []
    totals: dict[str, tuple[int, float]] = {}
    access, faults, counting = "", 0, False
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if found := _WINDOW.match(line):
            access, faults = ACCESSES[int(found[1])], int(found[2])
            totals[access] = faults, float(found[3]) + float(found[4])
        elif "LOCK+XCHG per fault" in line:
            counting = True
        elif "instructions per fault" in line:
            counting = False
        elif counting and (found := _SITE.match(line)):
            rows.append((access, faults, found[2], float(found[1]), len(found[3].split())))
    if not rows:
        raise InputError(f"{Path(path).name}: no window in it; nearest valid: a recording's lock.txt")
    for access, (faults, total) in totals.items():
        listed = sum(row[3] for row in rows if row[0] == access)
        rows.append((access, faults, OTHERS, round(total - listed, 3), 0))
    return pd.DataFrame(rows, columns=["access", "faults", "function", "each", "sites"])


def reconcile(counted: pd.DataFrame, sites: pd.DataFrame, run: Run) -> pd.DataFrame:
    """Put a count beside a simulation of the same faults, line by line.

    Parameters
    ----------
    counted : DataFrame
        One access of `read_locked`.
    sites : DataFrame
        Columns `function`, `each` (how many a fault this row explains; a function may have several rows),
        `line` (``-`` if the model has none) and `whose`: one kernel's functions for this access.
    run : Run
        The simulation.

    Returns
    -------
    DataFrame
        A row a line of the model that either side counts: `line`, `whose`, `recorded` and `simulated` a
        fault, `difference` (simulated less recorded), `functions`. Line ``-`` is what is known and not
        modelled, line ``unexplained`` what no site accounts for; the sum of `recorded` is all that was
        counted.

    Raises
    ------
    InputError
        A site has an unknown owner or line, or a function that was not counted.
    """
    import pandas as pd

    each = dict(zip(counted["function"], counted["each"], strict=True))
    valid = {"whose": list(WHOSE), "line": [*RMW_LINES, "-"], "function": list(each)}
    for column, names in valid.items():
        for name in sites[column]:
            if name not in names:
                raise InputError(f"sites: no {column} {name!r}; nearest is {nearest(name, names)!r}")
    counts = run.counters
    rows = []
    for line in (*RMW_LINES, "-"):
        part = sites[sites["line"] == line]
        ours = 0.0 if line == "-" else float(counts[f"rmw.fault.{line}"] / counts["pf_taken"])
        if len(part) or ours:
            whose = ", ".join(name for name in WHOSE if name in set(part["whose"]))
            functions = ", ".join(dict.fromkeys(part["function"]))
            rows.append([line, whose, float(part["each"].sum()), ours, functions])
    rest = sum(each.values()) - float(sites["each"].sum())
    left = [name for name in each if each[name] - sites.loc[sites["function"] == name, "each"].sum() > LEAST]
    rows.append(["unexplained", "", rest, 0.0, ", ".join(left)])
    frame = pd.DataFrame(rows, columns=["line", "whose", "recorded", "simulated", "functions"])
    frame.insert(4, "difference", frame["simulated"] - frame["recorded"])
    return frame
