"""Writes the miniature skeleton sets, in the file formats of NTU RGB+D and NW-UCLA."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from datamodules.errors import InputError
from datamodules.miniature import actions, kinect_text, scenes
from datamodules.topology import NTU25, UCLA20

BANNER = "miniature, not {}"
MARK = "MINIATURE"  # no suffix: readers find raw files by theirs
LEAST_FRAMES = 10  # room for a body to be lost and found
NTU_PERFORMERS = (1, 2, 4, 5, 8, 9, 13, 14, 3, 6, 7, 11, 12)  # the first eight train in xsub
UCLA_PERFORMERS = tuple(range(1, 11))
# Joints of Kinect v1 that the 25 joints of v2 call something else.
_RENAMED = {"hip centre": "spine base", "spine": "spine middle", "shoulder centre": "spine shoulder"}
_V1_JOINTS = [NTU25.joint_names.index(_RENAMED.get(name, name)) for name in UCLA20.joint_names]


def write_ntu(
    folder: Path,
    seed: int = 0,
    performers: Sequence[int] = NTU_PERFORMERS,
    replications: int = 2,
    frames: tuple[int, int] = (40, 80),
) -> dict:
    """Write a set in the format of NTU RGB+D: ten actions, two setups, three cameras, and a few broken files.

    frames: least and most frames of a clip. Performers up to 8 stand in setup 1, the others in setup 2; names are ones
    of the real set, none on its list of missing skeletons. The same arguments give the same bytes; a folder that has
    them already is left as it is. Returns banner, dataset, seed, clips, actions and the names of the broken files in
    `rejected`. Raises InputError if the folder holds anything else than a miniature or clips would be too short.
    """
    takes = list(product(performers, actions.NTU_ACTIONS, scenes.AZIMUTHS, range(1, replications + 1)))
    report = {
        "banner": BANNER.format("NTU RGB+D"),
        "dataset": "ntu60",
        "seed": seed,
        "clips": len(takes),
        "actions": {number: roles[0].name for number, roles in actions.NTU_ACTIONS.items()},
        "rejected": sorted(kinect_text.BROKEN),
    }

    def files() -> Iterator[tuple[str, bytes]]:
        for performer, action, camera, replication in takes:
            setup = 1 if performer <= 8 else 2
            name = f"S{setup:03}C{camera:03}P{performer:03}R{replication:03}A{action:03}.skeleton"
            rng = np.random.default_rng([seed, 2, performer, action, camera, replication])
            sensor = scenes.cameras(np.random.default_rng([seed, 3, setup]))[camera]
            roles = actions.NTU_ACTIONS[action]
            partner = performers[(performers.index(performer) + 1) % len(performers)]
            people = [scenes.cast(seed, person) for person in (performer, partner)[: len(roles)]]
            heading = scenes.AZIMUTHS[3 if replication % 2 else 2]
            scene = scenes.stage(rng, people, roles, int(rng.integers(*frames, endpoint=True)), heading)
            bodies = kinect_text.track(rng, scene, sensor)
            yield name, kinect_text.recording(bodies, line_end="\r\n" if setup == 1 else "\n")
        yield from kinect_text.broken(np.random.default_rng([seed, 4]))

    return _write(Path(folder), report, {"performers": list(performers), "frames": list(frames)}, files)


def write_ucla(
    folder: Path,
    seed: int = 0,
    performers: Sequence[int] = UCLA_PERFORMERS,
    replications: int = 2,
    frames: tuple[int, int] = (25, 60),
) -> dict:
    """Write a set in the format of NW-UCLA `all_sqe`: ten actions, three views; arguments and result as `write_ntu`."""
    takes = list(product(actions.UCLA_ACTIONS, performers, range(replications), scenes.AZIMUTHS))
    report = {
        "banner": BANNER.format("NW-UCLA"),
        "dataset": "ucla",
        "seed": seed,
        "clips": len(takes),
        "actions": {number: action.name for number, action in actions.UCLA_ACTIONS.items()},
        "rejected": [],
    }
    numbers = list(actions.UCLA_ACTIONS)
    sensors = scenes.cameras(np.random.default_rng([seed, 5]))

    def files() -> Iterator[tuple[str, bytes]]:
        for action, performer, episode, view in takes:
            rng = np.random.default_rng([seed, 6, performer, action, view, episode])
            count, heading = int(rng.integers(*frames, endpoint=True)), rng.normal(0, 25)
            people, roles = [scenes.cast(seed, performer)], (actions.UCLA_ACTIONS[action],)
            (joints,) = scenes.stage(rng, people, roles, count, heading)
            seen = scenes.film(rng, joints, sensors[view])[:, _V1_JOINTS]
            name = f"a{action:02}_s{performer:02}_e{episode:02}_v{view:02}"
            clip = {"file_name": name, "skeletons": seen.round(5).tolist(), "label": numbers.index(action) + 1}
            yield f"{name}.json", json.dumps(clip).encode()

    return _write(Path(folder), report, {"performers": list(performers), "frames": list(frames)}, files)


def _write(folder: Path, report: dict, sizes: dict, files: Callable[[], Iterator[tuple[str, bytes]]]) -> dict:
    """Fill a new folder beside `folder` and rename it, unless `folder` holds the same already."""
    if sizes["frames"][0] < LEAST_FRAMES:
        raise InputError(
            f"frames: expected at least {LEAST_FRAMES} a clip, found {sizes['frames'][0]}: ask for longer ones"
        )
    report = json.loads(json.dumps(report))  # what a later call reads back: keys are strings
    made_by = report | sizes | {"generator": _generator_digest()}
    if _holds(folder, made_by):
        return report
    if folder.exists() and not (folder / MARK).is_file() and not _is_empty(folder):
        raise InputError(f"expected a miniature or nothing at {folder}, found other files: choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        listing = {}
        for name, content in files():
            (unfinished / name).write_bytes(content)
            listing[name] = len(content)
        (unfinished / MARK).write_text(json.dumps(made_by | {"files": listing}, indent=1))
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return report


def _holds(folder: Path, made_by: dict) -> bool:
    """Whether `folder` is a whole miniature made by the same generator from the same arguments."""
    try:
        mark = json.loads((folder / MARK).read_text())
        found = {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.name != MARK}
        return mark.pop("files") == found and mark == made_by
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and next(folder.iterdir(), None) is None


def _generator_digest() -> str:
    """SHA-256 of the code that draws the sets, so that a set of an older one is written anew."""
    names = ("actions", "kinect_text", "kinematics", "scenes", "skeletons")
    sources = [Path(__file__).with_name(f"{name}.py").read_bytes() for name in names]
    return hashlib.sha256(b"".join(sources)).hexdigest()
