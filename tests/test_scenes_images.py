"""Pictures of the miniature: what is said of a thing can be seen in its picture."""

import numpy as np
import pytest

from datamodules.miniature.scenes_images import COLOURS, SHAPES, SIDE, Thing, draw_thing, render


def pictures(seed: int, n: int = 60) -> list[tuple[Thing, np.ndarray]]:
    rng = np.random.default_rng(seed)
    things = [draw_thing(rng, SHAPES[i % len(SHAPES)]) for i in range(n)]
    return [(thing, np.asarray(render(thing, rng)).astype(int)) for thing in things]


def inside(thing: Thing, picture: np.ndarray) -> np.ndarray:
    """(SIDE, SIDE) where the picture is not its ground; a corner always shows the ground."""
    corner = picture[0 if thing.y >= SIDE / 2 else -1, 0 if thing.x >= SIDE / 2 else -1]
    return np.abs(picture - corner).sum(-1) > 30


def test_a_seed_draws_the_same_pictures():
    first, again, other = pictures(3, 10), pictures(3, 10), pictures(4, 10)
    assert all(a == b and (p == q).all() for (a, p), (b, q) in zip(first, again, strict=True))
    assert any(a != b for (a, _), (b, _) in zip(first, other, strict=True))


def test_things_stand_whole_in_their_quadrant_and_keep_their_size():
    for thing, picture in pictures(0):
        rows, columns = np.nonzero(inside(thing, picture))
        assert abs(rows.mean() + 0.5 - thing.y) < 3.5 and abs(columns.mean() + 0.5 - thing.x) < 3.5
        assert (
            f"{'top' if rows.mean() < SIDE / 2 else 'bottom'} {'left' if columns.mean() < SIDE / 2 else 'right'}"
            == (thing.quadrant)
        )
        assert rows.min() > 0 and rows.max() < SIDE - 1 and columns.min() > 0 and columns.max() < SIDE - 1
        extent = max(np.ptp(rows), np.ptp(columns)) / 2
        assert (extent <= 11) == (thing.size == "small")


def test_paint_is_of_the_named_colour():
    for thing, picture in pictures(1):
        painted = np.median(picture[inside(thing, picture)], axis=0)
        low, high = (np.array(paint) for paint in COLOURS[thing.colour])
        assert (painted >= np.minimum(low, high) - 2).all() and (painted <= np.maximum(low, high) + 2).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_fill_the_share_of_their_circle_that_geometry_gives(shape):
    thing = Thing(shape, "red", 32, 32, 17)
    picture = np.asarray(render(thing, np.random.default_rng(0))).astype(int)
    away = np.abs(picture - picture[0, 0]).sum(-1)  # a pixel on an edge counts by its share
    covered = away.sum() / np.median(away[away > 30]) / (np.pi * 17**2)
    # star: 10 triangles of .5 * .42 * sin 36; rectangle: 4 a / (1 + a^2); cross: 4 b (2 a - b); heart: 180 pi / 17^2.
    share = {
        "circle": 1.0,
        "ring": 0.75,
        "triangle": 3 * 3**0.5 / 4 / np.pi,
        "rectangle": 4 * 0.6 / 1.36 / np.pi,
        "star": 5 * 0.42 * np.sin(np.pi / 5) / np.pi,
        "cross": 4 * 0.33 * (2 * 0.94 - 0.33) / np.pi,
        "heart": 180 / 17**2,
    }[shape]
    assert covered == pytest.approx(share, abs=0.06)


def test_given_shape_and_colour_are_kept():
    rng = np.random.default_rng(0)
    assert {(t.shape, t.colour) for t in (draw_thing(rng, "heart", "teal") for _ in range(5))} == {("heart", "teal")}
