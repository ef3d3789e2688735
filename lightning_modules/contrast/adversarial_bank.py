"""AdCo's memory of negatives: slots that climb the loss which the encoder descends (Hu et al., CVPR 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AdversarialBank(nn.Module):
    """Bank W (d, K) and its velocity, both buffers; the negatives are the columns of W, each divided by its norm.

    Published: temperature .03, learning_rate 3, momentum .9, weight_decay 1e-4. W starts as N(0, 1), velocity as 0.
    aliased: with several gradients a step, apply one after the other, every one divided by the norm and with the decay
    of the bank its predecessor left, as released; otherwise one step along their sum, the gradient of the summed loss.
    """

    weight: Tensor
    velocity: Tensor

    def __init__(
        self,
        dim: int,
        size: int,
        temperature: float = 0.03,
        learning_rate: float = 3.0,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        aliased: bool = False,
    ):
        super().__init__()
        self.temperature, self.learning_rate = temperature, learning_rate
        self.momentum, self.weight_decay, self.aliased = momentum, weight_decay, aliased
        self.register_buffer("weight", torch.randn(dim, size))
        self.register_buffer("velocity", torch.zeros(dim, size))

    @property
    def directions(self) -> Tensor:
        """(d, K) unit columns."""
        return F.normalize(self.weight, dim=0)

    def write(self, keys: Tensor, start: int) -> None:
        """Put keys (N, d) into slots start, start + 1, ...; those past the last slot are left out."""
        room = self.weight[:, start : start + len(keys)]
        room.copy_(keys[: room.shape[1]].T)

    def climb(self, contrasts: list[tuple[Tensor, Tensor]]) -> None:
        """One step of gradient ascent; contrasts: the (N, d) queries and keys of each term that reads this bank.

        All gradients are taken at the bank as it stands before the step.
        """
        directions = self.directions
        products = (torch.cat([query for query, _ in contrasts]) @ directions).split([len(q) for q, _ in contrasts])
        slopes = [
            self._slope(query, key, product, directions)
            for (query, key), product in zip(contrasts, products, strict=True)
        ]
        for slope in slopes if self.aliased else [torch.stack(slopes).sum(0)]:
            gradient = slope / self.weight.norm(dim=0)
            self.velocity.mul_(self.momentum).add_(gradient + self.weight_decay * self.weight)
            self.weight.sub_(self.learning_rate * self.velocity)

    def _slope(self, query: Tensor, key: Tensor, similarity: Tensor, directions: Tensor) -> Tensor:
        """(d, K) descent slope of minus the contrastive loss along W, still to be divided by the norm of each column.

        p = softmax of [positive, negatives] / temperature without its first column:
        -(mean_n p q - mean_n (p sim) d) / temperature.
        """
        positive = (query * key).sum(1, keepdim=True)
        p = (torch.cat([positive, similarity], dim=1) / self.temperature).softmax(1)[:, 1:]
        pull = query.T @ p - (p * similarity).sum(0) * directions
        return -pull / (len(query) * self.temperature)
