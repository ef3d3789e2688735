"""k-nearest-neighbour classification of frozen embeddings. Of equally near training clips the first one comes first."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from datamodules.errors import InputError
from lightning_modules.evaluation.embedding import Embedding
from lightning_modules.evaluation.measured import Measured
from lightning_modules.evaluation.ranking import led, nearest, plainly, similarities
from lightning_modules.evaluation.screening import Screen, worthwhile
from lightning_modules.evaluation.subject import Subject

CHUNK = 1024  # queries at once: memory is as many rows of similarities to all training clips
LEAST = 1e-12  # a shorter row is taken as so long, as in functional.normalize: an all-zero one is harmless


def comparable(train: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Weight and offset (N,) of training rows (N, D): `similarities` with them are the larger the nearer.

    metric: "cosine" or "euclidean" (there it is minus half the squared distance, up to a number of each query). A
    row's length is taken out of its products, not of the row: that would be a second copy of all rows.
    """
    if metric == "cosine":
        return 1 / train.norm(dim=1).clamp(min=LEAST), train.new_zeros(len(train))
    if metric == "euclidean":  # |a - b|^2 orders like |a|^2 - 2 a.b
        return train.new_ones(len(train)), torch.cat([part.square().sum(1) / 2 for part in train.split(CHUNK)])
    raise InputError(f"metric must be cosine or euclidean, found {metric!r}")


def directed(queries: Tensor, metric: str) -> Tensor:
    """Queries (Q, D) as they are multiplied with training rows."""
    return functional.normalize(queries, dim=1) if metric == "cosine" else queries


def neighbours(train: Tensor, test: Tensor, k: int, metric: str, chunk: int = CHUNK) -> Tensor:
    """(N_test, k) rows of `train` nearest to each row of `test`, nearest first.

    Works through `test` in chunks: memory is chunk x N_train, never N_test x N_train.
    """
    weight, offset = comparable(train, metric)
    return torch.cat(
        [nearest(similarities(directed(part, metric), train, weight, offset), k) for part in test.split(chunk)]
    )


def nearest_other(vectors: Tensor, metric: str) -> Tensor:
    """(N,) the row nearest to each of the N >= 2 rows of `vectors` that is not itself."""
    two = neighbours(vectors, vectors, 2, metric)
    itself = two[:, 0] == torch.arange(len(vectors))  # a copy of it may come before
    return torch.where(itself, two[:, 1], two[:, 0])


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

    def measure(self, subject: Subject) -> Measured:
        """`k1`, `k5`, ..., scores of 1-NN. Raises InputError for a k above the number of training clips."""
        train, test = subject.embedding("train"), subject.embedding("test")
        if max(self.ks) > len(train.labels):
            raise InputError(
                f"k={max(self.ks)} neighbours asked of {len(train.labels)} training clips: lower protocol.measure.ks"
            )
        found, scores = self.search(train, test.vectors, subject.num_classes)
        right = {k: (vote(found[:, :k], subject.num_classes) == test.labels).float().mean() for k in self.ks}
        return Measured({f"k{k}": 100 * share.item() for k, share in right.items()}, {}, replace(test, vectors=scores))

    def search(self, train: Embedding, queries: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """(N, largest k) labels of the nearest training clips, nearest first, and (N, classes) scores of 1-NN.

        The largest score is that of the first label. Screened or not: similarities are float32's and equal ones go by
        the lowest row, but the two ways sum in other orders, so that clips may change places which float32's own
        rounding does not tell apart.
        """
        rows, (weight, offset) = train.vectors, comparable(train.vectors, self.metric)
        k, found, scores = max(self.ks), [], []
        screen = None
        if worthwhile(rows, queries):
            screen = Screen(rows, weight, offset, train.labels, num_classes)
        for chunk in queries.split(CHUNK):
            part = directed(chunk, self.metric)
            screened = screen.search(part, k) if screen else None
            if screened is None:
                screen = None  # the chunks that follow are like this one
                screened = plainly(similarities(part, rows, weight, offset), train.labels, num_classes, k)
            found.append(train.labels[screened[0]])
            scores.append(led(screened[1], found[-1][:, 0]))
        return torch.cat(found), torch.cat(scores)
