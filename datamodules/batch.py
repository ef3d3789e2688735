"""The batch that travels from every skeleton data set to every skeleton method."""

from typing import NamedTuple

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


def collate(clips: list[tuple[Tensor, int, int]], max_bodies: int) -> SkeletonBatch:
    """Stack store clips (T, M, V, C), each with its label and id, padding frames and bodies with zeros.

    The one place where the store's order (T, M, V, C) becomes the field's (C, T, V, M).
    """
    frames = [clip.shape[0] for clip, _, _ in clips]
    _, _, joints, axes = clips[0][0].shape
    padded = torch.zeros(len(clips), max(frames), max_bodies, joints, axes)
    for row, (clip, _, _) in enumerate(clips):
        bodies = min(clip.shape[1], max_bodies)
        padded[row, : clip.shape[0], :bodies] = clip[:, :bodies]
    return SkeletonBatch(
        joints=padded.permute(0, 4, 1, 3, 2).contiguous(),
        num_frames=torch.tensor(frames),
        labels=torch.tensor([label for _, label, _ in clips]),
        ids=torch.tensor([clip_id for _, _, clip_id in clips]),
    )
