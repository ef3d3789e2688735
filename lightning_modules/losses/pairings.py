"""The four pairings of intra and inter features that STL and TSL sum over."""

import torch
from torch import Tensor

from lightning_modules.losses.nt_xent import nt_xent


def paired_nt_xent(
    intra_joint: Tensor, intra_motion: Tensor, inter_joint: Tensor, inter_motion: Tensor, temperature: float
) -> Tensor:
    """Sum of InfoNCE over tra_j-tra_m, tra_j-ter_m, tra_m-ter_j and ter_j-ter_m, the tokens of a sample (N, K, C).

    One call for the four: samples of different pairings are no negatives of one another.
    """
    left = torch.cat([intra_joint, intra_joint, intra_motion, inter_joint])
    right = torch.cat([intra_motion, inter_motion, inter_joint, inter_motion])
    return 4 * nt_xent(left, right, temperature)
