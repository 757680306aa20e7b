"""What the uncertainty of each cost does to one number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmpfn.plots.style import COLORS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["tornado"]


def tornado(frame: pd.DataFrame, *, panel: str, xlabel: str, title: str, most: int = 10) -> Figure:
    """Draw how far a number moves when one cost at a time goes to its low and to its high.

    Parameters
    ----------
    frame : DataFrame
        One row a cost and panel: `panel`, ``cost``, ``base``, ``low``, ``high`` (the number at the cost's
        low and high), ``range`` (the cost's own range, as text) and perhaps ``base_low`` and ``base_high``,
        the interval of the base.
    panel : str
        Column that names the panels.
    xlabel, title : str
        The number with its unit, and the figure's one statement.
    most : int
        Costs shown a panel, those that matter most.

    Returns
    -------
    Figure
        The figure.
    """
    import matplotlib.pyplot as plt

    panels = list(dict.fromkeys(frame[panel]))
    fig, axes = plt.subplots(1, len(panels), squeeze=False, figsize=(11.0, 0.25 * most + 1.6))
    for ax, name in zip(axes.flat, panels, strict=True):
        part = frame[frame[panel] == name]
        swing = (part[["low", "high"]].max(axis=1) - part[["low", "high"]].min(axis=1)).abs()
        part = part.loc[swing.sort_values(ascending=False, kind="stable").index[:most]]
        for height, row in enumerate(part.itertuples()):
            for value, color in ((row.low, COLORS["sky"]), (row.high, COLORS["vermilion"])):
                ax.barh(height, value - row.base, left=row.base, height=0.7, color=color, alpha=0.85)
        ax.set_yticks(range(len(part)), [f"{row.cost} {row.range}" for row in part.itertuples()])
        ax.invert_yaxis()
        if "base_low" in part:
            ax.axvspan(
                part["base_low"].iloc[0], part["base_high"].iloc[0], color="black", alpha=0.08, linewidth=0
            )
        ax.axvline(float(part["base"].iloc[0]), color="black", linewidth=0.9)
        ax.set_title(name, fontsize=8.5)
        ax.set_xlabel(xlabel)
        ax.grid(axis="y", visible=False)
    fig.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    fig.supxlabel(
        "blue: the cost at its low; red: at its high; all others as they are; grey: interval of the base",
        fontsize=7.5,
    )
    return fig
