"""SDS-CL: spatiotemporal decouple-and-squeeze contrastive learning (Xu et al., TNNLS 2023; methods §4)."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from datamodules.batch import SkeletonBatch
from datamodules.transforms.augmentation import Augmentation
from lightning_modules import released_checkpoints
from lightning_modules.attention.siia import SIIA, Decoupled, by_body
from lightning_modules.base import Attention
from lightning_modules.copies import once
from lightning_modules.encoders.dsta import DSTANet
from lightning_modules.group_norm import by_groups
from lightning_modules.heads import projection_head
from lightning_modules.losses.gl import gl, squeeze_all
from lightning_modules.losses.stl import squeeze_space, stl
from lightning_modules.losses.tsl import squeeze_time, tsl
from lightning_modules.schedules import Schedule
from lightning_modules.two_streams import TwoStreamModule


class Squeezed(NamedTuple):
    """What is left of a stream's attended features, before the projection heads.

    intra_frames, inter_frames: (N, T', C) for STL; intra_joints, inter_joints: (N, V, C) for TSL;
    clip: (N, 4 C) for GL.
    """

    intra_frames: Tensor
    inter_frames: Tensor
    intra_joints: Tensor
    inter_joints: Tensor
    clip: Tensor


def squeeze(attended: Decoupled, bodies: int) -> Squeezed:
    """Average the attended features (N * M, C, T, V) of a stream over what each loss does not contrast."""
    return Squeezed(
        intra_frames=squeeze_space(attended.spatial_intra, bodies),
        inter_frames=squeeze_space(attended.spatial_inter, bodies),
        intra_joints=squeeze_time(attended.temporal_intra, bodies),
        inter_joints=squeeze_time(attended.temporal_inter, bodies),
        clip=squeeze_all(*attended, bodies=bodies),
    )


class SDSCL(TwoStreamModule):
    """Joint and motion through one encoder, decoupled by SIIA, contrasted by STL, TSL and GL.

    temperature: of every InfoNCE, published .07. longest: the longest clip of the data set, in frames.
    augmentations: as in TwoStreamModule. norm_groups: group norm of so many groups; None: batch norm, as published.
    """

    released = released_checkpoints.SDS_CL

    def __init__(
        self,
        encoder: DSTANet,
        optimizer,
        schedule: Schedule,
        seed: int,
        temperature: float = 0.07,
        longest: int = 300,
        augmentations: Sequence[Augmentation] = (),
        norm_groups: int | None = None,
    ):
        super().__init__(encoder, optimizer, schedule, seed, longest, augmentations)
        self.temperature = temperature
        self.siia = SIIA(encoder.out_channels, heads=encoder.subsets)
        self.head = projection_head(encoder.out_channels)
        self.global_head = projection_head(4 * encoder.out_channels)
        if norm_groups is not None:
            by_groups(self, norm_groups)

    def views(self, joint: Tensor, motion: Tensor) -> tuple[Squeezed, Squeezed]:
        """Clips (N, C, T, V, M) of either stream -> what the losses contrast of either."""
        bodies, rows = joint.shape[-1], self.alike_bodies(joint, motion)
        joint, motion = self.backbone(joint, motion)
        own, others = once(self.siia, self.siia, rows, joint, motion), once(self.siia, self.siia, rows, motion, joint)
        return squeeze(own, bodies), squeeze(others, bodies)

    def attention(self, batch: SkeletonBatch) -> dict[str, Attention]:
        """The four maps of SIIA for either stream."""
        streams = self.streams(batch)
        bodies = streams[0].shape[-1]
        joint, motion = self.backbone(*streams)
        each = {"joint": self.siia.maps(joint, motion), "motion": self.siia.maps(motion, joint)}
        return {
            f"{stream} stream, {name.replace('_', ' ')}": Attention(
                "joints" if name.startswith("spatial") else "frames", by_body(values, bodies)
            )
            for stream, maps in each.items()
            for name, values in maps._asdict().items()
        }

    def terms(self, joint: Squeezed, motion: Squeezed) -> dict[str, Tensor]:
        """{"stl", "tsl", "gl"}, all of weight 1; the negatives of GL are the clips of all processes."""
        head, global_head, temperature = self.head, self.global_head, self.temperature
        return {
            "stl": stl(
                head(joint.intra_frames),
                head(motion.intra_frames),
                head(joint.inter_frames),
                head(motion.inter_frames),
                temperature,
            ),
            "tsl": tsl(
                head(joint.intra_joints),
                head(motion.intra_joints),
                head(joint.inter_joints),
                head(motion.inter_joints),
                temperature,
            ),
            "gl": gl(self.gathered(global_head(joint.clip)), self.gathered(global_head(motion.clip)), temperature),
        }

    def objective(self, batch: SkeletonBatch) -> dict[str, Tensor]:
        """Loss = STL + TSL + GL, the first two the sums of their four pairings."""
        return self.terms(*self.views(*self.streams(batch)))
