"""What happened when: faults, retries and invalidations over one run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kvmpfn.plots.style import COLORS, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["plot_parts", "plot_timeline"]


def plot_timeline(timeline: pd.DataFrame) -> Figure:
    """Draw the rates of faults, of retries and of invalidations over time.

    Parameters
    ----------
    timeline : DataFrame
        `Run.timeline`; what lies after the last fault is left out.
    """
    import matplotlib.pyplot as plt

    used = timeline.loc[: timeline["taken"].to_numpy().nonzero()[0].max()]
    width = float(timeline["time"].iloc[1] - timeline["time"].iloc[0])
    edges = np.append(used["time"], used["time"].iloc[-1] + width) / 1e9
    panels = (
        ("resolved", "faults resolved", "blue", "million/s", 1e6),
        ("retries", "retries", "vermilion", "million/s", 1e6),
        ("invalidations", "invalidations", "black", "thousand/s", 1e3),
    )
    with style():
        fig, axes = plt.subplots(len(panels), 1, figsize=(7.6, 4.6), sharex=True, layout="constrained")
        for ax, (column, title, color, unit, scale) in zip(axes, panels, strict=True):
            rate = used[column].to_numpy() * 1e12 / width / scale
            ax.stairs(rate, edges, color=COLORS[color], fill=True, alpha=0.35)
            ax.stairs(rate, edges, color=COLORS[color], lw=1.2)
            ax.set_ylim(bottom=0)
            ax.set_ylabel(unit)
            ax.set_title(title, color=COLORS[color])
        axes[-1].set_xlabel("simulated time (ms)")
    return fig


def plot_parts(frame: pd.DataFrame) -> Figure:
    """Draw where the time of a resolved fault goes, for a few runs beside each other.

    Parameters
    ----------
    frame : DataFrame
        One row a part (the index), one column a run, in ns of a resolved fault.
    """
    import matplotlib.pyplot as plt

    shown = frame[(frame > 0.5).any(axis=1)]
    y = np.arange(len(shown))
    height = 0.8 / len(shown.columns)
    with style():
        fig, ax = plt.subplots(figsize=(7.6, 0.36 * len(shown) + 1.0), layout="constrained")
        for number, name in enumerate(shown.columns):
            values = shown[name].to_numpy(dtype=float)
            at = y + (number - (len(shown.columns) - 1) / 2) * height
            color = COLORS[("blue", "orange", "green", "purple")[number % 4]]
            ax.barh(at, values, height=height, color=color, label=str(name))
            for place, value in zip(at, values, strict=True):
                ax.text(value, float(place), f" {value:,.0f}", va="center", fontsize=7)
        ax.set_yticks(y, [str(name).replace("_", " ") for name in shown.index])
        ax.set_ylim(len(shown) - 0.5, -0.5)
        ax.set_xlim(0, 1.1 * float(shown.to_numpy().max()))
        ax.grid(axis="y", visible=False)
        ax.set_xlabel("ns of a resolved fault, on average")
        ax.legend(loc="lower right")
    return fig
