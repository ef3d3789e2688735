"""EADM, the energy-based attention drop of AimCLR (Guo et al., AAAI 2022; methods §6.3)."""

import torch
from torch import Tensor

REGULARISER = 1e-4


def energy_attention(features: Tensor) -> Tensor:
    """(B, C, T, V) attention of every cell of features (B, C, T, V), in [.62, 1): the farther from its channel's mean.

    e = (x - mean)^2 / (4 (sum (x - mean)^2 / (T V - 1) + 1e-4)) + .5 over frames and joints, attention = sigmoid(e).
    """
    squares = (features - features.mean(dim=(2, 3), keepdim=True)).square()
    cells = features.shape[2] * features.shape[3]
    variance = squares.sum(dim=(2, 3), keepdim=True) / (cells - 1)
    return torch.sigmoid(squares / (4 * (variance + REGULARISER)) + 0.5)


def _without(features: Tensor, dropped: Tensor) -> Tensor:
    """Features, 0 where `dropped` (B, ...), the others times all / left, which keeps their expected sum."""
    left = (~dropped).flatten(1).to(features.dtype).mean(1).clamp(min=torch.finfo(features.dtype).tiny)
    return features.masked_fill(dropped, 0) / left[:, None, None, None]


def energy_drop(features: Tensor, threshold: float = 0.7) -> Tensor:
    """(B, C, T, V) features without their most conspicuous joints, then without their most conspicuous cells.

    Joints go whose attention, averaged over channels and frames, reaches the threshold, then single cells (channel,
    joint, frame). Each row is rescaled by what was dropped of itself, so that a clip's features do not depend on its
    batch. The mean attention of a row is below sigmoid(.75) = .68: with the published threshold some joint and some
    cell always stay; a lower one may leave zeros.
    """
    with torch.no_grad():
        attention = energy_attention(features)
        joints = attention.mean(dim=(1, 2), keepdim=True) >= threshold
        cells = attention >= threshold
    return _without(_without(features, joints), cells)
