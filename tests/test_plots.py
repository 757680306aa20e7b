"""Figures: what their artists hold, and that the same figure is the same file."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib import font_manager, get_data_path

from kvmpfn.plots import curves, save, stacked_bars, style, tornado


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


CURVES = pd.DataFrame(
    {
        "case": ["a"] * 4 + ["b"] * 2,
        "x": [1, 2, 1, 2, 1, 2],
        "line": ["one", "one", "two", "two", "one", "one"],
        "mean": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        "low": [0.5, 1.5, 2.5, math.nan, 4.5, 5.5],
        "high": [1.5, 2.5, 3.5, math.nan, 5.5, 6.5],
    }
)


def draw():
    with style():
        return curves(
            CURVES, panel="case", x="x", line="line", xlabel="vCPUs", ylabel="us", title="t", ideal="ideal"
        )


def test_curves_hold_the_data():
    fig = draw()
    first, second = fig.axes
    data = {line.get_label(): line.get_xydata().tolist() for line in first.get_lines()}
    assert data["one"] == [[1, 1], [2, 2]]
    assert data["two"] == [[1, 3], [2, 4]]
    assert data["ideal"] == [[1, 1], [2, 1]]
    assert {line.get_label() for line in second.get_lines()} == {"one", "ideal"}
    assert {text.get_text() for text in first.texts} == {"one", "two", "ideal"}
    assert first.get_xlabel() == "vCPUs"


def test_stacked_bars_add_up():
    frame = pd.DataFrame({"p": ["a", "a"], "bar": ["u", "v"], "m": [1, 2], "n": [3, 4], "note": ["", "dead"]})
    with style():
        fig = stacked_bars(
            frame, panel="p", bar="bar", parts={"m": "C0", "n": "C1"}, xlabel="RMWs", title="t", hatched=["n"]
        )
    ax = fig.axes[0]
    assert sorted(patch.get_width() for patch in ax.patches) == [1, 2, 3, 4]
    assert sorted(patch.get_x() for patch in ax.patches) == [0, 0, 1, 2]
    assert [text.get_text() for text in ax.texts] == ["4", "dead"]


def test_tornado_puts_the_widest_first():
    frame = pd.DataFrame(
        {"case": "a", "cost": ["s", "w"], "base": 5.0, "low": [4.9, 1.0], "high": [5.1, 9.0], "range": "1–2"}
    )
    with style():
        fig = tornado(frame, panel="case", xlabel="%", title="t")
    labels = [tick.get_text() for tick in fig.axes[0].get_yticklabels()]
    assert labels == ["w 1–2", "s 1–2"]


def test_saving_twice_gives_the_same_bytes(tmp_path: Path):
    written = [
        save(draw(), "figure", CURVES, digest="abc", folder=tmp_path / name) for name in ("first", "second")
    ]
    for one, two in zip(*written, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name
    svg, pdf, csv = written[0]
    assert "scenario sha256:abc" in svg.read_text()
    assert b"CreationDate" not in pdf.read_bytes()
    assert pd.read_csv(csv).shape == CURVES.shape


def test_save_goes_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KVMPFN_FIGURES", str(tmp_path / "here"))
    assert {path.parent for path in save(draw(), "figure")} == {tmp_path / "here"}


def test_save_goes_beside_the_notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("KVMPFN_FIGURES", raising=False)
    (tmp_path / "notebooks").mkdir()
    for where, folder in (("notebooks", "figures"), (".", "figures")):
        monkeypatch.chdir(tmp_path / where)
        assert {path.parent for path in save(draw(), "figure")} == {tmp_path / folder}


def test_the_system_has_another_dejavu(tmp_path):
    """Figures are drawn with matplotlib's own fonts, whatever the machine has under the same name."""
    manager = font_manager.fontManager
    before = list(manager.ttflist)
    try:
        other = shutil.copy(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", tmp_path)
        manager.ttflist.clear()
        manager.addfont(other)
        assert font_manager.findfont("DejaVu Sans") == str(other)
        with style():
            assert Path(font_manager.findfont("DejaVu Sans")).is_relative_to(get_data_path())
    finally:
        manager.ttflist[:] = before
        style()
