"""The explorer's figure: drawn once, then only its artists move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kvmpfn.plots.style import COLORS, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.text import Text

__all__ = ["ExplorerFigure"]

CORNER = 1e-2
"""Least percentage that the latency panel shows."""


class ExplorerFigure:
    """Parts of a fault, retries by cause and the tail of the latency, redrawn by moving artists.

    Parameters
    ----------
    parts, retries : sequence of str
        Names of the bars, from the top.

    Attributes
    ----------
    figure : Figure
        What to show.
    """

    def __init__(self, parts: Sequence[str], retries: Sequence[str]) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        with style():
            self.figure: Figure = Figure(figsize=(10.2, 4.0), layout="constrained")
            FigureCanvasAgg(self.figure)
            grid = self.figure.add_gridspec(2, 2, width_ratios=(1.15, 1), height_ratios=(1, 1.35))
            bars, causes = self.figure.add_subplot(grid[:, 0]), self.figure.add_subplot(grid[0, 1])
            tail = self.figure.add_subplot(grid[1, 1])
            self._title = self.figure.suptitle(" ", fontsize=10, x=0.01, ha="left")
            self._bars = self._bar_panel(bars, parts, "ns of a resolved fault, on average", "blue")
            self._causes = self._bar_panel(causes, retries, "retries (% of faults taken)", "vermilion")
            (self._calm,) = tail.plot([], [], color=COLORS["grey"], lw=1.2, label="without the storm")
            (self._line,) = tail.plot([], [], color=COLORS["blue"], lw=1.8, label="this setting")
            tail.set(xscale="log", yscale="log", ylim=(CORNER, 100), xlim=(0.5, 1e4))
            tail.set(xlabel="time from first exit to resolved (us)", ylabel="faults that take longer (%)")
            tail.legend(loc="upper right")
        self._panels = (bars, causes, tail)

    @staticmethod
    def _bar_panel(ax: Axes, names: Sequence[str], label: str, color: str) -> list[tuple[Rectangle, Text]]:
        y = range(len(names))
        bars = ax.barh(y, [0.0] * len(names), height=0.7, color=COLORS[color])
        texts = [ax.text(0, at, "", va="center", fontsize=8) for at in y]
        ax.set_yticks(y, names)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel(label)
        return list(zip(bars, texts, strict=True))

    def update(
        self,
        title: str,
        parts: Mapping[str, float],
        retries: Mapping[str, float],
        tail: tuple[Sequence[float], Sequence[float]],
        calm: tuple[Sequence[float], Sequence[float]],
    ) -> None:
        """Move the artists to other numbers.

        Parameters
        ----------
        title : str
            The line above.
        parts : mapping of str to float
            Time of each part, in ns.
        retries : mapping of str to float
            Percentage of each cause.
        tail, calm : pair of sequences
            Times in us, and the percentage that took longer: of this setting, and without its storm.
        """
        self._title.set_text(title)
        for ax, pairs, values, least in (
            (self._panels[0], self._bars, list(parts.values()), 100.0),
            (self._panels[1], self._causes, list(retries.values()), 1.0),
        ):
            for (bar, text), value in zip(pairs, values, strict=True):
                bar.set_width(value)
                text.set_x(value)
                text.set_text(f" {value:,.0f}" if least > 1 else f" {value:.2f}")
            ax.set_xlim(0, 1.18 * max([least, *values]))
        self._line.set_data(*tail)
        self._calm.set_data(*calm)
        longest = max([10.0, *tail[0], *calm[0]])
        self._panels[2].set_xlim(0.5, 1.5 * longest)

    def png(self) -> bytes:
        """Return the figure as PNG."""
        import io

        buffer = io.BytesIO()
        with style():
            self.figure.savefig(buffer, format="png", metadata={"Software": None})
            self.figure.set_layout_engine("none")  # laid out once: half of the time of a redraw
        return buffer.getvalue()
