"""The batch that travels from every skeleton data set to every skeleton method."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class SkeletonBatch(NamedTuple):
    """Clips of one skeleton set.

    joints: (N, C, T, V, M) float32, C axes, T frames of the longest clip, V joints, M bodies; zeros where absent.
    num_frames: (N,) int64, real frames of each clip.
    labels: (N,) int64, class counted from 0, -1 where unknown.
    ids: (N,) int64, row of the clip in its store.
    """

    joints: Tensor
    num_frames: Tensor
    labels: Tensor
    ids: Tensor


def collate(clips: list[np.ndarray], labels: np.ndarray, ids: np.ndarray, max_bodies: int) -> SkeletonBatch:
    """Stack store clips (T, M, V, C), padding frames and bodies with zeros; bodies beyond `max_bodies` are left out.

    The one place where the store's order (T, M, V, C) becomes the field's (C, T, V, M).
    """
    frames = np.array([len(clip) for clip in clips])
    _, _, joints, axes = clips[0].shape
    padded = np.zeros((len(clips), axes, frames.max(), joints, max_bodies), dtype=np.float32)
    for place, clip in zip(padded, clips, strict=True):
        rows = place.reshape(axes, -1, max_bodies)  # a view: frames and joints in one
        for body in range(min(clip.shape[1], max_bodies)):
            rows[:, : len(clip) * joints, body] = clip[:, body].reshape(-1, axes).T
    return SkeletonBatch(
        joints=torch.from_numpy(padded),
        num_frames=torch.from_numpy(frames),
        labels=torch.from_numpy(labels),
        ids=torch.from_numpy(ids),
    )
