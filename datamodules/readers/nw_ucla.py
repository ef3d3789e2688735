"""NW-UCLA Multiview Action3D as the field uses it: one JSON file a clip, joints of Kinect v1."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datamodules.readers import MalformedFile, OneClipAFile, RawSample
from datamodules.readers.files import FARTHEST, candidates, read_json
from datamodules.topology import UCLA20, SkeletonTopology

NAME = re.compile(r"a(\d\d)_s(\d\d)_e(\d\d)_v(\d\d)\.json", re.ASCII)
# The numbers of the ten actions in file names; an action's place here is its class.
ACTIONS = (1, 2, 3, 4, 5, 6, 8, 9, 11, 12)
VIEWS = (1, 2, 3)
# The longest clip takes 0.13 MB.
MAX_BYTES = 4 << 20


@dataclass(frozen=True)
class UCLAReader(OneClipAFile):
    """Reads files `aAA_sSS_eEE_vVV.json` (action, performer, replication, view) of 20 joints and one body."""

    topology: ClassVar[SkeletonTopology] = UCLA20
    pattern: ClassVar[str] = "*.json"

    def files(self, raw: Path) -> list[Path]:
        """Candidate files of `raw` or of its folder `all_sqe`, sorted by name; raises InputError if there is none."""
        raw = Path(raw)
        inner = raw / "all_sqe"
        folder = inner if inner.is_dir() else raw
        return candidates(folder, self.pattern, "NW-UCLA files named like a01_s01_e00_v01.json")

    def read(self, path: Path) -> RawSample:
        """One clip; raises MalformedFile."""
        path = Path(path)
        action, performer, replication, view = _name_numbers(path)
        clip = read_json(path, MAX_BYTES)
        if not {"label", "skeletons"} <= clip.keys():
            raise MalformedFile(path, None, "expected a JSON object with label and skeletons")
        label = ACTIONS.index(action)
        if clip.get("file_name", path.stem) != path.stem:
            raise MalformedFile(path, None, f"holds the clip {str(clip['file_name'])[:30]!r}")
        if clip["label"] != label + 1 or isinstance(clip["label"], bool):
            found = str(clip["label"])[:30]
            raise MalformedFile(path, None, f"action {action:02} has label {label + 1}, the file says {found}")
        joints = _joints(path, clip["skeletons"])
        body_ids = np.zeros(joints.shape[:2], dtype=np.int64)
        return RawSample(path.stem, joints, body_ids, label, performer, view, replication=replication)


def _name_numbers(path: Path) -> tuple[int, ...]:
    match = NAME.fullmatch(path.name)
    numbers = tuple(map(int, match.groups())) if match else ()
    if not match or numbers[0] not in ACTIONS or numbers[3] not in VIEWS:
        raise MalformedFile(path, None, f"is not named aAA_sSS_eEE_vVV.json, AA one of {ACTIONS}, VV one of {VIEWS}")
    return numbers


def _joints(path: Path, skeletons: Any) -> np.ndarray:
    """(T, 1, V, 3) float32 from nested lists of frames, joints and axes."""
    expected = (UCLA20.num_joints, 3)
    try:
        joints = np.asarray(skeletons)
    except ValueError:  # frames of different shapes
        raise MalformedFile(path, None, _uneven(skeletons, expected)) from None
    if joints.shape[1:] != expected or joints.dtype.kind not in "fi":
        raise MalformedFile(
            path, None, f"expected frames x {expected[0]} joints x 3 numbers, found {joints.shape} of {joints.dtype}"
        )
    beyond = ~(np.abs(joints) <= FARTHEST)
    if beyond.any():
        frame, joint, axis = np.argwhere(beyond)[0]
        raise MalformedFile(
            path, None, f"frame {frame}, joint {joint}: {joints[frame, joint, axis]} is no coordinate in metres"
        )
    return joints[:, None].astype(np.float32)


def _uneven(skeletons: list, expected: tuple[int, int]) -> str:
    for number, frame in enumerate(skeletons):
        try:
            shape = np.shape(frame)
        except ValueError:
            return f"frame {number}: joints without {expected[1]} numbers"
        if shape != expected:
            return f"frame {number}: expected {expected[0]} joints x {expected[1]} numbers, found {shape}"
    return f"expected frames x {expected[0]} joints x {expected[1]} numbers"
