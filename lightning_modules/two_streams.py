"""What SDS-CL and PSP share: joint and motion streams of a clip through one DSTA-Net."""

from collections.abc import Sequence

import torch
from torch import Tensor

from datamodules.batch import SkeletonBatch
from datamodules.transforms.augmentation import Augmentation, Compose
from datamodules.transforms.streams import motion as motion_stream
from datamodules.transforms.temporal import SampleFrames, drop_empty
from lightning_modules.base import SkeletonModule
from lightning_modules.copies import Rows, alike
from lightning_modules.encoders.dsta import DSTANet, fold
from lightning_modules.heads import pool
from lightning_modules.schedules import Schedule

# Views of the augmentations' draws: past those of any frame sampling.
AUGMENTED = 16


class TwoStreamModule(SkeletonModule):
    """A method on joint and motion features of one encoder (methods §4.1, clip to input).

    longest: the longest clip of the data set, in frames. augmentations: what each stream of a training clip goes
    through in turn, with numbers of its own; published: none.
    """

    def __init__(
        self,
        encoder: DSTANet,
        optimizer,
        schedule: Schedule,
        seed: int,
        longest: int,
        augmentations: Sequence[Augmentation] = (),
    ):
        super().__init__(optimizer, schedule, seed)
        self.augment = Compose(augmentations)
        self.encoder, self.feature_width = encoder, encoder.out_channels
        self.sampling = SampleFrames(encoder.num_frames, longest)

    def streams(self, batch: SkeletonBatch, view: int = 0) -> tuple[Tensor, Tensor]:
        """Joint and motion (N, C, T, V, M), each with frames of its own: drawn in training, evenly spread otherwise.

        view: of the joint stream's draw, the motion stream's is the next.
        """
        joint, num_frames = drop_empty(batch.joints, batch.num_frames)
        motion = motion_stream(joint, num_frames)
        return self._sample(joint, num_frames, view), self._sample(motion, num_frames, view + 1)

    def alike_bodies(self, *streams: Tensor) -> Rows | None:
        """Which folded bodies of streams (N, C, T, V, M) need a computation of their own (`DSTANet.absent_once`)."""
        return alike(*map(fold, streams)) if self.encoder.absent_once else None

    def backbone(self, *streams: Tensor) -> tuple[Tensor, ...]:
        """(N * M, C', T', V) of each stream (N, C, T, V, M), in one pass, so that all share batch statistics."""
        features = self.encoder(torch.cat(streams))
        return features.split([len(stream) * stream.shape[-1] for stream in streams])

    def pooled(self, joint: Tensor, motion: Tensor) -> Tensor:
        """(N, 2, C') backbone features of clips (N, C, T, V, M), averaged over frames, joints and bodies."""
        return torch.stack([pool(stream, joint.shape[-1]) for stream in self.backbone(joint, motion)], dim=1)

    def features(self, batch: SkeletonBatch) -> Tensor:
        """(N, 2, C') backbone features of joint and motion."""
        return self.pooled(*self.streams(batch))

    def shown(self, batch: SkeletonBatch) -> Tensor:
        """The clips without empty frames, at the frames that the encoder reads."""
        joint, num_frames = drop_empty(batch.joints, batch.num_frames)
        return self.sampling.apply(joint, None, num_frames)

    def augmented(self, batch: SkeletonBatch) -> dict[str, Tensor]:
        """Joint and motion as training draws them."""
        training = self.training
        self.train()
        joint, motion = self.streams(batch)
        self.train(training)
        return {"joint": joint, "motion": motion}

    def gathered(self, rows: Tensor) -> Tensor:
        """(N * world, C) rows of all processes, with gradients, for losses whose negatives are the global batch.

        Every process then computes the loss of the whole, whose gradient DDP's mean leaves as it is.
        """
        return rows if self.place.world == 1 else torch.cat(tuple(self.all_gather(rows, sync_grads=True)))

    def _sample(self, stream: Tensor, num_frames: Tensor, view: int) -> Tensor:
        if not self.training:
            return self.sampling.apply(stream, None, num_frames)
        sampled = self.sampling.apply(stream, self.draw(self.sampling, len(stream), view), num_frames)
        if not self.augment.augmentations:
            return sampled
        return self.augment.apply(sampled, self.draw(self.augment, len(stream), AUGMENTED + view))
