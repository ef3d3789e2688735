"""People on a stage in front of three depth cameras: who stands where, what each camera sees, and how badly."""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from datamodules.miniature.kinematics import (
    ROOT,
    Action,
    Timing,
    forward_kinematics,
    perform,
    performer_offsets,
    rotation,
    smooth_noise,
)
from datamodules.topology import NTU25

X, Y = 0, 1
AZIMUTHS = {1: 0.0, 2: -45.0, 3: 45.0}  # degrees; people face camera 2 or 3, so camera 1 sees them at 45 degrees
LASTING = 4  # frames
LEFT_HANDED = 0.3  # share of the performances

# Jitter of a joint in metres, by how far out on its limb the sensor has to find it.
_JITTER = np.array([
    {"knee": 0.002, "ankle": 0.004, "foot": 0.008, "elbow": 0.003, "wrist": 0.006, "hand": 0.010, "tip": 0.015,
     "thumb": 0.015}.get(name.split()[-1], 0.0015)
    for name in NTU25.joint_names
])  # fmt: skip


@dataclass(frozen=True)
class Camera:
    """Angle round the stage and upward tilt in degrees, height above the floor and distance in metres."""

    azimuth: float
    height: float
    distance: float
    tilt: float

    def view(self, joints: np.ndarray) -> np.ndarray:
        """Joints (..., 3) of the stage in the axes of the sensor: x to its left, y up, z away from it."""
        centred = joints @ rotation(-self.azimuth, Y).T + (0, -self.height, self.distance)
        return centred @ rotation(self.tilt, X).T


def cameras(rng: np.random.Generator) -> dict[int, Camera]:
    """The three cameras of one setup: roughly level with the hips or the chest, about three metres away."""
    height, distance = rng.uniform(0.8, 1.4), rng.uniform(2.8, 3.6)
    return {
        number: Camera(azimuth + rng.normal(0, 3), height, distance + rng.normal(0, 0.15), rng.uniform(-6, 10))
        for number, azimuth in AZIMUTHS.items()
    }


def cast(seed: int, performer: int) -> np.ndarray:
    """(V, 3) limb offsets of a performer, the same in every clip of a set."""
    return performer_offsets(np.random.default_rng([seed, 1, performer]))


def stage(
    rng: np.random.Generator, people: list[np.ndarray], roles: tuple[Action, ...], frames: int, heading: float
) -> list[np.ndarray]:
    """Joints (T, V, 3) of everyone on the stage, metres, y = 0 the floor; two people face each other."""
    timing = Timing.draw(rng, roles[0], frames)
    left_handed = rng.random() < LEFT_HANDED
    gap = rng.uniform(0.75, 1.0) if len(people) > 1 else 0.0
    scene = []
    for side, (offsets, action) in enumerate(zip(people, roles, strict=True)):
        joints = perform(rng, offsets, action, timing, left_handed)
        turn = heading + (90 - 180 * side) * (gap > 0) + rng.normal(0, 12) + _turning(rng, frames)
        place = rotation(heading, Y) @ np.array([(1 - 2 * side) * gap / 2, 0, 0]) + rng.normal(0, 0.1, 3) * (1, 0, 1)
        scene.append(np.einsum("tij,tvj->tvi", rotation(turn, Y), joints) + place)
    return scene


def _turning(rng: np.random.Generator, frames: int) -> np.ndarray:
    """(T,) degrees by which somebody turns round while acting."""
    return rng.uniform(0, 14) * smooth_noise(rng, frames, (), 0.4)


def film(rng: np.random.Generator, joints: np.ndarray, camera: Camera) -> np.ndarray:
    """Joints (T, V, 3) as the sensor of `camera` reports them: its axes, jitter that grows outward and where hidden."""
    seen = camera.view(joints)
    beside, behind = np.abs(seen[..., 0] - seen[:, ROOT, None, 0]), seen[..., 2] - seen[:, ROOT, None, 2]
    hidden = np.clip(behind / 0.2, 0, 1) * np.clip(1 - beside / 0.25, 0, 1)
    # The sensor's filter: an error lasts a few frames.
    errors = rng.normal(size=(len(seen) + LASTING - 1, *seen.shape[1:]))
    jitter = sliding_window_view(errors, LASTING, axis=0).sum(-1) / np.sqrt(LASTING)
    return seen + jitter * (_JITTER * (1 + 4 * hidden) * np.exp(rng.normal(0, 0.3)))[..., None]


def ghost(rng: np.random.Generator, frames: int, camera: Camera) -> np.ndarray:
    """(T, V, 3) a piece of furniture taken for a body: flat, wide and still."""
    shape = forward_kinematics(performer_offsets(rng), np.zeros((1, NTU25.num_joints, 3))) * (2.5, 0.25, 1.0)
    place = rng.uniform((-1.2, 0.3, 0.2), (1.2, 0.6, 0.8))
    return film(rng, np.repeat(0.8 * shape + place, frames, axis=0), camera)
