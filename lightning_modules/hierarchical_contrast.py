"""What SCD-Net and A2MC share: the hierarchical encoder with its momentum copy, one memory a level."""

import torch
from torch import Tensor

from datamodules.batch import SkeletonBatch
from datamodules.transforms.views import CroppedView
from lightning_modules.encoders.hierarchical import LEVELS, HierarchicalEncoder, Projected, ProjectedEncoder
from lightning_modules.momentum_contrast import MomentumContrast
from lightning_modules.schedules import Schedule


class HierarchicalContrast(MomentumContrast):
    """Base of the methods on the two-branch encoder.

    view: how a clip becomes an input; dim: width of the projections; memory_size: K negatives a level; momentum: of the
    key encoder.
    """

    def __init__(
        self,
        encoder: HierarchicalEncoder,
        view: CroppedView,
        optimizer,
        schedule: Schedule,
        seed: int,
        dim: int,
        memory_size: int,
        momentum: float,
        temperature: float,
    ):
        network = ProjectedEncoder(encoder, dim)
        super().__init__(network, view, optimizer, schedule, seed, memory_size, momentum, temperature)
        self.feature_width = 2 * encoder.token_width

    def features(self, batch: SkeletonBatch) -> Tensor:
        """(N, 1, 2 D) [v_t, v_s] of the centre crop."""
        clips = self.view.apply(batch.joints, None, batch.num_frames)
        return torch.cat(self.encoders.query.encoder(clips), dim=1)[:, None]

    def gathered_levels(self, outputs: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
        """Level -> rows of all processes of what `handed` handed over as `kind`."""
        return {level: self.gathered(outputs[f"{kind}_{level}"]) for level in LEVELS}


def handed(kind: str, levels: Projected) -> dict[str, Tensor]:
    """The projections by name, for `after_step`."""
    return {f"{kind}_{level}": getattr(levels, level) for level in LEVELS}
