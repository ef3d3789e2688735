"""InfoNCE whose positives are the key and entries mined from the memory, as AimCLR has it (methods §6.3)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from datamodules.precision import in_float32


def nearest(negatives: Sequence[Tensor]) -> Tensor:
    """(N, K) bool: the entry most similar to a clip in any of its views; negatives: (N, K) similarities of each view.

    Views that agree mine one entry. Of equal entries the first is taken.
    """
    mined = torch.zeros_like(negatives[0], dtype=torch.bool)
    for similarities in negatives:
        mined.scatter_(1, similarities.argmax(1, keepdim=True), True)
    return mined


@in_float32
def mined_info_nce(positive: Tensor, negatives: Tensor, mined: Tensor, temperature: float) -> Tensor:
    """Mean of -log softmax over the positives, the key and the mined entries, then over queries.

    positive: (N,) similarity with the key; negatives: (N, K) with the memory; mined: (N, K) bool, its positives. With
    none mined it is `info_nce`.
    """
    logs = (torch.cat([positive[:, None], negatives], dim=1) / temperature).log_softmax(dim=1)
    chosen = torch.cat([torch.ones_like(mined[:, :1]), mined], dim=1)
    return -(logs.masked_fill(~chosen, 0).sum(1) / chosen.sum(1)).mean()
