"""A panel of a figure as inline SVG, coloured by the page's style sheet, so that it follows light
and dark.

Drawn by hand rather than with a plotting library: the page stays small (a bundled library alone
weighs 4.8 MB), needs no script to be read, and its style and script can be pinned by hash. Every
mark carries its numbers as a title; `page.js` shows them under the pointer or the finger.
"""

from __future__ import annotations

from collections.abc import Iterator

from fleetstep.reporting.charts import Panel, Point, Series
from fleetstep.reporting.markup import Markup, element
from fleetstep.reporting.palette import colour_of, marker_of

_ASPECT = 0.68
_TOP, _RIGHT, _BOTTOM, _LEFT = 44.0, 14.0, 42.0, 52.0
_ROW = 19.0
_CHARACTER = 7.4
"""Width of a character of the tick texts, for the room a forest's row labels need."""

_SMALL_CHARACTER = 6.6


class _Frame:
    """The drawing area of a panel, and where values lie in it (pixels, origin top left)."""

    def __init__(self, panel: Panel, width: float) -> None:
        labels = max((len(text) for _, text in panel.y.ticks), default=0)
        self.panel = panel
        self.left = max(_LEFT, 14 + _CHARACTER * labels) if panel.rows else _LEFT
        self.right = width - _RIGHT
        self.height = max(_ASPECT * width, _TOP + _BOTTOM + _ROW * panel.rows)
        self.top = 28.0 if panel.rows else _TOP
        self.bottom = self.height - _BOTTOM

    def x(self, value: float) -> float:
        return round(self.left + self.panel.x.place(value) * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        return round(self.bottom - self.panel.y.place(value) * (self.bottom - self.top), 1)


def draw(panel: Panel, width: float) -> Markup:
    """One panel as an <svg> with a text alternative; colours come from classes s0, s1, ...

    Args:
        width: nominal width in pixels, at which texts have their size; the page scales it.
    """
    frame = _Frame(panel, width)
    return element(
        "svg",
        element("text", panel.title, x=2, y=15, class_="panel-title"),
        element("text", panel.y.title, x=2, y=32, class_="axis-title") if not panel.rows else "",
        *_grid(frame),
        *_x_ticks(frame),
        *_rules(frame),
        *(_series(frame, series) for series in panel.series),
        *_rule_texts(frame),
        element(
            "text",
            panel.x.title,
            x=frame.right,
            y=frame.height - 6,
            class_="axis-title end",
        ),
        viewBox=f"0 0 {width:g} {frame.height:g}",
        class_="chart",
        role="img",
        aria_label=_alternative(panel),
    )


def _alternative(panel: Panel) -> str:
    runs = ", ".join(dict.fromkeys(series.run for series in panel.series))
    return f"{panel.title}: {panel.y.title} against {panel.x.title} for {runs}"


def _grid(frame: _Frame) -> Iterator[Markup]:
    """Lines across the values: level ones, in a forest upright ones."""
    if frame.panel.rows:
        for place, _ in frame.panel.x.ticks:
            x = frame.x(place)
            yield element("line", x1=x, x2=x, y1=frame.top, y2=frame.bottom, class_="grid")
    for place, text in frame.panel.y.ticks:
        y = frame.y(place)
        if not frame.panel.rows:
            yield element("line", x1=frame.left, x2=frame.right, y1=y, y2=y, class_="grid")
        yield element("text", text, x=frame.left - 7, y=y + 4, class_="tick end")


def _x_ticks(frame: _Frame) -> Iterator[Markup]:
    yield element(
        "line", x1=frame.left, x2=frame.right, y1=frame.bottom, y2=frame.bottom, class_="axis"
    )
    for place, text in frame.panel.x.ticks:
        x = frame.x(place)
        yield element("line", x1=x, x2=x, y1=frame.bottom, y2=frame.bottom + 4, class_="axis")
        yield element("text", text, x=x, y=frame.bottom + 17, class_="tick middle")


def _rules(frame: _Frame) -> Iterator[Markup]:
    for rule in frame.panel.rules:
        if rule.axis == "y":
            y = frame.y(rule.value)
            yield element("line", x1=frame.left, x2=frame.right, y1=y, y2=y, class_="rule")
        else:
            x = frame.x(rule.value)
            yield element("line", x1=x, x2=x, y1=frame.top, y2=frame.bottom, class_="rule")


def _rule_texts(frame: _Frame) -> Iterator[Markup]:
    """Above the series, which would be drawn over them."""
    for rule in frame.panel.rules:
        if rule.axis == "y":
            x, y = frame.left + 5, frame.y(rule.value) + 13
        else:
            x, y = frame.x(rule.value) + 5, frame.top + 11
        yield element("text", rule.text, x=x, y=y, class_="rule-text")


def _series(frame: _Frame, series: Series) -> Markup:
    path = " ".join(f"{frame.x(p.x)},{frame.y(p.y)}" for p in series.points)
    line = element("polyline", points=path) if series.line and len(series.points) > 1 else ""
    marks = [_mark(frame, point, marker_of(series.slot)) for point in series.points]
    shown = marks if series.marks else ()
    classes = ["series", f"s{colour_of(series.slot)}", *["faded"] * series.faint]
    return element("g", line, *shown, class_=" ".join(classes), data_name=series.run)


def _mark(frame: _Frame, point: Point, marker: str) -> Markup:
    x, y = frame.x(point.x), frame.y(point.y)
    bar: Markup | str = ""
    if point.low is not None and point.high is not None:
        if frame.panel.interval == "x":
            bar = element("line", x1=frame.x(point.low), x2=frame.x(point.high), y1=y, y2=y)
        else:
            bar = element("line", x1=x, x2=x, y1=frame.y(point.low), y2=frame.y(point.high))
    return element(
        "g",
        element("title", point.text),
        bar,
        shape(marker, x, y),
        _label(frame, point, x, y),
        class_=" ".join(
            ["mark", *["hollow"] * point.hollow, *["faint"] * point.faint],
        ),
        data_x=x,
        data_y=y,
    )


def _label(frame: _Frame, point: Point, x: float, y: float) -> Markup | str:
    """Words below and left of a mark, below it where they would leave the panel."""
    if not point.label:
        return ""
    left = x - 6 - _SMALL_CHARACTER * len(point.label) > frame.left
    return element(
        "text",
        point.label,
        x=x - 6 if left else x - 4,
        y=y + 14 if left else y + 22,
        class_="point-label end" if left else "point-label",
    )


def shape(marker: str, x: float, y: float, size: float = 3.6) -> Markup:
    """The outline of a run's marker, centred at (x, y)."""
    if marker == "circle":
        return element("circle", cx=x, cy=y, r=size)
    outlines = {
        "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        "triangle": ((0, -1.2), (1.1, 0.9), (-1.1, 0.9)),
        "down": ((0, 1.2), (1.1, -0.9), (-1.1, -0.9)),
        "diamond": ((0, -1.3), (1.2, 0), (0, 1.3), (-1.2, 0)),
        "cross": _star(turned=True),
        "plus": _star(turned=False),
    }
    corners = " ".join(f"{x + size * a:.1f},{y + size * b:.1f}" for a, b in outlines[marker])
    return element("polygon", points=corners)


def _star(*, turned: bool) -> tuple[tuple[float, float], ...]:
    """The twelve corners of a plus, upright or turned to a cross."""
    arm, half = 1.3, 0.45
    plus = (
        (half, -arm), (half, -half), (arm, -half), (arm, half), (half, half), (half, arm),
        (-half, arm), (-half, half), (-arm, half), (-arm, -half), (-half, -half), (-half, -arm),
    )  # fmt: skip
    if not turned:
        return plus
    turn = 0.5**0.5
    return tuple((turn * (a - b), turn * (a + b)) for a, b in plus)
