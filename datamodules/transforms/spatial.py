"""Augmentations of clips (N, C, T, V, M), most of them A2MC's and SCD-Net's."""

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.errors import InputError
from datamodules.topology import TOPOLOGIES
from datamodules.transfer import sent
from datamodules.transforms.augmentation import Augmentation, Mask


def _transformed(matrices: Tensor, joints: Tensor) -> Tensor:
    """Matrices (N, 3, 3) times the coordinates, as column vectors, of joints (N, 3, T, V, M)."""
    return torch.bmm(matrices.to(joints.dtype), joints.flatten(2)).view_as(joints)


def _turned(degrees: Tensor, joints: Tensor) -> Tensor:
    """Clips (N, 3, T, V, M) turned clockwise about x, then y, then z by degrees (N, 3)."""
    angles = (degrees * math.pi / 180).unbind(1)
    (cx, cy, cz), (sx, sy, sz) = ([angle.cos() for angle in angles], [angle.sin() for angle in angles])
    one, zero = torch.ones_like(cx), torch.zeros_like(cx)
    about_x = [one, zero, zero, zero, cx, sx, zero, -sx, cx]
    about_y = [cy, zero, -sy, zero, one, zero, sy, zero, cy]
    about_z = [cz, sz, zero, -sz, cz, zero, zero, zero, one]
    x, y, z = (torch.stack(entries, 1).view(-1, 3, 3) for entries in (about_x, about_y, about_z))
    return _transformed(z @ y @ x, joints)


@functools.cache
def _walks(topology: str) -> Tensor:
    """(V, V): walks of two steps between joints, standing still allowed."""
    inward = torch.from_numpy(TOPOLOGIES[topology].inward())
    near = torch.eye(len(inward)) + inward + inward.T
    return near @ near


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
        """joints (N, 3, T, V, M), turned."""
        return _turned(drawn["degrees"], joints)


@dataclass(frozen=True, kw_only=True)
class Tilt(Augmentation):
    """About x, then y, then z by U(-reach, reach) degrees each; SDS-CL's file holds it with 18, switched off."""

    reach: float = 18.0

    def numbers(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """degrees (n, 3)"""
        return {"degrees": self.reach * (2 * torch.rand(n, 3, generator=generator, dtype=torch.float64) - 1)}

    def change(self, joints: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """joints (N, 3, T, V, M), turned."""
        return _turned(drawn["degrees"], joints)


@dataclass(frozen=True, kw_only=True)
class Flip(Augmentation):
    """Left and right joints swapped; no coordinate is mirrored, as published."""

    topology: str

    def numbers(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Nothing: a flip has no numbers."""
        return {}

    def change(self, joints: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """joints (N, C, T, V, M), every joint in the place of its mirror image."""
        bodies = joints.shape[4]
        order = sent(torch.tensor(TOPOLOGIES[self.topology].mirrored), joints.device)[:, None] * bodies
        order = (order + torch.arange(bodies, device=joints.device)).flatten()
        # Bodies folded into joints: joint by joint, two numbers at a time, it takes twice as long.
        flat = joints.flatten(3)
        return flat.gather(3, order.expand_as(flat)).view_as(joints)


@dataclass(frozen=True, kw_only=True)
class Shear(Augmentation):
    """x' = [[1, s0, s1], [s2, 1, s3], [s4, s5, 1]] x, s ~ U(-reach, reach)."""

    reach: float = 1.0

    def numbers(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """shear (n, 6)"""
        return {"shear": self.reach * (2 * torch.rand(n, 6, generator=generator, dtype=torch.float64) - 1)}

    def change(self, joints: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """joints (N, 3, T, V, M), each point times the clip's matrix."""
        one, s = torch.ones_like(drawn["shear"][:, 0]), drawn["shear"].unbind(1)
        matrices = torch.stack([one, s[0], s[1], s[2], one, s[3], s[4], s[5], one], 1).view(-1, 3, 3)
        return _transformed(matrices, joints)


@dataclass(frozen=True, kw_only=True)
class SpatialMask(Mask):
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

    def hidden(self, joints: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """(N, 1, 1, V * M) bool, the chosen joints of all bodies."""
        scores = sent(_walks(self.topology), joints.device)[drawn["joints"]].sum(1)
        chosen = scores.argsort(dim=1, descending=True, stable=True)[:, : self.masked]
        hidden = torch.zeros_like(scores, dtype=torch.bool).scatter(1, chosen, True)
        return hidden.repeat_interleave(joints.shape[4], dim=1)[:, None, None]


@dataclass(frozen=True, kw_only=True)
class TemporalMask(Mask):
    """Zero `masked` of `segments` segments of `length` frames each, drawn without replacement."""

    segments: int = 16
    length: int = 4
    masked: int = 6

    def numbers(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """segments (n, masked)"""
        order = torch.rand(n, self.segments, generator=generator, dtype=torch.float64).argsort(dim=1)
        return {"segments": order[:, : self.masked]}

    def hidden(self, joints: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """(N, 1, T, 1) bool; raises InputError unless the clips have segments x length frames."""
        frames = joints.shape[2]
        if frames != self.segments * self.length:
            raise InputError(
                f"expected {self.segments} segments of {self.length} frames, found clips of {frames} frames; "
                "set segments and length of the temporal mask to match"
            )
        hidden = torch.zeros(len(joints), self.segments, dtype=torch.bool, device=joints.device)
        hidden = hidden.scatter(1, drawn["segments"], True).repeat_interleave(self.length, dim=1)
        return hidden[:, None, :, None]
