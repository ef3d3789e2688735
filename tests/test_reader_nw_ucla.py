"""NW-UCLA's JSON files: the real set, and every kind of damage by name."""

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from datamodules import protocols
from datamodules.errors import InputError
from datamodules.readers import MalformedFile
from datamodules.readers.nw_ucla import UCLAReader

NAME = "a08_s03_e02_v02"


def clip(**changes) -> dict:
    skeletons = np.random.default_rng(0).normal(size=(6, 20, 3)).round(5).tolist()
    return {"file_name": NAME, "skeletons": skeletons, "label": 7, **changes}


def written(folder: Path, content, name: str = NAME) -> Path:
    path = folder / f"{name}.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def reason(path: Path) -> str:
    with pytest.raises(MalformedFile) as caught:
        UCLAReader().read(path)
    assert caught.value.path == path and path.name in str(caught.value)
    return str(caught.value)


def test_one_clip(tmp_path):
    content = clip()
    sample = UCLAReader().read(written(tmp_path, content))
    assert sample.joints.dtype == np.float32 and sample.joints.shape == (6, 1, 20, 3)
    assert np.array_equal(sample.joints[:, 0], np.float32(content["skeletons"]))
    assert sample.body_ids.shape == (6, 1) and sample.body_ids.dtype == np.int64 and not sample.body_ids.any()
    found = (sample.name, sample.label, sample.performer, sample.camera, sample.setup, sample.replication)
    assert found == (NAME, 6, 3, 2, -1, 2)


def test_whole_numbers_and_one_frame_are_fine(tmp_path):
    sample = UCLAReader().read(written(tmp_path, clip(skeletons=[[[1, 2, 3]] * 20])))
    assert np.array_equal(sample.joints[0, 0, 7], [1, 2, 3])


def with_value(value) -> dict:
    content = clip()
    content["skeletons"][4][11][2] = value
    return content


def with_frame(frame) -> dict:
    content = clip()
    content["skeletons"][3] = frame
    return content


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (json.dumps(clip())[:500], "json:1: is not JSON"),
        ('{"label": 7,\n"skeletons": [[[0.1 0.2]]]}', "json:2: is not JSON"),
        ("", "json:1: is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1, 2]", "expected a JSON object, found list"),
        ({"skeletons": [], "label": 7}, r"found \(0,\)"),
        ({"label": 7}, "expected a JSON object with label and skeletons"),
        (clip(label=8), "action 08 has label 7, the file says 8"),
        (clip(label="7"), "action 08 has label 7"),
        (clip(file_name="a01_s01_e00_v01"), "holds the clip 'a01_s01_e00_v01'"),
        (clip(skeletons=None), "expected frames x 20 joints x 3 numbers"),
        (clip(skeletons=[[[0.0] * 3] * 25] * 4), r"found \(4, 25, 3\)"),
        (clip(skeletons=[[["0.5"] * 3] * 20] * 4), "expected frames x 20 joints x 3 numbers"),
        (with_frame([[0.0] * 3] * 19), r"frame 3: expected 20 joints x 3 numbers, found \(19, 3\)"),
        (with_frame([[0.0] * 3] * 19 + [[0.0] * 2]), "frame 3: joints without 3 numbers"),
        (with_value(float("nan")), "holds NaN"),
        (with_value(float("-inf")), "holds -Infinity"),
        (with_value(1e30), "frame 4, joint 11: 1e.30 is no coordinate"),
        (with_value(None), "expected frames x 20 joints x 3 numbers"),
        (with_value(10**30), "expected frames x 20 joints x 3 numbers|is no coordinate"),
        (json.dumps(with_value(7.25)).replace("7.25", "1e999"), "frame 4, joint 11: inf"),
    ],
)
def test_damage_is_named(tmp_path, content, expected):
    assert re.search(expected, reason(written(tmp_path, content)))


def test_not_text(tmp_path):
    path = written(tmp_path, clip())
    path.write_bytes(b"\x00\xff\xfe\x80" * 10)
    assert "is not JSON" in reason(path)


@pytest.mark.parametrize("name", ["a07_s03_e02_v02", "a08_s03_e02_v04", "a08_s3_e02_v02", "a08_s03_e02_v02_", "b"])
def test_misnamed(tmp_path, name):
    assert "is not named" in reason(written(tmp_path, clip(), name))


def test_too_large_is_refused_unread(tmp_path):
    path = tmp_path / f"{NAME}.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert "1099511627776 bytes" in reason(path)


def test_files_of_the_folder_or_its_child(tmp_path):
    inner = tmp_path / "all_sqe"
    inner.mkdir()
    paths = [written(inner, clip(), name) for name in ("a02_s01_e00_v01", "a01_s01_e00_v01")]
    assert UCLAReader().files(tmp_path) == UCLAReader().files(inner) == paths[::-1]


def test_folders_without_clips(tmp_path):
    with pytest.raises(InputError, match="found an empty folder"):
        UCLAReader().files(tmp_path)
    with pytest.raises(InputError, match="found nothing of that name"):
        UCLAReader().files(tmp_path / "absent")


def test_the_real_set():
    if "SKELFED_REALDATA" not in os.environ:
        pytest.skip("SKELFED_REALDATA is not set")
    reader = UCLAReader()
    samples = [reader.read(path) for path in reader.files(Path(os.environ["SKELFED_REALDATA"], "nw-ucla"))]
    index = SimpleNamespace(
        names=np.array([sample.name for sample in samples]),
        cameras=np.array([sample.camera for sample in samples]),
        labels=np.array([sample.label for sample in samples]),
    )
    sides = protocols.split(index, "ucla_views")
    assert (len(samples), len(sides["train"]), len(sides["test"])) == (1484, 1020, 464)
    assert set(index.labels) == set(range(10))
    labels = index.labels[sides["train"]]
    for fraction, expected in ((0.05, 5), (0.15, 15), (0.3, 30), (0.4, 40)):
        per_class = protocols.per_class_count("ucla_views", fraction, labels)
        chosen = protocols.label_list(index.names[sides["train"]], labels, per_class, seed=0)
        assert (np.bincount(labels[chosen]) == expected).all()
