"""Skeleton-Kinetics: OpenPose's files, every kind of damage by name, its recipe, and the miniature."""

import json
from pathlib import Path

import numpy as np
import pytest

from datamodules import protocols
from datamodules.errors import InputError
from datamodules.miniature import openpose_json, scenes, skeletons
from datamodules.miniature.kinematics import forward_kinematics
from datamodules.normalise import RECIPES, kinetics
from datamodules.preparation import prepare
from datamodules.readers import MalformedFile
from datamodules.readers.kinetics import KineticsReader
from datamodules.store import SkeletonStore, open_derived, read_manifest
from datamodules.topology import KINETICS18, NTU25

READER = KineticsReader()
NAME = "-a_B0123456"


def person(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {"pose": rng.random(36).round(3).tolist(), "score": rng.random(18).round(3).tolist()}


def frame(index: int, *seeds: int) -> dict:
    return {"frame_index": index, "skeleton": [person(seed) for seed in seeds]}


def clip(**changes) -> dict:
    data = [frame(1, 1), frame(2), frame(4, 2, 3)]
    return {"data": data, "label": "archery", "label_index": 5, **changes}


def write(folder: Path, content, side: str = "kinetics_train", name: str = NAME) -> Path:
    for each in ("kinetics_train", "kinetics_val"):
        (folder / each).mkdir(parents=True, exist_ok=True)
        entry = {"has_skeleton": True, "label": "archery", "label_index": 5}
        (folder / f"{each}_label.json").write_text(json.dumps({NAME: entry, "odd": 5}))
    path = folder / side / f"{name}.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def reason(path: Path) -> str:
    with pytest.raises(MalformedFile) as caught:
        READER.read(path)
    assert caught.value.path == path
    return caught.value.reason


@pytest.mark.parametrize(("side", "listed"), [("kinetics_train", 1), ("kinetics_val", 2)])
def test_one_clip(tmp_path, side, listed):
    sample = READER.read(write(tmp_path, clip(), side))
    assert (sample.name, sample.label, sample.listed, sample.performer) == (NAME, 5, listed, -1)
    assert sample.joints.shape == (4, 2, 18, 3) and sample.joints.dtype == np.float32
    assert sample.body_ids.tolist() == [[0, -1], [-1, -1], [-1, -1], [0, 1]]
    for at, seed in {(0, 0): 1, (3, 0): 2, (3, 1): 3}.items():
        one = person(seed)
        expected = [[one["pose"][2 * v], one["pose"][2 * v + 1], one["score"][v]] for v in range(18)]
        assert np.array_equal(sample.joints[at], np.float32(expected))
    assert not sample.joints[1:3].any() and not sample.joints[0, 1].any()


def test_no_more_than_five_people(tmp_path):
    sample = READER.read(write(tmp_path, clip(data=[frame(0, *range(8)), frame(1, 9)])))
    assert sample.joints.shape == (2, 5, 18, 3) and sample.body_ids[0].tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(sample.joints[0, 4, :, 2], np.float32(person(4)["score"]))


def with_person(key: str, value) -> dict:
    return clip(data=[frame(1, 1), {"frame_index": 2, "skeleton": [person(1), {**person(2), key: value}]}])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is not JSON"),
        (json.dumps(clip()).encode()[:-9], "is not JSON"),
        (b"\x00\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        ([clip()], "expected a JSON object, found list"),
        ({"data": []}, "expected a JSON object with data and label_index"),
        (clip(data=[]), "expected data to be a list of frames"),
        (clip(data={"frame_index": 1}), "expected data to be a list of frames"),
        (clip(data=[frame(1), frame(2)]), "has nobody in any of its 2 frames"),
        (clip(data=[frame(1, 1), 7]), "entry 1 of data: expected a whole frame_index"),
        (clip(data=[{"frame_index": 1.5, "skeleton": []}]), "entry 0 of data"),
        (clip(data=[{"frame_index": True, "skeleton": []}]), "entry 0 of data"),
        (clip(data=[{"frame_index": 1}]), "a list skeleton"),
        (clip(data=[frame(2, 1), frame(2, 1)]), "frame_index 2 follows 2"),
        (clip(data=[frame(3, 1), frame(2, 1)]), "frame_index 2 follows 3"),
        (clip(data=[frame(1, 1), frame(10**9, 1)]), "spans 1000000000 frames, a clip of this set at most 300"),
        (clip(data=[frame(1, 1), frame(301, 1)]), "spans 301 frames"),
        (with_person("pose", [0.5] * 35), "frame 2: expected 36 numbers in pose, found 35"),
        (with_person("pose", None), "expected 36 numbers in pose, found none"),
        (with_person("score", [0.5] * 19), "frame 2: expected 18 numbers in score, found 19"),
        (with_person("pose", [0.5] * 35 + ["0.5"]), "finite numbers in pose"),
        (with_person("pose", [0.5] * 35 + [None]), "finite numbers in pose"),
        (with_person("pose", [0.5] * 35 + [[0.5]]), "finite numbers in pose"),
        (with_person("pose", [0.5] * 35 + [1e30]), "finite numbers in pose"),
        (with_person("pose", [0.5] * 35 + [float("nan")]), "holds NaN, expected finite numbers"),
        (with_person("score", [0.5] * 17 + [-0.1]), "finite numbers in score, none below 0"),
        (clip(data=[{"frame_index": 1, "skeleton": [7]}]), "frame 1: expected 36 numbers in pose, found none"),
        (clip(label_index=400), "a label_index from 0 to 399, found 400"),
        (clip(label_index="5"), "a label_index from 0 to 399"),
        (clip(label_index=True), "a label_index from 0 to 399"),
        (clip(label_index=6), "has label_index 6, kinetics_train_label.json says 5"),
    ],
)
def test_damage_is_named(tmp_path, content, expected):
    assert expected in reason(write(tmp_path, content))


