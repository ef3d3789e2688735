"""PKU-MMD, phases 1 and 2: one text file a video, cut into action clips by its label file.

A line of `0002-L.txt` (phase 1) or `A10N08-L.txt` (phase 2) is a frame: two bodies x 25 joints x 3 numbers in metres,
zeros for a body that is not there. A line of the label file of the same name is `action,start,end,confidence`: the clip
holds the frames start to end - 1, counted from 0. Two split files name the videos that train and those that validate.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from datamodules.errors import InputError
from datamodules.readers import MalformedFile, RawSample, Reader
from datamodules.readers.files import FARTHEST, candidates, read_bytes
from datamodules.topology import NTU25, SkeletonTopology

NAMES = {1: re.compile(r"\d{4}-([LMR])\.txt", re.ASCII), 2: re.compile(r"A\d\dN\d\d-([LMR])\.txt", re.ASCII)}
EXAMPLES = {1: "0002-L.txt", 2: "A10N08-L.txt"}
CAMERAS = "LMR"  # left, middle and right are cameras 1, 2 and 3
LABEL = re.compile(r" *(\d{1,9}) *, *(\d{1,9}) *, *(\d{1,9}) *, *-?\d+(\.\d*)? *", re.ASCII)
HEADERS = ("training videos", "valid")  # the released files say "Validataion videos"
TRAIN, TEST = 1, 2
ACTIONS = 51  # phase 2 keeps the numbers of phase 1 and uses 41 of them
BODIES = 2
NUMBERS = BODIES * NTU25.num_joints * 3
# Four minutes at 30 frames a second take 10 MB.
MAX_BYTES, MAX_LABEL_BYTES, MAX_SPLIT_BYTES = 64 << 20, 64 << 10, 1 << 20
MAX_CLIPS = 999  # of one video; about twenty are usual


@dataclass(frozen=True)
class PKUReader(Reader):
    """Reads a folder with a folder of skeleton files, one of label files, and the split files.

    The two folders are found by "skeleton" and "label" in their names; the files `cross-subject*.txt` and
    `cross-view*.txt` stand beside them or in a folder with "split" in its name. A clip is called after its video and
    the line of its label, `0002-L.001`. phase: 1 or 2, which says how videos are called.
    """

    phase: int
    topology: ClassVar[SkeletonTopology] = NTU25

    def __post_init__(self):
        if self.phase not in NAMES:
            raise InputError(f"PKU-MMD: expected phase 1 or 2, found {self.phase}: choose one")

    def files(self, raw: Path) -> list[Path]:
        """Skeleton files sorted by name; raises InputError if there are none, or no labels or split files."""
        layout = Layout.of(Path(raw))
        for path in layout.splits:
            sides(path)
        return candidates(layout.skeletons, "*.txt", f"skeleton files of PKU-MMD named like {EXAMPLES[self.phase]}")

    def companions(self, raw: Path) -> list[Path]:
        """Label and split files."""
        layout = Layout.of(Path(raw))
        return [*layout.splits, *sorted(layout.labels.glob("*.txt"))]

    def clips(self, path: Path) -> Iterator[RawSample | MalformedFile]:
        """The labelled clips of one video; raises MalformedFile."""
        path = Path(path)
        match = NAMES[self.phase].fullmatch(path.name)
        if not match:
            raise MalformedFile(path, None, f"is not named like {EXAMPLES[self.phase]}, a video of phase {self.phase}")
        layout = Layout.of(path.parent.parent)
        listed = _listed(path, layout)
        labels = layout.labels / path.name
        if not labels.is_file():
            raise MalformedFile(path, None, f"has no label file in {layout.labels.name}")
        frames = _frames(path, read_bytes(path, MAX_BYTES))
        for number, line in _lines(labels):
            name = f"{path.stem}.{number:03}"
            try:
                action, start, end = _interval(line, len(frames))
            except ValueError as error:
                yield MalformedFile(labels, number, str(error), clip=name)
            else:
                joints, body_ids = _bodies(frames[start:end])
                camera = CAMERAS.index(match[1]) + 1
                yield RawSample(name, joints, body_ids, action - 1, camera=camera, listed=listed)


@dataclass(frozen=True)
class Layout:
    """Where the parts of one phase lie: two folders, and the lists by subject and by view."""

    skeletons: Path
    labels: Path
    splits: tuple[Path, Path]

    @classmethod
    def of(cls, raw: Path) -> "Layout":
        """Raises InputError where a part is missing or found twice."""
        folders = sorted(entry for entry in raw.iterdir() if entry.is_dir()) if raw.is_dir() else []

        def one(found: list[Path], expected: str) -> Path:
            if len(found) != 1:
                names = ", ".join(path.name for path in found) or "none"
                raise InputError(
                    f"{raw}: expected one {expected}, found {names}: give the folder that holds skeletons, labels and "
                    "split files of one phase of PKU-MMD"
                )
            return found[0]

        skeletons, labels = (
            one([folder for folder in folders if word in folder.name.lower()], f"folder with {word!r} in its name")
            for word in ("skeleton", "label")
        )
        lists = [raw, *(folder for folder in folders if "split" in folder.name.lower())]
        subject, view = (
            one(
                [path for folder in lists for path in sorted(folder.glob(f"cross[-_]{by}*.txt"))],
                f"file cross-{by}*.txt",
            )
            for by in ("subject", "view")
        )
        return cls(skeletons, labels, (subject, view))


def sides(path: Path) -> dict[str, int]:
    """Name of each video of a split file -> 1 where it trains, 2 where it validates; raises InputError."""
    status = path.stat()
    return _sides(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _sides(path: Path, size: int, changed: int) -> dict[str, int]:
    """`size` and `changed` make a file that was written anew another one."""
    found: dict[str, int] = {}
    side = 0
    for number, line in enumerate(_text(path, MAX_SPLIT_BYTES).splitlines(), start=1):
        text = line.strip()
        if text.endswith(":") and side < len(HEADERS) and text.lower().startswith(HEADERS[side]):
            side += 1
            continue
        for name in filter(None, map(str.strip, text.split(","))):
            if side == 0 or found.get(name, side) != side or ":" in name:
                raise InputError(
                    f"{path.name}:{number}: expected a heading and videos each on one side, found {name[:30]!r}: "
                    "take the split file as released"
                )
            found[name] = side
    if set(found.values()) != {TRAIN, TEST}:
        raise InputError(
            f"{path.name}: expected a list after 'Training videos:' and one after 'Validataion videos:' (so spelled), "
            f"found {len(set(found.values()))}: take the split file as released"
        )
    return found


def _listed(path: Path, layout: Layout) -> int:
    """Side by subject and side by view as two decimal digits."""
    digits = 0
    for split in layout.splits:
        listed = sides(split)
        if path.stem not in listed:
            raise MalformedFile(path, None, f"is on neither side of {split.name}")
        digits = 10 * digits + listed[path.stem]
    return digits


def _text(path: Path, limit: int) -> str:
    try:
        return read_bytes(path, limit).decode("ascii")
    except UnicodeDecodeError:
        raise MalformedFile(path, None, "is not plain text") from None


def _lines(labels: Path) -> list[tuple[int, str]]:
    """Number, counted from 1, and text of the lines of a label file that are not blank; raises MalformedFile."""
    lines = [
        (number, line)
        for number, line in enumerate(_text(labels, MAX_LABEL_BYTES).splitlines(), start=1)
        if line.strip()
    ]
    if not lines:
        raise MalformedFile(labels, None, "labels no action")
    if lines[-1][0] > MAX_CLIPS:
        raise MalformedFile(labels, None, f"has {lines[-1][0]} lines, a video at most {MAX_CLIPS}")
    return lines


def _interval(line: str, frames: int) -> tuple[int, int, int]:
    """Action, start and end of one label; raises ValueError with the reason where there is no such clip."""
    match = LABEL.fullmatch(line)
    if not match:
        raise ValueError(f"expected action,start,end,confidence, found {line.strip()[:30]!r}")
    action, start, end = map(int, match.groups()[:3])
    if not 1 <= action <= ACTIONS:
        raise ValueError(f"expected an action from 1 to {ACTIONS}, found {action}")
    if start >= end:
        raise ValueError(f"the clip is empty: it starts at frame {start} and ends at {end}")
    if end > frames:
        raise ValueError(f"the clip ends at frame {end}, its video has {frames}")
    return action, start, end


def _bodies(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Joints (T, M, V, 3) of the slots that somebody is in, and (T, M) ids: the slot, -1 where it is empty."""
    there = np.asarray(frames.any(axis=(2, 3)))
    slots = np.flatnonzero(there.any(axis=0))
    slots = slots if len(slots) else np.array([0])
    return frames[:, slots], np.where(there[:, slots], slots, -1)


