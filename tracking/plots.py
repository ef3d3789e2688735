"""Figures as SVG text that needs nothing around it: rates, curves, confusion matrices, points in the plane.

Every string goes through ElementTree, which escapes it. Colours are those of Okabe and Ito and the map cividis, which
readers with any colour vision tell apart; lines also differ in their dashes and points in their shapes.
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.etree import ElementTree

import matplotlib
import numpy as np
from PIL import Image

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("", "6 3", "2 2", "8 3 2 3", "4 4", "1 3", "10 4")
SHAPES = ("circle", "square", "triangle", "diamond")
GREY = "#9a9a9a"
SERIES = {  # of `rates`: shape, colour, whether hollow
    "trained": ("circle", PALETTE[0], False),
    "supervised only": ("square", PALETTE[1], False),
    "random initialisation": ("square", PALETTE[4], False),
    "coordinates": ("triangle", PALETTE[2], False),
    "published": ("diamond", "currentColor", True),
}
ROOM = 48  # letters of a row's name
FEW_POINTS = 30  # up to so many points of a line are marked


@dataclass(frozen=True)
class Rate:
    """One mark of `rates`: a rate in per cent of one of the SERIES, and its standard deviation, 0 where it has none."""

    series: str
    value: float
    deviation: float = 0.0


@dataclass(frozen=True)
class Line:
    """One curve: points (x, y), and around them, where there are several seeds, (x, low, high)."""

    label: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = field(default_factory=tuple)


def element(parent: ElementTree.Element, tag: str, content: str = "", **attributes) -> ElementTree.Element:
    """A child with attributes (`stroke_width` for stroke-width) and text."""
    named = {key.rstrip("_").replace("_", "-"): _said(value) for key, value in attributes.items()}
    child = ElementTree.SubElement(parent, tag, named)
    child.text = clean(content) or None
    return child


def colour_of(number: int) -> str:
    """The palette's, black as the page's ink: a page may be dark."""
    colour = PALETTE[number % len(PALETTE)]
    return "currentColor" if colour == "#000000" else colour


def _said(value) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else clean(value)


def clean(string) -> str:
    """One line of printable characters: XML has no place for the others."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(string)).split())


def canvas(width: float, height: float, label: str) -> ElementTree.Element:
    """An SVG that fills its column, with a name for those who do not see it."""
    box = {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": clean(label)}
    return ElementTree.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", **box})


def written(svg: ElementTree.Element) -> str:
    """The SVG as text."""
    return ElementTree.tostring(svg, encoding="unicode")


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Three to nine round numbers between low and high; whole: only integers, however few."""
    rough = (high - low) / 3
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (5, 2, 1) if factor * power <= rough * 1.001)
    found = [step * n for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return [value for value in found if value == round(value)] if whole else found


def short(value: float) -> str:
    """A tick's number: 1500000 -> 1.5M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def rates(rows: Sequence[tuple[str, Sequence[Rate]]], title: str) -> str:
    """Rows of marks between 0 and 100 %, each under its name; at the right the value of what was trained."""
    width, left, right, each, top = 360, 8, 14, 36, 2
    bottom = top + each * len(rows)
    svg = canvas(width, bottom + 22, title)

    def place(value: float) -> float:
        return left + value / 100 * (width - left - right)

    for value in range(0, 101, 20):
        x = place(value)
        element(svg, "line", x1=x, x2=x, y1=top, y2=bottom, class_="grid")
        element(svg, "text", str(value), x=x, y=bottom + 15, text_anchor="middle", class_="tick")
    for number, (name, marks) in enumerate(rows):
        y = top + each * number + 24.0
        element(svg, "line", x1=place(0), x2=place(100), y1=y, y2=y, class_="track")
        element(svg, "text", name if len(name) <= ROOM else f"{name[: ROOM - 1]}…", x=left, y=y - 11)
        if marks[0].series == "trained":
            rate = f"{marks[0].value:.1f}"
            element(svg, "text", rate, x=width - right, y=y - 11, text_anchor="end", class_="value")
        for mark_ in reversed(marks):  # the first on top
            _rate(svg, mark_, place, y, name)
    return written(svg)


def _rate(svg: ElementTree.Element, rate: Rate, place, y: float, name: str) -> None:
    shape, colour, hollow = SERIES[rate.series]
    group = element(svg, "g", fill="none" if hollow else colour, stroke=colour)
    spread = f" ± {rate.deviation:.1f}" if rate.deviation else ""
    element(group, "title", f"{name}, {rate.series}: {rate.value:.2f}{spread}")
    if rate.deviation:
        ends = {"x1": place(max(rate.value - rate.deviation, 0)), "x2": place(min(rate.value + rate.deviation, 100))}
        element(group, "line", y1=y, y2=y, stroke_width="2", **ends)
    mark(group, shape, place(rate.value), y, 4.5).set("stroke-width", "1.5")


def rates_legend(series: Sequence[str]) -> str:
    """The same for `rates`."""
    return _legend([(*SERIES[name], name) for name in series])


def lines(curves: Sequence[Line], x_name: str, y_name: str) -> str:
    """Curves over one pair of axes; their names belong in `legend`."""
    width, height, left, right, top, bottom = 420, 260, 56, 12, 12, 40
    svg = canvas(width, height, f"{y_name} over {x_name}: {', '.join(curve.label for curve in curves)}")
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points] + [y for c in curves for _, *ends in c.band for y in ends]
    (x_low, x_high), (y_low, y_high) = _spread(xs), _spread(ys)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - x_low) / (x_high - x_low) * (width - left - right),
            height - bottom - (y - y_low) / (y_high - y_low) * (height - top - bottom),
        )

    for value in ticks(y_low, y_high):
        _, y = place(x_low, value)
        element(svg, "line", x1=left, x2=width - right, y1=y, y2=y, class_="grid")
        element(svg, "text", short(value), x=left - 6, y=y + 4, text_anchor="end")
    for value in ticks(x_low, x_high, whole=True):
        x, _ = place(value, y_low)
        element(svg, "line", x1=x, x2=x, y1=height - bottom, y2=height - bottom + 4, class_="axis")
        element(svg, "text", short(value), x=x, y=height - bottom + 17, text_anchor="middle")
    element(svg, "line", x1=left, x2=width - right, y1=height - bottom, y2=height - bottom, class_="axis")
    element(svg, "text", x_name, x=(left + width - right) / 2, y=height - 6, text_anchor="middle")
    for number, curve in enumerate(curves):
        _draw(svg, curve, number, place)
    return written(svg)