def test_300_frames_are_fine(tmp_path):
    assert len(READER.read(write(tmp_path, clip(data=[frame(0, 1), frame(299, 1)]))).joints) == 300


@pytest.mark.parametrize(("name", "expected"), [("unknown", "has no entry in kinetics_train"), ("odd", "says None")])
def test_labels_that_are_not_there(tmp_path, name, expected):
    assert expected in reason(write(tmp_path, clip(), name=name))


def test_a_label_file_is_read_again_when_it_changed(tmp_path):
    path = write(tmp_path, clip())
    READER.read(path)
    (tmp_path / "kinetics_train_label.json").write_text(json.dumps({NAME: {"label_index": 77}}))
    assert "says 77" in reason(path)


def test_a_label_file_that_is_broken_stops_the_work(tmp_path):
    write(tmp_path, clip(), "kinetics_val")
    write(tmp_path, clip())
    (tmp_path / "kinetics_train_label.json").write_text("{")
    with pytest.raises(InputError, match=r"kinetics_train_label\.json:1: is not JSON"):
        prepare(READER, tmp_path, tmp_path / "out", ["kinetics"], name="kinetics", workers=1)
    assert not (tmp_path / "out").exists()


def test_folders(tmp_path):
    path = write(tmp_path, clip())
    with pytest.raises(InputError, match="kinetics_val"):
        READER.files(tmp_path)
    other = write(tmp_path, clip(), "kinetics_val", "A")
    assert READER.files(tmp_path) == [path, other]
    (tmp_path / "kinetics_val_label.json").unlink()
    with pytest.raises(InputError, match=r"expected kinetics_val_label\.json beside"):
        READER.files(tmp_path)


def slow_recipe(joints: np.ndarray) -> np.ndarray:
    """The recipe person by person and joint by joint."""
    frames, people, _, _ = joints.shape
    out = np.zeros((frames, min(people, 2), 18, 3))
    for t in range(frames):
        ranked = sorted(range(people), key=lambda m: -sum(float(joints[t, m, v, 2]) for v in range(18)))
        for place, m in enumerate(ranked[:2]):
            for v in range(18):
                x, y, c = map(float, joints[t, m, v])
                out[t, place, v] = (x - 0.5, 0.5 - y, c) if c != 0 else (0, 0, 0)
    return out


@pytest.mark.parametrize("people", [1, 2, 5])
def test_recipe_against_a_slow_one(people):
    rng = np.random.default_rng(people)
    joints = rng.random((7, people, 18, 3)).astype(np.float32)
    joints[rng.random(joints.shape[:3]) < 0.3, 2] = 0
    joints[2] = 0
    made = kinetics(joints, np.zeros((7, people), dtype=np.int64), KINETICS18)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, slow_recipe(joints), atol=1e-7)


