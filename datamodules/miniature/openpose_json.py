"""The files of Skeleton-Kinetics: figures as OpenPose finds them in an image, and files that are broken."""

import json
from collections.abc import Iterator

import numpy as np

from datamodules.miniature import scenes
from datamodules.topology import KINETICS18, NTU25

SIDES = ("kinetics_train", "kinetics_val")
# Focal lengths as shares of the image, of the colour camera of Kinect v2.
_FOCAL = np.array([0.57, 0.98])
_UNSEEN, _HIDDEN, _NOBODY = 0.02, 0.4, 0.03  # chances: a joint, a joint behind the body, a frame
_BODY = [NTU25.joint_names.index(name if name != "neck" else "spine shoulder") for name in KINETICS18.joint_names[1:14]]
# Nose, eyes and ears from the middle of the head, metres to the right, up and forward.
_FACE = {
    "nose": (0, 0, 0.10), "right eye": (0.03, 0.03, 0.09), "left eye": (-0.03, 0.03, 0.09),
    "right ear": (0.07, 0.01, 0), "left ear": (-0.07, 0.01, 0),
}  # fmt: skip


def keypoints(joints: np.ndarray) -> np.ndarray:
    """Joints (T, 25, 3) of Kinect v2 -> the 18 that OpenPose looks for (T, 18, 3), in the same axes."""
    place = {
        name: joints[:, NTU25.joint_names.index(name)] for name in ("head", "neck", "right shoulder", "left shoulder")
    }
    up, right = _unit(place["head"] - place["neck"]), _unit(place["right shoulder"] - place["left shoulder"])
    axes = np.stack([right, up, np.cross(up, right)], axis=1)
    found = np.zeros((len(joints), KINETICS18.num_joints, 3))
    found[:, 1:14] = joints[:, _BODY]
    for name, offset in _FACE.items():
        found[:, KINETICS18.joint_names.index(name)] = place["head"] + np.array(offset) @ axes
    return found


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def detect(rng: np.random.Generator, joints: np.ndarray) -> np.ndarray:
    """(T, 18, 3): x and y as shares of the image and the confidence, of joints (T, 25, 3) in a camera's axes."""
    points = keypoints(joints)
    behind = points[..., 2] > points[:, 1:2, 2] + 0.12
    found = np.zeros_like(points)
    found[..., :2] = 0.5 - _FOCAL * points[..., :2] / points[..., 2:]
    found[..., :2] += rng.normal(0, 0.004, found[..., :2].shape)
    found[..., 2] = np.clip(rng.normal(0.75 - 0.2 * behind, 0.1), 0.05, 0.99)
    outside = ((found[..., :2] < 0) | (found[..., :2] > 1)).any(axis=-1)
    found[outside | (rng.random(behind.shape) < np.where(behind, _HIDDEN, _UNSEEN))] = 0
    return found


def clip(
    rng: np.random.Generator, scene: list[np.ndarray], camera: scenes.Camera, bystanders: int, label: dict
) -> bytes:
    """The file of one clip: everyone's joints (T, V, 3) on a stage, and people who stand about."""
    people = [detect(rng, scenes.film(rng, joints, camera)) for joints in scene]
    people += [_bystander(rng, people[0]) for _ in range(bystanders)]
    frames = []
    for number in range(len(people[0])):
        order = [] if rng.random() < _NOBODY else rng.permutation(len(people)).tolist()
        seen = [people[one][number] for one in order if people[one][number].any()]
        frames.append({"frame_index": number + 1, "skeleton": [_person(points) for points in seen]})
    return json.dumps({"data": frames, **label}).encode()


def _bystander(rng: np.random.Generator, person: np.ndarray) -> np.ndarray:
    """Somebody smaller, still and less sure elsewhere in the image."""
    still = np.repeat(person[:1] * (0.5, 0.5, 0.5) + (*rng.uniform((0, 0.2), (0.5, 0.4)), 0), len(person), axis=0)
    still[..., :2] += rng.normal(0, 0.003, still[..., :2].shape)
    return np.where(still[..., 2:] > 0, still, 0)


def _person(points: np.ndarray) -> dict[str, list[float]]:
    return {"pose": points[:, :2].ravel().round(3).tolist(), "score": points[:, 2].round(3).tolist()}


def broken(label: dict) -> Iterator[tuple[str, bytes]]:
    """Id and content: cut short, a number too few, nobody at all, another label than listed, and one on no list."""
    person = {"pose": [0.5] * 36, "score": [0.5] * 18}
    good = {"data": [{"frame_index": 1, "skeleton": [person]}], **label}
    text = json.dumps(good).encode()
    yield "mini-broken", text[:-40]
    yield (
        "mini-fewer",
        json.dumps({**good, "data": [{"frame_index": 1, "skeleton": [{**person, "pose": [0.5] * 35}]}]}).encode(),
    )
    yield "mini-nobody", json.dumps({**good, "data": [{"frame_index": 1, "skeleton": []}]}).encode()
    yield "mini-other", json.dumps({**good, "label_index": label["label_index"] + 1}).encode()
    yield UNLISTED, text


UNLISTED = "mini-unlisted"
