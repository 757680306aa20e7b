"""How fast the simulator runs by the number of vCPUs, under what is possible."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmpfn.plots.style import COLORS, label_lines, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["plot_sizes"]

MARKERS = ("o", "s", "^", "D", "v")
HUES = ("blue", "vermilion", "green", "purple", "orange")


def plot_sizes(frame: pd.DataFrame) -> Figure:
    """Draw faults a second by vCPUs, a line for each size of memory, with two limits above.

    Parameters
    ----------
    frame : DataFrame
        The table `sizes` of a `kvmpfn.bench.Report`.

    Returns
    -------
    Figure
        Bars are the least and the greatest repetition; the limits' bands hold all sizes of memory.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, NullLocator

    vcpus = sorted(set(frame["vcpus"]))
    with style():
        fig, ax = plt.subplots(figsize=(7.2, 4.4))
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        for number, memory in enumerate(dict.fromkeys(frame["memory"])):
            rows = frame[frame["memory"] == memory].sort_values("vcpus")
            bars = [rows["taken_per_s"] - rows["low"], rows["high"] - rows["taken_per_s"]]
            color = COLORS[HUES[number % len(HUES)]]
            ax.plot(rows["vcpus"], rows["taken_per_s"], color=color, marker=MARKERS[number % 5], label=memory)
            ax.errorbar(
                rows["vcpus"], rows["taken_per_s"], yerr=bars, fmt="none", capsize=2, lw=1, color=color
            )
            if number == 0:
                ideal = [rows["taken_per_s"].iloc[0]] * len(vcpus)
                ax.plot(vcpus, ideal, color="#555555", lw=0.9, ls=(0, (2, 2)), label="ideal: as the first")
        for column, name, color in (
            ("c_per_s", "C, much smaller model", "grey"),
            ("updates_per_s", "random line updates", "black"),
        ):
            limits = frame.groupby("vcpus")[column].agg(["min", "median", "max"]).dropna()
            if limits.empty:
                continue
            ax.fill_between(limits.index, limits["min"], limits["max"], color=COLORS[color], alpha=0.2, lw=0)
            ax.plot(limits.index, limits["median"], color=COLORS[color], lw=1, ls="--", label=name)
        ax.xaxis.set_major_locator(FixedLocator(vcpus))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_major_formatter(EngFormatter())
        ax.set_xlabel("vCPUs")
        ax.set_ylabel("faults taken, or lines updated,\na second of one processor")
        ax.set_title("Speed of one simulation by guest memory, and what bounds it")
        fig.canvas.draw()
        label_lines(ax, right=0.36)
    return fig
