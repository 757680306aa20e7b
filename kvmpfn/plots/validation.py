"""The model beside the real thing: recorded storms, locked instructions, published sweeps, residuals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kvmpfn.plots.style import COLORS, label_lines, style

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_contended", "plot_locked", "plot_residuals", "plot_storms", "plot_sweeps"]

SOURCES = (("black", "o"), ("vermilion", "D"), ("blue", "s"))


def plot_storms(frame: pd.DataFrame) -> Figure:
    """Draw where faults were retried, for each invalidation: recorded, and predicted.

    Parameters
    ----------
    frame : DataFrame
        Columns `kernel`, `storm`, `source` (the first is the recording), `cell`, and `mean`, `low` and `high`
        in retries for each invalidation.
    """
    import matplotlib.pyplot as plt

    kernels, storms = list(frame["kernel"].unique()), list(frame["storm"].unique())
    cells, sources = list(frame["cell"].unique()), list(frame["source"].unique())
    with style():
        fig, axes = plt.subplots(
            len(storms), len(kernels), figsize=(8.6, 5.2), sharey=True, squeeze=False, layout="constrained"
        )
        for row, storm in enumerate(storms):
            for column, kernel in enumerate(kernels):
                ax = axes[row, column]
                part = frame[(frame["kernel"] == kernel) & (frame["storm"] == storm)]
                for number, source in enumerate(sources):
                    own = part[part["source"] == source].set_index("cell").loc[cells]
                    color, marker = SOURCES[number]
                    bars = np.array([own["mean"] - own["low"], own["high"] - own["mean"]])
                    ax.errorbar(
                        own["mean"], np.arange(len(cells)) + 0.24 * (number - 1), xerr=bars, fmt=marker,
                        ms=4, capsize=2, lw=1.2, color=COLORS[color], label=source,
                    )  # fmt: skip
                ax.set_yticks(range(len(cells)), cells)
                ax.set_ylim(len(cells) - 0.5, -0.5)
                ax.set_xlim(left=0)
                ax.grid(axis="x", alpha=0.3)
                ax.set_title(f"kernel {kernel}, {storm}")
                if row == len(storms) - 1:
                    ax.set_xlabel("retries for each invalidation")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=len(sources), frameon=False)
    return fig


def plot_locked(frame: pd.DataFrame) -> Figure:
    """Draw LOCK-prefixed instructions a fault by line: counted on a real kernel, and simulated.

    Parameters
    ----------
    frame : DataFrame
        Columns `kernel`, `access`, `line`, `recorded` and `simulated`.
    """
    import matplotlib.pyplot as plt

    cases = list(dict.fromkeys(zip(frame["kernel"], frame["access"], strict=True)))
    lines = list(frame.groupby("line", sort=False)["recorded"].max().index)
    with style():
        fig, axes = plt.subplots(
            1, len(cases), figsize=(8.6, 3.6), sharey=True, squeeze=False, layout="constrained"
        )
        for ax, (kernel, access) in zip(axes[0], cases, strict=True):
            part = frame[(frame["kernel"] == kernel) & (frame["access"] == access)]
            part = part.set_index("line").reindex(lines).fillna(0)
            y = np.arange(len(lines))
            ax.hlines(y, part["recorded"], part["simulated"], color=COLORS["grey"], lw=1)
            ax.plot(part["recorded"], y, "o", ms=6, mfc="white", color=COLORS["black"], label="counted")
            ax.plot(part["simulated"], y, "D", ms=3, color=COLORS["vermilion"], label="simulated")
            ax.set_yticks(y, ["known, not modelled" if line == "-" else line for line in lines])
            ax.set_ylim(len(lines) - 0.5, -0.5)
            ax.set_xlim(left=-0.4)
            ax.grid(axis="x", alpha=0.3)
            ax.set_title(f"{kernel}, {access} faults")
        fig.supxlabel("LOCK-prefixed instructions a fault", fontsize=9)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return fig


def plot_sweeps(frame: pd.DataFrame) -> Figure:
    """Draw published sweeps over vCPUs as circles and the model as lines, a panel each.

    Parameters
    ----------
    frame : DataFrame
        Columns `panel`, `unit`, `series`, `vcpus`, `published`, `simulated`, and `role` (``fitted`` rows are
        filled).
    """
    import matplotlib.pyplot as plt

    panels = list(frame["panel"].unique())
    with style():
        fig, axes = plt.subplots(1, len(panels), figsize=(10.2, 3.6), squeeze=False, layout="constrained")
        for ax, panel in zip(axes[0], panels, strict=True):
            part = frame[frame["panel"] == panel]
            for number, name in enumerate(part["series"].unique()):
                rows = part[part["series"] == name]
                color = COLORS[("vermilion", "blue", "green")[number]]
                ax.plot(rows["vcpus"], rows["simulated"], color=color, lw=1.4, label=name)
                for fitted in (False, True):
                    own = rows[(rows["role"] == "fitted") == fitted]
                    ax.plot(
                        own["vcpus"], own["published"], "o", ms=5, color=color,
                        mfc=color if fitted else "white", label="_published",
                    )  # fmt: skip
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            _plain_ticks(ax, sorted(part["vcpus"].unique()))
            ax.set_title(panel)
            ax.set_ylabel(part["unit"].iloc[0])
            ax.grid(alpha=0.3)
            label_lines(ax, right=0.28)
        fig.supxlabel("vCPUs (circles: published, filled where a cost was fitted; lines: model)", fontsize=9)
    return fig


def plot_contended(frame: pd.DataFrame) -> Figure:
    """Draw what one operation on a shared word takes, by the number of threads, machine by machine.

    Parameters
    ----------
    frame : DataFrame
        Columns `machine`, `operation`, `threads`, `published`, `simulated` (ns) and `role`.
    """
    import matplotlib.pyplot as plt

    machines = list(frame["machine"].unique())
    with style():
        fig, axes = plt.subplots(1, len(machines), figsize=(10.2, 3.2), squeeze=False, layout="constrained")
        for ax, machine in zip(axes[0], machines, strict=True):
            part = frame[frame["machine"] == machine]
            for operation, color in (("cas", "vermilion"), ("add", "blue")):
                rows = part[part["operation"] == operation]
                ax.plot(rows["threads"], rows["simulated"], color=COLORS[color], lw=1.4, label=operation)
                for fitted in (False, True):
                    own = rows[(rows["role"] == "fitted") == fitted]
                    ax.plot(
                        own["threads"], own["published"], "o", ms=5, color=COLORS[color],
                        mfc=COLORS[color] if fitted else "white", label="_published",
                    )  # fmt: skip
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            _plain_ticks(ax, sorted(part["threads"].unique()))
            ax.set_title(machine, fontsize=9)
            ax.grid(alpha=0.3)
            label_lines(ax, right=0.25)
        axes[0, 0].set_ylabel("ns an operation")
        fig.supxlabel(
            "threads (circles: published, filled where a cost was fitted; lines: model)", fontsize=9
        )
    return fig


def plot_residuals(frame: pd.DataFrame) -> Figure:
    """Draw the error of every row, table by table, as the ratio of simulated to published.

    Parameters
    ----------
    frame : DataFrame
        Columns `table`, `published`, `simulated` and `role`.
    """
    import matplotlib.pyplot as plt

    tables = list(frame["table"].unique())
    with style():
        fig, ax = plt.subplots(figsize=(7.6, 0.42 * len(tables) + 1.2), layout="constrained")
        for number, table in enumerate(tables):
            part = frame[frame["table"] == table]
            ratio = (part["simulated"] / part["published"]).to_numpy()
            shift = np.linspace(-0.25, 0.25, len(ratio)) if len(ratio) > 1 else np.zeros(1)
            fitted = (part["role"] == "fitted").to_numpy()
            ax.plot(ratio[~fitted], number + shift[~fitted], "o", ms=4, color=COLORS["vermilion"])
            ax.plot(ratio[fitted], number + shift[fitted], "o", ms=4, mfc="white", color=COLORS["grey"])
        ax.axvline(1, color=COLORS["black"], lw=0.8)
        ax.axvspan(0.8, 1.25, color=COLORS["grey"], alpha=0.15, lw=0)
        ax.set_xscale("log", base=2)
        ticks = (0.125, 0.25, 0.5, 0.8, 1, 1.25, 2, 4)
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
        ax.set_yticks(range(len(tables)), tables)
        ax.set_ylim(len(tables) - 0.4, -0.6)
        ax.grid(axis="x", alpha=0.3)
        ax.set_xlabel(
            "simulated / measured, a row each (filled: predicted; hollow: fitted; band: 0.8 to 1.25)"
        )
    return fig


def _plain_ticks(ax: Axes, values: Sequence[int]) -> None:
    """Write the counts that were measured below a logarithmic axis, and plain numbers beside it."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    ax.set_xticks(values, [str(value) for value in values])
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.minorticks_off()
