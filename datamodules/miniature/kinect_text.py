"""The text files of NTU RGB+D: what Kinect v2 records of a scene, its quirks included, and files that are broken."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from datamodules.miniature import scenes
from datamodules.topology import NTU25

FIRST_ID = 72057594037900000
# How often a clip has: a piece of furniture tracked as a body, a body lost and found under a new id, late tracking.
GHOST, LOST, LATE = 0.03, 0.02, 0.04
# An action that the miniature does not have, so that a broken file takes no place of a good one.
BROKEN = (
    "S001C001P001R001A002.skeleton",
    "S001C002P001R001A002.skeleton",
    "S001C003P001R001A002.skeleton",
    "S001C001P002R001A002.skeleton",
    "S001C001P001R001.skeleton",
)

# x y z in metres, depth and colour pixel, orientation, tracking state: the digits that are worth their bytes.
_JOINT = "%.4f %.4f %.4f %.1f %.1f %.1f %.1f %.3f %.3f %.3f %.3f 2"
_CHILD, _PARENT = np.array(NTU25.bones).T
_ENDS = np.array([name.split()[-1] in {"head", "foot", "tip", "thumb"} for name in NTU25.joint_names])


@dataclass(frozen=True)
class Body:
    """One tracked body: its id, the first frame in which it is seen, and its joints (frames, V, 3) from there on."""

    tracking_id: int
    first: int
    joints: np.ndarray


def track(rng: np.random.Generator, scene: list[np.ndarray], camera: scenes.Camera) -> list[Body]:
    """What the sensor makes of people's joints (T, V, 3): bodies in the order of their slots."""
    frames = len(scene[0])
    ids = iter(FIRST_ID + rng.choice(100_000, size=2 * len(scene) + 1, replace=False))
    late = int(rng.integers(1, min(6, frames // 3))) if rng.random() < LATE else 0
    bodies = []
    for joints in scene:
        seen = scenes.film(rng, joints, camera)
        lost = int(rng.integers(frames // 3, frames - 5)) if rng.random() < LOST else frames
        found = lost + int(rng.integers(0, 4))
        bodies.append(Body(next(ids), late, seen[late:lost]))
        if found < frames:
            bodies.append(Body(next(ids), found, seen[found:]))
    if rng.random() < GHOST:
        length = int(rng.integers(4, frames // 2))
        bodies.append(Body(next(ids), int(rng.integers(0, frames - length)), scenes.ghost(rng, length, camera)))
    return [bodies[slot] for slot in rng.permutation(len(bodies))]


def recording(bodies: list[Body], line_end: str = "\n") -> bytes:
    """The text of one file; a frame without any body has the single line 0."""
    frames = max(body.first + len(body.joints) for body in bodies)
    texts = [dict(enumerate(_body_texts(body), start=body.first)) for body in bodies]
    lines = [str(frames)]
    for frame in range(frames):
        present = [text[frame] for text in texts if frame in text]
        lines += [str(len(present)), *present]
    return ("\n".join(lines) + "\n").replace("\n", line_end).encode()


def _body_texts(body: Body) -> list[str]:
    """For each frame the lines of one body: id and state, number of joints, one line a joint."""
    joints = body.joints
    x, y, depth = np.moveaxis(joints, -1, 0)
    right, up = x / depth, y / depth
    pixels = np.stack([256 + 367 * right, 208 - 367 * up, 974 + 1086 * right, 567 - 1055 * up], axis=-1)
    numbers = np.concatenate([joints, pixels, _orientations(joints)], axis=-1).reshape(len(joints), -1)
    lean = (joints[:, NTU25.joint_names.index("spine shoulder")] - joints[:, 0])[:, [0, 2]]
    head = f"{body.tracking_id} 0 1 1 1 1 0 %.3f %.3f 2"
    block = "\n".join([head, str(NTU25.num_joints), *[_JOINT] * NTU25.num_joints])
    return [block % tuple(row) for row in np.concatenate([lean, numbers], axis=1).tolist()]


def _orientations(joints: np.ndarray) -> np.ndarray:
    """(T, V, 4) quaternions w x y z that turn y onto the bone from the parent, zero where Kinect gives none."""
    bones = np.zeros_like(joints)
    bones[:, _CHILD] = joints[:, _CHILD] - joints[:, _PARENT]
    bones /= np.maximum(np.linalg.norm(bones, axis=-1, keepdims=True), 1e-6)
    half = np.stack([1 + bones[..., 1], bones[..., 2], np.zeros_like(bones[..., 0]), -bones[..., 0]], axis=-1)
    half /= np.maximum(np.linalg.norm(half, axis=-1, keepdims=True), 1e-6)
    return half * ~_ENDS[:, None]


def broken(rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Names of `BROKEN` and their content: cut short, a word for a number, 10^9 frames, no body at all, mis-named."""
    still = np.zeros((12, 1, 3)) + np.array([0, 0, 3]) + rng.normal(0, 0.1, size=(NTU25.num_joints, 3))
    good = recording([Body(FIRST_ID, 0, still)])
    lines = good.split(b"\n")
    word = b"\n".join([*lines[:40], b"left " + lines[40].partition(b" ")[2], *lines[41:]])
    contents = (good[: len(good) // 2], word, good.replace(b"12", b"1000000000", 1), b"3\n0\n0\n0\n", good)
    yield from zip(BROKEN, contents, strict=True)
