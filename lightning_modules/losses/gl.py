"""GL, the global loss of SDS-CL, which contrasts clips (methods §4.1)."""

import torch
from torch import Tensor

from lightning_modules.heads import pool
from lightning_modules.losses.nt_xent import nt_xent


def squeeze_all(
    temporal_intra: Tensor, spatial_intra: Tensor, temporal_inter: Tensor, spatial_inter: Tensor, bodies: int
) -> Tensor:
    """Four attended features (N * M, C, T, V) of a stream -> (N, 4 C), their means in this order."""
    attended = (temporal_intra, spatial_intra, temporal_inter, spatial_inter)
    return torch.cat([pool(features, bodies) for features in attended], dim=1)


def gl(joint: Tensor, motion: Tensor, temperature: float) -> Tensor:
    """Clip vectors (N, 4 C) after the projection head -> scalar.

    Positive: the same clip in the other stream. Negatives: the other clips of the batch, in both streams.
    """
    return nt_xent(joint, motion, temperature)
