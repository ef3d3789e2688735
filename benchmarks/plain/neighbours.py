"""k-nearest neighbours by the book: cosines as one product of matrices, the largest of each query, votes counted."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

CHUNK = 1024  # queries at once


def classified(
    train: Tensor, length: Tensor, labels: Tensor, queries: Tensor, ks: Sequence[int], classes: int
) -> Tensor:
    """(Q, len(ks)) the commonest label among the k training rows (N, D) of largest cosine with each query (Q, D).

    length: (N,) norms of the training rows. The smallest label on a tied vote.
    """
    found = []
    for part in queries.split(CHUNK):
        similar = torch.mm(functional.normalize(part, dim=1), train.T).div_(length)
        votes = functional.one_hot(labels[similar.topk(max(ks), dim=1).indices], classes)
        found.append(torch.stack([votes[:, :k].sum(1).argmax(1) for k in ks], dim=1))
    return torch.cat(found)
