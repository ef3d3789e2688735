"""Whether embeddings use the room they have: two numbers that fall when a representation collapses."""

import torch
from torch import Tensor
from torch.nn import functional


def effective_rank(vectors: Tensor) -> float:
    """exp of the entropy of the singular values of the centred vectors (N, D) (Roy and Vetterli, EUSIPCO 2007).

    Between 1, all on a line, and min(N - 1, D); 0 where all vectors are the same.
    """
    values = torch.linalg.svdvals((vectors - vectors.mean(0)).double())
    total = values.sum()
    if total == 0:
        return 0.0
    return torch.special.entr(values / total).sum().exp().item()


def spread(vectors: Tensor) -> float:
    """Mean over the axes of the deviation of the vectors (N, D), scaled to length 1, times sqrt(D).

    About 1 where they point in all directions alike, 0 where they are one (Chen and He, SimSiam, CVPR 2021).
    """
    directions = functional.normalize(vectors.double(), dim=1)
    return directions.std(0, correction=0).mean().item() * vectors.shape[1] ** 0.5
