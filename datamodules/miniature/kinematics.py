"""Kinematic figures: limb lengths of a performer, joint angles over time, forward kinematics of the 25 Kinect joints.

Axes of a figure at rest: x to its right, y up, z to its back, metres. Angles are (flex, twist, out) in degrees about
x, y and z, applied twist first; written for the right side, where positive means forward, inward and outward.
"""

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from datamodules.topology import NTU25

Pose = dict[str, tuple[float, float, float]]
FRAMES_PER_SECOND = 30
ROOT = NTU25.joint_names.index("spine base")

# Standing, arms hanging, 1.70 m tall; the left side is the mirror image.
_REST = {
    "spine base": (0, 0, 0), "spine middle": (0, 0.25, 0), "spine shoulder": (0, 0.48, 0), "neck": (0, 0.56, 0),
    "head": (0, 0.70, -0.02), "right shoulder": (0.17, 0.45, 0), "right elbow": (0.19, 0.18, 0.01),
    "right wrist": (0.19, -0.06, 0), "right hand": (0.19, -0.13, -0.01), "right hand tip": (0.19, -0.21, -0.02),
    "right thumb": (0.17, -0.15, -0.06), "right hip": (0.08, -0.03, 0), "right knee": (0.09, -0.42, 0),
    "right ankle": (0.09, -0.81, 0.01), "right foot": (0.10, -0.87, -0.11),
}  # fmt: skip

# How far idle limbs wander, degrees.
_SWAY: Pose = {
    "spine base": (2, 6, 2), "spine middle": (3, 5, 2), "spine shoulder": (2, 4, 2), "neck": (7, 14, 4),
    "right shoulder": (9, 7, 5), "right elbow": (12, 4, 0), "right wrist": (10, 6, 6),
    "right hip": (2, 1, 1), "right knee": (3, 0, 0), "right ankle": (2, 2, 0),
}  # fmt: skip

# Where an arm or a leg may be before the action starts.
_ARMS: tuple[Pose, ...] = (
    {"right shoulder": (0, 0, 8), "right elbow": (12, 0, 0)},
    {"right shoulder": (-15, 50, 35), "right elbow": (95, 0, 0)},
    {"right shoulder": (30, 55, 5), "right elbow": (70, 0, 0)},
    {"right shoulder": (-30, 60, 10), "right elbow": (45, 0, 0)},
    {"right shoulder": (35, 30, 10), "right elbow": (110, 0, 0)},
)
_LEGS: tuple[Pose, ...] = (
    {"right hip": (0, 0, 3)},
    {"right hip": (12, 0, 8), "right knee": (-8, 0, 0)},
    {"right hip": (-10, 0, 6), "right knee": (-12, 0, 0)},
)


@dataclass(frozen=True)
class Action:
    """A movement of some joints: `hold` is blended in, `beat` is added to it at its low (-1) and high (+1) points.

    beats: least and most repetitions; starts, ends: how much of the pose is held before and after (0 or 1).
    lift: height of a jump between two beats; shift: way of the pelvis in the course of the action; both in metres.
    """

    name: str
    hold: Pose
    beat: Pose = field(default_factory=dict)
    beats: tuple[int, int] = (1, 1)
    starts: float = 0.0
    ends: float = 0.0
    lift: float = 0.0
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)


def pose(angles: Pose, left_handed: bool = False) -> np.ndarray:
    """(V, 3) degrees of a pose by joint name, mirrored for a left-hander."""
    table = np.zeros((NTU25.num_joints, 3))
    for joint, value in angles.items():
        table[NTU25.joint_names.index(joint)] = value
    return mirrored(table) if left_handed else table


def mirrored(table: np.ndarray) -> np.ndarray:
    """Pose table (V, 3) seen in a mirror: sides exchanged, twist and outward lean turned round."""
    return table[list(NTU25.mirrored)] * (1, -1, -1)


def both_sides(table: np.ndarray) -> np.ndarray:
    """Pose table (V, 3) given for the trunk and the right side, its mirror image added on the left."""
    left = [pair[0] for pair in NTU25.mirror]
    table = table.copy()
    table[left] = mirrored(table)[left]
    return table


@lru_cache(maxsize=1)
def _levels() -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """(children, parents) of each depth of the joint tree hung up at the pelvis."""
    neighbours: dict[int, list[int]] = {joint: [] for joint in range(NTU25.num_joints)}
    for child, parent in NTU25.bones:
        neighbours[child].append(parent)
        neighbours[parent].append(child)
    seen, frontier, levels = {ROOT}, [ROOT], []
    while edges := [(new, old) for old in frontier for new in neighbours[old] if new not in seen]:
        frontier = [new for new, _ in edges]
        seen.update(frontier)
        levels.append(tuple(np.array(edges).T))
    return tuple(levels)


def performer_offsets(rng: np.random.Generator) -> np.ndarray:
    """(V, 3) metres: each joint as seen from its parent at rest, for a performer of random stature and proportions."""
    rest = np.zeros((NTU25.num_joints, 3))
    for joint, place in _REST.items():
        rest[NTU25.joint_names.index(joint)] = place
    left, right = np.array(NTU25.mirror).T
    rest[left] = rest[right] * (-1, 1, 1)
    offsets = np.zeros_like(rest)
    for children, parents in _levels():
        offsets[children] = rest[children] - rest[parents]
    stature = rng.normal(1.0, 0.07)
    arms, legs, trunk = rng.normal(1.0, 0.06, size=3)
    groups = np.array([arms, arms, legs, legs, trunk])
    return offsets * stature * (groups @ NTU25.membership(NTU25.body_groups))[:, None]


