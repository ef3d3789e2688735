"""MoCo's memory of negatives: a first-in first-out queue of keys."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Queue(nn.Module):
    """The last K keys as (d, K) unit columns, with the place of the next one; both are buffers.

    It starts with K random directions.
    """

    keys: Tensor
    head: Tensor

    def __init__(self, dim: int, size: int):
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(dim, size), dim=0))
        self.register_buffer("head", torch.zeros((), dtype=torch.long))

    def push(self, keys: Tensor) -> None:
        """Replace the oldest by keys (N, d); N need not divide K, and of more than K only the last K stay."""
        size = self.keys.shape[1]
        places = (self.head + torch.arange(len(keys), device=keys.device)) % size
        self.keys[:, places[-size:]] = keys[-size:].T
        self.head.copy_((self.head + len(keys)) % size)