def _spread(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest, apart even where all are one."""
    low, high = min(values), max(values)
    room = (high - low) * 0.04 or max(abs(low) * 0.1, 0.5)
    return low - room, high + room


def _draw(svg: ElementTree.Element, curve: Line, number: int, place) -> None:
    colour, dash = colour_of(number), DASHES[number % len(DASHES)]
    group = element(svg, "g", fill=colour, stroke=colour)
    element(group, "title", curve.label)
    if curve.band:
        edge = [place(x, high) for x, _, high in curve.band] + [place(x, low) for x, low, _ in reversed(curve.band)]
        element(group, "polygon", points=_path(edge), fill_opacity="0.15", stroke="none")
    spots = [place(x, y) for x, y in curve.points]
    element(group, "polyline", points=_path(spots), fill="none", stroke_width="2", stroke_dasharray=dash)
    if len(spots) <= FEW_POINTS:
        for x, y in spots:
            mark(group, SHAPES[number % len(SHAPES)], x, y, 2.5)


def _path(spots: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)


def mark(parent: ElementTree.Element, shape: str, x: float, y: float, size: float) -> ElementTree.Element:
    """A small filled shape."""
    if shape == "circle":
        return element(parent, "circle", cx=float(x), cy=float(y), r=size)
    corners = {
        "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        "triangle": ((0, -1.2), (1.1, 0.9), (-1.1, 0.9)),
        "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
    }[shape]
    return element(parent, "polygon", points=_path([(x + size * dx, y + size * dy) for dx, dy in corners]))


def legend(labels: Sequence[str]) -> str:
    """An HTML list of line samples and names, in the order of `lines`."""
    names = ElementTree.Element("ul", {"class": "legend"})
    for number, label in enumerate(labels):
        item = element(names, "li")
        svg = element(item, "svg", viewBox="0 0 34 12", aria_hidden="true")
        colour, dash = colour_of(number), DASHES[number % len(DASHES)]
        element(svg, "line", x1=1, x2=33, y1=6, y2=6, stroke=colour, stroke_width="2", stroke_dasharray=dash)
        mark(svg, SHAPES[number % len(SHAPES)], 17, 6, 3).set("fill", colour)
        element(item, "span", label)
    return ElementTree.tostring(names, encoding="unicode", method="html")


def points_legend(labels: Sequence[str], rest: str = "") -> str:
    """The same for `scatter`."""
    styles = [(*_style(number), False, label) for number, label in enumerate(labels)]
    return _legend([*styles, *([("circle", GREY, False, rest)] * bool(rest))])


def _legend(styles: Sequence[tuple[str, str, bool, str]]) -> str:
    """Marks (shape, colour, whether hollow) and their names."""
    names = ElementTree.Element("ul", {"class": "legend marks"})
    for shape, colour, hollow, label in styles:
        item = element(names, "li")
        svg = element(item, "svg", viewBox="0 0 14 12", aria_hidden="true")
        spot = mark(svg, shape, 7, 6, 4)
        spot.set("fill", "none" if hollow else colour)
        spot.set("stroke", colour)
        element(item, "span", label)
    return ElementTree.tostring(names, encoding="unicode", method="html")


def _style(number: int) -> tuple[str, str]:
    return SHAPES[number // len(PALETTE) % len(SHAPES)], colour_of(number)


def scatter(points: np.ndarray, labels: np.ndarray, classes: Sequence[int], names: Sequence[str], title: str) -> str:
    """Points (N, 2) in the plane; those of `classes` in their colour and shape, the others small and grey."""
    size, room = 400, 12
    svg = canvas(size, size, title)
    low, high = points.min(0), points.max(0)
    placed = room + (points - low) / np.maximum(high - low, 1e-9) * (size - 2 * room)
    numbers = {label: number for number, label in enumerate(classes)}
    order = sorted(range(len(points)), key=lambda row: int(labels[row]) in numbers)  # the coloured ones on top
    for row in order:
        label = int(labels[row])
        shape, colour = _style(numbers[label]) if label in numbers else ("circle", GREY)
        x, y = placed[row].tolist()
        spot = mark(svg, shape, x, y, 3.2 if label in numbers else 1.8)
        spot.set("fill", colour)
        spot.set("fill-opacity", "0.75" if label in numbers else "0.5")
        element(spot, "title", names[row])
    return written(svg)


def matrix(
    values: np.ndarray,
    names: Sequence[object] | range,
    row_name: str,
    column_name: str,
    title: str,
    bright: str = "1",
) -> str:
    """Shares (N, N) between 0 and 1, dark for 0, bright for 1; names: of the rows and of the columns alike.

    bright: what the scale beside it says of its bright end.
    """
    rows = columns = len(names)
    size, left, bottom, right = 360, 46, 40, 64
    svg = canvas(size + left + right, size + bottom + 8, title)
    picture = element(svg, "image", x=left, y=4, width=size, height=size, preserveAspectRatio="none")
    picture.set("href", data_url(heat(values)))
    picture.set("style", "image-rendering:pixelated")
    step = max(1, math.ceil(max(rows, columns) / 12))
    for number in range(0, columns, step):
        x = left + (number + 0.5) * size / columns
        element(svg, "text", str(names[number]), x=x, y=size + 18, text_anchor="middle")
    for number in range(0, rows, step):
        y = 4 + (number + 0.5) * size / rows
        element(svg, "text", str(names[number]), x=left - 5, y=y + 4, text_anchor="end")
    _scale(svg, size + left + 10, size, bright)
    element(svg, "text", column_name, x=left + size / 2, y=size + 38, text_anchor="middle")
    name = element(svg, "text", row_name, x=0, y=0, text_anchor="middle")
    name.set("transform", f"translate(12 {4 + size / 2:g}) rotate(-90)")
    return written(svg)


def _scale(svg: ElementTree.Element, x: float, height: float, bright: str) -> None:
    """A bar of the colours from 0 to what is brightest."""
    bar = element(svg, "image", x=x, y=4, width=10, height=height, preserveAspectRatio="none")
    bar.set("href", data_url(heat(np.linspace(1, 0, 64)[:, None])))
    element(svg, "text", bright, x=x + 14, y=14)
    element(svg, "text", "0", x=x + 14, y=height + 3)


def heat(values: np.ndarray) -> Image.Image:
    """One pixel a value, between 0 and 1."""
    colours = matplotlib.colormaps["cividis"](np.clip(values, 0, 1), bytes=True)
    return Image.fromarray(colours[..., :3])


def data_url(picture: Image.Image) -> str:
    """The picture as an address that holds all of it."""
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
