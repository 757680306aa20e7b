"""What mapping a guest costs in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kvmpfn.plots.style import COLORS, label_lines, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["plot_alternatives", "plot_memory_by_size", "plot_memory_parts", "plot_recorded_tables"]

PALETTE = ("blue", "vermilion", "green", "purple", "orange", "sky", "black", "grey")
GIB = 1 << 30


def plot_memory_by_size(frame: pd.DataFrame) -> Figure:
    """Draw the bytes for each GiB of guest memory over the guest's size, formula and simulated allocation.

    Parameters
    ----------
    frame : DataFrame
        Columns `panel` (title), `name`, `source` (``formula`` or ``simulated``), `guest_bytes` and `per_gib`.
    """
    import matplotlib.pyplot as plt

    panels = list(frame["panel"].unique())
    with style():
        fig, axes = plt.subplots(
            1, len(panels), figsize=(9.4, 3.9), sharex=True, sharey=True, layout="constrained"
        )
        for ax, panel in zip(np.atleast_1d(axes), panels, strict=True):
            part = frame[frame["panel"] == panel]
            ax.set(xscale="log", yscale="log")
            for number, name in enumerate(part["name"].unique()):
                color = COLORS[PALETTE[number % len(PALETTE)]]
                one = part[part["name"] == name]
                formula = one[one["source"] == "formula"]
                run = one[one["source"] == "simulated"]
                ax.plot(formula["guest_bytes"] / GIB, formula["per_gib"], color=color, label=name)
                ax.plot(
                    run["guest_bytes"] / GIB, run["per_gib"], "o", mfc="none", color=color, label="_run", ms=7
                )
            ax.set_xlabel("guest memory (GiB)")
            ax.set_title(panel)
            ax.set_xticks([1, 16, 256, 4096], ["1", "16", "256", "4,096"])
            ax.minorticks_off()
        for ax in np.atleast_1d(axes):
            ax.set_xlim(0.6, 2.0**24)  # shared; leaves room for the lines' names
            label_lines(ax, right=0)
        np.atleast_1d(axes)[0].set_ylabel("bytes for each GiB of guest memory")
        fig.supxlabel("lines: formula; circles: what a simulated run allocated", fontsize=8)
    return fig


def plot_memory_parts(frame: pd.DataFrame) -> Figure:
    """Draw what each way to back and map a guest costs, structure by structure.

    Parameters
    ----------
    frame : DataFrame
        One row a configuration (the index), one column a structure, in bytes for each GiB.
    """
    import matplotlib.pyplot as plt

    y = np.arange(len(frame))
    with style():
        fig, ax = plt.subplots(figsize=(8.6, 0.34 * len(frame) + 1.6), layout="constrained")
        left = np.zeros(len(frame))
        for number, name in enumerate(frame.columns):
            values = frame[name].to_numpy(dtype=float) / 2**20
            ax.barh(y, values, left=left, height=0.7, color=COLORS[PALETTE[number]], label=str(name))
            left = left + values
        for at, total in zip(y, left, strict=True):
            text = f" {total:.2f} MiB" if total >= 0.1 else f" {total * 1024:.1f} KiB"
            ax.text(float(total), float(at), text, va="center", fontsize=8)
        ax.set_yticks(y, [str(name) for name in frame.index])
        ax.set_ylim(len(frame) - 0.5, -0.5)
        ax.set_xlim(0, 1.15 * left.max())
        ax.grid(axis="y", visible=False)
        ax.set_xlabel("MiB for each GiB of guest memory")
        fig.legend(loc="outside lower center", ncols=3)
    return fig


def plot_alternatives(frame: pd.DataFrame) -> Figure:
    """Draw what remembering that a page has a reference count costs: bytes, and lines a zap touches.

    Parameters
    ----------
    frame : DataFrame
        Columns `name`, `bytes` for each GiB and `lines_per_2m`.
    """
    import matplotlib.pyplot as plt

    y = np.arange(len(frame))
    with style():
        fig, axes = plt.subplots(1, 2, figsize=(8.6, 2.2), sharey=True, layout="constrained")
        columns = (
            ("bytes", "bytes stored for each GiB of guest memory"),
            ("lines_per_2m", "more cache lines read to zap 512 neighbouring 4K pages"),
        )
        for ax, (column, label) in zip(axes, columns, strict=True):
            values = frame[column].to_numpy()
            ax.barh(y, values, height=0.5, color=COLORS["blue"])
            for at, value in zip(y, values, strict=True):
                ax.text(float(value), float(at), f" {value:,.0f}", va="center", fontsize=8)
            ax.set_xlabel(label)
            ax.set_xlim(0, 1.25 * max(values.max(), 1))
            ax.grid(axis="y", visible=False)
        axes[0].set_yticks(y, list(frame["name"]))
        axes[0].set_ylim(len(frame) - 0.5, -0.5)
    return fig


def plot_recorded_tables(frame: pd.DataFrame) -> Figure:
    """Draw the tables that a recorded KVM linked, beside those predicted and simulated, a panel a kernel.

    Parameters
    ----------
    frame : DataFrame
        Columns `kernel`, `recording`, `bound`, `predicted`, `measured` and `simulated` (numbers of tables).
    """
    import matplotlib.pyplot as plt

    kernels = list(frame["kernel"].unique())
    with style():
        fig, axes = plt.subplots(
            1, len(kernels), figsize=(8.6, 2.6), sharex=True, sharey=True, squeeze=False, layout="constrained"
        )
        for ax, kernel in zip(axes[0], kernels, strict=True):
            part = frame[frame["kernel"] == kernel]
            y = np.arange(len(part))
            ax.hlines(y, part["measured"], part["bound"], color=COLORS["grey"], lw=1)
            ax.plot(part["bound"], y, "|", ms=12, color=COLORS["grey"], label="ledger, all of memory")
            ax.plot(part["measured"], y, "o", ms=11, mfc="white", color=COLORS["black"], label="recorded")
            ax.plot(
                part["predicted"],
                y,
                "D",
                ms=6,
                mfc="none",
                color=COLORS["blue"],
                label="ledger, memory touched",
            )
            ax.plot(part["simulated"], y, ".", ms=5, color=COLORS["vermilion"], label="simulated replay")
            for at, (_, row) in zip(y, part.iterrows(), strict=True):
                errors = [row[name] - row["measured"] for name in ("predicted", "simulated")]
                text = " ".join(f"{error:+d}" if error else "0" for error in errors)
                ax.annotate(
                    text, (1, at), (-4, 0), ("axes fraction", "data"), "offset points",
                    ha="right", va="center", fontsize=8,
                )  # fmt: skip
            ax.set_yticks(y, list(part["recording"]))
            ax.set_ylim(len(part) - 0.5, -0.5)
            ax.set_xlim(0, 1.35 * frame["bound"].max())
            ax.grid(axis="y", visible=False)
            ax.set_title(f"Linux {kernel}")
        fig.supxlabel(
            "page tables below the root (at the right: residuals, predicted and simulated)", fontsize=8
        )
        handles, labels = axes[0, 0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    return fig
