"""Figures: one function a figure, numbers in, a Figure out."""

from kvmpfn.plots.style import COLORS, save, style

__all__ = ["COLORS", "save", "style"]
