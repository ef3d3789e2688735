"""How a method sees a clip: its frames resized, a stream of it, augmentations."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from datamodules.errors import InputError
from datamodules.topology import TOPOLOGIES, SkeletonTopology
from datamodules.transforms.augmentation import Augmentation, Compose
from datamodules.transforms.extreme import AxisMask, GaussianBlur, GaussianNoise
from datamodules.transforms.spatial import Flip, Rotate, Shear, SpatialMask, TemporalMask
from datamodules.transforms.streams import bone, motion
from datamodules.transforms.temporal import CropResize, ReflectedCrop, resize_window

STREAMS: dict[str, Callable[[Tensor, SkeletonTopology], Tensor]] = {
    "joint": lambda joints, topology: joints,
    "motion": lambda joints, topology: motion(joints),
    "bone": bone,
}


def stream_of(name: str) -> Callable[[Tensor, SkeletonTopology], Tensor]:
    """The stream called `name`, of clips in which every frame is real; raises InputError for an unknown one."""
    if name not in STREAMS:
        raise InputError(f"expected a stream of {', '.join(STREAMS)}, found {name!r}: choose one")
    return STREAMS[name]


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

    A2MC and SCD-Net. augmentations: None for the published ones. Raises InputError for an unknown stream.
    """

    def __init__(
        self,
        topology: str,
        stream: str = "joint",
        frames: int = 64,
        augmentations: Sequence[Augmentation] | None = None,
    ):
        self.stream, self._topology, self._stream = stream, TOPOLOGIES[topology], stream_of(stream)
        self.crop = CropResize(frames)
        chosen = published_augmentations(topology, frames) if augmentations is None else augmentations
        self.augment = Compose(chosen)

    def draw(self, n: int, generator: torch.Generator) -> dict[str, Any]:
        """Numbers of the crop and of each augmentation."""
        return {"crop": self.crop.draw(n, generator), "augment": self.augment.draw(n, generator)}

    def figure(self, joints: Tensor, num_frames: Tensor) -> Tensor:
        """(N, C, frames, V, M) joints at the frames of testing, before any stream."""
        return self.crop.apply(joints, None, num_frames)

    def apply(self, joints: Tensor, drawn: dict[str, Any] | None, num_frames: Tensor) -> Tensor:
        """(N, C, T, V, M) to (N, C, frames, V, M); drawn: of `draw`, or None for the centre crop of testing alone."""
        cropped = self.crop.apply(joints, None if drawn is None else drawn["crop"], num_frames)
        stream = self._stream(cropped, self._topology)
        return stream if drawn is None else self.augment.apply(stream, drawn["augment"], owned=True)


def normal_augmentations() -> list[Augmentation]:
    """Those of SkeletonCLR, and of AimCLR's normal views: both always (methods §6.2)."""
    return [ReflectedCrop(), Shear(probability=1.0, reach=0.5)]


def extreme_augmentations(topology: str, frames: int, bodies: int) -> list[Augmentation]:
    """Those of AimCLR's extreme view; rotation, like crop and shear, always (methods §6.3 gives it no probability)."""
    return [
        *normal_augmentations(),
        Flip(topology=topology),
        Rotate(probability=1.0),
        GaussianNoise(topology=topology, frames=frames, bodies=bodies),
        GaussianBlur(),
        AxisMask(),
    ]


class ResizedView:
    """The whole clip resized to `frames` frames, then augmented, then its stream: SkeletonCLR.

    Augmentations act on the figure, so that the streams of a view show one and the same figure.
    augmentations: None for SkeletonCLR's. Raises InputError for an unknown stream.
    """

    def __init__(
        self,
        topology: str,
        stream: str = "joint",
        frames: int = 50,
        augmentations: Sequence[Augmentation] | None = None,
    ):
        self.stream, self._topology, self._stream, self.frames = stream, TOPOLOGIES[topology], stream_of(stream), frames
        self.augment = Compose(normal_augmentations() if augmentations is None else augmentations)

    def draw(self, n: int, generator: torch.Generator) -> tuple[dict[str, Tensor], ...]:
        """Numbers of each augmentation."""
        return self.augment.draw(n, generator)

    def figure(self, joints: Tensor, num_frames: Tensor) -> Tensor:
        """(N, C, frames, V, M) joints at the frames of testing, before any stream."""
        return resize_window(joints, torch.zeros_like(num_frames), num_frames, self.frames)

    def apply(self, joints: Tensor, drawn: tuple[dict[str, Tensor], ...] | None, num_frames: Tensor) -> Tensor:
        """(N, C, T, V, M) to (N, C, frames, V, M); drawn: of `draw`, or None for the clip as it is, in testing."""
        resized = self.figure(joints, num_frames)
        return self._stream(
            resized if drawn is None else self.augment.apply(resized, drawn, owned=True), self._topology
        )


class ExtremeView(ResizedView):
    """A ResizedView under AimCLR's extreme augmentations; bodies: M of the clips."""

    def __init__(self, topology: str, bodies: int, stream: str = "joint", frames: int = 50):
        super().__init__(topology, stream, frames, extreme_augmentations(topology, frames, bodies))
