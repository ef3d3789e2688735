"""InfoNCE between two views, the one contrastive loss under STL, TSL, GL and CCL."""

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.precision import in_float32


@in_float32
def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """NT-Xent (SimCLR, eq. 1) over tokens: cosine similarities / temperature, mean over anchors and samples.

    a, b: two views, either (N, K, C), where each of the 2K tokens of a sample is an anchor, its twin in the other
    view the positive and the other 2K - 2 tokens of that sample the negatives; or (N, C), the same over the batch.
    The anchor itself is in no denominator. In a run of several processes hand in the gathered batch.
    Returns a scalar.
    """
    if a.shape != b.shape:
        raise ValueError(f"the two views differ in shape: {tuple(a.shape)} and {tuple(b.shape)}")
    if a.ndim == 2:
        a, b = a[None], b[None]
    tokens = F.normalize(torch.cat([a, b], dim=1), dim=-1)
    logits = tokens @ tokens.transpose(1, 2) / temperature
    anchors = torch.arange(tokens.shape[1], device=a.device)
    logits = logits.masked_fill(anchors[:, None] == anchors, -torch.inf)
    twins = anchors.roll(a.shape[1])
    return F.cross_entropy(logits.flatten(0, 1), twins.repeat(a.shape[0]))
