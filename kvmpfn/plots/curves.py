"""Curves with their intervals, in panels side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kvmpfn.plots.style import COLORS, label_lines

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["curves"]

STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (7, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def curves(
    frame: pd.DataFrame,
    *,
    panel: str,
    x: str,
    line: str,
    xlabel: Mapping[str, str] | str,
    ylabel: Mapping[str, str] | str,
    title: str,
    note: str = "",
    columns: int = 3,
    log: str = "xy",
    right: float = 0.4,
    height: float = 3.0,
    sharey: bool = True,
    colors: Mapping[str, str] | None = None,
    level: tuple[float, str] | None = None,
    ideal: str = "",
    beyond: Mapping[str, float] | float | None = None,
    theory: pd.DataFrame | None = None,
) -> Figure:
    """Draw lines over x, one panel a value of `panel`, with 95 % intervals as bands.

    Parameters
    ----------
    frame : DataFrame
        The columns `panel`, `x`, `line`, ``mean``, ``low`` and ``high``; NaN intervals are not drawn.
    panel, x, line : str
        Names of those columns; panels and lines keep the frame's order.
    xlabel, ylabel : str or mapping
        Axis labels with units, for all panels or by panel.
    title : str
        The figure's one statement.
    note : str
        Small print below the panels.
    columns : int
        Panels side by side.
    log : {"", "x", "y", "xy"}
        Logarithmic axes.
    right : float
        Room for the lines' names, as a part of a panel's width.
    height : float
        Of a panel, in inches.
    sharey : bool
        Whether panels share their y axis.
    colors : mapping of str to str, optional
        Colours by line; the palette in its order if not given.
    level : (float, str), optional
        A horizontal line to compare with, and its name.
    ideal : str
        Name of the line of ideal scaling (flat from the first line's first point); none if empty.
    beyond : float or mapping, optional
        The x from which on points are extrapolated, for all panels or by panel; drawn grey.
    theory : DataFrame, optional
        A closed form to compare with: the columns `panel`, `x` and ``mean``. A thin line in the panels that
        have rows, named "closed form" in the last of them.

    Returns
    -------
    Figure
        The figure.
    """
    import matplotlib.pyplot as plt

    panels = list(dict.fromkeys(frame[panel]))
    lines = list(dict.fromkeys(frame[line]))
    hues = list(COLORS.values())
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    fig, axes = plt.subplots(
        rows, columns, squeeze=False, sharey=sharey, figsize=(max(5.5, 3.35 * columns), rows * height + 0.8)
    )
    for number, (ax, name) in enumerate(zip(axes.flat, panels, strict=False)):
        part = frame[frame[panel] == name]
        if "x" in log:
            ax.set_xscale("log", base=2 if _doubling(part[x]) else 10)
        if "y" in log:
            ax.set_yscale("log")
        for place, label in enumerate(lines):
            rows_of = part[part[line] == label].sort_values(x)
            if rows_of.empty:
                continue
            color = (colors or {}).get(label, hues[place % len(hues)])
            look: dict[str, Any] = {"linestyle": STYLES[place % len(STYLES)], "marker": MARKERS[place % 7]}
            ax.plot(rows_of[x], rows_of["mean"], color=color, label=label, **look)
            ax.fill_between(rows_of[x], rows_of["low"], rows_of["high"], color=color, alpha=0.2, linewidth=0)
        first = part[part[line] == lines[0]].sort_values(x)
        if ideal and not first.empty:
            ax.plot(
                first[x], [first["mean"].iloc[0]] * len(first), color="#555555", linewidth=0.9,
                linestyle=(0, (2, 2)), label=ideal,
            )  # fmt: skip
        if theory is not None and not (form := theory[theory[panel] == name].sort_values(x)).empty:
            label = "closed form" if name == theory[panel].iloc[-1] else "_closed form"
            ax.plot(form[x], form["mean"], color="#000000", linewidth=0.8, zorder=1, label=label)
        if level:
            ax.axhline(level[0], color="black", linewidth=0.8, linestyle=":")
        start = beyond.get(name) if isinstance(beyond, Mapping) else beyond
        edge = float(part[x].max())
        if start is not None and edge > start:
            ax.axvspan(start, edge, color="#000000", alpha=0.06, linewidth=0)
        ax.set_title(name, fontsize=8.5)
        ax.set_xlabel(xlabel if isinstance(xlabel, str) else xlabel[name])
        if number % columns == 0 or not sharey:
            ax.set_ylabel(ylabel if isinstance(ylabel, str) else ylabel[name])
    if "x" in log:
        for ax, name in zip(axes.flat, panels, strict=False):
            _ticks(ax, frame[frame[panel] == name][x])
    fig.canvas.draw()
    for ax in list(axes.flat)[: len(panels)]:
        label_lines(ax, right=right, gap=0.075 if rows > 1 else 0.06)
        if level:
            ax.text(0.02, level[0], level[1], transform=ax.get_yaxis_transform(), fontsize=7, va="bottom")
    for ax in list(axes.flat)[len(panels) :]:
        ax.set_visible(False)
    fig.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    if note:
        fig.supxlabel(note, fontsize=7.5)
    return fig


def _doubling(values: Sequence[float]) -> bool:
    """Whether all values are powers of two, from 1 to a few thousand."""
    return all(float(v).is_integer() and 0 < v < 1e5 and int(v) & (int(v) - 1) == 0 for v in values)


def _ticks(ax: Any, values: Any) -> None:
    """Put ticks where the points are, every second one when they are many."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    points = sorted(set(values))
    shown = points if len(points) <= 5 else points[::2] if len(points) % 2 else points[1::2]
    ax.xaxis.set_major_locator(FixedLocator([float(v) for v in shown]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: _short(v)))


def _short(value: float) -> str:
    """Write 1000 as 1k and 1000000 as 1M."""
    for unit, sign in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{sign}"
    return f"{value:g}"
