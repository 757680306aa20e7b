"""A recording over time, beside its replay under each fault path, and beside what was fitted to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kvmpfn.plots.style import COLORS, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["plot_outcomes", "plot_over_time", "plot_presets", "plot_quality"]

OVER_TIME = {
    "faults_per_s": ("faults a second", "blue"),
    "invalidations_per_s": ("invalidations a second", "orange"),
    "retry_percent": ("retries (% of faults taken)", "vermilion"),
    "working_set_mib": ("memory faulted so far (MiB)", "green"),
}


def plot_over_time(frame: pd.DataFrame, title: str) -> Figure:
    """Draw how a recording went on.

    Parameters
    ----------
    frame : DataFrame
        As of `Trace.over_time`.
    title : str
        The figure's one statement.
    """
    import matplotlib.pyplot as plt

    shown = frame.assign(
        retry_percent=100 * frame["retry_share"], working_set_mib=frame["working_set"] * 4096 / (1 << 20)
    )
    with style():
        fig, axes = plt.subplots(2, 2, figsize=(8.6, 4.4), sharex=True, layout="constrained")
        for ax, (name, (label, color)) in zip(axes.flat, OVER_TIME.items(), strict=True):
            ax.plot(shown["time_ps"] / 1e9, shown[name], drawstyle="steps-post", lw=1.2, color=COLORS[color])
            ax.set_ylabel(label)
            ax.set_ylim(0, None if shown[name].max() > 0 else 1)
            ax.grid(axis="y", alpha=0.3)
            if shown[name].isna().all():
                ax.text(0.5, 0.5, "not known", transform=ax.transAxes, ha="center", va="center")
        for ax in axes[-1]:
            ax.set_xlabel("time since the first event (ms)")
        fig.suptitle(title)
    return fig


def plot_outcomes(frame: pd.DataFrame, title: str) -> Figure:
    """Draw where and why faults were retried: recorded, and replayed.

    Parameters
    ----------
    frame : DataFrame
        Columns `cell` (where and why), `source` (``recorded`` or ``replayed``), and `share`, `low` and `high`
        in percent of the faults taken.
    title : str
        The figure's one statement.
    """
    import matplotlib.pyplot as plt

    cells = list(frame["cell"].unique())
    with style():
        fig, ax = plt.subplots(figsize=(7.2, 1.1 + 0.36 * len(cells)), layout="constrained")
        looks = (("recorded", -0.14, "o", "black"), ("replayed", 0.14, "D", "vermilion"))
        for source, shift, marker, color in looks:
            rows = frame[frame["source"] == source].set_index("cell").reindex(cells)
            y = np.arange(len(cells)) + shift
            bars = np.array([rows["share"] - rows["low"], rows["high"] - rows["share"]])
            ax.errorbar(
                rows["share"],
                y,
                xerr=bars,
                fmt=marker,
                ms=5,
                capsize=2,
                lw=1.2,
                color=COLORS[color],
                label=source,
            )
        ax.set_yticks(range(len(cells)), cells)
        ax.set_ylim(len(cells) - 0.5, -0.5)
        ax.set_xlim(left=0)
        ax.grid(axis="x", alpha=0.3)
        ax.set_xlabel("retries (% of faults taken)")
        fig.suptitle(title)
        ax.legend(loc="best", frameon=False)
    return fig


def plot_presets(frame: pd.DataFrame, title: str) -> Figure:
    """Draw what each fault path makes of the recorded accesses, a panel a quantity.

    Parameters
    ----------
    frame : DataFrame
        Columns `quantity` (with its unit), `preset` (a fault path, or ``recorded``), `mean`, `low` and
        `high`.
    title : str
        The figure's one statement.
    """
    import matplotlib.pyplot as plt

    quantities = list(frame["quantity"].unique())
    presets = [name for name in frame["preset"].unique() if name != "recorded"]
    with style():
        fig, axes = plt.subplots(
            1,
            len(quantities),
            figsize=(1.2 + 3.7 * len(quantities), 3.4),
            layout="constrained",
            squeeze=False,
        )
        for ax, quantity in zip(axes[0], quantities, strict=True):
            part = frame[frame["quantity"] == quantity].set_index("preset")
            if "recorded" in part.index:
                real = part.loc["recorded"]
                ax.axhspan(real["low"], real["high"], color=COLORS["black"], alpha=0.12, lw=0)
                ax.axhline(real["mean"], color=COLORS["black"], lw=1, label="recorded")
                ax.legend(loc="best", frameon=False)
            rows = part.loc[presets]
            bars = np.array([rows["mean"] - rows["low"], rows["high"] - rows["mean"]])
            ax.errorbar(
                range(len(presets)), rows["mean"], yerr=bars, fmt="s", ms=5, capsize=2, lw=1.2,
                color=COLORS["blue"],
            )  # fmt: skip
            ax.set_xticks(range(len(presets)), presets, rotation=35, ha="right")
            ax.set_xlim(-0.5, len(presets) - 0.5)
            ax.set_ylim(0, 1.15 * float(part[["mean", "high"]].max().max()) or 1)
            ax.grid(axis="y", alpha=0.3)
            ax.set_ylabel(quantity)
        fig.suptitle(title)
    return fig


def plot_quality(table: pd.DataFrame, title: str) -> Figure:
    """Draw how far a replay and a fitted generator are from the recording.

    Parameters
    ----------
    table : DataFrame
        As of `Fit.quality`.
    title : str
        The figure's one statement.
    """
    import matplotlib.pyplot as plt

    distances = table["unit"] == "KS"
    errors = table[~distances & table["fitted_error"].notna()]
    parts = (
        (errors, "_error", "off the recording (%)"),
        (table[distances], "", "distance of distributions (0: alike, 1: apart)"),
    )
    with style():
        fig, axes = plt.subplots(
            2, 1, figsize=(7.2, 1.6 + 0.28 * len(table)), layout="constrained",
            height_ratios=[len(errors) + 1, int(distances.sum()) + 1],
        )  # fmt: skip
        for ax, (rows, suffix, label) in zip(axes, parts, strict=True):
            for name, shift, marker, color in (
                ("replayed", -0.14, "D", "vermilion"),
                ("fitted", 0.14, "s", "blue"),
            ):
                y = np.arange(len(rows)) + shift
                ax.plot(rows[f"{name}{suffix}"], y, marker, ms=5, color=COLORS[color], label=name)
            ax.axvline(0, color=COLORS["black"], lw=0.8)
            ax.set_yticks(range(len(rows)), rows.index)
            ax.set_ylim(len(rows) - 0.5, -0.5)
            ax.grid(axis="x", alpha=0.3)
            ax.set_xlabel(label)
        axes[1].set_xlim(-0.03, 1.03)
        fig.suptitle(title)
        axes[0].legend(loc="best", frameon=False)
    return fig
