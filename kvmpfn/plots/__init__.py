"""Figures: one function a figure, numbers in, a Figure out."""

from kvmpfn.plots.curves import curves
from kvmpfn.plots.interleaving import interleaving_frame, plot_interleaving, plot_verdicts
from kvmpfn.plots.stacked import stacked_bars
from kvmpfn.plots.style import COLORS, label_lines, save, style
from kvmpfn.plots.tornado import tornado

__all__ = [
    "COLORS",
    "curves",
    "interleaving_frame",
    "label_lines",
    "plot_interleaving",
    "plot_verdicts",
    "save",
    "stacked_bars",
    "style",
    "tornado",
]
