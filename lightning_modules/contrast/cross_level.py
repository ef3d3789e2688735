"""The four terms of SCD-Net and A2MC: temporal and spatial queries meet instance keys, instance queries both."""

from typing import NamedTuple

from torch import Tensor

from lightning_modules.encoders.hierarchical import Projected
from lightning_modules.losses.info_nce import info_nce

# (level of the query, level of its key and memory)
PAIRS = (("temporal", "instance"), ("spatial", "instance"), ("instance", "temporal"), ("instance", "spatial"))


class Pair(NamedTuple):
    """One term: unit queries (N, d), their unit keys (N, d) and the memory of negatives, (d, K) unit columns."""

    query: Tensor
    key: Tensor
    memory: Tensor

    @property
    def positive(self) -> Tensor:
        """(N,) q . k"""
        return (self.query * self.key).sum(1)

    @property
    def negatives(self) -> Tensor:
        """(N, K) q . d"""
        return self.query @ self.memory


def cross_level(queries: Projected, keys: Projected, memory: dict[str, Tensor]) -> dict[str, Pair]:
    """The four pairs by name, "<query level>_<key level>"; memory: level -> (d, K)."""
    return {
        f"{source}_{target}": Pair(getattr(queries, source), getattr(keys, target), memory[target])
        for source, target in PAIRS
    }


def contrast_terms(pairs: dict[str, Pair], temperature: float) -> dict[str, Tensor]:
    """InfoNCE of each pair; the loss is their sum (SCD-Net; methods §3.2)."""
    return {name: info_nce(pair.positive, pair.negatives, temperature) for name, pair in pairs.items()}
