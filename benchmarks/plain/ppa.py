"""The polymerised joint map built pair by pair, as one would write it down first."""

import torch
from torch import Tensor


def polymerised_joint_map(joint: Tensor, part: Tensor, body: Tensor, part_of: list[int], body_of: list[int]) -> Tensor:
    """joint map + .12 part map + .24 body map (PSP, 25 joints), one pair of joints after the other.

    joint: (B, S, V, V); part, body: (B, S, G, G); part_of, body_of: group of each joint.
    """
    pairs = [
        joint[:, :, u, v] + 0.12 * part[:, :, part_of[u], part_of[v]] + 0.24 * body[:, :, body_of[u], body_of[v]]
        for u in range(len(part_of))
        for v in range(len(part_of))
    ]
    return torch.stack(pairs, dim=-1).view_as(joint)
