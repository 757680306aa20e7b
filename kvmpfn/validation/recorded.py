"""A recorded storm as blocks of counts, so that its ratios have intervals too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kvmpfn.traces.pace import zapped_leaves
from kvmpfn.validation.ratios import CELLS

if TYPE_CHECKING:
    import pandas as pd

    from kvmpfn.traces import Trace

__all__ = ["recorded_blocks"]


def recorded_blocks(trace: Trace, blocks: int = 24) -> pd.DataFrame:
    """Cut a recording into blocks of equal time and count what each holds.

    Parameters
    ----------
    trace : Trace
        A storm's recording with all probes.
    blocks : int
        How many blocks; long enough each that what one invalidation causes seldom reaches the next.

    Returns
    -------
    DataFrame
        A row a block: `faults` (taken), `resolved` (those not retried), `retry`, the cells of
        `kvmpfn.validation.ratios.CELLS`, `invalidations`, and `zapped` leaves.
    """
    import pandas as pd

    faults = trace.faults[trace.faults["outcome"] != "unfinished"]
    calls = trace.invalidations
    begin = int(faults["time_ps"].min())
    edges = np.linspace(begin, int(faults["time_ps"].max()) + 1, blocks + 1).astype("int64")
    place = np.searchsorted(edges, faults["time_ps"].to_numpy(), side="right") - 1
    call_place = np.clip(
        np.searchsorted(edges, calls["start_ps"].to_numpy(), side="right") - 1, 0, blocks - 1
    )

    def count(rows: np.ndarray, where: np.ndarray) -> np.ndarray:
        return np.bincount(where[rows], minlength=blocks)

    retried = (faults["outcome"] == "RETRY").to_numpy()
    frame = pd.DataFrame({"faults": count(np.ones(len(faults), bool), place)})
    frame["resolved"] = count(~retried, place)
    frame["retry"] = count(retried, place)
    kind = "retry." + faults["where"].astype(str) + "." + faults["why"].astype(str)
    for cell in CELLS:
        frame[cell] = count(retried & (kind == cell).to_numpy(), place)
    frame["invalidations"] = count(np.ones(len(calls), bool), call_place)
    frame["zapped"] = np.bincount(call_place, weights=zapped_leaves(trace).to_numpy(), minlength=blocks)
    return frame
