"""STL, the loss of SDS-CL that squeezes space and contrasts frames (methods §4.1)."""

from torch import Tensor

from lightning_modules.losses.pairings import paired_nt_xent


def squeeze_space(attended: Tensor, bodies: int) -> Tensor:
    """(N * M, C, T, V) spatially attended features -> (N, T, C) frame vectors, the mean over joints and bodies."""
    return attended.unflatten(0, (-1, bodies)).mean(dim=(1, 4)).transpose(1, 2)


def stl(
    intra_joint: Tensor, intra_motion: Tensor, inter_joint: Tensor, inter_motion: Tensor, temperature: float
) -> Tensor:
    """Frame vectors (N, T, C) after the projection head -> scalar, the sum of the four pairings.

    Positive: the same frame of the other stream. Negatives: the other frames of the clip, in both streams.
    """
    return paired_nt_xent(intra_joint, intra_motion, inter_joint, inter_motion, temperature)
