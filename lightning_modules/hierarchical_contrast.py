"""What SCD-Net and A2MC share: two views, the hierarchical encoder with its momentum copy, one memory a level."""

import torch
from torch import Tensor

from datamodules.batch import SkeletonBatch
from datamodules.errors import InputError
from datamodules.transforms.views import CroppedView
from lightning_modules.base import SkeletonModule
from lightning_modules.contrast.momentum import MomentumEncoder
from lightning_modules.encoders.hierarchical import LEVELS, HierarchicalEncoder, Projected, ProjectedEncoder
from lightning_modules.schedules import Schedule

QUERY_VIEW, KEY_VIEW = 0, 1


class HierarchicalContrast(SkeletonModule):
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
        super().__init__(optimizer, schedule, seed)
        self.view, self.memory_size, self.temperature = view, memory_size, temperature
        self.feature_width = 2 * encoder.token_width
        self.encoders = MomentumEncoder(ProjectedEncoder(encoder, dim), momentum)

    def views(self, batch: SkeletonBatch) -> tuple[Tensor, Tensor]:
        """Two augmented views (N, C, T, V, M) of every clip, for query and key."""
        query, key = (
            self.view.apply(batch.joints, self.draw(self.view, len(batch.joints), view), batch.num_frames)
            for view in (QUERY_VIEW, KEY_VIEW)
        )
        return query, key

    def features(self, batch: SkeletonBatch) -> Tensor:
        """(N, 1, 2 D) [v_t, v_s] of the centre crop."""
        clips = self.view.apply(batch.joints, None, batch.num_frames)
        return torch.cat(self.encoders.query.encoder(clips), dim=1)[:, None]

    def gathered(self, rows: Tensor) -> Tensor:
        """(N of all processes, ...) rows, without gradient."""
        return rows if self.place.world == 1 else self.all_gather(rows).flatten(0, 1)

    def gathered_levels(self, outputs: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
        """Level -> rows of all processes of what `handed` handed over as `kind`."""
        return {level: self.gathered(outputs[f"{kind}_{level}"]) for level in LEVELS}

    def on_train_start(self) -> None:
        """Raises InputError if the memory holds more keys than there are clips: it would hold some of them twice."""
        clips = len(self.trainer.train_dataloader.dataset)
        if self.memory_size > clips:
            raise InputError(
                f"expected at least as many training clips as the memory has slots, {self.memory_size}, found {clips}; "
                f"set memory_size to at most {clips}"
            )


def handed(kind: str, levels: Projected) -> dict[str, Tensor]:
    """The projections by name, for `after_step`."""
    return {f"{kind}_{level}": getattr(levels, level) for level in LEVELS}
