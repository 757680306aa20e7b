"""Counterexamples, who did what in which order under which lock; and verdicts, many in one table."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING

from kvmpfn.plots.style import COLORS, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kvmpfn.protocol import Step, Verdict

__all__ = ["interleaving_frame", "plot_interleaving", "plot_verdicts"]

LANE = 4.3
"""Width of a thread's column, in inches."""

WIDTH = 78
"""Characters of a step's text before it is folded."""

LOCKS = {"lock mmu_lock for write": "write", "lock mmu_lock for read": "read", "lock the cache": "cache"}
UNLOCKS = ("unlock mmu_lock", "unlock the cache")


def interleaving_frame(verdict: Verdict) -> pd.DataFrame:
    """Return the steps of an unsafe verdict's counterexample, one a row.

    Parameters
    ----------
    verdict : Verdict
        What `kvmpfn.check_protocol` returned.

    Returns
    -------
    DataFrame
        ``step``, ``thread``, ``text`` and ``effect``; the last row, without a thread, says what is wrong.

    Raises
    ------
    ValueError
        If it has no counterexample.
    """
    import pandas as pd

    if verdict.counterexample is None:
        raise ValueError("a safe verdict has no counterexample to draw")
    rows = [
        [number, step.thread, step.text, step.effect]
        for number, step in enumerate(verdict.counterexample.steps, 1)
    ]
    rows.append([len(rows) + 1, "", verdict.counterexample.text, f"breaks {', '.join(verdict.broken)}"])
    return pd.DataFrame(rows, columns=["step", "thread", "text", "effect"])


def plot_interleaving(verdict: Verdict, title: str = "") -> Figure:
    """Draw a counterexample as a timeline, one column a thread, time downwards.

    A bar beside a thread's steps says that it holds a lock; a dot is one step.

    Parameters
    ----------
    verdict : Verdict
        What `kvmpfn.check_protocol` returned; an unsafe one.
    title : str
        The figure's one statement; the verdict's own line, if not given.
    """
    import matplotlib.pyplot as plt

    frame = interleaving_frame(verdict)
    example = verdict.counterexample
    assert example is not None
    lanes = sorted(
        {step.thread for step in example.steps}, key=lambda thread: (thread.startswith("host"), thread)
    )
    last = len(example)
    with style():
        size = (0.8 + LANE * len(lanes), 0.235 * last + 1.35)
        fig, ax = plt.subplots(figsize=size, layout="constrained")
        for x, thread in enumerate(lanes):
            host = thread.startswith("host")
            color = COLORS["vermilion" if host else ("blue", "green", "purple")[x % 3]]
            ax.plot([x, x], [0.4, last + 0.6], color=color, lw=0.8, alpha=0.6)
            name = f"{thread}: a notifier client" if host else thread
            ax.text(x, -0.2, name, color=color, fontsize=9, fontweight="bold")
            own = [(at, step) for at, step in enumerate(example.steps, 1) if step.thread == thread]
            _locks(ax, own, x, last, color)
            ax.plot([x] * len(own), [at for at, _ in own], "o", color=color)
            for at, step in own:
                said = f"{step.text} ({step.effect})" if step.effect else step.text
                ax.text(x + 0.03, at, fill(said, WIDTH), va="center", fontsize=6.8, linespacing=0.9)
        if example.repeats_from is not None:
            ax.axhspan(example.repeats_from + 0.5, last + 0.5, color=COLORS["grey"], alpha=0.15, lw=0)
            ax.text(
                len(lanes) - 0.04, last + 0.35, "again and again", ha="right", fontsize=7, style="italic"
            )  # fmt: skip
        said = f"then: {frame['text'].iloc[-1]}  [{frame['effect'].iloc[-1]}]"
        ax.text(0, last + 1.1, fill(said, 52 * len(lanes)), va="top", fontsize=8, fontweight="bold")
        ax.set_xlim(-0.11, len(lanes) - 0.02)
        ax.set_ylim(last + 2.2, -0.6)
        ax.set_yticks(range(1, last + 1))
        ax.tick_params(axis="y", labelsize=6.5)
        ax.set_xticks([])
        ax.set_ylabel("step")
        ax.grid(visible=False)
        ax.spines[["bottom", "left"]].set_visible(False)
        fig.suptitle(title or verdict.answer, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return fig


def _locks(ax: Axes, own: list[tuple[int, Step]], x: int, last: int, color: str) -> None:
    """Draw when a thread holds a lock: filled for write, hatched for read."""
    taken, kind = None, ""
    for at, step in [*own, (last + 0.6, None)]:
        if step is not None and step.text in LOCKS:
            taken, kind = at, LOCKS[step.text]
        elif taken is not None and (step is None or step.text in UNLOCKS):
            for bar in ax.bar(x - 0.03, at - taken, width=0.025, bottom=taken, edgecolor=color, lw=0.6):
                bar.set_facecolor(color if kind == "write" else "none")
                bar.set_alpha(0.35 if kind == "write" else None)
                bar.set_hatch("" if kind == "write" else "////")
            ax.text(
                x - 0.047, (taken + at) / 2, f"{kind} lock", rotation=90, fontsize=5.5, color=color,
                ha="right", va="center",
            )  # fmt: skip
            taken = None


def plot_verdicts(frame: pd.DataFrame, title: str, note: str = "") -> Figure:
    """Draw a table of verdicts, a line a row, a column a memory model.

    Parameters
    ----------
    frame : DataFrame
        Columns ``row``, ``memory_model``, ``verdict`` (``SAFE`` or ``UNSAFE``), ``property``, ``steps`` and
        ``states``; rows and models keep the frame's order.
    title : str
        The figure's one statement.
    note : str
        Small print below.
    """
    import matplotlib.pyplot as plt

    rows, models = list(dict.fromkeys(frame["row"])), list(dict.fromkeys(frame["memory_model"]))
    with style():
        fig, ax = plt.subplots(figsize=(8.4, 0.19 * len(rows) + 1.2), layout="constrained")
        for cell in frame.to_dict("records"):
            x, y = models.index(cell["memory_model"]), rows.index(cell["row"])
            safe = cell["verdict"] == "SAFE"
            ax.barh(y, 0.96, left=x, height=0.9, color=COLORS["green" if safe else "vermilion"], alpha=0.25)
            said = f"{cell['states']:,} states" if safe else f"{cell['property']} in {cell['steps']} steps"
            ax.text(x + 0.03, y, cell["verdict"], va="center", fontsize=6.5, fontweight="bold")
            ax.text(x + 0.93, y, said, va="center", ha="right", fontsize=6.5)
        ax.set_yticks(range(len(rows)), rows, fontsize=7)
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_xlim(0, len(models))
        ax.set_xticks([x + 0.48 for x in range(len(models))], models, fontsize=8.5)
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
        ax.grid(visible=False)
        ax.spines[["bottom", "left"]].set_visible(False)
        fig.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
        if note:
            fig.supxlabel(note, fontsize=7.5)
    return fig
