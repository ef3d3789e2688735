"""How A2MC and SCD-Net see a clip: a window resized, a stream of it, then augmentations."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from datamodules.errors import InputError
from datamodules.topology import TOPOLOGIES
from datamodules.transforms.spatial import Augmentation, Compose, Flip, Rotate, Shear, SpatialMask, TemporalMask
from datamodules.transforms.streams import bone, motion
from datamodules.transforms.temporal import CropResize

STREAMS = {
    "joint": lambda joints, topology: joints,
    "motion": lambda joints, topology: motion(joints),
    "bone": bone,
}


def published_augmentations(topology: str, frames: int = 64) -> list[Augmentation]:
    """Those of A2MC and SCD-Net in their order (methods §3.2, views); the temporal mask keeps its 16 segments."""
    return [
        Rotate(),
        Flip(topology=topology),
        Shear(),
        SpatialMask(topology=topology),
        TemporalMask(length=frames // 16),
    ]


class CroppedView:
    """Crop and resize always, then the stream (joint, motion or bone), then each augmentation with its probability.

    augmentations: None for the published ones. Raises InputError for an unknown stream.
    """

    def __init__(
        self,
        topology: str,
        stream: str = "joint",
        frames: int = 64,
        augmentations: Sequence[Augmentation] | None = None,
    ):
        if stream not in STREAMS:
            raise InputError(f"expected a stream of {', '.join(STREAMS)}, found {stream!r}: choose one")
        self._topology, self._stream = TOPOLOGIES[topology], STREAMS[stream]
        self.crop = CropResize(frames)
        chosen = published_augmentations(topology, frames) if augmentations is None else augmentations
        self.augment = Compose(chosen)

    def draw(self, n: int, generator: torch.Generator) -> dict[str, Any]:
        """Numbers of the crop and of each augmentation."""
        return {"crop": self.crop.draw(n, generator), "augment": self.augment.draw(n, generator)}

    def apply(self, joints: Tensor, drawn: dict[str, Any] | None, num_frames: Tensor) -> Tensor:
        """(N, C, T, V, M) to (N, C, frames, V, M); drawn: of `draw`, or None for the centre crop of testing alone."""
        cropped = self.crop.apply(joints, None if drawn is None else drawn["crop"], num_frames)
        stream = self._stream(cropped, self._topology)
        return stream if drawn is None else self.augment.apply(stream, drawn["augment"])
