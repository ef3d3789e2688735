"""Augmentations of clips (N, C, T, V, M), most of them A2MC's and SCD-Net's."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.errors import InputError
from datamodules.topology import TOPOLOGIES
from datamodules.transforms.augmentation import Augmentation


def _transformed(matrices: Tensor, joints: Tensor) -> Tensor:
    """Matrices (N, 3, 3) times the coordinates, as column vectors, of joints (N, 3, T, V, M)."""
    return torch.einsum("nij,njtvm->nitvm", matrices.to(joints.dtype), joints)


def _turns(angle: Tensor, first: int, second: int) -> Tensor:
    """(N, 3, 3) clockwise turns by angle (N,) radians in the plane of two axes: the second moves towards the first."""
    matrices = torch.eye(3, dtype=angle.dtype, device=angle.device).repeat(len(angle), 1, 1)
    matrices[:, first, first] = matrices[:, second, second] = angle.cos()
    matrices[:, first, second] = angle.sin()
    matrices[:, second, first] = -angle.sin()
    return matrices


def _turned(degrees: Tensor, joints: Tensor) -> Tensor:
    """Clips (N, 3, T, V, M) turned clockwise about x, then y, then z by degrees (N, 3)."""
    x, y, z = (degrees * math.pi / 180).unbind(1)
    return _transformed(_turns(z, 0, 1) @ _turns(y, 2, 0) @ _turns(x, 1, 2), joints)


@dataclass(frozen=True, kw_only=True)
class Rotate(Augmentation):
    """Clockwise about x, then y, then z: by U(0, main) degrees about one axis, U(0, other) about the rest."""

    main: float = 30.0
    other: float = 1.0

    def numbers(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """degrees (n, 3), never negative, as published."""
        axis = torch.randint(3, (n,), generator=generator)
        largest = torch.where(F.one_hot(axis, 3).bool(), self.main, self.other)
        return {"degrees": torch.rand(n, 3, generator=generator, dtype=torch.float64) * largest}

    def change(self, joints: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        return _turned(drawn["degrees"], joints)


@dataclass(frozen=True, kw_only=True)
class Tilt(Augmentation):
    """About x, then y, then z by U(-reach, reach) degrees each; SDS-CL's file holds it with 18, switched off."""

    reach: float = 18.0

    def numbers(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """degrees (n, 3)"""
        return {"degrees": self.reach * (2 * torch.rand(n, 3, generator=generator, dtype=torch.float64) - 1)}

    def change(self, joints: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        return _turned(drawn["degrees"], joints)


@dataclass(frozen=True, kw_only=True)
class Flip(Augmentation):
    """Left and right joints swapped; no coordinate is mirrored, as published."""

    topology: str

    def numbers(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {}

    def change(self, joints: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        order = torch.tensor(TOPOLOGIES[self.topology].mirrored, device=joints.device)
        return joints.index_select(3, order)


@dataclass(frozen=True, kw_only=True)
class Shear(Augmentation):
    """x' = [[1, s0, s1], [s2, 1, s3], [s4, s5, 1]] x, s ~ U(-reach, reach)."""

    reach: float = 1.0

    def numbers(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """shear (n, 6)"""
        return {"shear": self.reach * (2 * torch.rand(n, 6, generator=generator, dtype=torch.float64) - 1)}

    def change(self, joints: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        matrices = torch.eye(3, dtype=torch.float64, device=joints.device).repeat(len(joints), 1, 1)
        rows, columns = zip((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), strict=True)
        matrices[:, rows, columns] = drawn["shear"]
        return _transformed(matrices, joints)


@dataclass(frozen=True, kw_only=True)
class SpatialMask(Augmentation):
    """Zero the `masked` joints nearest to `seeds` random ones (with replacement), in all frames.

    A joint's score is the number of walks of two steps, standing still allowed, from the seeds to it: the sum of the
    seeds' rows of (I + A)^2. Of equal scores the joint of the lower number goes first.
    """

    topology: str
    seeds: int = 5
    masked: int = 8

    def numbers(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """seed joints (n, seeds)"""
        joints = TOPOLOGIES[self.topology].num_joints
        return {"joints": torch.randint(joints, (n, self.seeds), generator=generator)}

    def change(self, joints: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        inward = torch.from_numpy(TOPOLOGIES[self.topology].inward()).to(joints.device)
        near = torch.eye(len(inward), device=joints.device) + inward + inward.T
        scores = (near @ near)[drawn["joints"]].sum(1)
        chosen = scores.argsort(dim=1, descending=True, stable=True)[:, : self.masked]
        hidden = torch.zeros_like(scores, dtype=torch.bool).scatter(1, chosen, True)
        # Bodies folded into joints: a mask of two neighbouring numbers is four times as slow.
        hidden = hidden[:, :, None].expand(-1, -1, joints.shape[4]).flatten(1)
        return torch.where(hidden[:, None, None], 0, joints.flatten(3)).view_as(joints)


@dataclass(frozen=True, kw_only=True)
class TemporalMask(Augmentation):
    """Zero `masked` of `segments` segments of `length` frames each, drawn without replacement."""

    segments: int = 16
    length: int = 4
    masked: int = 6

    def numbers(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """segments (n, masked)"""
        order = torch.rand(n, self.segments, generator=generator, dtype=torch.float64).argsort(dim=1)
        return {"segments": order[:, : self.masked]}

    def change(self, joints: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        frames = joints.shape[2]
        if frames != self.segments * self.length:
            raise InputError(
                f"expected {self.segments} segments of {self.length} frames, found clips of {frames} frames; "
                "set segments and length of the temporal mask to match"
            )
        hidden = torch.zeros(len(joints), self.segments, dtype=torch.bool, device=joints.device)
        hidden = hidden.scatter(1, drawn["segments"], True).repeat_interleave(self.length, dim=1)
        return torch.where(hidden[:, None, :, None], 0, joints.flatten(3)).view_as(joints)
