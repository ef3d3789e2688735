"""k-nearest-neighbour classification of frozen embeddings."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from datamodules.errors import InputError
from lightning_modules.evaluation.subject import Subject


def neighbours(train: Tensor, test: Tensor, k: int, metric: str, chunk: int = 1024) -> Tensor:
    """(N_test, k) rows of `train` nearest to each row of `test`, nearest first.

    metric: "cosine" or "euclidean". Works through `test` in chunks: memory is chunk x N_train, never N_test x N_train.
    """
    if metric == "cosine":
        train, test = functional.normalize(train, dim=1), functional.normalize(test, dim=1)
        offset = torch.zeros(len(train))
    elif metric == "euclidean":  # |a - b|^2 orders like |a|^2 - 2 a.b
        offset = train.square().sum(1) / 2
    else:
        raise InputError(f"metric must be cosine or euclidean, found {metric!r}")
    found = [torch.topk(part @ train.T - offset, k, dim=1).indices for part in test.split(chunk)]
    return torch.cat(found)


def vote(labels: Tensor, num_classes: int) -> Tensor:
    """(N, k) labels of the neighbours -> (N,) majority class, the smallest one on a tie."""
    counts = torch.zeros(len(labels), num_classes, dtype=torch.int32)
    counts.scatter_add_(1, labels, torch.ones_like(labels, dtype=torch.int32))
    return counts.argmax(1)


@dataclass(frozen=True)
class KNN:
    """Top-1 accuracy in percent for several k, with one search for the largest of them."""

    ks: tuple[int, ...] = (1, 5, 20)
    metric: str = "cosine"

    def measure(self, subject: Subject) -> dict[str, float]:
        """`k1`, `k5`, ... Raises InputError for a k above the number of training clips."""
        train, test = subject.embedding("train"), subject.embedding("test")
        if max(self.ks) > len(train.labels):
            raise InputError(
                f"k={max(self.ks)} neighbours asked of {len(train.labels)} training clips: lower protocol.ks"
            )
        nearest = train.labels[neighbours(train.vectors, test.vectors, max(self.ks), self.metric)]
        right = {k: (vote(nearest[:, :k], subject.num_classes) == test.labels).float().mean() for k in self.ks}
        return {f"k{k}": 100 * share.item() for k, share in right.items()}
