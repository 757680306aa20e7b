"""From a thread's invalidations to the storm that would make such.

Arrivals: even pauses between an end and the next start make a closed loop, even gaps between starts a
periodic storm; gaps of two sizes, short ones within bursts and some at least `APART` times as long between
them, make bursts; else arrivals are Poisson. Place: on from where the last one ended makes a scan, one and
the same place an offset; else it is random. Span and hold are medians.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kvmpfn import storms
from kvmpfn.units import PAGE, format_size, format_time

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from kvmpfn.traces.memslots import Memslots

    Words = NDArray[np.int64]

__all__ = ["fit_storm"]

EVEN = 0.5
"""Times whose middle nine tenths spread over less than this share of their mean count as even."""

APART = 10
"""A gap of so many medians lies between bursts."""

SPREAD = 2.0
"""Standard deviation of the gaps of bursts, in means at least; it is one for Poisson arrivals."""

BURSTS = 3
"""Bursts that make bursts of it, and calls that each must have on average."""

MOSTLY = 0.8
"""Share of the calls that must follow a rule of places."""


def fit_storm(calls: pd.DataFrame, asked: float = 0.0, memslots: Memslots | None = None) -> storms.Storm:
    """Fit one thread's invalidations.

    Parameters
    ----------
    calls : DataFrame
        Rows of `Trace.invalidations`, in order; at least two, not all at one time.
    asked : float
        Rate that the thread was told to keep, if the recording says it; negative is back to back.
    memslots : Memslots, optional
        Where guest memory is; without it no offset can be told.
    """
    start = calls["start_ps"].to_numpy(dtype=np.int64)
    gaps = np.diff(start)
    ended = calls["end_ret_ps"].iloc[:-1]
    pauses = (start[1:] - ended)[ended.notna()].to_numpy(dtype=np.int64)
    hold = calls["hold_ps"].dropna().to_numpy(dtype=np.int64)
    fields: dict[str, Any] = {
        "span": format_size(max(1, -(-_median(_span(calls)) // PAGE)) * PAGE),
        "hold": format_time(max(0, _median(hold)) if len(hold) else 0),
        "action": "madvise",
    }
    fields |= _place(calls, memslots)
    mean = float(gaps.mean())
    even_pauses = len(pauses) > 0 and _width(pauses) < min(_width(gaps), EVEN * pauses.mean())
    if asked < 0 or (not asked and even_pauses):
        think = max(0, _median(pauses)) if len(pauses) else 0
        return storms.closed_loop(think=format_time(think), **fields)
    if asked > 0 or _width(gaps) < EVEN * mean:
        return storms.periodic(rate=_rate(mean), **fields)
    apart = gaps >= APART * max(1, _median(gaps))
    off = int(apart.sum())
    if off >= BURSTS - 1 and len(start) >= BURSTS * (off + 1) and gaps.std() >= SPREAD * mean:
        within = gaps[~apart]
        on = max(1, round(float(within.sum()) / (off + 1) + float(within.mean())))
        pause = max(1, round(float(gaps[apart].mean() - within.mean())))
        return storms.bursts(
            rate=_rate(max(1.0, float(within.mean()))), on=format_time(on), off=format_time(pause), **fields
        )
    return storms.poisson(rate=_rate(mean), **fields)


def _span(calls: pd.DataFrame) -> Words:
    """Bytes of each call that are the guest's, or all where that is not known."""
    if calls["gfn_start"].notna().all():
        return (calls["gfn_end"] - calls["gfn_start"]).to_numpy(dtype=np.int64) * PAGE
    return calls["span"].to_numpy().astype(np.int64)


def _place(calls: pd.DataFrame, memslots: Memslots | None) -> dict[str, Any]:
    """Say where spans lie, if there is a rule."""
    known = memslots is not None and calls["gfn_start"].notna().all()
    names = ("gfn_start", "gfn_end") if known else ("hva_start", "hva_end")
    begin, end = (calls[name].to_numpy(dtype=np.int64) for name in names)
    if (begin[1:] == end[:-1]).mean() >= MOSTLY:
        return {"place": "scan"}
    places, counts = np.unique(begin, return_counts=True)
    if memslots is not None and known and counts.max() >= MOSTLY * len(begin):
        offset = int(memslots.place(places[counts.argmax()][None])[0])
        return {"offset": format_size(offset * PAGE)}
    return {}


def _rate(gap: float) -> str:
    return f"{1e12 / gap:.3f}/s"


def _median(values: Words) -> int:
    """Return the middle value, of two the higher."""
    return int(np.sort(values)[len(values) // 2])


def _width(values: Words) -> int:
    """Return the distance between the 5th and the 95th percentile."""
    cut = len(values) // 20
    middle = np.sort(values)[cut : len(values) - cut]
    return int(middle[-1] - middle[0])
