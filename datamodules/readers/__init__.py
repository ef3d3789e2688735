"""One file a raw format; each reader turns one raw file into a `RawSample` or says why it cannot."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from datamodules.errors import InputError
from datamodules.topology import SkeletonTopology


class MalformedFile(InputError):
    """One raw file that cannot be read: `path`, `line` (counted from 1, None where no line is to blame), `reason`."""

    def __init__(self, path: Path, line: int | None, reason: str):
        self.path, self.line, self.reason = Path(path), line, reason
        place = path.name if line is None else f"{path.name}:{line}"
        super().__init__(f"{place}: {reason}")

    def __reduce__(self):  # exceptions cross process borders by their arguments
        return type(self), (self.path, self.line, self.reason)


@dataclass(frozen=True)
class RawSample:
    """One clip as recorded.

    joints: (T, M, V, C) float32, metres, bodies in the order of their slot in the frame, zeros where a slot is empty.
    body_ids: (T, M) int64 tracking ids, -1 where a slot is empty.
    label counted from 0; performer, camera, setup, replication as the set numbers them, -1 where it has none.
    """

    name: str
    joints: np.ndarray
    body_ids: np.ndarray
    label: int
    performer: int = -1
    camera: int = -1
    setup: int = -1
    replication: int = -1


class Reader(Protocol):
    """What preparation asks of a raw format."""

    topology: SkeletonTopology

    def files(self, raw: Path) -> list[Path]:
        """Candidate files of the raw folder, sorted by name; raises InputError if there is none."""
        ...

    def read(self, path: Path) -> RawSample:
        """One clip; raises MalformedFile."""
        ...
