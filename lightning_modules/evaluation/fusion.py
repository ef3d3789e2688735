"""Streams trained apart, judged together: the weighted sum of their scores (late fusion)."""

from collections.abc import Mapping

import torch

from datamodules.errors import InputError
from lightning_modules.evaluation.embedding import Embedding


def fused(scores: Mapping[str, Embedding], weights: Mapping[str, float]) -> Embedding:
    """Sum over streams of weight x scores (N, classes), as they are, without a softmax (AimCLR's .6, .6, .4).

    Raises InputError for a weight that is not positive and for streams whose clips are not the same.
    """
    if not weights or min(weights.values()) <= 0:
        raise InputError(f"expected positive weights of the streams, found {dict(weights)}: leave a stream out instead")
    first = next(iter(scores.values()))
    for stream, part in scores.items():
        if not (torch.equal(part.ids, first.ids) and torch.equal(part.labels, first.labels)):
            raise InputError(f"the scores of {', '.join(scores)} are not of the same clips, see {stream}: fresh=true")
    total = torch.stack([weight * scores[stream].vectors for stream, weight in weights.items()]).sum(0)
    return Embedding(total, first.labels, first.ids)
