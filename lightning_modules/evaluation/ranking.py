"""Which training rows are nearest, by a table of similarities. Of equally near rows the first one comes first."""

import torch
from torch import Tensor

ROWS = 64  # compared at once


def similarities(queries: Tensor, train: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
    """(Q, N) x . y weight[y] - offset[y] of queries x (Q, D) and training rows y (N, D); weight, offset: (N,)."""
    return (queries @ train.T).mul_(weight).sub_(offset)


def nearest(similarity: Tensor, k: int) -> Tensor:
    """(N, k) columns of the largest of similarity (N, N_train), largest first, of equal ones the lowest column first.

    `topk` takes any of those that are equal, so that it alone does not tell which row is meant.
    """
    values, columns = similarity.topk(k, dim=1)
    least = values[:, -1:]
    for row in (reached(similarity, least) > k).nonzero()[:, 0].tolist():  # equal ones in and out of the k
        above = (similarity[row] > least[row]).nonzero()[:, 0]
        level = (similarity[row] == least[row]).nonzero()[: k - len(above), 0]
        columns[row] = torch.cat([above, level])
    columns = columns.sort(dim=1).values
    order = similarity.gather(1, columns).sort(dim=1, descending=True, stable=True).indices
    return columns.gather(1, order)


def reached(similarity: Tensor, least: Tensor) -> Tensor:
    """(N,) how many of each row (N_train,) are at least its `least` (N, 1).

    In parts: a sum of truth values first makes numbers of them, 8 bytes each.
    """
    parts = zip(similarity.split(ROWS), least.split(ROWS), strict=True)
    return torch.cat([(part >= bound).sum(1) for part, bound in parts])


def nearest_of_class(similarity: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(N, classes) similarity to the nearest training clip of each class, -inf for a class without one.

    similarity: (N, N_train), labels: (N_train,). Its largest entry is the similarity of the nearest clip.
    """
    scores = similarity.new_full((len(similarity), num_classes), -torch.inf)
    return scores.scatter_reduce(1, labels.expand_as(similarity), similarity, "amax")


def led(scores: Tensor, classes: Tensor) -> Tensor:
    """Scores (N, classes) whose largest is that of the class (N,) of the nearest clip.

    Where other classes are as near, it gets the next larger number: the largest score names the same clip as `nearest`.
    """
    own = scores.gather(1, classes[:, None])
    tied = (scores >= own).sum(1, keepdim=True) > 1
    return scores.scatter(1, classes[:, None], torch.where(tied, own.nextafter(own.new_tensor(torch.inf)), own))


def plainly(similarity: Tensor, labels: Tensor, num_classes: int, k: int) -> tuple[Tensor, Tensor]:
    """(N, k) `nearest` and (N, classes) `nearest_of_class` of similarity (N, N_train)."""
    return nearest(similarity, k), nearest_of_class(similarity, labels, num_classes)
