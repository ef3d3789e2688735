"""A clip augmented as a feeder's worker does it: one clip after the other, in numpy."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from datamodules.randomness import take_rows
from datamodules.topology import SkeletonTopology

SEGMENT = 4  # frames of a segment of the temporal mask


def augmented(clip: np.ndarray, frames: int, drawn: dict[str, Any], topology: SkeletonTopology) -> np.ndarray:
    """One view (C, 64, V, M) of a clip (C, T, V, M) whose first `frames` frames are real.

    drawn: the clip's numbers, one row of what `CroppedView.draw` gives.
    """
    rotate, flip, shear, spatial, temporal = drawn["augment"]
    x = crop_resized(clip, frames, float(drawn["crop"]["share"]), float(drawn["crop"]["place"]), 16 * SEGMENT)
    if rotate["applied"]:
        x = turned(x, rotate["degrees"][0].tolist())
    if flip["applied"]:
        x = x[:, :, list(topology.mirrored)]
    if shear["applied"]:
        s = shear["shear"][0].tolist()
        matrix = np.array([[1, s[0], s[1]], [s[2], 1, s[3]], [s[4], s[5], 1]])
        x = multiplied(matrix, x)
    if spatial["applied"]:
        near = np.eye(len(topology.inward())) + topology.inward() + topology.inward().T
        scores = (near @ near)[spatial["joints"][0].numpy()].sum(0)
        x = x.copy()
        x[:, :, np.argsort(-scores, kind="stable")[:8]] = 0
    if temporal["applied"]:
        x = x.copy()
        for segment in temporal["segments"][0].tolist():
            x[:, segment * SEGMENT : (segment + 1) * SEGMENT] = 0
    return x


def crop_resized(clip: np.ndarray, frames: int, share: float, place: float, wanted: int) -> np.ndarray:
    """A window of a clip (C, T, V, M) interpolated to `wanted` frames."""
    length = min(max(int(frames * share), wanted), frames)
    start = min(int(place * (frames - length + 1)), frames - length)
    window = torch.from_numpy(np.ascontiguousarray(clip[:, start : start + length]))
    c, _, v, m = window.shape
    lines = window.permute(0, 2, 3, 1).reshape(1, c * v * m, length)
    resized = F.interpolate(lines, size=wanted, mode="linear", align_corners=False)
    return resized.reshape(c, v, m, wanted).permute(0, 3, 1, 2).numpy()


def turned(x: np.ndarray, degrees: list[float]) -> np.ndarray:
    """Clockwise about x, then y, then z."""
    (cx, sx), (cy, sy), (cz, sz) = ((math.cos(math.radians(d)), math.sin(math.radians(d))) for d in degrees)
    about_x = np.array([[1, 0, 0], [0, cx, sx], [0, -sx, cx]])
    about_y = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    about_z = np.array([[cz, sz, 0], [-sz, cz, 0], [0, 0, 1]])
    return multiplied(about_z @ about_y @ about_x, x)


def multiplied(matrix: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A matrix (3, 3) times the coordinates of x (3, T, V, M)."""
    return (x.reshape(3, -1).T @ matrix.T.astype(x.dtype)).T.reshape(x.shape)


def two_views(clip: np.ndarray, frames: int, drawn: list[dict[str, Any]], row: int, topology: SkeletonTopology):
    """Both views of one clip; drawn: of the whole batch, a dict a view."""
    return [augmented(clip, frames, take_rows(numbers, slice(row, row + 1)), topology) for numbers in drawn]
