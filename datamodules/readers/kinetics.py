"""Skeleton-Kinetics: what OpenPose found in the clips of Kinetics-400, as the field shares it, one JSON file a clip.

Folders `kinetics_train` and `kinetics_val` of files `<YouTube id>.json`: "data", a list of frames with "frame_index"
and "skeleton", the people in it, each with "pose" (x and y of 18 joints as shares of the image) and "score" (18
confidences); "label" and "label_index". Beside them `kinetics_train_label.json` and `kinetics_val_label.json`, which
give for every id "label" and "label_index" once more.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datamodules.errors import InputError
from datamodules.readers import MalformedFile, OneClipAFile, RawSample
from datamodules.readers.files import FARTHEST, candidates, read_json
from datamodules.topology import KINETICS18, SkeletonTopology

SIDES = {"kinetics_train": 1, "kinetics_val": 2}  # folder: side in `listed`
CLASSES = 400
PEOPLE = 5  # of a frame; the released code reads no more
JOINTS = KINETICS18.num_joints
LONGEST = 300  # frames: ten seconds at thirty a second
# 300 frames of twenty people take 3 MB; the label file of the training side takes 30 MB.
MAX_BYTES, MAX_LABEL_BYTES = 16 << 20, 256 << 20


@dataclass(frozen=True)
class KineticsReader(OneClipAFile):
    """Reads `kinetics_train/*.json` and `kinetics_val/*.json` below the raw folder.

    Joints hold x, y and confidence, at most the first five people of a frame; frames that the file leaves out are
    empty. `listed` is 1 for the training, 2 for the validation side.
    """

    topology: ClassVar[SkeletonTopology] = KINETICS18

    def files(self, raw: Path) -> list[Path]:
        """Clips of both sides sorted by name; raises InputError if a side or its label file is missing."""
        raw = Path(raw)
        for path in self.companions(raw):
            if not path.is_file():
                raise InputError(
                    f"{raw}: expected {path.name} beside kinetics_train and kinetics_val, found none: add it"
                )
            labels(path)
        found = [candidates(raw / side, "*.json", "Skeleton-Kinetics clips, a JSON file each") for side in SIDES]
        return sorted(found[0] + found[1], key=lambda path: path.name)

    def companions(self, raw: Path) -> list[Path]:
        """The two label files."""
        return [Path(raw) / f"{side}_label.json" for side in SIDES]

    def read(self, path: Path) -> RawSample:
        """One clip; raises MalformedFile."""
        path = Path(path)
        clip = read_json(path, MAX_BYTES)
        if not {"data", "label_index"} <= clip.keys():
            raise MalformedFile(path, None, "expected a JSON object with data and label_index")
        label = _label(path, clip)
        joints, body_ids = _people(path, clip["data"])
        return RawSample(path.stem, joints, body_ids, label, listed=SIDES[path.parent.name])


def _label(path: Path, clip: dict[str, Any]) -> int:
    """The class on which the clip and the label file of its side agree."""
    label = clip["label_index"]
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < CLASSES:
        raise MalformedFile(path, None, f"expected a label_index from 0 to {CLASSES - 1}, found {str(label)[:30]}")
    file = path.parent.with_name(f"{path.parent.name}_label.json")
    listed = labels(file)
    if path.stem not in listed:
        raise MalformedFile(path, None, f"has no entry in {file.name}")
    if listed[path.stem] != label:
        raise MalformedFile(path, None, f"has label_index {label}, {file.name} says {str(listed[path.stem])[:30]}")
    return label


def labels(path: Path) -> dict[str, Any]:
    """Id of each clip -> its class as the label file of one side has it; raises MalformedFile."""
    status = path.stat()
    return _labels(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=2)
def _labels(path: Path, size: int, changed: int) -> dict[str, Any]:
    """`size` and `changed` make a file that was written anew another one."""
    entries = read_json(path, MAX_LABEL_BYTES)
    return {name: entry.get("label_index") if isinstance(entry, dict) else None for name, entry in entries.items()}


def _people(path: Path, data: Any) -> tuple[np.ndarray, np.ndarray]:
    """Joints (T, M, V, 3) float32 and (T, M) ids, the place in the frame's list, -1 where there is nobody."""
    if not isinstance(data, list) or not data:
        raise MalformedFile(path, None, "expected data to be a list of frames")
    frames, places, poses, scores = [], [], [], []
    previous = None
    for number, entry in enumerate(data):
        frame, people = _frame(path, number, entry)
        if previous is not None and frame <= previous:
            raise MalformedFile(path, None, f"frame_index {frame} follows {previous}, expected them to ascend")
        previous = frame
        for place, person in enumerate(people[:PEOPLE]):
            frames.append(frame)
            places.append(place)
            poses.append(_numbers(path, frame, person, "pose", 2 * JOINTS))
            scores.append(_numbers(path, frame, person, "score", JOINTS))
    first, last = data[0]["frame_index"], data[-1]["frame_index"]
    if last - first >= LONGEST:
        raise MalformedFile(path, None, f"spans {last - first + 1} frames, a clip of this set at most {LONGEST}")
    if not poses:
        raise MalformedFile(path, None, f"has nobody in any of its {len(data)} frames")
    values = np.concatenate([_plausible(path, poses, "pose"), _plausible(path, scores, "score")], axis=1)
    shape = (last - first + 1, max(places) + 1)
    joints, body_ids = np.zeros((*shape, JOINTS, 3), dtype=np.float32), np.full(shape, -1)
    at = np.array(frames) - first, np.array(places)
    joints[at] = np.stack(
        [values[:, 0 : 2 * JOINTS : 2], values[:, 1 : 2 * JOINTS : 2], values[:, 2 * JOINTS :]], axis=-1
    )
    body_ids[at] = at[1]
    return joints, body_ids


def _frame(path: Path, number: int, entry: Any) -> tuple[int, list]:
    """Index and people of one frame."""
    if not isinstance(entry, dict):
        entry = {}
    frame, people = entry.get("frame_index"), entry.get("skeleton")
    if not isinstance(frame, int) or isinstance(frame, bool) or not isinstance(people, list):
        raise MalformedFile(path, None, f"entry {number} of data: expected a whole frame_index and a list skeleton")
    return frame, people


def _numbers(path: Path, frame: int, person: Any, key: str, count: int) -> list:
    found = person.get(key) if isinstance(person, dict) else None
    if not isinstance(found, list) or len(found) != count:
        length = f"{len(found)}" if isinstance(found, list) else "none"
        raise MalformedFile(path, None, f"frame {frame}: expected {count} numbers in {key}, found {length}")
    return found


def _plausible(path: Path, rows: list[list], key: str) -> np.ndarray:
    """(rows, numbers) float64; raises MalformedFile for what is no finite number, or a negative confidence."""
    try:
        values = np.array(rows)
    except ValueError:
        values = np.array(rows, dtype=object)
    if (
        values.dtype.kind not in "fi"
        or not (np.abs(values) <= FARTHEST).all()
        or (key == "score" and (values < 0).any())
    ):
        raise MalformedFile(path, None, f"expected finite numbers in {key}{', none below 0' * (key == 'score')}")
    return values.astype(np.float64)
