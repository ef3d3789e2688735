"""What a protocol found of a subject."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from lightning_modules.evaluation.embedding import Embedding


class Measured(NamedTuple):
    """One measurement.

    metrics: by name, rates in percent, after the last epoch where there are epochs. best: the same at the best test
    epoch, empty where no epoch is chosen. scores: of the test clips, `vectors` (N, classes); the largest is the
    prediction. curves: metrics over the epochs, as a record holds them. parts: what the report shows of it.
    """

    metrics: dict[str, float]
    best: dict[str, float]
    scores: Embedding
    curves: Mapping[str, Sequence[Sequence[float]]] = MappingProxyType({})
    parts: Mapping[str, Any] = MappingProxyType({})


def confusion(scores: Embedding) -> list[list[int]]:
    """Clips by (label, prediction)."""
    classes = scores.vectors.shape[1]
    cells = torch.bincount(scores.labels * classes + scores.vectors.argmax(1), minlength=classes**2)
    return cells.reshape(classes, classes).tolist()


def top1(scores: Embedding) -> float:
    """Percentage of clips whose largest score is that of their label."""
    return 100 * (scores.vectors.argmax(1) == scores.labels).float().mean().item()
