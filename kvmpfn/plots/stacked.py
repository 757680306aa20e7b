"""Bars made of parts: atomics by line, time by part, retries by cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["stacked_bars"]


def stacked_bars(
    frame: pd.DataFrame,
    *,
    panel: str,
    bar: str,
    parts: Mapping[str, str],
    xlabel: str,
    title: str,
    note: str = "",
    columns: int = 4,
    hatched: Sequence[str] = (),
    sharex: bool = True,
) -> Figure:
    """Draw one panel a value of one column, in it a bar a value of another, stacked from parts.

    Parameters
    ----------
    frame : DataFrame
        One row a bar: the columns `panel` and `bar`, one column a part, and perhaps ``note``, a text that
        stands in place of the bar's total.
    panel, bar : str
        Columns that name panels and bars; both keep the frame's order.
    parts : mapping of str to str
        Columns to stack, from the left, and their colours.
    xlabel, title : str
        The unit's axis, and the figure's one statement.
    note : str
        Small print below the panels.
    columns : int
        Panels side by side.
    hatched : sequence of str
        Parts drawn hatched, such as the host's own.
    sharex : bool
        Whether panels have one scale.

    Returns
    -------
    Figure
        The figure.
    """
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    names = list(dict.fromkeys(frame[panel]))
    bars = list(dict.fromkeys(frame[bar]))
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    high = 0.19 * len(bars) + 0.5
    fig, axes = plt.subplots(
        rows, columns, sharex=sharex, sharey=True, squeeze=False, figsize=(9.5, rows * high + 1.5)
    )
    longest = float(frame[list(parts)].sum(axis=1).max())
    for ax, name in zip(axes.flat, names, strict=False):
        rows_of = frame[frame[panel] == name].set_index(bar)
        if not sharex:
            longest = float(rows_of[list(parts)].sum(axis=1).max())
        for height, label in enumerate(bars):
            if label not in rows_of.index:
                continue
            row = rows_of.loc[label]
            left = 0.0
            for part, color in parts.items():
                width = float(row[part])
                if width:
                    ax.barh(
                        height, width, left=left, height=0.75, color=color, edgecolor="white",
                        linewidth=0.4, hatch="////" if part in hatched else None,
                    )  # fmt: skip
                left += width
            text = str(row.get("note", "") or (f"{left:.0f}" if left >= 100 else f"{left:.3g}"))
            ax.text(left + longest * 0.015, height, text, va="center", fontsize=7)
        ax.set_title(name, fontsize=8.5)
        ax.set_yticks(range(len(bars)), bars)
        ax.set_ylim(len(bars) - 0.4, -0.6)
        ax.set_xlim(0, longest * (1.16 if sharex else 1.45))
        ax.grid(axis="y", visible=False)
    for ax in list(axes.flat)[len(names) :]:
        ax.set_visible(False)
    fig.supxlabel(xlabel + (f"\n{note}" if note else ""), fontsize=8)
    fig.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    handles = [
        Patch(facecolor=color, edgecolor="white", hatch="////" if part in hatched else None, label=part)
        for part, color in parts.items()
    ]
    fig.legend(handles=handles, loc="outside right center", ncols=1)
    return fig
