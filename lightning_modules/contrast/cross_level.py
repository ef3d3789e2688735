"""The four terms of SCD-Net and A2MC: temporal and spatial queries meet instance keys, instance queries both."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_modules.encoders.hierarchical import Projected
from lightning_modules.losses.info_nce import info_nce, similarities

# (level of the query, level of its key and memory)
PAIRS = (("temporal", "instance"), ("spatial", "instance"), ("instance", "temporal"), ("instance", "spatial"))


class Pair(NamedTuple):
    """One term: unit queries (N, d), their unit keys (N, d) and the memory of negatives, (d, K) unit columns.

    product: (N, K) similarities with the memory where they are known; a query's mixtures are made of them too.
    """

    query: Tensor
    key: Tensor
    memory: Tensor
    product: Tensor | None = None

    @property
    def positive(self) -> Tensor:
        """(N,) q . k"""
        return (self.query * self.key).sum(1)

    @property
    def negatives(self) -> Tensor:
        """(N, K) q . d"""
        return similarities(self.query, self.memory) if self.product is None else self.product


def cross_level(queries: Projected, keys: Projected, memory: dict[str, Tensor]) -> dict[str, Pair]:
    """The four pairs by name, "<query level>_<key level>"; memory: level -> (d, K).

    A memory is read once: all queries that meet it are in one product.
    """
    pairs = {}
    for target in dict.fromkeys(target for _, target in PAIRS):
        sources, columns = [source for source, met in PAIRS if met == target], memory[target]
        own = [getattr(queries, source) for source in sources]
        products = similarities(torch.cat(own), columns).split(len(queries.instance))
        for source, query, product in zip(sources, own, products, strict=True):
            pairs[f"{source}_{target}"] = Pair(query, getattr(keys, target), columns, product)
    return pairs


def contrast_terms(pairs: dict[str, Pair], temperature: float) -> dict[str, Tensor]:
    """InfoNCE of each pair; the loss is their sum (SCD-Net; methods §3.2)."""
    return {name: info_nce(pair.positive, pair.negatives, temperature) for name, pair in pairs.items()}
