"""PNM, the positive-negative mixer: each query is mixed with the bank slots that it owns."""

from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.transfer import sent
from lightning_modules.contrast.cross_level import Pair, contrast_terms
from lightning_modules.losses.info_nce import info_nce
from lightning_modules.losses.mixing import linear_mixing, mixed


def own_slots(n: int, slots: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
    """(n, S) slots of each of this rank's n queries and (n, S) whether they exist, S = ceil(slots / (n world)).

    Slot j belongs to query j mod N of the global batch of N = n world, so every slot has one owner. If N does not
    divide the number of slots the first queries own one more; queries past the last slot own none.
    """
    batch = n * world
    owners = rank * n + torch.arange(n)
    owned = owners[:, None] + batch * torch.arange(-(-slots // batch))
    return owned, owned < slots


def own_similarities(pair: Pair, rank: int, world: int) -> tuple[Tensor, Tensor]:
    """(n, S) similarity of each query with the slots it owns, and (n, S) which of them exist.

    They stand among the similarities with the whole memory: nothing is multiplied again.
    """
    slots = pair.memory.shape[1]
    owned, exists = sent(own_slots(len(pair.query), slots, rank, world), pair.memory.device)
    return pair.negatives.gather(1, owned.clamp(max=slots - 1)), exists


@dataclass(frozen=True)
class LinearMixer:
    """Released: beside the contrast, the mean over all slots of the linear term, in which no slot counts as harder.

    With a batch that divides the bank that is the published mean over own slots and then over queries.
    """

    positive_ratio: float = 0.2
    negative_ratio: float = 0.1

    def __call__(self, pairs: dict[str, Pair], temperature: float, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
        """The four contrast terms and `mixing`, averaged over the four."""
        terms = [self._term(pair, temperature, rank, world) for pair in pairs.values()]
        return contrast_terms(pairs, temperature) | {"mixing": torch.stack(terms).mean()}

    def _term(self, pair: Pair, temperature: float, rank: int, world: int) -> Tensor:
        similarity, exists = own_similarities(pair, rank, world)
        norm = pair.query.square().sum(1)
        terms = linear_mixing(similarity, norm, temperature, self.positive_ratio, self.negative_ratio)
        # The mean over processes, each with the slots of its own queries, is the mean over all slots.
        return terms.masked_fill(~exists, 0).sum() * world / pair.memory.shape[1]


@dataclass(frozen=True)
class SoftmaxMixer:
    """Our reading: a query's mixed slots are among its negatives, so that the softmax weighs them by hardness."""

    negative_ratio: float = 0.1

    def __call__(self, pairs: dict[str, Pair], temperature: float, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
        """The four contrast terms over key, bank and mixed slots."""
        return {name: self._term(pair, temperature, rank, world) for name, pair in pairs.items()}

    def _term(self, pair: Pair, temperature: float, rank: int, world: int) -> Tensor:
        similarity, exists = own_similarities(pair, rank, world)
        norm = pair.query.square().sum(1)
        hard = mixed(similarity, norm, self.negative_ratio).masked_fill(~exists, -torch.inf)
        return info_nce(pair.positive, torch.cat([pair.negatives, hard], dim=1), temperature)
