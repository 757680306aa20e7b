"""A recording's outcomes beside those of its replay under each preset."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kvmpfn.plots.style import COLORS, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["plot_outcomes", "plot_replay"]


def plot_outcomes(frame: pd.DataFrame) -> Figure:
    """Draw, for each recorded kernel, where and why faults were retried: recorded, and simulated.

    Parameters
    ----------
    frame : DataFrame
        Columns `kernel`, `cell` (where and why), `source` (``recorded`` or ``simulated``), and `share`, `low`
        and `high` in percent of the faults taken.
    """
    import matplotlib.pyplot as plt

    kernels = list(frame["kernel"].unique())
    with style():
        fig, axes = plt.subplots(
            1, len(kernels), figsize=(8.6, 3.4), sharex=True, sharey=True, layout="constrained"
        )
        for ax, kernel in zip(np.atleast_1d(axes), kernels, strict=True):
            part = frame[frame["kernel"] == kernel]
            cells = list(part["cell"].unique())
            looks = (("recorded", -0.14, "o", "black"), ("simulated", 0.14, "D", "vermilion"))
            for source, shift, marker, color in looks:
                rows = part[part["source"] == source].set_index("cell").loc[cells]
                y = np.arange(len(cells)) + shift
                bars = np.array([rows["share"] - rows["low"], rows["high"] - rows["share"]])
                ax.errorbar(
                    rows["share"], y, xerr=bars, fmt=marker, ms=5, capsize=2, lw=1.2,
                    color=COLORS[color], label=source,
                )  # fmt: skip
            ax.set_yticks(range(len(cells)), cells)
            ax.set_ylim(len(cells) - 0.5, -0.5)
            ax.set_xlim(left=0)
            ax.grid(axis="x", alpha=0.3)
            ax.set_xlabel("retries (% of faults taken)")
            ax.set_title(f"kernel {kernel}, and preset v{kernel}")
        np.atleast_1d(axes)[0].legend(loc="upper right", frameon=False)
    return fig


def plot_replay(frame: pd.DataFrame) -> Figure:
    """Draw retries for each invalidation, preset by preset, with the recorded kernels' own as lines.

    Parameters
    ----------
    frame : DataFrame
        Columns `kernel` (whose recording), `preset` (a preset, or ``recorded``), `retries` for each
        invalidation, `low` and `high`.
    """
    import matplotlib.pyplot as plt

    colors = (COLORS["blue"], COLORS["vermilion"])
    presets = [name for name in frame["preset"].unique() if name != "recorded"]
    with style():
        fig, ax = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
        for number, kernel in enumerate(frame["kernel"].unique()):
            part, color = frame[frame["kernel"] == kernel].set_index("preset"), colors[number]
            real = part.loc["recorded"]
            ax.axhspan(real["low"], real["high"], color=color, alpha=0.15, lw=0)
            ax.axhline(real["retries"], color=color, lw=1)
            ax.annotate(
                f"kernel {kernel}, recorded", (len(presets) - 0.45, real["retries"]), color=color, fontsize=8,
                va="center", annotation_clip=False,
            )  # fmt: skip
            rows = part.loc[presets]
            x = np.arange(len(presets)) + (number - 0.5) * 0.2
            bars = np.array([rows["retries"] - rows["low"], rows["high"] - rows["retries"]])
            for own in (True, False):
                which = np.array([(name == f"v{kernel}") == own for name in presets])
                ax.errorbar(
                    x[which], rows["retries"][which], yerr=bars[:, which], fmt="os"[number],
                    ms=7 if own else 5, mfc=color if own else "white", color=color, capsize=2, lw=1.2,
                    label=f"replay at {kernel}'s pace" if own else None,
                )  # fmt: skip
        ax.set_xticks(range(len(presets)), presets)
        ax.set_xlim(-0.5, len(presets) - 0.5)
        ax.set_ylim(bottom=0)
        ax.grid(axis="y", alpha=0.3)
        ax.set_xlabel("fault path (filled: the preset of the recorded kernel)")
        ax.set_ylabel("retries for each invalidation")
        ax.legend(loc="lower left", frameon=False)
    return fig
