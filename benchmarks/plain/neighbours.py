"""k-nearest neighbours by the book: all distances of a query, sorted, the votes counted."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor


def classified(train: Tensor, labels: Tensor, query: Tensor, ks: Sequence[int]) -> list[int]:
    """For each k the commonest label among the k training rows of largest cosine with a query (D,)."""
    similar = torch.cosine_similarity(train, query[None], dim=1)
    nearest = labels[similar.argsort(descending=True)].tolist()
    return [commonest(nearest[:k]) for k in ks]


def commonest(labels: list[int]) -> int:
    """The smallest on a tie."""
    votes = Counter(labels)
    return min(label for label, count in votes.items() if count == max(votes.values()))
