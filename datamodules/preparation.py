"""Raw folder -> raw store -> one derived store a recipe: parallel, resumable, and whole or not there.

Everything is built in `.partial` below the output folder and renamed at the very end, so that bad input or a kill
never costs a good store. Clips go through files of bounded size: memory does not grow with the data set.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np

from datamodules.alone import alone_in
from datamodules.errors import InputError
from datamodules.normalise import RECIPES
from datamodules.readers import MalformedFile, RawSample, Reader
from datamodules.shards import array_of, convert_all
from datamodules.store import (
    AXES,
    FORMAT,
    MANIFEST,
    SkeletonStore,
    StoreIndex,
    read_manifest,
    replace_store,
    settle,
    write_store,
)

PARTIAL, PLAN, RAW = ".partial", "plan.json", "raw"
FILES_PER_SHARD, BYTES_PER_SHARD = 256, 128 << 20  # whichever is reached first: some files are long videos
CLIPS_PER_SHARD = 1024  # a recipe takes a fraction of the time of reading
TOOL = f"skelfed {version('skelfed')}"
NUMBERS = {  # column of the index: what of a sample it holds
    "labels": lambda sample: sample.label,
    "performers": lambda sample: sample.performer,
    "cameras": lambda sample: sample.camera,
    "setups": lambda sample: sample.setup,
    "replications": lambda sample: sample.replication,
    "listed": lambda sample: sample.listed,
    "frames": lambda sample: sample.joints.shape[0],
    "bodies": lambda sample: sample.joints.shape[1],
}


@dataclass(frozen=True)
class _Plan:
    """What is to be prepared. `source` is a hash of all of it: a store with the same was made from the same."""

    reader: Reader
    raw: Path
    files: list[Path]
    excluded: int
    source: str
    facts: dict


def prepare(
    reader: Reader,
    raw: Path,
    out: Path,
    recipes: Sequence[str],
    exclude: frozenset[str] = frozenset(),
    name: str = "",
    miniature: bool = False,
    workers: int = 0,
    strict: bool = False,
) -> dict:
    """Prepare a raw folder into `out/raw` and `out/<recipe>`, or find that this has been done.

    exclude: names of files, without suffix, to leave out (a data set's list of missing skeletons).
    workers: processes, 0 for one a core. strict: a file or clip that cannot be read is an error, and nothing is
    written; otherwise the raw manifest records it.
    A killed run is continued by the next and leaves the same bytes; of two at once the second waits and finds what
    the first has made. Returns dataset, miniature, out, clips, rejected,
    excluded, recipes, digest (of the raw store) and already (nothing was to be done). Raises InputError.
    """
    out = Path(out)
    for recipe in recipes:
        if recipe not in RECIPES:
            raise InputError(f"recipes: expected some of {', '.join(RECIPES)}, found {recipe!r}: correct the name")
    plan = _plan(reader, Path(raw), exclude, name, miniature)
    with alone_in(out):
        for store in (RAW, *RECIPES):
            settle(out / store)
        for store in (RAW, *recipes):
            _check_replaceable(out / store, plan)
        built = _build(plan, out, recipes, workers or len(os.sched_getaffinity(0)), strict)
        for store in built:
            replace_store(out / PARTIAL / store, out / store)
        shutil.rmtree(out / PARTIAL, ignore_errors=True)
    return _report(out, recipes, already=not built)


def _plan(reader: Reader, raw: Path, exclude: frozenset[str], name: str, miniature: bool) -> _Plan:
    listed = sorted(reader.files(raw), key=lambda path: path.stem)
    for path, following in pairwise(listed):
        if path.stem == following.stem:
            raise InputError(f"{raw}: expected each clip once, found {path} and {following}: remove one")
    files = [path for path in listed if path.stem not in exclude]
    if not files:
        raise InputError(f"{raw}: expected clips besides the missing list, found none: choose another folder")
    marks = [(str(path.relative_to(raw)), *_size_and_time(path)) for path in (*listed, *reader.companions(raw))]
    source = hashlib.sha256(json.dumps([repr(reader), marks, sorted(exclude)]).encode()).hexdigest()
    facts = {"dataset": name, "miniature": miniature, "topology": reader.topology.name}
    return _Plan(reader, raw, files, len(listed) - len(files), source, facts)


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:  # a link to nothing, say: the reader will reject it
        stat = path.lstat()
    return stat.st_size, stat.st_mtime_ns


def _check_replaceable(path: Path, plan: _Plan) -> None:
    """Refuse to replace what is no store of this data set: the folder of the raw files is often called `raw` too."""
    if not path.exists():
        return
    if not (path / MANIFEST).is_file():
        raise InputError(f"{path}: expected a prepared store or nothing, found something else: prepare elsewhere")
    try:
        manifest = read_manifest(path)
    except InputError:  # damaged, or of an older format: it is there to be replaced
        return
    for key in ("dataset", "miniature"):
        if manifest[key] != plan.facts[key]:
            raise InputError(
                f"{path}: expected a store with {key} {plan.facts[key]!r}, found {manifest[key]!r}: prepare elsewhere"
            )


def _build(plan: _Plan, out: Path, recipes: Sequence[str], workers: int, strict: bool) -> list[str]:
    """Write below `.partial` what `out` lacks or holds out of date; returns the names of these stores."""
    work, built = out / PARTIAL, []
    raw = _intact(out / RAW, source=plan.source)
    if raw is None:
        _continue_or_start(work, plan)
        raw = _intact(work / RAW, source=plan.source) or _build_raw(plan, work, workers)
        built.append(RAW)
    if strict and raw.manifest["rejected"]:
        found = _rejections(raw.manifest["rejected"])
        _give_up(work, f"{plan.raw}: expected every file to be sound, {found}: mend or remove them")
    for recipe in recipes:
        if _intact(out / recipe, raw_digest=raw.digest) is None:
            _continue_or_start(work, plan)
            if _intact(work / recipe, raw_digest=raw.digest) is None:
                _build_derived(raw, recipe, plan, work, workers)
            built.append(recipe)
    return built


def _intact(path: Path, **expected: str) -> SkeletonStore | None:
    """The store, if it is there, sound, and made from what is expected."""
    try:
        manifest = read_manifest(path)
        if any(manifest.get(key) != value for key, value in expected.items()):
            return None
        return SkeletonStore(path)
    except InputError:
        return None


def _continue_or_start(work: Path, plan: _Plan) -> None:
    """Keep the pieces that a killed run left in `work` if it did the same, otherwise clear them away."""
    wanted = json.dumps([FORMAT, TOOL, FILES_PER_SHARD, BYTES_PER_SHARD, CLIPS_PER_SHARD, plan.source, plan.facts])
    try:
        found = (work / PLAN).read_text()
    except FileNotFoundError:
        found = None
    if found != wanted:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        (work / PLAN).write_text(wanted)


def _build_raw(plan: _Plan, work: Path, workers: int) -> SkeletonStore:
    pieces = work / f"{RAW}-pieces"
    convert = partial(_read_shard, plan.reader)
    shards = convert_all(pieces, _split_files(plan.files), convert, workers, "reading raw files")
    rejected = [reason for shard in shards for reason in json.loads(str(array_of(shard, "rejected")))]
    columns = {column: np.concatenate([array_of(shard, column) for shard in shards]) for column in ("names", *NUMBERS)}
    if len(columns["names"]) == 0:
        _give_up(work, f"{plan.raw}: expected clips, {_rejections(rejected)}: choose another folder")
    if not (columns["names"][:-1] < columns["names"][1:]).all():
        raise ValueError(f"{plan.reader} gives clips whose names are not in ascending order")
    offsets = _offsets(columns["frames"], columns["bodies"], plan.reader.topology.num_joints)
    index = StoreIndex(**columns, offsets=offsets)
    counts = _counts(index) | {"rejected": len(rejected), "excluded": plan.excluded}
    facts = {"recipe": None, "raw_digest": None, "source": plan.source, "counts": counts, "rejected": rejected}
    joints = (array_of(shard, "joints") for shard in shards)
    body_ids = (array_of(shard, "body_ids") for shard in shards)
    write_store(work / RAW, index, joints, body_ids, plan.facts | {"tool": TOOL} | facts)
    shutil.rmtree(pieces)
    return SkeletonStore(work / RAW)


def _build_derived(raw: SkeletonStore, recipe: str, plan: _Plan, work: Path, workers: int) -> None:
    pieces = work / f"{recipe}-pieces"
    convert = partial(_derive_shard, raw, recipe)
    shards = convert_all(pieces, _split(range(len(raw)), CLIPS_PER_SHARD), convert, workers, f"recipe {recipe}")
    bodies = np.concatenate([array_of(shard, "bodies") for shard in shards])
    offsets = _offsets(raw.index.frames, bodies, raw.topology.num_joints)
    index = dataclasses.replace(raw.index, bodies=bodies, offsets=offsets)
    facts = {"recipe": recipe, "raw_digest": raw.digest, "counts": _counts(index)}
    joints = (array_of(shard, "joints") for shard in shards)
    write_store(work / recipe, index, joints, None, plan.facts | {"tool": TOOL} | facts)
    shutil.rmtree(pieces)


def _read_shard(reader: Reader, paths: Sequence[Path]) -> dict[str, np.ndarray]:
    """Flat arrays of the sound clips of some files, and a JSON list of the others with reasons."""
    samples, rejected = [], []
    for path in paths:
        for found in _clips_of(reader, path):
            if isinstance(found, MalformedFile):
                blamed = found.path if found.path.parent != path.parent else Path(found.path.name)
                file = "/".join(blamed.parts[-2:])  # a label file is called like its skeleton file
                clip = found.clip or path.stem
                rejected.append({"clip": clip, "file": file, "line": found.line, "reason": found.reason})
            else:
                samples.append(found)
    numbers = {key: np.array([value(sample) for sample in samples], dtype=np.int64) for key, value in NUMBERS.items()}
    return numbers | {
        "names": np.array([sample.name for sample in samples], dtype=np.str_),
        "joints": _flat([sample.joints for sample in samples], np.float32),
        "body_ids": _flat([sample.body_ids for sample in samples], np.int64),
        "rejected": np.array(json.dumps(rejected)),
    }


def _derive_shard(raw: SkeletonStore, recipe: str, rows: Sequence[int]) -> dict[str, np.ndarray]:
    clips = [RECIPES[recipe](raw.clip(row), raw.body_ids(row), raw.topology) for row in rows]
    bodies = np.array([clip.shape[1] for clip in clips], dtype=np.int64)
    return {"joints": _flat(clips, np.float32), "bodies": bodies}


def _clips_of(reader: Reader, path: Path) -> Iterator[RawSample | MalformedFile]:
    """The sound clips of a file, and what is wrong with the others or with all of it."""
    try:
        for found in reader.clips(path):
            yield found if isinstance(found, MalformedFile) else _sound(found, path)
    except MalformedFile as error:
        yield error
    except OSError as error:  # no fault of the file: half a data set must not replace a whole one
        raise InputError(f"{path}: expected a readable file, found {error.strerror}: run again") from None


def _sound(sample: RawSample, path: Path) -> RawSample | MalformedFile:
    """The sample, unless it is what no store may hold, whoever read it."""
    if not f"{sample.name}.".startswith(f"{path.stem}."):
        reason = f"expected the clip {path.stem}, found {sample.name}"
    elif not np.isfinite(sample.joints).all():
        reason = "a coordinate is not a finite number"
    elif not sample.joints.any():
        reason = "no body in any frame"
    else:
        return sample
    return MalformedFile(path, None, reason, clip=sample.name)


def _give_up(work: Path, reason: str) -> None:
    """Nothing of this run can be used: leave nothing of it."""
    shutil.rmtree(work, ignore_errors=True)
    raise InputError(reason)


def _rejections(rejected: list[dict]) -> str:
    first = rejected[0]
    return f"found {len(rejected)} rejected, the first {first['file']}: {first['reason']}"


def _split(items: Sequence, length: int) -> list[Sequence]:
    return [items[start : start + length] for start in range(0, len(items), length)]


def _split_files(files: Sequence[Path]) -> list[Sequence[Path]]:
    """Consecutive files in pieces that one worker can hold."""
    shards: list[list[Path]] = []
    room = 0
    for path in files:
        size = _size_and_time(path)[0]
        if not shards or len(shards[-1]) == FILES_PER_SHARD or size > room:
            shards.append([])
            room = BYTES_PER_SHARD
        shards[-1].append(path)
        room -= size
    return list(shards)


def _flat(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *(array.ravel() for array in arrays)], dtype=dtype)


def _offsets(frames: np.ndarray, bodies: np.ndarray, num_joints: int) -> np.ndarray:
    sizes = frames * bodies * num_joints * AXES
    return np.cumsum(sizes) - sizes


def _counts(index: StoreIndex) -> dict[str, int]:
    return {"clips": len(index), "frames": int(index.frames.sum()), "bodies": int(index.bodies.sum())}


def _report(out: Path, recipes: Sequence[str], already: bool) -> dict:
    """The summary, its last line printed."""
    manifest = read_manifest(out / RAW)
    counts, mark = manifest["counts"], " (miniature)" if manifest["miniature"] else ""
    reasons = f" (reasons in {out / RAW / MANIFEST})" if counts["rejected"] else ""
    print(
        f"{manifest['dataset']}{mark}: {'already prepared, ' if already else ''}{counts['clips']} clips in {out}, "
        f"{counts['rejected']} rejected{reasons}, {counts['excluded']} left out by the missing list"
    )
    return {
        "dataset": manifest["dataset"],
        "miniature": manifest["miniature"],
        "out": str(out),
        "clips": counts["clips"],
        "rejected": counts["rejected"],
        "excluded": counts["excluded"],
        "recipes": list(recipes),
        "digest": manifest["digest"],
        "already": already,
    }
