"""PSP Learning: pyramid self-attention polymerisation for semi-supervised recognition (Xu and Shu 2023; methods §5)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy

from datamodules.batch import SkeletonBatch
from datamodules.transforms.augmentation import Augmentation
from lightning_modules import released_checkpoints
from lightning_modules.attention.ppa import PPA, Pyramid, broadcast
from lightning_modules.attention.siia import by_body
from lightning_modules.base import Attention
from lightning_modules.copies import once
from lightning_modules.encoders.dsta import DSTANet
from lightning_modules.heads import linear, pool, projection_head
from lightning_modules.losses.ccl import ccl
from lightning_modules.schedules import Schedule
from lightning_modules.scored import ScoredModule
from lightning_modules.two_streams import TwoStreamModule

# Each batch draws the frames of two streams.
LABELLED_VIEW, UNLABELLED_VIEW = 0, 2


class Views(NamedTuple):
    """What the losses read of one step.

    known: (N, 2, C) pooled backbone features of the labelled clips, joint and motion; PPA does not touch them.
    joint, motion: (N, C) clip vectors of each level of the unlabelled clips, before the projection head.
    """

    known: Tensor
    joint: Pyramid
    motion: Pyramid


class PSP(TwoStreamModule, ScoredModule):
    """One stage: cross-entropy on the labelled clips + weight x CCL on the unlabelled ones, which contain them.

    A training batch is {"labelled": SkeletonBatch, "unlabelled": SkeletonBatch}, one of each a step.

    topology: name of the skeleton, whose groups are the pyramid. num_classes: width of the classifier.
    weight: of CCL, published .2; 0 is the baseline, cross-entropy alone under the same batches.
    temperature: of every InfoNCE, published .07. longest: the longest clip of the data set, in frames.
    augmentations: as in TwoStreamModule.
    """

    released = released_checkpoints.PSP

    def __init__(
        self,
        encoder: DSTANet,
        topology: str,
        num_classes: int,
        optimizer,
        schedule: Schedule,
        seed: int,
        weight: float = 0.2,
        temperature: float = 0.07,
        longest: int = 300,
        augmentations: Sequence[Augmentation] = (),
    ):
        super().__init__(encoder, optimizer, schedule, seed, longest, augmentations)
        self.weight, self.temperature = weight, temperature
        self.ppa = PPA(topology, encoder.out_channels, heads=encoder.subsets)
        self.head = projection_head(encoder.out_channels)
        self.fc = linear(encoder.out_channels, num_classes)
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")

    def clips_in(self, batch: dict[str, SkeletonBatch]) -> int:
        """Labelled and unlabelled clips together."""
        return sum(len(part.labels) for part in batch.values())

    def scores(self, features: Tensor) -> Tensor:
        """(N, classes) of features (N, 2, C): one classifier on either stream, added."""
        return self.fc(features).sum(1)

    def logits(self, batch: SkeletonBatch) -> Tensor:
        """(N, classes) scores before the softmax."""
        return self.scores(self.features(batch))

    def views(self, known_joint: Tensor, known_motion: Tensor, joint: Tensor, motion: Tensor) -> Views:
        """Streams (N, C, T, V, M) of the labelled and of the unlabelled clips -> what the losses read."""
        bodies, rows = joint.shape[-1], [self.alike_bodies(stream) for stream in (joint, motion)]
        known_joint, known_motion, joint, motion = self.backbone(known_joint, known_motion, joint, motion)
        # PPA sees one stream at a time, so that its batch statistics are that stream's.
        joint_levels, motion_levels = (
            once(self.ppa, self.ppa, kinds, stream) for kinds, stream in zip(rows, (joint, motion), strict=True)
        )
        return Views(
            known=torch.stack([pool(known_joint, bodies), pool(known_motion, bodies)], dim=1),
            joint=Pyramid(*(pool(level, bodies) for level in joint_levels)),
            motion=Pyramid(*(pool(level, bodies) for level in motion_levels)),
        )

    def attention(self, batch: SkeletonBatch) -> dict[str, Attention]:
        """The three maps of PPA for either stream, those of groups handed to their joints."""
        streams = self.streams(batch)
        bodies = streams[0].shape[-1]
        shown = {}
        for stream, features in zip(("joint", "motion"), self.backbone(*streams), strict=True):
            maps = self.ppa.maps(features)
            on_joints = {
                "body": broadcast(maps.body, self.ppa.joint_in_body),
                "part": broadcast(maps.part, self.ppa.joint_in_part),
                "joint": maps.joint,
            }
            for level, values in on_joints.items():
                shown[f"{stream} stream, {level} level"] = Attention("joints", by_body(values, bodies))
        return shown

    def terms(self, views: Views, labels: Tensor) -> dict[str, Tensor]:
        """{"cross_entropy", "ccl_body", "ccl_part", "ccl_joint"}, the last three times `weight`; labels: (N,)."""
        joint, motion = (
            [self.gathered(self.head(level)) for level in stream] for stream in (views.joint, views.motion)
        )
        losses = ccl(joint, motion, self.temperature)
        # With weight 0 the terms stay in the sum, so that every parameter has a gradient, as DDP demands.
        contrast = {f"ccl_{level}": self.weight * loss for level, loss in zip(Pyramid._fields, losses, strict=True)}
        return {"cross_entropy": functional.cross_entropy(self.scores(views.known), labels)} | contrast

    def objective(self, batch: dict[str, SkeletonBatch]) -> dict[str, Tensor]:  # type: ignore[override]
        """The terms of the labelled and of the unlabelled clips."""
        labelled, unlabelled = batch["labelled"], batch["unlabelled"]
        streams = self.streams(labelled, LABELLED_VIEW) + self.streams(unlabelled, UNLABELLED_VIEW)
        return self.terms(self.views(*streams), labelled.labels)
