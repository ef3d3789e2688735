"""Prepared clips on disk: flat memory-mapped arrays, an index, and a manifest that says what they are.

A store is a folder with `joints.npy` (float32, all clips one after the other), `body_ids.npy` (raw stores only),
`index.npz` and `manifest.json`. It is written beside its final name and renamed, so a folder of that name is whole.
"""

import hashlib
import json
import math
import os
import shutil
import time
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import BinaryIO

import numpy as np

from datamodules.errors import InputError
from datamodules.topology import TOPOLOGIES, SkeletonTopology

FORMAT = 1  # to be raised, too, when a reader or a recipe comes to give other numbers
AXES = 3  # numbers of a joint
MINIATURE = ("", "miniature")  # what a configuration says for the embedded set; empty: an empty environment variable
MANIFEST, STAMP = "manifest.json", "verified.json"
JOINTS, BODY_IDS, INDEX = "joints.npy", "body_ids.npy", "index.npz"
# What a store's numbers depend on, and nothing else: neither path, time and tool nor what was rejected.
CONTENT = ("format", "dataset", "miniature", "topology", "recipe", "raw_digest", "files")
RACY_NS = 2_000_000_000  # a file changed so shortly before its hash could change again within the clock's grain
AGAIN = "prepare the data set again with prepare.py"


def store_folder(stores: str | Path, name: str, raw: str | Path) -> Path:
    """Where the prepared data of `raw` stands: one folder for each raw folder, so that no two can be confused."""
    if str(raw) in MINIATURE:
        return Path(stores) / f"{name}-miniature"
    tag = hashlib.sha256(str(Path(raw).expanduser().resolve()).encode()).hexdigest()[:10]
    return Path(stores) / f"{name}-{tag}"


@dataclass(frozen=True)
class StoreIndex:
    """One row a clip, sorted by name; every field is an array (N,).

    names: str. offsets: int64, where the clip starts in `joints.npy`, in numbers. frames, bodies: int64 sizes.
    labels (counted from 0), performers, cameras, setups, replications: int64, -1 where the set has none.
    listed: int64, sides of the set's own lists as in `RawSample`; only sets that have such lists store it.
    """

    names: np.ndarray
    offsets: np.ndarray
    frames: np.ndarray
    bodies: np.ndarray
    labels: np.ndarray
    performers: np.ndarray
    cameras: np.ndarray
    setups: np.ndarray
    replications: np.ndarray
    listed: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __post_init__(self):
        if len(self.listed) == 0:
            object.__setattr__(self, "listed", np.full(len(self.names), -1))

    def __len__(self) -> int:
        return len(self.names)


INDEX_FIELDS = tuple(field.name for field in fields(StoreIndex))


