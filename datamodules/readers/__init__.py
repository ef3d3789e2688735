"""One file a raw format; each reader turns raw files into `RawSample`s or says why it cannot."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np

from datamodules.errors import InputError
from datamodules.topology import SkeletonTopology


class MalformedFile(InputError):
    """A raw file, or one clip of it, that cannot be read.

    path, line: the file to blame and its line, counted from 1, None where no line is to blame. clip: the clip's name,
    where the file holds several and the others are sound.
    """

    def __init__(self, path: Path, line: int | None, reason: str, clip: str = ""):
        self.path, self.line, self.reason, self.clip = Path(path), line, reason, clip
        place = path.name if line is None else f"{path.name}:{line}"
        super().__init__(f"{place}: {reason}")

    def __reduce__(self):  # exceptions cross process borders by their arguments
        return type(self), (self.path, self.line, self.reason, self.clip)


@dataclass(frozen=True)
class RawSample:
    """One clip as recorded.

    joints: (T, M, V, C) float32, metres, bodies in the order of their slot in the frame, zeros where a slot is empty.
    body_ids: (T, M) int64 tracking ids, -1 where a slot is empty.
    label counted from 0; performer, camera, setup, replication as the set numbers them, -1 where it has none.
    listed: where the set's own lists put the clip, one decimal digit a list (1 train, 2 test); -1 where it has none.
    """

    name: str
    joints: np.ndarray
    body_ids: np.ndarray
    label: int
    performer: int = -1
    camera: int = -1
    setup: int = -1
    replication: int = -1
    listed: int = -1


class Reader(Protocol):
    """What preparation asks of a raw format."""

    topology: ClassVar[SkeletonTopology]

    def files(self, raw: Path) -> list[Path]:
        """The files of the raw folder that hold clips, sorted by name; raises InputError if there is none."""
        ...

    def companions(self, raw: Path) -> list[Path]:
        """Other files of the raw folder on which the clips depend: a store older than one of them is out of date."""
        return []

    def clips(self, path: Path) -> Iterator[RawSample | MalformedFile]:
        """The clips of one file in the order of their names, which are the file's without suffix, or that, a full stop
        and more; in place of one that is no good, the reason. Raises MalformedFile where no clip can be read."""
        ...


class OneClipAFile(Reader, Protocol):
    """A format in which every file is one clip, named like the file."""

    def read(self, path: Path) -> RawSample:
        """The clip; raises MalformedFile."""
        ...

    def clips(self, path: Path) -> Iterator[RawSample | MalformedFile]:
        """The one clip of a file."""
        yield self.read(path)
