"""The charts of the first page, described for BokehJS; their data comes from a stream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import bokeh
import msgspec
from bokeh.core.types import ID
from bokeh.embed import json_item
from bokeh.layouts import column
from bokeh.models import (
    BasicTicker,
    CDSView,
    DataRange1d,
    FixedTicker,
    GroupFilter,
    HoverTool,
    LinearColorMapper,
    ServerSentDataSource,
)
from bokeh.models.annotations import ColorBar
from bokeh.plotting import figure
from bokeh.themes import Theme

from aegir_adapters.web.marks import Marks

__all__ = ["BOKEH_VERSION", "Charts", "Scheme", "bokehjs_path", "overview_item"]

Scheme = Literal["light", "dark"]

BOKEH_VERSION: str = bokeh.__version__

_INK = {"light": "#1d2430", "dark": "#e7eaf0"}
_FAINT = {"light": "#d8dce3", "dark": "#333b48"}
_ACCENT = {"light": "#1457b8", "dark": "#7fb0ff"}


class Charts(msgspec.Struct, frozen=True, kw_only=True):
    """What the charts of the first page show.

    Attributes:
        marks: what to show until the stream speaks.
        scheme: colours for a light or a dark page.
        data_url: where the marks stream, relative to the page.
        layers: layers to label; without any, round numbers are labelled.
    """

    marks: Marks
    scheme: Scheme
    data_url: str
    layers: Sequence[int]


def bokehjs_path() -> Path:
    """Return the installed BokehJS, which draws the charts without any network."""
    return Path(bokeh.__file__).parent / "server" / "static" / "js" / "bokeh.min.js"


def overview_item(charts: Charts) -> Any:
    """Return the heat map above the reward curve as a JSON item for `Bokeh.embed.embed_item`."""
    source = ServerSentDataSource(data_url=charts.data_url, mode="replace", data=charts.marks)
    steps = DataRange1d(min_interval=4, range_padding=0.01)
    layout = column(
        _heat_map(source, steps, charts.layers),
        _reward_curve(source, steps, _ACCENT[charts.scheme]),
        sizing_mode="stretch_width",
        spacing=12,
    )
    return json_item(layout, ID("charts"), theme=_theme(charts.scheme))


def _heat_map(source: ServerSentDataSource, steps: DataRange1d, layers: Sequence[int]) -> Any:
    plot = _plot("Mean top activation", steps, y_label="layer")
    plot.yaxis.ticker = FixedTicker(ticks=list(layers)) if layers else BasicTicker(min_interval=1)
    plot.grid.visible = False
    colors = LinearColorMapper(palette="Viridis256", nan_color="#00000000")
    cells = plot.quad(
        left="x0",
        right="x1",
        bottom="y0",
        top="y1",
        source=source,
        view=_only("cell"),
        color={"field": "value", "transform": colors},
        line_width=1,
    )
    colors.domain = [(cells, "value")]
    plot.add_layout(ColorBar(color_mapper=colors, width=8, padding=4, bar_line_color=None), "right")
    tips = [("step", "@step"), ("layer", "@layer"), ("mean", "@value"), ("records", "@count")]
    plot.add_tools(HoverTool(renderers=[cells], tooltips=tips))
    return plot


def _reward_curve(source: ServerSentDataSource, steps: DataRange1d, color: str) -> Any:
    plot = _plot("Reward, mean ± std", steps, y_label="reward")
    plot.quad(
        left="x0",
        right="x1",
        bottom="y0",
        top="y1",
        source=source,
        view=_only("band"),
        fill_color=color,
        fill_alpha=0.18,
        line_color=None,
    )
    plot.segment("x0", "y0", "x1", "y1", source=source, view=_only("reward"), color=color, width=2)
    points = plot.scatter("x1", "y1", source=source, view=_only("reward"), color=color, size=4)
    plot.add_tools(HoverTool(renderers=[points], tooltips=[("step", "@step"), ("mean", "@value")]))
    return plot


def _only(mark: str) -> CDSView:
    return CDSView(filter=GroupFilter(column_name="mark", group=mark))


def _plot(title: str, steps: DataRange1d, *, y_label: str) -> Any:
    return figure(
        title=title,
        height=260,
        sizing_mode="stretch_width",
        x_range=steps,
        y_range=DataRange1d(range_padding=0.05),
        x_axis_label="step",
        y_axis_label=y_label,
        tools="xpan,xwheel_zoom,reset,save",
        toolbar_location="above",
    )


def _theme(scheme: Scheme) -> Theme:
    ink, faint = _INK[scheme], _FAINT[scheme]
    font = "system-ui, sans-serif"
    bar = {"background_fill_alpha": 0, "major_label_text_color": ink, "major_tick_line_color": ink}
    axis = {
        "axis_label_text_color": ink,
        "axis_label_text_font": font,
        "axis_label_text_font_style": "normal",
        "axis_line_color": faint,
        "major_label_text_color": ink,
        "major_label_text_font": font,
        "major_label_text_font_size": "12px",
        "major_tick_line_color": faint,
        "minor_tick_line_color": None,
    }
    return Theme(
        json={
            "attrs": {
                "Plot": {
                    "background_fill_alpha": 0,
                    "border_fill_alpha": 0,
                    "outline_line_color": None,
                },
                "Title": {"text_color": ink, "text_font": font, "text_font_size": "14px"},
                "Grid": {"grid_line_color": faint, "grid_line_alpha": 0.6},
                "Axis": axis,
                "ColorBar": bar,
                "Toolbar": {"logo": None, "autohide": False},
            }
        }
    )
