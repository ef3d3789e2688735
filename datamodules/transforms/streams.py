"""Streams of a clip: motion (change from frame to frame) and bone (child minus parent); joint is the clip itself.

Both keep the shape (N, C, T, V, M). SDS-CL and PSP take motion of the whole clip and sample afterwards; A2MC crops
first and forms its stream of the cropped clip, in which every frame is real (methods: SDS-CL, PSP, A2MC).
"""

import torch
from torch import Tensor

from datamodules.topology import SkeletonTopology


def motion(joints: Tensor, num_frames: Tensor | None = None) -> Tensor:
    """Next frame minus this one, 0 in the last real frame and past it.

    joints: (N, C, T, V, M). num_frames: (N,) real frames; None if all T are, as after a crop.
    """
    change = torch.zeros_like(joints)
    change[:, :, :-1] = joints[:, :, 1:] - joints[:, :, :-1]
    if num_frames is None:
        return change
    # Without the mask the step from the last real frame to the padding would count as a movement.
    has_next = torch.arange(joints.shape[2], device=joints.device) < num_frames[:, None] - 1
    return change * has_next[:, None, :, None, None]


def bone(joints: Tensor, topology: SkeletonTopology) -> Tensor:
    """Child minus parent, 0 at the root; joints: (N, C, T, V, M)."""
    return joints - joints[:, :, :, list(topology.parents)]
