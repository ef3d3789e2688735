"""SkeletonCLR: MoCo v2 on skeletons (Li et al., CVPR 2021; methods §6.2)."""

from torch import Tensor

from datamodules.batch import SkeletonBatch
from datamodules.transforms.views import ResizedView
from lightning_modules.contrast.queue import Queue
from lightning_modules.encoders.st_gcn import STGCN, ProjectedSTGCN
from lightning_modules.heads import pool
from lightning_modules.losses.info_nce import info_nce, similarities
from lightning_modules.momentum_contrast import MomentumContrast
from lightning_modules.schedules import Schedule


class SkeletonCLR(MomentumContrast):
    """InfoNCE of two views of a clip against a first-in first-out queue of keys."""

    def __init__(
        self,
        encoder: STGCN,
        view: ResizedView,
        optimizer,
        schedule: Schedule,
        seed: int,
        dim: int = 128,
        memory_size: int = 32768,
        momentum: float = 0.999,
        temperature: float = 0.07,
    ):
        network = ProjectedSTGCN(encoder, dim)
        super().__init__(network, view, optimizer, schedule, seed, memory_size, momentum, temperature)
        self.feature_width = encoder.out_channels
        self.queue = Queue(dim, memory_size)

    def objective(self, batch: SkeletonBatch) -> dict[str, Tensor]:
        """The contrast; the keys (N, dim) are handed on to the queue."""
        clips, others = self.views(batch)
        keys = self.encoders.keys(others)
        query = self.encoders.query(clips)
        contrast = info_nce((query * keys).sum(1), similarities(query, self.queue.keys), self.temperature)
        return {"contrast": contrast, "key": keys}

    def after_step(self, outputs: dict[str, Tensor]) -> None:
        """The keys join the queue, and the key encoder follows."""
        self.queue.push(self.gathered(outputs["key"]))
        self.encoders.follow()

    def features(self, batch: SkeletonBatch) -> Tensor:
        """(N, 1, D) features of the resized clip, before the head."""
        clips = self.view.apply(batch.joints, None, batch.num_frames)
        return pool(self.encoders.query.encoder(clips), clips.shape[-1])[:, None]
