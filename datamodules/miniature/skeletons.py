"""Writes the miniature skeleton sets, in the file formats of NTU RGB+D, NW-UCLA, PKU-MMD and Skeleton-Kinetics."""

import json
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from datamodules.errors import InputError
from datamodules.miniature import actions, kinect_text, kinematics, openpose_json, pku_text, scenes
from datamodules.miniature.folder import BANNER, Files, fill
from datamodules.topology import NTU25, UCLA20

GENERATOR = ("actions", "kinect_text", "kinematics", "openpose_json", "pku_text", "scenes", "skeletons")
LEAST_FRAMES = 10  # room for a body to be lost and found
NTU_PERFORMERS = (1, 2, 4, 5, 8, 9, 13, 14, 3, 6, 7, 11, 12)  # the first eight train in xsub
# Performer: a setup in which they took part in the real set. Nine train in xsub, seven test.
_NTU120_SETUPS = {
    1: 1, 3: 1, 5: 1, 6: 1, 9: 2, 11: 2, 14: 2,
    41: 18, 45: 18, 43: 18, 46: 19, 48: 19, 47: 19, 52: 20, 44: 20, 53: 20,
}  # fmt: skip
NTU120_PERFORMERS = tuple(_NTU120_SETUPS)
UCLA_PERFORMERS = tuple(range(1, 11))
PKU_PERFORMERS = tuple(range(1, 11))
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
    shoots = [(1 if performer <= 8 else 2, performer, actions.NTU_ACTIONS) for performer in performers]
    return _write_kinect_text(Path(folder), "NTU RGB+D", "ntu60", shoots, seed, performers, replications, frames)


def write_ntu120(
    folder: Path,
    seed: int = 0,
    performers: Sequence[int] = NTU120_PERFORMERS,
    replications: int = 2,
    frames: tuple[int, int] = (40, 80),
) -> dict:
    """Write a set in the format of NTU RGB+D 120: ten actions of the older half, eight of the newer.

    Performers up to 40 act the older half in setups 1 and 2, the others the newer half in setups 18 to 20; arguments
    and result as `write_ntu`.
    """
    shoots = [(_NTU120_SETUPS[one], one, actions.NTU_ACTIONS) for one in performers if one <= 40]
    shoots += [(_NTU120_SETUPS[one], one, actions.NTU120_ACTIONS) for one in performers if one > 40]
    return _write_kinect_text(Path(folder), "NTU RGB+D 120", "ntu120", shoots, seed, performers, replications, frames)


def _write_kinect_text(
    folder: Path,
    title: str,
    dataset: str,
    shoots: list[tuple[int, int, dict]],
    seed: int,
    performers: Sequence[int],
    replications: int,
    frames: tuple[int, int],
) -> dict:
    """Files of every action of every (setup, performer, actions), seen by three cameras, and the broken ones."""
    takes = [
        (setup, performer, action, roles, camera, replication)
        for setup, performer, repertoire in shoots
        for (action, roles), camera, replication in product(
            repertoire.items(), scenes.AZIMUTHS, range(1, replications + 1)
        )
    ]
    report = {
        "banner": BANNER.format(title),
        "dataset": dataset,
        "seed": seed,
        "clips": len(takes),
        "actions": {number: roles[0].name for _, _, repertoire in shoots for number, roles in repertoire.items()},
        "rejected": sorted(kinect_text.BROKEN),
    }

    def files() -> Iterator[tuple[str, bytes]]:
        for setup, performer, action, roles, camera, replication in takes:
            name = f"S{setup:03}C{camera:03}P{performer:03}R{replication:03}A{action:03}.skeleton"
            rng = np.random.default_rng([seed, 2, performer, action, camera, replication])
            sensor = scenes.cameras(np.random.default_rng([seed, 3, setup]))[camera]
            partner = performers[(performers.index(performer) + 1) % len(performers)]
            people = [scenes.cast(seed, person) for person in (performer, partner)[: len(roles)]]
            heading = scenes.AZIMUTHS[3 if replication % 2 else 2]
            scene = scenes.stage(rng, people, roles, int(rng.integers(*frames, endpoint=True)), heading)
            bodies = kinect_text.track(rng, scene, sensor)
            yield name, kinect_text.recording(bodies, line_end="\r\n" if setup == 1 else "\n")
        yield from kinect_text.broken(np.random.default_rng([seed, 4]))

    return _write(folder, report, {"performers": list(performers), "frames": list(frames)}, files)


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


