"""k-nearest-neighbour classification of frozen embeddings."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from datamodules.errors import InputError
from lightning_modules.evaluation.embedding import Embedding
from lightning_modules.evaluation.measured import Measured
from lightning_modules.evaluation.screening import Screen, worthwhile
from lightning_modules.evaluation.subject import Subject

CHUNK = 1024  # queries at once: memory is as many rows of similarities to all training clips


def comparable(train: Tensor, test: Tensor, metric: str) -> tuple[Tensor, Tensor, Tensor]:
    """Rows whose products minus the offset (N_train,) are the larger the nearer they lie: train, test, offset.

    metric: "cosine" or "euclidean" (there half the squared distance is subtracted, up to a number of each test row).
    """
    if metric == "cosine":
        return functional.normalize(train, dim=1), functional.normalize(test, dim=1), torch.zeros(len(train))
    if metric == "euclidean":  # |a - b|^2 orders like |a|^2 - 2 a.b
        return train, test, train.square().sum(1) / 2
    raise InputError(f"metric must be cosine or euclidean, found {metric!r}")


def neighbours(train: Tensor, test: Tensor, k: int, metric: str, chunk: int = CHUNK) -> Tensor:
    """(N_test, k) rows of `train` nearest to each row of `test`, nearest first.

    Works through `test` in chunks: memory is chunk x N_train, never N_test x N_train.
    """
    train, test, offset = comparable(train, test, metric)
    return torch.cat([torch.topk(part @ train.T - offset, k, dim=1).indices for part in test.split(chunk)])


def nearest_other(vectors: Tensor, metric: str) -> Tensor:
    """(N,) the row nearest to each of the N >= 2 rows of `vectors` that is not itself."""
    nearest = neighbours(vectors, vectors, 2, metric)
    itself = nearest[:, 0] == torch.arange(len(vectors))  # a copy of it may come before
    return torch.where(itself, nearest[:, 1], nearest[:, 0])


def vote(labels: Tensor, num_classes: int) -> Tensor:
    """(N, k) labels of the neighbours -> (N,) majority class, the smallest one on a tie."""
    counts = torch.zeros(len(labels), num_classes, dtype=torch.int32)
    counts.scatter_add_(1, labels, torch.ones_like(labels, dtype=torch.int32))
    return counts.argmax(1)


def nearest_of_class(similarity: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(N, classes) similarity to the nearest training clip of each class, -inf for a class without one.

    similarity: (N, N_train), labels: (N_train,). Its largest entry is the 1-NN prediction.
    """
    scores = similarity.new_full((len(similarity), num_classes), -torch.inf)
    return scores.scatter_reduce(1, labels.expand_as(similarity), similarity, "amax")


@dataclass(frozen=True)
class KNN:
    """Top-1 accuracy in percent for several k, with one search for the largest of them."""

    ks: tuple[int, ...] = (1, 5, 20)
    metric: str = "cosine"

    def measure(self, subject: Subject) -> Measured:
        """`k1`, `k5`, ..., scores of 1-NN. Raises InputError for a k above the number of training clips."""
        train, test = subject.embedding("train"), subject.embedding("test")
        if max(self.ks) > len(train.labels):
            raise InputError(
                f"k={max(self.ks)} neighbours asked of {len(train.labels)} training clips: lower protocol.measure.ks"
            )
        nearest, scores = self.search(train, test.vectors, subject.num_classes)
        right = {k: (vote(nearest[:, :k], subject.num_classes) == test.labels).float().mean() for k in self.ks}
        return Measured({f"k{k}": 100 * share.item() for k, share in right.items()}, {}, replace(test, vectors=scores))

    def search(self, train: Embedding, queries: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """(N, largest k) labels of the nearest training clips, nearest first, and (N, classes) scores of 1-NN."""
        rows, queries, offset = comparable(train.vectors, queries, self.metric)
        k, found, scores = max(self.ks), [], []
        screen = Screen(rows, offset, train.labels, num_classes) if worthwhile(rows, queries) else None
        for part in queries.split(CHUNK):
            screened = screen.search(part, k) if screen else None
            if screened is None:  # and the chunks that follow are like this one
                screen, screened = None, plainly(part @ rows.T - offset, train.labels, num_classes, k)
            found.append(train.labels[screened[0]])
            scores.append(screened[1])
        return torch.cat(found), torch.cat(scores)


def plainly(similarity: Tensor, labels: Tensor, num_classes: int, k: int) -> tuple[Tensor, Tensor]:
    """(N, k) training clips nearest by similarity (N, N_train), nearest first, and `nearest_of_class`."""
    return torch.topk(similarity, k, dim=1).indices, nearest_of_class(similarity, labels, num_classes)
