"""NTU RGB+D 60 and 120: `.skeleton` text files of Kinect v2.

Number of frames; for each frame the number of bodies; for each body a line of 10 numbers (the first is the tracking
id), the number of joints, and for each joint a line of 12 numbers (the first three are x, y, z in metres). The other
numbers are not used: their count is checked, and that they are written as numbers; some recordings hold NaN there.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from datamodules.readers import MalformedFile, OneClipAFile, RawSample
from datamodules.readers.files import FARTHEST, candidates, read_bytes
from datamodules.topology import NTU25, SkeletonTopology

NAME = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})\.skeleton", re.ASCII)
NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
# Bytes of a file without damage; a field of these bytes, or of a spelling of NaN or infinity, passes for a number.
REGULAR_BYTES = b"0123456789+-.eE \r\n"
FIELD = re.compile(rb"[0-9+\-.eE]+|[+-]?(?i:nan|inf|infinity|\d+\.#[A-Z]+)")
BODY_FIELDS, JOINT_FIELDS, AXES = 10, 12, 3
JOINTS = NTU25.num_joints
LINES_OF_BODY = 2 + JOINTS
# What Kinect v2 follows at once: more than that and than the file can hold is a false claim, less a file cut short.
TRACKED_BODIES = 6
DECIMALS = 10
# The longest recordings take some 3 MB. The bound holds for the text and for the array made of it.
MAX_BYTES = 32 << 20


@dataclass(frozen=True)
class NTUReader(OneClipAFile):
    """Reads `.skeleton` files named SsssCcccPpppRrrrAaaa (setup, camera, performer, replication, action).

    actions: classes of the set (60 or 120); a file of a later action is refused.
    """

    actions: int = 60
    topology: ClassVar[SkeletonTopology] = NTU25
    pattern: ClassVar[str] = "*.skeleton"

    def files(self, raw: Path) -> list[Path]:
        """Candidate files sorted by name; raises InputError if there is none."""
        return candidates(Path(raw), self.pattern, "NTU RGB+D files named like S001C001P001R001A001.skeleton")

    def read(self, path: Path) -> RawSample:
        """One recording; raises MalformedFile."""
        path = Path(path)
        setup, camera, performer, replication, action = self._name_numbers(path)
        data = read_bytes(path, MAX_BYTES)
        try:
            recording = parse_regular(data)
        except (ValueError, IndexError):  # damaged or only unusual: the careful pass tells which
            recording = parse_carefully(path, data)
        joints, body_ids = _assemble(path, recording)
        return RawSample(path.stem, joints, body_ids, action - 1, performer, camera, setup, replication)

    def _name_numbers(self, path: Path) -> tuple[int, ...]:
        match = NAME.fullmatch(path.name)
        numbers = tuple(map(int, match.groups())) if match else ()
        if not match or min(numbers) < 1:
            raise MalformedFile(path, None, "is not named SsssCcccPpppRrrrAaaa.skeleton, numbers from 1")
        if numbers[-1] > self.actions:
            raise MalformedFile(path, None, f"is of action {numbers[-1]}, this set has {self.actions}")
        return numbers


class Recording(NamedTuple):
    """What a file says: bodies of each frame, and of each body in file order its id and (bodies, V, 3) coordinates."""

    bodies: list[int]
    ids: list[int]
    coordinates: np.ndarray


def parse_regular(data: bytes) -> Recording:
    """The fast pass, for text laid out as the recorder writes it; raises ValueError or IndexError for any other."""
    if data.translate(None, REGULAR_BYTES):
        raise ValueError("bytes that no number holds")
    lines = data.split(b"\r\n" if b"\r" in data[:32] else b"\n")
    while lines and not lines[-1]:
        lines.pop()
    bodies, ids, rows = [], [], []
    at = 1
    for _ in range(_regular_count(lines[0])):
        bodies.append(_regular_count(lines[at]))
        at += 1
        for _ in range(bodies[-1]):
            body = lines[at].split()
            if len(body) != BODY_FIELDS or _regular_count(lines[at + 1]) != JOINTS:
                raise ValueError("not a body")
            ids.append(int(body[0]))
            rows += lines[at + 2 : at + LINES_OF_BODY]
            at += LINES_OF_BODY
    if at != len(lines) or not rows:
        raise ValueError("lines too many or too few, or no body")
    return Recording(bodies, ids, _regular_points(rows).reshape(-1, JOINTS, AXES))


def _regular_count(line: bytes) -> int:
    if not line.isdigit():
        raise ValueError("not a count")
    return int(line)


def _regular_points(rows: list[bytes]) -> np.ndarray:
    """(lines, 3): the first three of twelve numbers separated by single blanks."""
    text = np.frombuffer(b"\n".join(rows) + b"\n" + bytes(DECIMALS), np.uint8)
    ends = np.flatnonzero(text[:-DECIMALS] <= ord(" "))
    starts = np.concatenate(([0], ends[:-1] + 1))
    separators = text[ends].reshape(-1, JOINT_FIELDS)
    if (separators != np.frombuffer(b" " * (JOINT_FIELDS - 1) + b"\n", np.uint8)).any() or (starts == ends).any():
        raise ValueError("not twelve numbers a line")
    first = np.s_[:, :AXES]
    starts, ends = (edge.reshape(-1, JOINT_FIELDS)[first].ravel() for edge in (starts, ends))
    return _decimals(text, starts, ends).reshape(-1, AXES)


def _decimals(text: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Numbers written at text[start:end], as `float` reads them.

    Nearly all are [-]d.d with at most ten decimals: their digits make an integer below 2^53, which is exact in float64,
    and so one division rounds as `float` does.
    """
    negative = text[starts] == ord("-")
    whole = starts + negative
    decimals = np.clip(ends - whole - 2, 0, DECIMALS + 1).astype(np.uint8)
    # Overlapping records of ten bytes: fetching one each is several times faster than fetching ten bytes each.
    records = np.ndarray(len(text) - DECIMALS + 1, f"V{DECIMALS}", text, strides=(1,))
    digits = records[whole + 2].view(np.uint8).reshape(-1, DECIMALS) - ord("0")
    digits *= np.arange(DECIMALS, dtype=np.uint8) < decimals[:, None]
    lead = text[whole] - ord("0")
    regular = (decimals <= DECIMALS) & (text[whole + 1] == ord(".")) & (lead < 10)
    regular[np.flatnonzero(digits > 9) // DECIMALS] = False
    scale = 10.0**DECIMALS
    values = (lead * scale + digits @ 10.0 ** np.arange(DECIMALS - 1, -1, -1)) / scale
    values[negative] *= -1
    for other in np.flatnonzero(~regular):
        values[other] = _coordinate(text[starts[other] : ends[other]].tobytes())
    return values


def _coordinate(field: bytes) -> float:
    """Metres; raises ValueError for what is not a finite, plausible number."""
    if not NUMBER.fullmatch(field) or abs(float(field)) > FARTHEST:
        raise ValueError(f"expected a coordinate in metres, found {_shown(field)}")
    return float(field)


def _tracking_id(field: bytes) -> int:
    """Kinect's ids are 64-bit integers, but any finite number tells two bodies apart."""
    try:
        return int(field)
    except ValueError:
        if not NUMBER.fullmatch(field) or float(field) == float("inf"):
            raise ValueError(f"expected a tracking id, found {_shown(field)}") from None
        return int(float(field))


def _shown(field: bytes) -> str:
    return repr(field[:30].decode("ascii", "backslashreplace"))


class _Lines:
    """The lines of one file, taken in order; `at` is the last one taken, counted from 1: the one to blame."""

    def __init__(self, path: Path, data: bytes):
        self.path, self.at = path, 0
        self.lines = data.rstrip().split(b"\n")

    def refusal(self, reason: str) -> MalformedFile:
        return MalformedFile(self.path, self.at, reason)

    def fields(self, number: int, meaning: str) -> list[bytes]:
        if self.at == len(self.lines):
            raise self.refusal(f"the file ends here, {meaning} should follow")
        self.at += 1
        fields = self.lines[self.at - 1].split()
        if len(fields) != number:
            raise self.refusal(f"expected {meaning} in {number} field{'s' * (number > 1)}, found {len(fields)}")
        for field in fields:
            if not FIELD.fullmatch(field):
                raise self.refusal(f"expected {meaning}, found {_shown(field)}, which is not a number")
        return fields

    def count(self, meaning: str) -> int:
        (field,) = self.fields(1, meaning)
        if not field.isdigit() or len(field) > 18:
            raise self.refusal(f"expected {meaning}, found {_shown(field)}")
        return int(field)

    def body(self, meaning: str) -> tuple[int, list[list[float]]]:
        """Tracking id and coordinates of the body whose lines come next."""
        first, *_ = self.fields(BODY_FIELDS, f"a body {meaning}")
        tracking_id = self.converted(_tracking_id, first)
        joints = self.count(f"the number of joints {meaning}")
        if joints != JOINTS:
            raise self.refusal(f"{joints} joints, a skeleton of this set has {JOINTS}")
        points = []
        for joint in range(1, JOINTS + 1):
            fields = self.fields(JOINT_FIELDS, f"joint {joint} of {JOINTS} {meaning}")
            points.append([self.converted(_coordinate, field) for field in fields[:AXES]])
        return tracking_id, points

    def converted(self, convert: Callable[[bytes], Any], field: bytes) -> Any:
        try:
            return convert(field)
        except ValueError as error:
            raise self.refusal(str(error)) from None


def parse_carefully(path: Path, data: bytes) -> Recording:
    """The slow pass, line by line: reads unusual blanks and spellings, raises MalformedFile with the line to blame."""
    lines = _Lines(path, data)
    total = len(lines.lines)
    frames = lines.count("the number of frames")
    if not 0 < frames < total:
        raise lines.refusal(f"{frames} frames do not fit a file of {total} lines")
    bodies, ids, coordinates = [], [], []
    for frame in range(1, frames + 1):
        meaning = f"of frame {frame} of {frames}"
        bodies.append(lines.count(f"the number of bodies {meaning}"))
        if bodies[-1] > max(TRACKED_BODIES, total // LINES_OF_BODY):
            raise lines.refusal(f"{bodies[-1]} bodies do not fit a file of {total} lines")
        for _ in range(bodies[-1]):
            tracking_id, points = lines.body(meaning)
            ids.append(tracking_id)
            coordinates.append(points)
    if lines.at < total:
        lines.at += 1
        raise lines.refusal(f"the {frames} frames are over, {total - lines.at + 1} more lines follow")
    return Recording(bodies, ids, np.array(coordinates, dtype=np.float64))


def _assemble(path: Path, recording: Recording) -> tuple[np.ndarray, np.ndarray]:
    """(T, M, V, 3) float32 and (T, M) ids, bodies in the order of their slot in the frame."""
    bodies = np.array(recording.bodies)
    frames, slots = len(bodies), int(bodies.max())
    if slots == 0:
        raise MalformedFile(path, None, f"has no body in any of its {frames} frames")
    if frames * slots * JOINTS * AXES * 4 > MAX_BYTES:
        raise MalformedFile(path, None, f"{frames} frames of {slots} bodies take more than {MAX_BYTES} bytes")
    frame = np.repeat(np.arange(frames), bodies)
    slot = np.arange(len(frame)) - np.repeat(np.cumsum(bodies) - bodies, bodies)
    joints = np.zeros((frames, slots, JOINTS, AXES), dtype=np.float32)
    joints[frame, slot] = recording.coordinates
    body_ids = np.full((frames, slots), -1, dtype=np.int64)
    body_ids[frame, slot] = _as_int64(recording.ids)
    return joints, body_ids


def _as_int64(ids: list[int]) -> np.ndarray:
    """Ids that int64 cannot hold, or negative ones (-1 means absent), become the smallest numbers no other body has."""
    taken = set(ids)
    free = (number for number in count() if number not in taken)
    odd = sorted(number for number in taken if not 0 <= number < 2**63)
    renamed = {number: next(free) for number in odd}
    return np.array([renamed.get(number, number) for number in ids], dtype=np.int64)