def write_pku(
    folder: Path,
    phase: int,
    seed: int = 0,
    performers: Sequence[int] = PKU_PERFORMERS,
    takes: int = 1,
    frames: tuple[int, int] = (30, 60),
) -> dict:
    """Write a set in the format of PKU-MMD: videos of twelve (phase 2: ten) actions each, before three cameras.

    Every camera sees a performance of its own, lest the split by view be a search for the same one. The first seven
    tenths of the performers train in the list by subject, cameras M and R in that by view. A few labels and videos are
    broken; arguments and result otherwise as `write_ntu`.
    """
    repertoire = actions.PKU_ACTIONS if phase == 1 else actions.PKU2_ACTIONS
    videos = [
        (performer, take, letter, f"{pku_text.stem(phase, performer, take)}-{letter}")
        for performer, take, letter in product(performers, range(1, takes + 1), pku_text.CAMERAS)
    ]
    learn = performers[: max(1, len(performers) * 7 // 10)]
    report = {
        "banner": BANNER.format(f"PKU-MMD, phase {phase}"),
        "dataset": f"pku{phase}",
        "seed": seed,
        "clips": len(videos) * len(repertoire),
        "actions": {number: roles[0].name for number, roles in repertoire.items()},
        "rejected": pku_text.rejected(phase, videos[0][-1], len(repertoire)),
    }

    def files() -> Iterator[tuple[str, bytes]]:
        for performer, take, letter, name in videos:
            camera = pku_text.CAMERAS[letter]
            rng = np.random.default_rng([seed, 7, phase, performer, take, camera])
            partner = performers[(performers.index(performer) + 1) % len(performers)]
            cast = [scenes.cast(seed, person) for person in (performer, partner)]
            video = pku_text.shoot(rng, cast, repertoire, frames)
            sensor = scenes.cameras(np.random.default_rng([seed, 8, phase, take]))[camera]
            yield from pku_text.files(rng, name, video, sensor, spoil=name == videos[0][-1])
        yield from pku_text.broken(phase)
        yield from pku_text.splits(phase, {name: performer in learn for performer, _, _, name in videos})

    return _write(Path(folder), report, {"performers": list(performers), "frames": list(frames)}, files)


def write_kinetics(
    folder: Path, seed: int = 0, train: int = 32, val: int = 12, frames: tuple[int, int] = (40, 80)
) -> dict:
    """Write a set in the format of Skeleton-Kinetics: ten actions, `train` and `val` clips of each, a few broken files.

    Nobody acts twice; people stand about in some clips, a crowd in a few; numbers of classes are made up. Arguments and
    result otherwise as `write_ntu`.
    """
    sides = dict(zip(openpose_json.SIDES, (train, val), strict=True))
    report = {
        "banner": BANNER.format("Skeleton-Kinetics"),
        "dataset": "kinetics",
        "seed": seed,
        "clips": len(actions.KINETICS_ACTIONS) * (train + val),
        "actions": {number: roles[0].name for number, roles in actions.KINETICS_ACTIONS.items()},
        "rejected": sorted(name for name, _ in openpose_json.broken({"label_index": 0})),
    }

    def files() -> Iterator[tuple[str, bytes]]:
        for side, (folder_name, count) in enumerate(sides.items()):
            entries = {}
            for (number, roles), take in product(actions.KINETICS_ACTIONS.items(), range(count)):
                rng = np.random.default_rng([seed, 9, side, number, take])
                label = {"label": roles[0].name, "label_index": number}
                people = [kinematics.performer_offsets(rng) for _ in roles]
                scene = scenes.stage(rng, people, roles, int(rng.integers(*frames, endpoint=True)), rng.normal(0, 25))
                camera = scenes.cameras(rng)[int(rng.integers(1, 4))]
                bystanders = int(rng.choice((0, 1, 6), p=(0.7, 0.25, 0.05)))
                name = f"mini-{number:03}-{take:03}-{side}"
                entries[name] = {"has_skeleton": True, **label}
                yield f"{folder_name}/{name}.json", openpose_json.clip(rng, scene, camera, bystanders, label)
            if side == 0:
                for name, content in openpose_json.broken(label):
                    yield f"{folder_name}/{name}.json", content
                    if name != openpose_json.UNLISTED:
                        entries[name] = {"has_skeleton": True, **label}
            yield f"{folder_name}_label.json", json.dumps(entries).encode()

    return _write(Path(folder), report, {"train": train, "val": val, "frames": list(frames)}, files)


def _write(folder: Path, report: dict, sizes: dict, files: Files) -> dict:
    """Fill `folder`; returns the report as a later call reads it back: keys are strings."""
    if sizes["frames"][0] < LEAST_FRAMES:
        raise InputError(
            f"frames: expected at least {LEAST_FRAMES} a clip, found {sizes['frames'][0]}: ask for longer ones"
        )
    fill(folder, report | sizes, [Path(__file__).with_name(f"{name}.py") for name in GENERATOR], files)
    return json.loads(json.dumps(report))
