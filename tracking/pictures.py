"""Pictures for W&B, which shows no SVG: the same figures as the report's, and clips as short GIFs."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from tracking.plots import GREY, PALETTE

PANEL, TITLE = 160, 16  # pixels of a clip's panel, and of the line above it
MILLISECONDS = 80  # of a frame
TURN = 0.5  # radians about the upright axis, as the report's player begins


def confusion(part: Mapping[str, Any]) -> Image.Image:
    """The matrix of `artefacts`' part `confusion`, as shares of each label."""
    counts = np.asarray(part["matrix"], dtype=np.float64)
    figure = Figure(figsize=(5, 4.4), layout="constrained")
    axes = figure.add_subplot(xlabel="answer", ylabel="label, from 0")
    shown = axes.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), cmap="cividis", vmin=0, vmax=1)
    figure.colorbar(shown, label="share of the label's clips")
    return drawn(figure)


def points(part: Mapping[str, Any]) -> Image.Image:
    """The plane of `artefacts`' part `points`, the labels that occur most in colour."""
    xy, labels = np.asarray(part["xy"]), np.asarray(part["labels"])
    found, counts = np.unique(labels, return_counts=True)
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot(title=f"{part['method']} of {len(xy)} of {part['of']} test clips")
    axes.scatter(xy[:, 0], xy[:, 1], s=6, c=GREY, linewidths=0)
    for colour, label in zip(PALETTE, found[np.argsort(-counts, kind="stable")], strict=False):
        of_label = xy[labels == label]
        axes.scatter(of_label[:, 0], of_label[:, 1], s=14, c=colour, linewidths=0, label=f"label {label}")
    axes.legend(fontsize="x-small")
    axes.set_axis_off()
    return drawn(figure)


def drawn(figure: Figure) -> Image.Image:
    """The figure as a picture."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return Image.open(file)


def clips(views: Mapping[str, np.ndarray], path: Path, bones: Sequence[tuple[int, int]], up: int, upward: int) -> None:
    """Write views of one clip, (C, T, V, M) each, side by side as a GIF.

    up: which axis points upwards; upward: 1, or -1 where it counts downwards. Each view fills its panel, and a short
    one is played as long as the longest.
    """
    flat = {name: _flat(view, up, upward) for name, view in views.items()}
    frames = max(len(view) for view in flat.values())
    pictures = []
    for frame in range(frames):
        picture = Image.new("RGB", (PANEL * len(flat), PANEL + TITLE), "white")
        pen = ImageDraw.Draw(picture)
        for column, (name, view) in enumerate(flat.items()):
            pen.text((PANEL * column + 4, 2), name, fill="black")
            for number, body in enumerate(view[frame * len(view) // frames]):
                spots = body * (PANEL * 0.46) + (PANEL * (column + 0.5), TITLE + PANEL * 0.5)
                for child, parent in bones:
                    pen.line([*map(float, spots[child]), *map(float, spots[parent])], PALETTE[number % 7], 2)
        pictures.append(picture.quantize(16))
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=MILLISECONDS, loop=0)


def _flat(view: np.ndarray, up: int, upward: int) -> np.ndarray:
    """(C, T, V, M) -> (T, M, V, 2) in the plane of the picture, between -1 and 1, absent bodies left out."""
    there = [m for m in range(view.shape[-1]) if np.abs(view[..., m]).sum() > 0] or [0]
    first, second = (axis for axis in range(3) if axis != up)
    side = view[first] * math.cos(TURN) - view[second] * math.sin(TURN)
    plane = np.stack([side, -upward * view[up]], axis=-1)[:, :, there].transpose(0, 2, 1, 3)
    low, high = plane.min((0, 1, 2)), plane.max((0, 1, 2))
    return (plane - (low + high) / 2) / max((high - low).max() / 2, 1e-9)
