"""Skeleton topologies: the only place that knows a joint by its number.

Graphs, bone streams, flips, pyramids of groups, bone losses and the axes of the preparation recipes read it.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Axes:
    """Joints that orient a figure: the origin, and the pairs whose vectors are turned onto z and then onto x."""

    origin: int
    z_axis: tuple[int, int]
    x_axis: tuple[int, int]


@dataclass(frozen=True)
class SkeletonTopology:
    """Joints of one skeleton format, counted from 0.

    parents: parent of each joint; the root is its own parent.
    mirror: (left, right) joint pairs swapped by a flip.
    body_groups, part_groups: coarse and finer groups of joints; every joint belongs to exactly one of each.
    origin, z_axis, x_axis, scale: joints from which the recipe `dsta` takes origin, upward axis, sideways
        axis and unit length.
    agcn_axes: the same for the recipe `agcn`, which keeps metres; None where that recipe makes no sense.
    confidence: whether the third number of a joint is a detector's confidence, after its place in an image.
    """

    name: str
    joint_names: tuple[str, ...]
    parents: tuple[int, ...]
    mirror: tuple[tuple[int, int], ...]
    body_groups: tuple[tuple[int, ...], ...]
    part_groups: tuple[tuple[int, ...], ...]
    origin: int
    z_axis: tuple[int, int]
    x_axis: tuple[int, int]
    scale: tuple[int, int]
    agcn_axes: Axes | None = None
    confidence: bool = False

    @property
    def num_joints(self) -> int:
        return len(self.joint_names)

    @property
    def root(self) -> int:
        return next(joint for joint, parent in enumerate(self.parents) if joint == parent)

    @property
    def bones(self) -> tuple[tuple[int, int], ...]:
        """(child, parent) of every joint but the root."""
        return tuple((child, parent) for child, parent in enumerate(self.parents) if child != parent)

    @property
    def mirrored(self) -> tuple[int, ...]:
        """Permutation of the joints that exchanges left and right."""
        order = list(range(self.num_joints))
        for left, right in self.mirror:
            order[left], order[right] = right, left
        return tuple(order)

    @property
    def up(self) -> tuple[int, int]:
        """The axis that points upwards in prepared clips, and 1, or -1 where it counts downwards as in an image."""
        return (1, -1) if self.agcn_axes is None else (2, 1)

    def inward(self) -> np.ndarray:
        """(V, V) 0/1 matrix with a one at [parent, child]: the parent collects the child."""
        matrix = np.zeros((self.num_joints, self.num_joints), dtype=np.float32)
        for child, parent in self.bones:
            matrix[parent, child] = 1.0
        return matrix

    def membership(self, groups: tuple[tuple[int, ...], ...]) -> np.ndarray:
        """(groups, V) 0/1 matrix: which joint belongs to which group."""
        matrix = np.zeros((len(groups), self.num_joints), dtype=np.float32)
        for row, members in enumerate(groups):
            matrix[row, list(members)] = 1.0
        return matrix


def _one_based(*groups: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Groups as the NTU literature prints them, counted from 1."""
    return tuple(tuple(joint - 1 for joint in group) for group in groups)


# Bones, flip pairs and groups as published for the 25 joints of Kinect v2 (SDS-CL, PSP, A2MC).
NTU25 = SkeletonTopology(
    name="ntu25",
    joint_names=(
        "spine base", "spine middle", "neck", "head",
        "left shoulder", "left elbow", "left wrist", "left hand",
        "right shoulder", "right elbow", "right wrist", "right hand",
        "left hip", "left knee", "left ankle", "left foot",
        "right hip", "right knee", "right ankle", "right foot",
        "spine shoulder", "left hand tip", "left thumb", "right hand tip", "right thumb",
    ),
    parents=(1, 20, 20, 2, 20, 4, 5, 6, 20, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18, 20, 22, 7, 24, 11),
    mirror=((4, 8), (5, 9), (6, 10), (7, 11), (12, 16), (13, 17), (14, 18), (15, 19), (21, 23), (22, 24)),
    body_groups=_one_based(
        (5, 6, 7, 8, 22, 23), (9, 10, 11, 12, 24, 25), (13, 14, 15, 16), (17, 18, 19, 20), (1, 2, 3, 4, 21)
    ),
    part_groups=_one_based(
        (1, 2, 21), (3, 4), (5, 6, 7), (8, 22, 23), (9, 10, 11), (12, 24, 25), (13, 14), (15, 16), (17, 18), (19, 20)
    ),
    origin=0,
    z_axis=(0, 20),
    x_axis=(20, 5),
    scale=(0, 20),
    agcn_axes=Axes(origin=1, z_axis=(0, 1), x_axis=(4, 8)),
)  # fmt: skip

# The 20 joints of Kinect v1. The papers name no groups for it: these follow the rule of the 25-joint ones.
UCLA20 = SkeletonTopology(
    name="ucla20",
    joint_names=(
        "hip centre", "spine", "shoulder centre", "head",
        "left shoulder", "left elbow", "left wrist", "left hand",
        "right shoulder", "right elbow", "right wrist", "right hand",
        "left hip", "left knee", "left ankle", "left foot",
        "right hip", "right knee", "right ankle", "right foot",
    ),
    parents=(1, 2, 2, 2, 2, 4, 5, 6, 2, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18),
    mirror=((4, 8), (5, 9), (6, 10), (7, 11), (12, 16), (13, 17), (14, 18), (15, 19)),
    body_groups=((4, 5, 6, 7), (8, 9, 10, 11), (12, 13, 14, 15), (16, 17, 18, 19), (0, 1, 2, 3)),
    part_groups=((0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11), (12, 13), (14, 15), (16, 17), (18, 19)),
    origin=0,
    z_axis=(0, 2),
    x_axis=(2, 5),
    scale=(0, 2),
    agcn_axes=Axes(origin=1, z_axis=(0, 1), x_axis=(4, 8)),
)  # fmt: skip

# OpenPose's 18 joints. x and y are image coordinates, so only the recipe `kinetics` applies to them.
KINETICS18 = SkeletonTopology(
    name="kinetics18",
    joint_names=(
        "nose", "neck",
        "right shoulder", "right elbow", "right wrist", "left shoulder", "left elbow", "left wrist",
        "right hip", "right knee", "right ankle", "left hip", "left knee", "left ankle",
        "right eye", "left eye", "right ear", "left ear",
    ),
    parents=(1, 1, 1, 2, 3, 1, 5, 6, 2, 8, 9, 5, 11, 12, 0, 0, 14, 15),
    mirror=((5, 2), (6, 3), (7, 4), (11, 8), (12, 9), (13, 10), (15, 14), (17, 16)),
    body_groups=((5, 6, 7), (2, 3, 4), (11, 12, 13), (8, 9, 10), (0, 1, 14, 15, 16, 17)),
    part_groups=((0, 14, 15), (1, 16, 17), (5, 6), (7,), (2, 3), (4,), (11,), (12, 13), (8,), (9, 10)),
    origin=1,
    z_axis=(8, 1),
    x_axis=(2, 5),
    scale=(8, 1),
    confidence=True,
)  # fmt: skip

TOPOLOGIES = {topology.name: topology for topology in (NTU25, UCLA20, KINETICS18)}
