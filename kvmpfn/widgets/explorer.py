"""The explorer: five controls over one figure."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets

from kvmpfn.plots.explorer import ExplorerFigure
from kvmpfn.units import format_size
from kvmpfn.widgets.model import PARTS, RETRIES, ExplorerModel, Setting

__all__ = ["Explorer"]


class Explorer:
    """Controls for vCPUs, storm and fault path, and what one small run says about them.

    Parameters
    ----------
    model : ExplorerModel, optional
        Where runs come from.
    setting : Setting, optional
        Where the controls stand at first.

    Attributes
    ----------
    widget : VBox
        What to display; works without a kernel side of matplotlib's.
    plot : ExplorerFigure
        The figure; `static` is its picture, for pages that have no widgets.
    """

    def __init__(self, model: ExplorerModel | None = None, setting: Setting | None = None) -> None:
        self.model = model or ExplorerModel()
        first = setting or Setting()
        m = self.model

        def slider(label: str, options: list[tuple[str, int]], value: int) -> Any:
            return widgets.SelectionSlider(description=label, options=options, value=value)

        self.controls = {
            "vcpus": slider("vCPUs", [(str(n), n) for n in m.vcpus], first.vcpus),
            "rate": slider("storm (1/s)", [(f"{n:,d}", n) for n in m.rates], first.rate),
            "span_pages": slider("span", [(format_size(n << 12), n) for n in m.spans], first.span_pages),
            "backing": widgets.Dropdown(description="backing", options=m.backings, value=first.backing),
            "preset": widgets.Dropdown(description="fault path", options=m.presets, value=first.preset),
        }
        self.plot = ExplorerFigure(list(PARTS), list(RETRIES))
        self.image = widgets.Image(format="png")
        for control in self.controls.values():
            control.observe(self._changed, names="value")
        self.redraw()
        # As many columns as the page has room for: none of them is cut off.
        columns = widgets.GridBox(
            list(self.controls.values()),
            layout=widgets.Layout(grid_template_columns="repeat(auto-fill, minmax(300px, 1fr))"),
        )
        self.widget = widgets.VBox([columns, self.image])

    @property
    def setting(self) -> Setting:
        """Where the controls stand."""
        return Setting(**{name: control.value for name, control in self.controls.items()})

    @property
    def static(self) -> Any:
        """The picture as it is now, for pages without widgets."""
        from IPython.display import Image

        return Image(bytes(self.image.value), format="png", alt=self.model.headline(self.setting))  # type: ignore[no-untyped-call]

    def redraw(self) -> None:
        """Simulate the setting, unless it is known, and move the figure's artists."""
        setting = self.setting
        self.plot.update(
            self.model.headline(setting),
            self.model.parts(setting),
            self.model.retries(setting),
            self.model.tail(setting),
            self.model.tail(self.model.baseline(setting)),
        )
        self.image.value = self.plot.png()

    def _changed(self, _: object) -> None:
        self.redraw()
