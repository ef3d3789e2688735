"""Pictures of the miniature: coloured shapes on a plain ground, drawn by a seed."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIDE = 64  # pixels
OVERSAMPLING = 2  # drawn this much larger, then averaged: edges without steps

# Each colour is a range of shades between two paints.
COLOURS = {
    "black": ((0, 0, 0), (30, 30, 30)),
    "gray": ((110, 110, 110), (145, 145, 145)),
    "white": ((240, 240, 240), (255, 255, 255)),
    "red": ((200, 20, 20), (255, 30, 30)),
    "orange": ((240, 130, 10), (255, 155, 40)),
    "yellow": ((235, 220, 10), (255, 255, 40)),
    "green": ((10, 140, 30), (20, 250, 30)),
    "teal": ((0, 115, 115), (20, 145, 150)),
    "blue": ((20, 20, 200), (40, 70, 255)),
    "purple": ((110, 30, 150), (150, 50, 190)),
    "pink": ((250, 105, 180), (255, 150, 205)),
    "brown": ((115, 65, 20), (165, 45, 40)),
}
SHAPES = ("circle", "triangle", "rectangle", "star", "cross", "ring", "heart")
SIZES = {"small": (8.0, 11.0), "large": (14.0, 18.0)}  # radius of the circle round the shape, pixels
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
GROUNDS = ((240, 240, 240), (205, 215, 225), (225, 210, 195), (60, 60, 70), (200, 225, 200))


@dataclass(frozen=True)
class Thing:
    """A shape of a colour; x, y: centre in pixels from the top left; radius of the circle round it; turn in degrees.

    aspect: short side of a rectangle over its long side; the other shapes do not know it.
    """

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    turn: float = 0.0
    aspect: float = 0.6

    @property
    def quadrant(self) -> str:
        return QUADRANTS[2 * (self.y >= SIDE / 2) + (self.x >= SIDE / 2)]

    @property
    def size(self) -> str:
        return "small" if self.radius <= sum(SIZES["small"] + SIZES["large"]) / 4 else "large"


def draw_thing(rng: np.random.Generator, shape: str | None = None, colour: str | None = None) -> Thing:
    """A thing at a place of its own in a quadrant of its own; what is not given is drawn uniformly."""
    drawn_shape, drawn_colour = SHAPES[rng.integers(len(SHAPES))], list(COLOURS)[rng.integers(len(COLOURS))]
    low, high = SIZES[list(SIZES)[rng.integers(len(SIZES))]]
    radius = rng.uniform(low, high)
    # Off the middle lines by two pixels at least, so that the quadrant can be told; inside the picture always.
    reach = min(SIDE / 2 - 2, SIDE - 1 - radius) - max(radius + 1, 2)
    offsets = max(radius + 1, 2) + rng.uniform(0, 1, 2) * max(reach, 0.0)
    x, y = (SIDE - offset if rng.random() < 0.5 else offset for offset in offsets)
    turn, aspect = rng.uniform(-15, 15) + 90 * rng.integers(2), rng.uniform(0.35, 1)
    shape, upright = shape or drawn_shape, rng.uniform(-15, 15)
    return Thing(shape, colour or drawn_colour, x, y, radius, turn if shape == "rectangle" else upright, aspect)


def render(thing: Thing, rng: np.random.Generator) -> Image.Image:
    """(SIDE, SIDE) RGB picture of the thing on a drawn ground; colours vary a little from picture to picture."""
    low, high = COLOURS[thing.colour]
    paint = np.add(low, rng.random() * np.subtract(high, low))
    grounds = [ground for ground in GROUNDS if np.abs(paint - ground).sum() > 80]  # a thing that can be seen
    ground = np.add(grounds[rng.integers(len(grounds))], rng.integers(-12, 13, 3))
    picture = Image.new("RGB", (SIDE * OVERSAMPLING, SIDE * OVERSAMPLING), _rgb(ground))
    _draw(ImageDraw.Draw(picture), thing, _rgb(paint), _rgb(ground))
    return picture.reduce(OVERSAMPLING)


def _rgb(colour: np.ndarray) -> tuple[int, ...]:
    return tuple(int(value) for value in np.clip(colour, 0, 255))


def _draw(pen: ImageDraw.ImageDraw, thing: Thing, paint: tuple[int, ...], ground: tuple[int, ...]) -> None:
    x, y, r = (OVERSAMPLING * value for value in (thing.x, thing.y, thing.radius))
    if thing.shape in ("circle", "ring"):
        pen.ellipse((x - r, y - r, x + r, y + r), fill=paint)
        if thing.shape == "ring":
            pen.ellipse((x - r / 2, y - r / 2, x + r / 2, y + r / 2), fill=ground)
        return
    turn = math.radians(thing.turn)
    cos, sin = math.cos(turn), math.sin(turn)
    corners = _outline(thing)
    pen.polygon([(x + r * (cos * u - sin * v), y + r * (sin * u + cos * v)) for u, v in corners], fill=paint)


def _outline(thing: Thing) -> list[tuple[float, float]]:
    """Corners on or in the unit circle, y downwards."""
    if thing.shape == "triangle":
        return [_on_circle(step / 3) for step in range(3)]
    if thing.shape == "rectangle":
        long = 1 / math.hypot(1, thing.aspect)
        short = thing.aspect * long
        return [(-long, -short), (long, -short), (long, short), (-long, short)]
    if thing.shape == "star":
        return [_on_circle(step / 10, 1.0 if step % 2 == 0 else 0.42) for step in range(10)]
    if thing.shape == "cross":
        a, b = 0.94, 0.33
        quarter = [(b, -a), (b, -b), (a, -b)]
        turned = [quarter, [(-v, u) for u, v in quarter], [(-u, -v) for u, v in quarter], [(v, -u) for u, v in quarter]]
        return [corner for part in turned for corner in part]
    return HEART


def _on_circle(share: float, radius: float = 1.0) -> tuple[float, float]:
    """The point after this share of a full turn, clockwise from the top."""
    return radius * math.sin(2 * math.pi * share), -radius * math.cos(2 * math.pi * share)


def _heart(t: float) -> tuple[float, float]:
    """The textbook curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, moved into the unit circle."""
    height = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
    return 16 * math.sin(t) ** 3 / 17, -(height + 2.5) / 17


HEART = [_heart(2 * math.pi * step / 32) for step in range(32)]
