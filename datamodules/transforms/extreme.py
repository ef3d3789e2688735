"""What AimCLR does to a clip (N, C, T, V, M) beside crop, shear, flip and rotation: noise, blur, a lost axis."""

from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.topology import TOPOLOGIES
from datamodules.transforms.augmentation import Augmentation

AXES = 3


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Augmentation):
    """N(0, std) added to every coordinate, in the unit of the clip; absent bodies get it too, as published."""

    topology: str
    frames: int
    bodies: int
    std: float = 0.01

    def numbers(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """noise (n, 3, frames, V, bodies)"""
        shape = (n, AXES, self.frames, TOPOLOGIES[self.topology].num_joints, self.bodies)
        return {"noise": self.std * torch.randn(shape, generator=generator)}

    def change(self, joints: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """joints (N, 3, frames, V, bodies) plus their noise."""
        return joints + drawn["noise"].to(joints.dtype)


@dataclass(frozen=True, kw_only=True)
class GaussianBlur(Augmentation):
    """Every frame becomes a mean of the `width` frames around it, with Gaussian weights of U(narrow, wide) frames.

    Our choice where AimCLR's text gives the width alone: the deviation is that of SimCLR's blur, and the weights of the
    frames that exist sum to 1, so that a figure that stands still is left as it was.
    """

    width: int = 15
    narrow: float = 0.1
    wide: float = 2.0

    def numbers(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """deviation (n,) in frames"""
        uniform = torch.rand(n, generator=generator, dtype=torch.float64)
        return {"deviation": self.narrow + (self.wide - self.narrow) * uniform}

    def change(self, joints: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """joints (N, C, T, V, M), each frame the weighted mean of those around it."""
        frames = torch.arange(joints.shape[2], device=joints.device)
        apart = (frames[:, None] - frames).double()
        weights = torch.exp(-(apart**2) / (2 * drawn["deviation"][:, None, None] ** 2))
        weights = weights.masked_fill(apart.abs() > self.width // 2, 0)
        weights = weights / weights.sum(2, keepdim=True)
        return torch.einsum("nts,ncsvm->nctvm", weights.to(joints.dtype), joints)


@dataclass(frozen=True, kw_only=True)
class AxisMask(Augmentation):
    """One axis of all joints and frames set to 0."""

    def numbers(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """axis (n,)"""
        return {"axis": torch.randint(AXES, (n,), generator=generator)}

    def change(self, joints: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """joints (N, 3, T, V, M) with one axis 0."""
        hidden = drawn["axis"][:, None] == torch.arange(AXES, device=joints.device)
        return joints.masked_fill(hidden[:, :, None, None, None], 0)
