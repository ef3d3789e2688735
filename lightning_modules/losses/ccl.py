"""CCL, the coarse-to-fine contrastive loss of PSP Learning (methods §5.1)."""

from collections.abc import Sequence

from torch import Tensor

from lightning_modules.losses.nt_xent import nt_xent


def ccl(joint: Sequence[Tensor], motion: Sequence[Tensor], temperature: float) -> list[Tensor]:
    """InfoNCE over the batch at each level of the pyramid; the loss is the sum of the terms.

    joint, motion: for each level the clip vectors (N, C) of that stream, after the projection head.
    Positive: the same clip in the other stream. Negatives: the other clips of the batch, in both streams.
    """
    return [nt_xent(left, right, temperature) for left, right in zip(joint, motion, strict=True)]
