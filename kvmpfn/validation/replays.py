"""A recording's retries beside those of its replays, with intervals on both sides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kvmpfn.traces.trace import retries_known
from kvmpfn.validation.ratios import CELLS, ratios

if TYPE_CHECKING:
    import pandas as pd

    from kvmpfn.traces import Trace

__all__ = ["METRICS", "preset_quantities", "retry_cells"]

RACES = ("retry.race.leaf", "retry.race.parent", "retry.race.frozen")
METRICS = ("pf_taken", "retry", "invalidations", "latency.mean", *CELLS, *RACES)
"""What a study of replays must have measured."""

PLACES = {
    "pre_gup": "before GUP",
    "post_gup": "after GUP",
    "locked": "under mmu_lock",
    "race": "at the entry",
}
REASONS = {"range": "range", "false_range": "collapsed range", "seq": "sequence"}
BLOCKS = 24
"""Stretches of a recording whose counts are taken to be independent."""


def retry_cells(trace: Trace, frame: pd.DataFrame, vm: int = 0) -> pd.DataFrame:
    """Compare where and why faults were retried.

    Parameters
    ----------
    trace : Trace
        The recording; without probes there is one cell, of all retries.
    frame : DataFrame
        Replays under the recorded kernel's own fault path, a row a replica, with the columns of `METRICS`.
    vm : int
        Which VM was replayed.

    Returns
    -------
    DataFrame
        A row a cell and `source` (``recorded``, ``replayed``): `cell`, `share` of the faults taken in
        percent, and its 95 % interval from `low` to `high`, by the jackknife over stretches of the recording
        or over replicas. Cells that are empty on both sides are left out.
    """
    import pandas as pd

    faults = trace.faults[trace.faults["vm"] == vm]
    faults = faults[faults["outcome"] != "unfinished"]
    retried = faults[faults["outcome"] == "RETRY"]
    reasons = not retried["why"].isin(["unknown"]).any()
    placed = not retried["where"].isin(["unknown"]).any()
    edges = np.linspace(faults["time_ps"].min(), faults["time_ps"].max() + 1, BLOCKS + 1)
    block = np.searchsorted(edges, faults["time_ps"].to_numpy(), side="right") - 1

    def name(where: str, why: str) -> str:
        if not placed:
            return "all retries"
        return PLACES[where] + (f": {REASONS[why]}" if reasons and why in REASONS else "")

    keys = faults["outcome"].eq("RETRY"), faults["where"].astype("str"), faults["why"].astype("str")
    cells = [name(where, why) if retry else "" for retry, where, why in zip(*keys, strict=True)]
    counted = pd.crosstab(block, np.array(cells)).reindex(range(BLOCKS), fill_value=0)
    blocks = counted.drop(columns="", errors="ignore").assign(faults=counted.sum(axis=1))
    replays = pd.DataFrame({"faults": frame["pf_taken"]})
    for column in (*CELLS, *RACES):
        _, where, why = column.split(".")
        cell = name(where, why)
        replays[cell] = replays.get(cell, 0) + frame[column]
    rows = []
    for cell in replays.columns[1:]:
        for source, counts in (("recorded", blocks), ("replayed", replays)):
            known = counts if cell in counts else counts.assign(**{cell: 0})
            share = 100 * ratios(known, [cell], "faults").loc[cell]
            rows.append([cell, source, share["mean"], share["low"], share["high"]])
    table = pd.DataFrame(rows, columns=["cell", "source", "share", "low", "high"])
    table = table[table.groupby("cell")["share"].transform("max") > 0].reset_index(drop=True)
    return table.replace(np.inf, np.nan)  # one stretch holds all faults: no interval


def preset_quantities(trace: Trace, frame: pd.DataFrame, vm: int = 0) -> pd.DataFrame:
    """Compare what fault paths make of the recorded accesses.

    Parameters
    ----------
    trace : Trace
        The recording.
    frame : DataFrame
        Replays, a row a replica of each `fault_path`, with the columns of `METRICS`.
    vm : int
        Which VM was replayed.

    Returns
    -------
    DataFrame
        A row a `quantity` and `preset` (a fault path, or ``recorded`` where the recording tells it): `mean`,
        and its 95 % interval from `low` to `high`.
    """
    import pandas as pd

    faults = trace.faults[trace.faults["vm"] == vm]
    faults = faults[faults["outcome"] != "unfinished"]
    calls = len(trace.invalidations)
    retries = (
        "retries for each invalidation" if frame["invalidations"].sum() else "retries (% of faults taken)"
    )
    by, scale = ("invalidations", 1) if frame["invalidations"].sum() else ("pf_taken", 100)
    rows = []
    if retries_known(faults) and (calls or by == "pf_taken"):
        count, of = int((faults["outcome"] == "RETRY").sum()), calls if by == "invalidations" else len(faults)
        half = 1.96 * count**0.5  # as if retries were independent
        rows.append(
            [retries, "recorded", *(scale * value / of for value in (count, count - half, count + half))]
        )
    for preset, one in frame.groupby("fault_path", sort=False):
        share = scale * ratios(one, ["retry"], by).loc["retry"]
        rows.append([retries, preset, share["mean"], share["low"], share["high"]])
    for preset, one in frame.groupby("fault_path", sort=False):
        summed = one.assign(time=one["latency.mean"] * one["pf_taken"] / 1e6)
        spent = ratios(summed, ["time"], "pf_taken").loc["time"]
        rows.append(["mean time of a fault (us)", preset, spent["mean"], spent["low"], spent["high"]])
    table = pd.DataFrame(rows, columns=["quantity", "preset", "mean", "low", "high"])
    return table.replace(np.inf, np.nan)