class SkeletonStore:
    """A prepared store, verified on opening and read through a memory map.

    path: folder of one store (`.../raw`, `.../agcn`, `.../dsta`).
    Raises InputError for what is no store, is half-written, of another format, or differs from its manifest.

    Verification compares the SHA-256 of every file with the manifest. As that reads gigabytes, a success is noted in
    `verified.json` with size, modification time, change time and inode of every file; while those stand, later
    openings trust it. The change time moves with every write and copy and cannot be set by `touch`. This finds
    accidents, not forgers: who can write the folder can also write its manifest.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        _verify(self.path, self.manifest)
        self._load()

    def _load(self) -> None:
        self.index = _read_index(self.path / INDEX)
        self._joints = _mapped(self.path / JOINTS)
        self._body_ids = _mapped(self.path / BODY_IDS) if BODY_IDS in self.manifest["files"] else None

    def __reduce__(self) -> tuple:
        """A worker process maps the files itself; the arrays are not sent and not verified once more."""
        return _reopen, (self.path, self.manifest)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def digest(self) -> str:
        """SHA-256 of the content: the same for the same clips, wherever, whenever and in whatever order prepared."""
        return self.manifest["digest"]

    @property
    def topology(self) -> SkeletonTopology:
        return TOPOLOGIES[self.manifest["topology"]]

    def clip(self, row: int) -> np.ndarray:
        """Joints (T, M, V, C) float32 of one clip: a read-only view of the file."""
        index = self.index
        shape = (int(index.frames[row]), int(index.bodies[row]), self.topology.num_joints, AXES)
        return _window(self._joints, int(index.offsets[row]), shape)

    def body_ids(self, row: int) -> np.ndarray:
        """Tracking ids (T, M) int64 of one clip of a raw store, -1 where a slot is empty: a read-only view."""
        if self._body_ids is None:
            raise ValueError(f"{self.path} is a derived store and has no body ids")
        index, per_body = self.index, self.topology.num_joints * AXES
        shape = (int(index.frames[row]), int(index.bodies[row]))
        return _window(self._body_ids, int(index.offsets[row]) // per_body, shape)


def open_derived(root: str | Path, recipe: str) -> SkeletonStore:
    """The store of one recipe below `root`, refused with InputError if it was not derived from the raw store there."""
    raw, derived = read_manifest(Path(root) / "raw"), SkeletonStore(Path(root) / recipe)
    if derived.manifest["raw_digest"] != raw["digest"]:
        raise InputError(f"{derived.path}: expected one derived from {root}/raw, found one of other raw data: {AGAIN}")
    return derived


def read_manifest(path: Path) -> dict:
    """The manifest of a store, checked in itself (not against the files); InputError says what is wrong with it."""
    if not path.is_dir():
        raise InputError(f"{path}: expected a prepared store, found no such folder: {AGAIN}")
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        found = manifest["format"]
    except FileNotFoundError:
        raise InputError(f"{path}: expected {MANIFEST}, found none, the store is half-written: {AGAIN}") from None
    except (OSError, ValueError, TypeError, KeyError):
        raise InputError(f"{path}: expected a store's {MANIFEST}, found something else: {AGAIN}") from None
    if found != FORMAT:
        raise InputError(f"{path}: expected store format {FORMAT}, found {found!r}: {AGAIN}")
    if not set(CONTENT) <= manifest.keys() or manifest.get("digest") != content_digest(manifest):
        raise InputError(f"{path}: {MANIFEST} does not agree with its own digest, it was changed on disk: {AGAIN}")
    return manifest


def content_digest(manifest: dict) -> str:
    """SHA-256 of the part of a manifest on which the store's numbers depend."""
    content = {key: manifest[key] for key in CONTENT}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_store(
    path: Path, index: StoreIndex, joints: Iterable[np.ndarray], body_ids: Iterable[np.ndarray] | None, manifest: dict
) -> None:
    """Write a whole store under a name that is not taken, or nothing under that name.

    joints, body_ids: the clips' numbers in the index's order, in flat pieces of any length, streamed to disk.
    manifest: dataset, miniature, topology, recipe, raw_digest and whatever else is to be recorded.
    """
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    cells = int((index.frames * index.bodies).sum())
    per_body = TOPOLOGIES[manifest["topology"]].num_joints * AXES
    files = {JOINTS: _write_flat(part / JOINTS, joints, cells * per_body, "<f4")}
    if body_ids is not None:
        files[BODY_IDS] = _write_flat(part / BODY_IDS, body_ids, cells, "<i8")
    files[INDEX] = _write_index(part / INDEX, index)
    manifest = {"format": FORMAT, **manifest, "files": files}
    manifest["digest"] = content_digest(manifest)
    with durable(part / MANIFEST) as file:
        file.write((json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())
    _sync_folder(part)
    part.rename(path)
    _sync_folder(path.parent)


def replace_store(new: Path, final: Path) -> None:
    """Give a written store its final name; what stood there is deleted only after it has gone out of the way."""
    settle(final)
    if final.exists():
        final.rename(_set_aside(final))
    new.rename(final)
    _sync_folder(final.parent)
    settle(final)


def settle(final: Path) -> None:
    """Undo or finish a replacement that was killed: the store set aside comes back if its place is empty."""
    aside = _set_aside(final)
    if aside.exists() and not final.exists():
        aside.rename(final)
    shutil.rmtree(aside, ignore_errors=True)


def _set_aside(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def _reopen(path: Path, manifest: dict) -> SkeletonStore:
    store = SkeletonStore.__new__(SkeletonStore)
    store.path, store.manifest = path, manifest
    store._load()
    return store


def _verify(path: Path, manifest: dict) -> None:
    """Compare every file with the manifest, or trust the note of an earlier comparison if nothing moved since."""
    started = time.time_ns()
    try:
        seen = {name: _marks(path / name) for name in manifest["files"]}
    except FileNotFoundError as missing:
        raise InputError(f"{missing.filename}: expected by the store's manifest, found no such file: {AGAIN}") from None
    stamp = {"digest": manifest["digest"], "files": seen}
    if _read_stamp(path / STAMP) == stamp:
        return
    for name, expected in manifest["files"].items():
        if _summary(path / name) != expected:
            raise InputError(f"{path / name}: expected the SHA-256 of the manifest, found other bytes: {AGAIN}")
    if max(marks["ctime_ns"] for marks in seen.values()) < started - RACY_NS:
        _write_stamp(path / STAMP, stamp)


def _marks(path: Path) -> dict[str, int]:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns, "inode": stat.st_ino}


def _read_stamp(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _write_stamp(path: Path, stamp: dict) -> None:
    """Several processes may open one store, and its folder may be read-only: then it is verified at each opening."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(json.dumps(stamp))
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)


def _mapped(path: Path) -> np.ndarray:
    """A read-only view of a flat array on disk; a plain ndarray, since slices of np.memmap are slow."""
    return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)


def _window(flat: np.ndarray, start: int, shape: tuple[int, ...]) -> np.ndarray:
    return flat[start : start + math.prod(shape)].reshape(shape)


def _read_index(path: Path) -> StoreIndex:
    with np.load(path, allow_pickle=False) as arrays:
        return StoreIndex(**arrays)


def _write_index(path: Path, index: StoreIndex) -> dict:
    """An npz whose bytes depend on the arrays alone: np.savez leaves entry times to the Python version."""
    with durable(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name in INDEX_FIELDS:
            if name == "listed" and (index.listed == -1).all():
                continue
            with archive.open(zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0)), "w") as entry:
                np.lib.format.write_array(entry, getattr(index, name), allow_pickle=False)
    return _summary(path)


def _write_flat(path: Path, pieces: Iterable[np.ndarray], length: int, dtype: str) -> dict:
    """Stream pieces into one .npy of a known length; returns its size and SHA-256."""
    with durable(path) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": (length,)})
        header = file.tell()
        for piece in pieces:
            file.write(np.ascontiguousarray(piece, dtype=dtype).data)
        if file.tell() - header != length * np.dtype(dtype).itemsize:
            raise ValueError(f"{path.name}: the pieces do not add up to the {length} numbers that the index announces")
    return _summary(path)


@contextmanager
def durable(path: Path) -> Iterator[BinaryIO]:
    """A file for writing whose bytes are on the disk, not only in its cache, when the block ends well."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _summary(path: Path) -> dict:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync_folder(path: Path) -> None:
    """Make the names in a folder durable; fsync of a file does not."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
