"""AimCLR: SkeletonCLR with an extreme view that only has to agree in distribution (Guo et al., AAAI 2022; §6.3)."""

from typing import NamedTuple

import torch
from torch import Tensor

from datamodules.batch import SkeletonBatch
from datamodules.transforms.views import ExtremeView, ResizedView
from lightning_modules.attention.eadm import energy_drop
from lightning_modules.encoders.st_gcn import STGCN
from lightning_modules.losses.d3m import d3m
from lightning_modules.losses.info_nce import similarities
from lightning_modules.losses.mined_info_nce import mined_info_nce, nearest
from lightning_modules.schedules import Schedule
from lightning_modules.skeleton_clr import SkeletonCLR

EXTREME_VIEW = 2  # after the views of query and key


class Queries(NamedTuple):
    """(N, dim) unit vectors of a clip's normal view, of its extreme view, and of that one after EADM."""

    normal: Tensor
    extreme: Tensor
    dropped: Tensor


class AimCLR(SkeletonCLR):
    """InfoNCE of the normal view + D3M of the extreme view and of its dropped features, each with weight 1/2.

    extreme: the extreme view. mine_from: epoch, counted from 0, from which the nearest entries of the queue join the
    positives. threshold: of EADM.
    """

    def __init__(
        self,
        encoder: STGCN,
        view: ResizedView,
        extreme: ExtremeView,
        optimizer,
        schedule: Schedule,
        seed: int,
        dim: int = 128,
        memory_size: int = 32768,
        momentum: float = 0.999,
        temperature: float = 0.07,
        mine_from: int = 150,
        threshold: float = 0.7,
    ):
        super().__init__(encoder, view, optimizer, schedule, seed, dim, memory_size, momentum, temperature)
        self.extreme, self.mine_from, self.threshold = extreme, mine_from, threshold

    def queries(self, clips: Tensor, extreme: Tensor) -> Queries:
        """Of normal and extreme views (N, C, T, V, M)."""
        network, bodies = self.encoders.query, extreme.shape[-1]
        normal, features = network(clips), network.encoder(extreme)
        dropped = energy_drop(features, self.threshold)
        return Queries(normal, network.project(features, bodies), network.project(dropped, bodies))

    def objective(self, batch: SkeletonBatch) -> dict[str, Tensor]:
        """The contrast and the two D3M terms; the keys (N, dim) are handed on to the queue."""
        clips, others = self.views(batch)
        keys = self.encoders.keys(others)
        queries = self.queries(clips, self.seen(self.extreme, batch, EXTREME_VIEW))
        return self.terms(queries, keys) | {"key": keys}

    def augmented(self, batch: SkeletonBatch) -> dict[str, Tensor]:
        """The views of query and key, and the extreme one."""
        return super().augmented(batch) | {"extreme": self.seen(self.extreme, batch, EXTREME_VIEW)}

    def terms(self, queries: Queries, keys: Tensor) -> dict[str, Tensor]:
        """{"contrast", "d3m_extreme", "d3m_dropped"}; keys: (N, dim)."""
        positives = [(query * keys).sum(1) for query in queries]
        negatives = [similarities(query, self.queue.keys) for query in queries]
        mined = nearest(negatives) & (self.place.epoch >= self.mine_from)
        normal, extreme, dropped = (
            torch.cat([positive[:, None], others], dim=1) for positive, others in zip(positives, negatives, strict=True)
        )
        return {
            "contrast": mined_info_nce(positives[0], negatives[0], mined, self.temperature),
            "d3m_extreme": d3m(normal, extreme, self.temperature) / 2,
            "d3m_dropped": d3m(normal, dropped, self.temperature) / 2,
        }
