"""Which frames of a clip a method sees: empty ones dropped, a number of them sampled, a window of them resized.

All are batched: every clip has its own length and its own random numbers, none is visited alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.errors import InputError
from datamodules.transfer import sent
from datamodules.transforms.augmentation import Augmentation


def take_frames(joints: Tensor, frames: Tensor) -> Tensor:
    """Frames (N, F) of joints (N, C, T, V, M), each clip its own: (N, C, F, V, M)."""
    n, c, t, v, m = joints.shape
    # Whole frames of an axis are copied: a gather would look up every number by itself.
    first = torch.arange(n * c, device=joints.device).view(n, c, 1) * t
    rows = (first + frames[:, None]).flatten()
    return joints.reshape(n * c * t, v * m).index_select(0, rows).view(n, c, frames.shape[1], v, m)


def drop_empty(joints: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
    """Remove the frames whose coordinates sum to 0 over axes, joints and bodies (SDS-CL and PSP, clip to input).

    joints: (N, C, T, V, M); num_frames: (N,). Returns the same shapes: the frames left, in their order, at the front,
    zeros behind them, and how many are left. Raises InputError if a clip has none.
    """
    steps = torch.arange(joints.shape[2], device=joints.device)
    kept = (joints.sum((1, 3, 4)) != 0) & (steps < num_frames[:, None])
    left = kept.sum(1)
    if (left == 0).any():
        rows = ", ".join(str(row) for row in (left == 0).nonzero().flatten().tolist())
        raise InputError(
            f"expected at least one frame with coordinates in every clip, found none in clip {rows} of the batch "
            "(counted from 0); leave such clips out when preparing the data"
        )
    order = (~kept).int().argsort(dim=1, stable=True)
    behind = steps >= left[:, None]
    return take_frames(joints, order).masked_fill(behind[:, None, :, None, None], 0), left


@dataclass(frozen=True)
class SampleFrames:
    """`frames` frames of a clip of any length, in order (SDS-CL and PSP).

    Training takes them at random without replacement from ceil(frames / T) copies of the clip's T frames, testing
    takes frame floor(i T / frames); a clip with exactly `frames` frames passes through.
    longest: the longest clip that can be sampled, in frames. It fixes how many numbers are drawn, so that the draw
    does not depend on the clips it is for.
    """

    frames: int = 50
    longest: int = 300

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, candidates) uniform keys; copies of a clip shorter than `frames` hold fewer than 2 `frames` frames."""
        return torch.rand(n, max(self.longest, 2 * self.frames), generator=generator)

    def apply(self, joints: Tensor, drawn: Tensor | None, num_frames: Tensor) -> Tensor:
        """(N, C, T, V, M) to (N, C, frames, V, M); drawn: keys of `draw`, or None for the frames taken in testing.

        Raises InputError for a clip longer than `longest`, in training.
        """
        if joints.shape[2] > self.longest and drawn is not None:  # only then there can be one: no look, no wait
            self._all_known(num_frames)
        device = num_frames.device
        chosen = self.evenly(num_frames) if drawn is None else self.choose(sent(drawn, device), num_frames)
        return take_frames(joints, chosen)

    def _all_known(self, num_frames: Tensor) -> None:
        """Raises InputError for a clip longer than `longest`, of which the keys tell nothing."""
        if (num_frames > self.longest).any():
            raise InputError(
                f"expected clips of at most {self.longest} frames, found one of {int(num_frames.max())}; "
                "set `longest` of the frame sampling to the longest clip of the data set"
            )

    def choose(self, keys: Tensor, num_frames: Tensor) -> Tensor:
        """(N, frames) sorted frames: the candidates with the smallest keys, a uniform draw without replacement."""
        copies = (self.frames + num_frames - 1) // num_frames
        candidates = torch.arange(keys.shape[1], device=keys.device)
        outside = candidates >= (copies * num_frames)[:, None]
        smallest = keys.masked_fill(outside, torch.inf).argsort(dim=1, stable=True)[:, : self.frames]
        return (smallest // copies[:, None]).sort(dim=1).values

    def evenly(self, num_frames: Tensor) -> Tensor:
        """(N, frames) frames i T / frames, rounded down."""
        return torch.arange(self.frames, device=num_frames.device) * num_frames[:, None] // self.frames


def resize_window(joints: Tensor, start: Tensor, length: Tensor, frames: int) -> Tensor:
    """Interpolate the window of each clip, frames start .. start + length - 1, linearly to `frames` frames.

    joints: (N, C, T, V, M); start, length: (N,) int64, length at least 1. Returns (N, C, frames, V, M), for each clip
    what `torch.nn.functional.interpolate(window, mode="linear", align_corners=False)` gives.
    """
    centres = torch.arange(frames, device=joints.device, dtype=torch.float64) + 0.5
    position = (centres * length[:, None] / frames - 0.5).clamp(min=0)
    before = position.long()
    after = (before + 1).minimum(length[:, None] - 1)
    weight = (position - before).to(joints.dtype)[:, None, :, None, None]
    window = start[:, None]
    return take_frames(joints, window + before).lerp_(take_frames(joints, window + after), weight)


@dataclass(frozen=True)
class CropResize:
    """A window of a clip resized to `frames` frames (A2MC and SCD-Net, views).

    Training: length max(frames, floor(n u)) but at most the n real frames, u uniform in [least, 1], start uniform.
    Testing: the central `keep` of the clip. Frames past the real ones never enter.
    """

    frames: int = 64
    least: float = 0.1
    keep: float = 0.95

    def draw(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """(n,) share of the clip that the window covers, and (n,) where in the free room it starts, 0 to 1."""
        share, place = torch.rand(2, n, generator=generator, dtype=torch.float64)
        return {"share": self.least + (1 - self.least) * share, "place": place}

    def apply(self, joints: Tensor, drawn: dict[str, Tensor] | None, num_frames: Tensor) -> Tensor:
        """(N, C, T, V, M) to (N, C, frames, V, M); drawn: of `draw`, or None for the central window of testing."""
        start, length = self.centre(num_frames) if drawn is None else self.window(drawn, num_frames)
        return resize_window(joints, start, length, self.frames)

    def window(self, drawn: dict[str, Tensor], num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) start and (N,) length of the random window."""
        share, place = sent((drawn["share"], drawn["place"]), num_frames.device)
        length = (num_frames * share).long().clamp(min=self.frames).minimum(num_frames)
        free = num_frames - length
        return (place * (free + 1)).long().minimum(free), length

    def centre(self, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) start and (N,) length of the central window: floor((1 - keep) n / 2) frames less at either end."""
        border = ((1 - self.keep) * num_frames.double() / 2).floor().long()
        return border, num_frames - 2 * border


@dataclass(frozen=True, kw_only=True)
class ReflectedCrop(Augmentation):
    """T consecutive frames of a clip that its reflection continues by floor(T / `share`) frames at either end.

    The first and the last frame stand twice where the reflection begins (SkeletonCLR and AimCLR, views).
    """

    probability: float = 1.0
    share: int = 6

    def numbers(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """(n,) place of the start in the free room, 0 to 1."""
        return {"place": torch.rand(n, generator=generator, dtype=torch.float64)}

    def change(self, joints: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """joints (N, C, T, V, M) -> T frames of the continued clip, of the same shape."""
        frames = joints.shape[2]
        added = frames // self.share
        start = (drawn["place"] * (2 * added + 1)).long().clamp(max=2 * added) - added
        chosen = start[:, None] + torch.arange(frames, device=joints.device)
        chosen = torch.where(chosen < 0, -1 - chosen, chosen)
        return take_frames(joints, torch.where(chosen < frames, chosen, 2 * frames - 1 - chosen))
