"""How every figure looks, and how it is written down so that a second run writes the same bytes."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLORS", "label_lines", "save", "style"]

SHEET = Path(__file__).parent.parent / "kvmpfn.mplstyle"

COLORS = {
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "orange": "#E69F00",
    "black": "#000000",
    "grey": "#8A8A8A",
}
"""Okabe and Ito's palette, which reads without colour vision."""


def style() -> AbstractContextManager[None]:
    """Return a context in which figures are drawn in the project's style."""
    import matplotlib

    _prefer_own_fonts()
    return matplotlib.rc_context(fname=SHEET)


def _prefer_own_fonts() -> None:
    """Let matplotlib's own fonts come before the system's of the same name.

    Another version of DejaVu Sans numbers its glyphs in another way, and a figure would be other bytes on a
    machine that has it. Of fonts that fit equally well matplotlib takes the first in its list, in which its
    own may stand last, or not at all.
    """
    from matplotlib import font_manager, get_data_path

    manager = font_manager.fontManager
    own = sorted(str(path) for path in (Path(get_data_path()) / "fonts" / "ttf").glob("*.ttf"))
    if [font.fname for font in manager.ttflist[:1]] == own[:1]:
        return
    others = [font for font in manager.ttflist if font.fname not in own]
    manager.ttflist.clear()
    for path in own:
        manager.addfont(path)  # and forgets which fonts were chosen before
    manager.ttflist.extend(others)


def save(
    fig: Figure,
    name: str,
    frame: pd.DataFrame | None = None,
    digest: str = "",
    folder: str | os.PathLike[str] | None = None,
) -> list[Path]:
    """Write a figure as NAME.svg and NAME.pdf, and the data behind it as NAME.csv.

    The same figure and data give the same bytes.

    Parameters
    ----------
    fig : Figure
        What to write.
    name : str
        Name of the files, without a suffix.
    frame : DataFrame, optional
        The numbers that the figure shows; floats are written with nine digits.
    digest : str
        Digest of the scenario, or of the scenarios, kept in the metadata of SVG and PDF.
    folder : path, optional
        Where to. If not given: the folder that ``KVMPFN_FIGURES`` names; else ``figures`` beside the
        ``notebooks`` that the work is in; else ``figures`` here.

    Returns
    -------
    list of Path
        The files written.
    """
    target = Path(folder if folder is not None else os.environ.get("KVMPFN_FIGURES") or _figures())
    target.mkdir(parents=True, exist_ok=True)
    svg, pdf, csv = (target / f"{name}.{suffix}" for suffix in ("svg", "pdf", "csv"))
    about = f"scenario sha256:{digest}" if digest else ""
    in_svg: dict[str, Any] = {"Date": None, "Creator": "kvmpfn", "Title": name, "Description": about or None}
    in_pdf: dict[str, Any] = {
        "CreationDate": None, "Creator": "kvmpfn", "Producer": None, "Title": name, "Subject": about or None,
    }  # fmt: skip
    with style():
        fig.savefig(svg, metadata=in_svg)
        fig.savefig(pdf, metadata=in_pdf)
    written = [svg, pdf]
    if frame is not None:
        frame.to_csv(csv, index=False, float_format="%.9g", lineterminator="\n")
        written.append(csv)
    return written


def label_lines(ax: Axes, right: float = 0.22, gap: float = 0.055) -> None:
    """Write each labelled line's name at its right end, in its colour, without one name over another.

    Parameters
    ----------
    ax : Axes
        Its lines whose label does not start with an underscore are named; their limits are final.
    right : float
        Room to the right of the data, as a part of the axes' width, that the names may need.
    gap : float
        Least distance between two names, as a part of the axes' height.
    """
    lines = [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
    low = ax.get_xlim()[0]
    if right:
        edge = (ax.transScale + ax.transLimits).inverted().transform((1.0 + right, 0.0))[0]
        ax.set_xlim(low, edge)
    to_axes = ax.transScale + ax.transLimits
    ends = []
    for line in lines:
        points: list[Any] = [point for point in np.asarray(line.get_xydata()) if point[1] == point[1]]
        if points:
            at = to_axes.transform(points[-1])
            ends.append((float(at[1]), float(at[0]), line))
    ends.sort(key=lambda end: end[0])
    heights = [end[0] for end in ends]
    for number in range(1, len(heights)):
        heights[number] = max(heights[number], heights[number - 1] + gap)
    over = max(0.0, max(heights, default=0.0) - 1.0)
    for height, (_, x, line) in zip(heights, ends, strict=True):
        ax.text(
            x + 0.015, height - over, str(line.get_label()), transform=ax.transAxes,
            color=line.get_color(), va="center", fontsize=8,
        )  # fmt: skip


def _figures() -> Path:
    """Find the folder of figures of a checkout, whichever of its folders a notebook runs in."""
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / "notebooks").is_dir()), here) / "figures"