def test_recipes_keep_to_their_skeletons():
    image, ids = np.ones((3, 1, 18, 3), dtype=np.float32), np.zeros((3, 1), dtype=np.int64)
    for name in ("agcn", "dsta"):
        with pytest.raises(InputError, match="recipe"):
            RECIPES[name](image, ids, KINETICS18)
    with pytest.raises(InputError, match="expects a confidence"):
        kinetics(np.ones((3, 1, 25, 3), dtype=np.float32), ids, NTU25)
    with pytest.raises(InputError, match="expected a body"):
        kinetics(image * (1, 1, 0), ids, KINETICS18)


def test_topology_is_that_of_openpose():
    """Edges and joints as the field's graph for these files has them; every group and pair names one side."""
    edges = {
        (4, 3), (3, 2), (7, 6), (6, 5), (13, 12), (12, 11), (10, 9), (9, 8), (11, 5), (8, 2), (5, 1), (2, 1), (0, 1),
        (15, 0), (14, 0), (17, 15), (16, 14),
    }  # fmt: skip
    assert set(KINETICS18.bones) == edges and KINETICS18.root == 1
    names = KINETICS18.joint_names
    assert names[:8:2] == ("nose", "right shoulder", "right wrist", "left elbow") and names[17] == "left ear"
    for left, right in KINETICS18.mirror:
        assert names[left].replace("left", "right") == names[right] != names[left]
    assert len(KINETICS18.mirror) == 8
    for groups, limbs in ((KINETICS18.body_groups, slice(0, 4)), (KINETICS18.part_groups, slice(2, 10))):
        assert sorted(joint for group in groups for joint in group) == list(range(18))
        for group in groups[limbs]:
            assert len({names[joint].split()[0] for joint in group}) == 1


def test_an_upright_figure_facing_the_camera_looks_so():
    standing = np.repeat(forward_kinematics(scenes.cast(0, 1), np.zeros((1, 25, 3))), 30, axis=0)
    standing[..., 1] += 0.9
    seen = scenes.Camera(azimuth=0.0, height=1.0, distance=3.0, tilt=0.0).view(standing)
    found = openpose_json.detect(np.random.default_rng(0), seen)
    at = {
        name: np.median(found[found[:, joint, 2] > 0, joint, :2], axis=0)
        for joint, name in enumerate(KINETICS18.joint_names)
    }
    x = {name: place[0] for name, place in at.items()}
    y = {name: place[1] for name, place in at.items()}
    assert y["right eye"] < y["nose"] < y["neck"] < y["left hip"] < y["left knee"] < y["left ankle"]
    assert x["right ear"] < x["right eye"] < x["nose"] < x["left eye"] < x["left ear"]
    assert x["right shoulder"] < x["neck"] < x["left shoulder"] and x["right ankle"] < x["left ankle"]


def test_miniature_round_trip(tmp_path):
    small = {"train": 3, "val": 2, "frames": (10, 14)}
    report = skeletons.write_kinetics(tmp_path / "raw", **small)
    assert skeletons.write_kinetics(tmp_path / "raw", **small) == report
    assert report["banner"] == "miniature, not Skeleton-Kinetics"
    summary = prepare(READER, tmp_path / "raw", tmp_path / "out", ["kinetics"], name="kinetics", workers=1)
    assert summary["clips"] == report["clips"] == 50
    rejected = read_manifest(tmp_path / "out" / "raw")["rejected"]
    assert [entry["clip"] for entry in rejected] == report["rejected"] and len(rejected) == 5
    index = SkeletonStore(tmp_path / "out" / "raw").index
    rows = protocols.split(index, "kinetics_official")
    assert (len(rows["train"]), len(rows["test"])) == (30, 20)
    assert {str(label) for label in index.labels} == set(report["actions"])
    assert index.bodies.max() == 5, "a crowd of six is cut to five"
    store = open_derived(tmp_path / "out", "kinetics")
    for row in range(len(store)):
        made = store.clip(row)
        assert made.shape[1] == min(2, index.bodies[row]) and np.abs(made[..., :2]).max() <= 0.5
        assert (made[made[..., 2] == 0] == 0).all() and made[..., 2].max() <= 1
