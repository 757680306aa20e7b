"""Ratios of counts over blocks or replicas, with intervals by the jackknife."""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

__all__ = ["CELLS", "per_invalidation", "ratios"]

PLACES = ("pre_gup", "post_gup", "locked")
CELLS = tuple(f"retry.{place}.{why}" for place in PLACES for why in ("range", "false_range", "seq"))
"""Where and why a fault can be found stale."""


def ratios(frame: pd.DataFrame, columns: Sequence[str], by: str, level: float = 0.95) -> pd.DataFrame:
    """Sum columns over all rows, and divide by another's sum; delete-one jackknife intervals.

    Parameters
    ----------
    frame : DataFrame
        A row for each block of a recording, or each replica of a simulation: independent counts.
    columns : sequence of str
        The numerators.
    by : str
        The denominator.
    level : float
        Of the interval: normal theory, so a dozen rows or more.

    Returns
    -------
    DataFrame
        A row a column: `mean` (the ratio of sums), `low` and `high`; 0 and infinity if one row holds all of
        the denominator.

    Notes
    -----
    With n rows and the ratio without row i, r_i, the standard error is
    sqrt((n - 1) / n * sum((r_i - mean(r))**2)) (Quenouille and Tukey).
    """
    import pandas as pd

    below = frame[by].to_numpy(dtype="float64")
    factor = NormalDist().inv_cdf(0.5 + level / 2)
    rows = {}
    for column in columns:
        above = frame[column].to_numpy(dtype="float64")
        ratio = above.sum() / below.sum()
        rest = below.sum() - below
        if not rest.all():  # one row holds all of the denominator: nothing is known of its spread
            rows[column] = (ratio, 0.0, np.inf)
            continue
        without = (above.sum() - above) / rest
        spread = np.sqrt((len(frame) - 1) / len(frame) * ((without - without.mean()) ** 2).sum())
        rows[column] = (ratio, max(0.0, ratio - factor * spread), ratio + factor * spread)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "low", "high"])


def per_invalidation(frame: pd.DataFrame) -> pd.DataFrame:
    """Summarise blocks or replicas of a storm: retries by cell, and what surrounds them.

    Parameters
    ----------
    frame : DataFrame
        From `recorded_blocks` or `predict`.

    Returns
    -------
    DataFrame
        `ratios` of `retry`, of each cell and of the leaves zapped to the invalidations (rows of their names),
        of the retries to the faults taken (``retried``), of the tries to the accesses (``tries``), and of
        retries by sequence alone to all retries (``seq only``).
    """
    import pandas as pd

    with_seq = frame.assign(seq=frame[[c for c in CELLS if c.endswith(".seq")]].sum(axis=1))
    parts = [
        ratios(frame, ["retry", *CELLS, "zapped"], "invalidations"),
        ratios(frame, ["retry"], "faults").rename(index={"retry": "retried"}),
        ratios(frame, ["faults"], "resolved").rename(index={"faults": "tries"}),
        ratios(with_seq, ["seq"], "retry").rename(index={"seq": "seq only"}),
    ]
    return pd.concat(parts)