def _frames(path: Path, data: bytes) -> np.ndarray:
    """(T, 2, V, 3) float32 of a skeleton file; raises MalformedFile with the line to blame."""
    lines = data.rstrip().split(b"\n")
    if not data.strip():
        raise MalformedFile(path, None, "holds no frame")
    try:
        numbers = np.loadtxt(lines, ndmin=2, comments=None)
    except ValueError:
        numbers = np.zeros((0, 0))
    if numbers.shape != (len(lines), NUMBERS) or not (np.abs(numbers) <= FARTHEST).all():
        raise _blamed(path, lines)
    return numbers.astype(np.float32).reshape(len(lines), BODIES, NTU25.num_joints, 3)


def _blamed(path: Path, lines: list[bytes]) -> MalformedFile:
    """What is wrong with the first line that is no frame."""
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if len(fields) != NUMBERS:
            return MalformedFile(path, number, f"expected {NUMBERS} numbers, found {len(fields)}")
        for field in fields:
            try:
                plausible = abs(float(field)) <= FARTHEST
            except ValueError:
                plausible = False
            if not plausible:
                shown = field[:30].decode("ascii", "backslashreplace")
                return MalformedFile(path, number, f"expected a coordinate in metres, found {shown!r}")
    return MalformedFile(path, None, "holds numbers in an unusual spelling")
