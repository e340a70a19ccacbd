"""The page's figures, by Bokeh; its script fills their sources by name."""

from __future__ import annotations

from typing import Any

from bokeh.core.types import ID
from bokeh.embed import json_item
from bokeh.models import (
    BoxSelectTool,
    ColumnDataSource,
    CustomJS,
    CustomJSTickFormatter,
    HoverTool,
    Range1d,
    TapTool,
)
from bokeh.plotting import figure
from bokeh.resources import Resources

TOOLS = "pan,wheel_zoom,box_zoom,reset,save"
HEIGHT, MAP_HEIGHT = 340, 420
"""Of figures that are as wide as the page lets them be, in pixels."""
AXES, LEAST_WIDTH = 60, 320
"""Width of the map's axes, and of the map at least, in pixels."""
SHORT = "return Math.abs(tick) < 1000 ? `${tick}` : `${tick / 1000}k`"


def bokeh_js() -> str:
    """Return BokehJS, as much as these figures need."""
    return "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw)


def curves_figure(curve: dict[str, Any]) -> Any:
    """Make the learning curves: sources curve_lines, curve_points and curve_bands.

    Args:
        curve: The one that is shown first, from `curves`.
    """
    plot = _figure("interactions")
    first = {name: curve["seeds"][0][name] for name in ("x", "y")}  # the first ranges follow it
    words = {"of": [""] * len(first["x"]), "colour": ["black"] * len(first["x"])}
    lines = _source("curve_lines", {name: [] for name in ("x", "y", "colour", "width")})
    points = _source("curve_points", first | words)
    bands = _source("curve_bands", {name: [] for name in ("x", "y", "colour")})
    plot.patches("x", "y", source=bands, color="colour", fill_alpha=0.14, line_alpha=0.0)
    plot.multi_line("x", "y", source=lines, line_color="colour", line_width="width", line_alpha=0.8)
    near = plot.scatter("x", "y", source=points, color="colour", size=7, alpha=0.0, hover_alpha=1.0)
    tips = [("", "@of"), ("interactions", "@x{0,0}"), ("value", "@y{0.0000}")]
    plot.add_tools(HoverTool(renderers=[near], tooltips=tips))
    plot.x_range.start = 0
    plot.xaxis.formatter = CustomJSTickFormatter(code=SHORT)
    return json_item(plot, ID("curves"))


def map_figure(data: dict[str, Any]) -> Any:
    """Make the map of explored states: sources map_points, map_cells, map_path and map_region.

    A box that is drawn, or a place that is tapped, goes to `brush` of the page's script.

    Args:
        data: From `map_data`.
    """
    (left, bottom), (right, top) = data["low"], data["high"]
    wide = round(MAP_HEIGHT * (right - left) / (top - bottom)) + AXES
    plot = _figure("", height=MAP_HEIGHT, max_width=max(wide, LEAST_WIDTH), match_aspect=True)
    corners = _source("map_corners", {"x": [left, right], "y": [bottom, top]})
    plot.scatter("x", "y", source=corners, alpha=0.0)  # the ranges follow the data
    cells = _source("map_cells", {name: [] for name in ("left", "right", "bottom", "top")})
    plot.quad("left", "right", "bottom", "top", source=cells, fill_color="#e2e4e8", line_color=None)
    names = "x", "y", "step", "z", "colour"
    points = _source("map_points", {name: [] for name in names})
    drawn = plot.scatter("x", "y", source=points, color="colour", size=4, line_color=None)
    if data["backdrop"] is not None:
        place = {"x": left, "y": top, "w": right - left, "h": top - bottom}
        plot.image_url(url=[data["backdrop"]], **place)
    path = _source("map_path", {"x": [], "y": []})
    plot.line("x", "y", source=path, line_color="black", line_width=2, line_alpha=0.7)
    here = _source("map_here", {"x": [], "y": []})
    plot.scatter("x", "y", source=here, size=11, fill_color="white", line_color="black")
    region = _source("map_region", {name: [] for name in ("left", "right", "bottom", "top")})
    edge = {"line_color": "#c2410c", "line_width": 2, "line_dash": "dashed"}
    plot.quad("left", "right", "bottom", "top", source=region, fill_alpha=0.0, **edge)
    tool = BoxSelectTool(name="map_brush", renderers=[], description="Box: who went there?")
    plot.add_tools(tool)
    plot.js_on_event("selectiongeometry", CustomJS(code="brush(cb_obj.geometry)"))
    plot.js_on_event("tap", CustomJS(code="brushAt(cb_obj.x, cb_obj.y)"))
    tips = [("place", "@x, @y"), ("interaction", "@step{0,0}"), ("z", "@z")]
    plot.add_tools(HoverTool(renderers=[drawn], tooltips=tips))
    return json_item(plot, ID("map"))


def z_figure(data: dict[str, Any]) -> Any:
    """Make the space of z, a dot for each rollout by z: source z_points; a tap chooses one.

    The place of a tap goes to `aimAt` of the page's script.

    Args:
        data: From `rollout_data`.
    """
    rollouts = [own for own in data["rollouts"] if own["began"] is None]
    plot = _figure(data["axes"][0], data["axes"][1])
    columns: dict[str, list[Any]] = {
        "x": [own["place"][0] for own in rollouts],
        "y": [own["place"][1] for own in rollouts],
        "z": [own["z"] for own in rollouts],
        "colour": [own["colour"] for own in rollouts],
        "number": list(range(1, 1 + len(rollouts))),
        "total": [own["total"] for own in rollouts],
        "success": ["yes" if own["success"] else "no" for own in rollouts],
        "marker": ["star" if own["success"] else "circle" for own in rollouts],
    }
    if len({*columns["x"]}) == len({*columns["y"]}) == 1:  # one place has no range
        plot.x_range, plot.y_range = (
            Range1d(own[0] - 1, own[0] + 1) for own in (columns["x"], columns["y"])
        )
    source = _source("z_points", columns)
    drawn = plot.scatter(
        "x",
        "y",
        source=source,
        size=18,
        marker="marker",
        fill_color="colour",
        line_color="black",
        line_width=1,
        selection_line_width=3,
        nonselection_fill_alpha=0.7,
        nonselection_line_alpha=0.5,
    )
    tips = [
        ("rollout", "@number"),
        ("z", "@z"),
        ("return", "@total{0.00}"),
        ("success at the end", "@success"),
    ]
    plot.add_tools(HoverTool(renderers=[drawn], tooltips=tips), TapTool(renderers=[drawn]))
    plot.js_on_event("tap", CustomJS(code="aimAt(cb_obj.x, cb_obj.y)"))
    return json_item(plot, ID("z"))


def _source(name: str, columns: dict[str, list[Any]]) -> ColumnDataSource:
    return ColumnDataSource(columns, name=name)


def _figure(x: str, y: str = "", **settings: Any) -> Any:
    plot = figure(
        sizing_mode="stretch_width",
        tools=TOOLS,
        toolbar_location="above",
        x_axis_label=x,
        y_axis_label=y,
        **({"height": HEIGHT} | settings),
    )
    plot.toolbar.logo = None
    plot.toolbar.active_drag = None  # a finger scrolls the page
    plot.outline_line_color = None
    plot.grid.grid_line_alpha = 0.4
    return plot
