"""Published tables: rows with a source each, and how far a simulation is from them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from kvmpfn.units import InputError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

__all__ = ["STATUS", "read_table", "residuals"]

STATUS = ("read", "derived")
"""What a row may be: read in its source, or derived from what was read there. Nothing from memory."""


def read_table(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a published table and hold each row to have a status and a source that is told.

    Parameters
    ----------
    path : path-like
        A CSV file with columns `status` and `source`; ``sources.csv`` beside it says what each `source` is.

    Returns
    -------
    DataFrame
        The rows; `source` is as in the file.

    Raises
    ------
    InputError
        The file is missing, or a row has another status or a source that is not told.
    """
    import pandas as pd

    file = Path(path)
    if not file.is_file():
        near = nearest(file.name, sorted(p.name for p in file.parent.glob("*.csv")) or ["none"])
        raise InputError(f"{file.name}: no such table; nearest is {near!r}")
    frame = pd.read_csv(file)
    known = list(pd.read_csv(file.with_name("sources.csv"))["key"])
    for column, valid in (("status", list(STATUS)), ("source", known)):
        if column not in frame:
            raise InputError(f"{file.name}: no column {column!r}; every row needs one of {', '.join(valid)}")
        for row, value in enumerate(frame[column].astype(str), start=2):
            if value not in valid:
                near = nearest(value, valid)
                raise InputError(f"{file.name}, line {row}: {column} {value!r}; nearest is {near!r}")
    return frame


def residuals(published: Sequence[float], simulated: Sequence[float], fitted: Sequence[bool]) -> pd.DataFrame:
    """Put a simulation beside a table, row by row.

    Parameters
    ----------
    published, simulated : sequence of float
        The table's values and the model's, in one unit.
    fitted : sequence of bool
        Which rows a cost was fitted to; at most half of them.

    Returns
    -------
    DataFrame
        Columns `published`, `simulated`, `error` (percent of the published value) and `role` (``fitted`` or
        ``predicted``).

    Raises
    ------
    InputError
        More than half of the rows are fitted, or the lengths differ.
    """
    import pandas as pd

    if not len(published) == len(simulated) == len(fitted):
        raise InputError(
            f"{len(published)} rows published, {len(simulated)} simulated, {len(fitted)} marked; "
            "nearest valid: one of each a row"
        )
    if sum(fitted) > len(published) / 2:
        raise InputError(f"{sum(fitted)} of {len(published)} rows fitted; nearest is {len(published) // 2}")
    frame = pd.DataFrame({"published": published, "simulated": simulated}, dtype="float64")
    frame["error"] = 100 * (frame["simulated"] / frame["published"] - 1)
    frame["role"] = ["fitted" if one else "predicted" for one in fitted]
    frame.attrs["units"] = {"error": "%"}
    return frame
