"""What a protocol found of a subject."""

from typing import NamedTuple

from lightning_modules.evaluation.embedding import Embedding


class Measured(NamedTuple):
    """One measurement.

    metrics: by name, rates in percent, after the last epoch where there are epochs. best: the same at the best test
    epoch, empty where no epoch is chosen. scores: of the test clips, `vectors` (N, classes); the largest is the
    prediction.
    """

    metrics: dict[str, float]
    best: dict[str, float]
    scores: Embedding


def top1(scores: Embedding) -> float:
    """Percentage of clips whose largest score is that of their label."""
    return 100 * (scores.vectors.argmax(1) == scores.labels).float().mean().item()
