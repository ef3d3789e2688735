"""The files of PKU-MMD: long videos of several actions, their labels and lists, and some that are broken."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from datamodules.miniature import scenes
from datamodules.miniature.kinematics import Action
from datamodules.topology import NTU25

CAMERAS = {"L": 2, "M": 1, "R": 3}  # letter of a file name -> camera of `scenes`
SKELETONS, LABELS, SPLITS = "PKU_Skeleton", "Label_PKU", "Split"
LIKE = {1: "{:04}", 2: "A{:02}N{:02}"}  # names of videos, without the letter of the camera
_ABSENT = " ".join(["0.000000"] * 3 * NTU25.num_joints)


@dataclass(frozen=True)
class Video:
    """A performance: everyone's joints (people, T, V, 3), zeros while somebody is away, and (action, start, end)."""

    people: np.ndarray
    labels: list[tuple[int, int, int]]


def stem(phase: int, performer: int, take: int) -> str:
    """Name of a video without the letter of its camera."""
    return LIKE[phase].format(10 * performer + take) if phase == 1 else LIKE[phase].format(performer, take)


def shoot(
    rng: np.random.Generator, cast: list[np.ndarray], repertoire: dict[int, tuple[Action, ...]], frames: tuple[int, int]
) -> Video:
    """One take of every action in random order, and between two actions some frames on the way to the next."""
    parts: list[np.ndarray] = []
    labels, at = [], 0
    for action in rng.permutation(list(repertoire)).tolist():
        roles, count = repertoire[action], int(rng.integers(*frames, endpoint=True))
        scene = scenes.stage(rng, cast[: len(roles)], roles, count, rng.normal(0, 20))
        part = np.zeros((len(cast), *scene[0].shape))
        part[: len(scene)] = scene
        if parts:
            way = _way(parts[-1][:, -1], part[:, 0], int(rng.integers(5, 16)))
            parts.append(way)
            at += way.shape[1]
        labels.append((action, at, at + count))
        parts.append(part)
        at += count
    return Video(np.concatenate(parts, axis=1), labels)


def _way(last: np.ndarray, first: np.ndarray, frames: int) -> np.ndarray:
    """(people, frames, V, 3) between two poses; the partner is away."""
    share = np.linspace(0, 1, frames + 2)[1:-1, None, None]
    way = np.zeros((len(last), frames, *last.shape[1:]))
    way[0] = last[0] + share * (first[0] - last[0])
    return way


def files(
    rng: np.random.Generator, name: str, video: Video, sensor: scenes.Camera, spoil: bool
) -> Iterator[tuple[str, bytes]]:
    """Skeleton and label file of one video as one camera sees it; `spoil` adds bad labels."""
    bodies = []
    for joints in video.people:
        there = joints.any(axis=(1, 2))
        bodies.append(np.where(there[:, None, None], scenes.film(rng, joints, sensor), 0))
    lines = [f"{action},{start},{end},{rng.integers(0, 3)}" for action, start, end in video.labels]
    if spoil:
        lines += _bad_labels(len(bodies[0]))
    yield f"{SKELETONS}/{name}.txt", text(np.stack(bodies, axis=1))
    yield f"{LABELS}/{name}.txt", ("\n".join(lines) + "\n").encode()


def text(frames: np.ndarray) -> bytes:
    """The text of a skeleton file of frames (T, bodies, V, 3): a line a frame, all but the first after a blank."""
    row = " ".join(["%.6f"] * 3 * NTU25.num_joints)
    bodies = [[row % tuple(body.ravel().tolist()) if body.any() else _ABSENT for body in frame] for frame in frames]
    return ("\n ".join(" ".join(frame) for frame in bodies) + "\n").encode()


def _bad_labels(length: int) -> list[str]:
    """An action that there is not, one that ends after the video, one without a frame, and a word."""
    return ["60,10,20,2", f"8,10,{length + 1},2", "8,20,20,1", "drink,10,20,2"]


def _broken_stems(phase: int) -> list[str]:
    """A video cut short, one without labels, one on no list."""
    return [f"{stem(phase, 90, take)}-M" for take in (1, 2, 3)]


def rejected(phase: int, first: str, labels: int) -> list[str]:
    """Names of everything that is broken; first: the video with bad labels, behind so many good ones."""
    return sorted([f"{first}.{labels + row:03}" for row in range(1, len(_bad_labels(0)) + 1)] + _broken_stems(phase))


def broken(phase: int) -> Iterator[tuple[str, bytes]]:
    """The files of the videos that are broken."""
    short, unlabelled, unlisted = _broken_stems(phase)
    good = text(np.ones((3, 2, NTU25.num_joints, 3)))
    for name, content in ((short, good[:-30]), (unlabelled, good), (unlisted, good)):
        yield f"{SKELETONS}/{name}.txt", content
    for name in (short, unlisted):
        yield f"{LABELS}/{name}.txt", b"6,0,3,2\n"


def splits(phase: int, learns: dict[str, bool]) -> Iterator[tuple[str, bytes]]:
    """The two split files; learns: for each video whether its performer trains."""
    names = learns | dict.fromkeys(_broken_stems(phase)[:2], True)
    by_view = {name: not name.endswith("L") for name in names}
    suffix = "" if phase == 1 else "_v2"
    for by, trains in (("subject", names), ("view", by_view)):
        sides = [", ".join(name for name in names if trains[name] == side) for side in (True, False)]
        content = f"Training videos: \n{sides[0]}, \n\nValidataion videos: \n{sides[1]}, \n"
        yield f"{SPLITS}/cross-{by}{suffix}.txt", content.encode()
