"""InfoNCE against a memory of negatives, as MoCo has it; between two views of a batch it is `nt_xent`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.precision import in_float32


@in_float32
def similarities(query: Tensor, memory: Tensor) -> Tensor:
    """(N, K) similarity of each query (N, d) with each column of a memory (d, K)."""
    return query @ memory


@in_float32
def info_nce(positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the positive among itself and the negatives (MoCo, eq. 1), mean over queries.

    positive: (N,) similarity of each query with its key; negatives: (N, K) with the memory, -inf where there is none.
    """
    logits = torch.cat([positive[:, None], negatives], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