def rotation(degrees: np.ndarray | float, axis: int) -> np.ndarray:
    """(..., 3, 3) rotations about one of the axes x, y, z (0, 1, 2)."""
    angle = np.deg2rad(degrees)
    following, last = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.zeros((*np.shape(angle), 3, 3))
    matrix[..., axis, axis] = 1
    matrix[..., following, following] = matrix[..., last, last] = np.cos(angle)
    matrix[..., last, following] = np.sin(angle)
    matrix[..., following, last] = -np.sin(angle)
    return matrix


def forward_kinematics(offsets: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Joints (T, V, 3) in metres, pelvis at the origin, from offsets (V, 3) and joint angles (T, V, 3) in degrees."""
    flex, twist, out = np.moveaxis(angles, -1, 0)
    turn = rotation(out, 2) @ rotation(flex, 0) @ rotation(twist, 1)
    joints = np.zeros(angles.shape)
    for children, parents in _levels():
        joints[:, children] = joints[:, parents] + np.einsum("tvij,vj->tvi", turn[:, parents], offsets[children])
        turn[:, children] = turn[:, parents] @ turn[:, children]
    return joints


def smooth_noise(rng: np.random.Generator, frames: int, shape: tuple[int, ...], hertz: float) -> np.ndarray:
    """(frames, *shape) of standard deviation about 1: three slow sine waves of random frequency and phase each."""
    time = np.arange(frames).reshape(-1, *[1] * (len(shape) + 1)) / FRAMES_PER_SECOND
    rate = rng.uniform(0.2, 1.0, size=(*shape, 3)) * hertz
    phase = rng.uniform(0, 2 * np.pi, size=(*shape, 3))
    return np.sin(2 * np.pi * rate * time + phase).sum(-1) * np.sqrt(2 / 3)


@dataclass(frozen=True)
class Timing:
    """When one performance does what: frames in all, first and last frame of the action, repetitions, unevenness."""

    frames: int
    start: float
    stop: float
    beats: int
    warp: float

    @classmethod
    def draw(cls, rng: np.random.Generator, action: Action, frames: int) -> "Timing":
        length = frames * rng.uniform(0.4, 0.75)
        start = rng.uniform(0.0, 1.0) * (frames - length)
        beats = int(rng.integers(*action.beats, endpoint=True))
        return cls(frames, start, start + length, beats, warp=rng.uniform(0.7, 1.4))

    def envelope(self, action: Action) -> np.ndarray:
        """(T,) how much of the action's pose is held, 0..1."""
        length = self.stop - self.start
        ramp = min(12.0, 0.35 * length) if action.starts == action.ends else 0.5 * length
        times = [self.start, self.start + ramp, self.stop - ramp, self.stop]
        middle = 1.0 if action.starts == action.ends else 0.5
        level = np.interp(np.arange(self.frames), times, [action.starts, middle, middle, action.ends])
        return level * level * (3 - 2 * level)

    def progress(self) -> np.ndarray:
        """(T,) how much of the action is over, 0..1."""
        return np.clip((np.arange(self.frames) - self.start) / (self.stop - self.start), 0, 1)

    def cycle(self) -> np.ndarray:
        """(T,) radians: 0 before the action, 2 pi for each repetition."""
        return 2 * np.pi * self.beats * self.progress() ** self.warp


def perform(
    rng: np.random.Generator, offsets: np.ndarray, action: Action, timing: Timing, left_handed: bool
) -> np.ndarray:
    """Joints (T, V, 3) of one performer doing `action` on the spot: feet on y = 0 but for jumps, facing -z at first."""
    level, cycle = timing.envelope(action)[:, None, None], timing.cycle()[:, None, None]
    hold, beat = pose(action.hold, left_handed), pose(action.beat, left_handed)
    acting = (hold != 0).any(1, keepdims=True) | (beat != 0).any(1, keepdims=True)
    hold = hold + acting * rng.normal(0, 8, size=hold.shape)
    beat = beat * rng.normal(1, 0.15)
    idle = _idle_pose(rng) + _idle_sway(rng, timing.frames)
    share = level * acting
    angles = idle * (1 - 0.8 * share) + share * (hold - beat * np.cos(cycle))
    joints = forward_kinematics(offsets, angles)
    root = timing.progress()[:, None] * action.shift
    lift = action.lift * np.clip(-np.sin(cycle[:, 0]), 0, None) * level[:, 0]
    root[:, 1:2] = lift - joints[..., 1].min(1, keepdims=True)
    drift = 0.04 * smooth_noise(rng, timing.frames, (3,), 0.5) * (1, 0, 1)
    return joints + (root + drift)[:, None]


def _idle_pose(rng: np.random.Generator) -> np.ndarray:
    """(V, 3) degrees: each arm and the legs in a posture of their own."""
    arms = [pose(_ARMS[choice]) for choice in rng.choice(len(_ARMS), size=2, p=(0.55, 0.1125, 0.1125, 0.1125, 0.1125))]
    legs = [pose(_LEGS[choice]) for choice in rng.integers(len(_LEGS), size=2)]
    stance = arms[0] + legs[0] + mirrored(arms[1] + legs[1])
    return stance + 0.6 * both_sides(pose(_SWAY)) * rng.normal(size=stance.shape)


def _idle_sway(rng: np.random.Generator, frames: int) -> np.ndarray:
    """(T, V, 3) degrees: slow movement of everything that has nothing else to do."""
    amplitude = np.abs(both_sides(pose(_SWAY)))
    return amplitude * smooth_noise(rng, frames, amplitude.shape, 0.6) * rng.uniform(0.15, 0.35)
