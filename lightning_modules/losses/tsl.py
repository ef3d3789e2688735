"""TSL, the loss of SDS-CL that squeezes time and contrasts joints (methods §4.1)."""

from torch import Tensor

from lightning_modules.losses.pairings import paired_nt_xent


def squeeze_time(attended: Tensor, bodies: int) -> Tensor:
    """(N * M, C, T, V) temporally attended features -> (N, V, C) joint vectors, the mean over frames and bodies."""
    return attended.unflatten(0, (-1, bodies)).mean(dim=(1, 3)).transpose(1, 2)


def tsl(
    intra_joint: Tensor, intra_motion: Tensor, inter_joint: Tensor, inter_motion: Tensor, temperature: float
) -> Tensor:
    """Joint vectors (N, V, C) after the projection head -> scalar, the sum of the four pairings.

    Positive: the same joint in the other stream. Negatives: the other joints of the clip, in both streams.
    """
    return paired_nt_xent(intra_joint, intra_motion, inter_joint, inter_motion, temperature)
