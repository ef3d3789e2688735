"""PKU-MMD: the genuine file, clips cut where the labels say, and every kind of damage by name."""

import os
from pathlib import Path

import numpy as np
import pytest

from datamodules import protocols
from datamodules.errors import InputError
from datamodules.miniature import pku_text, skeletons
from datamodules.preparation import prepare
from datamodules.readers import MalformedFile, RawSample
from datamodules.readers.pku_mmd import Layout, PKUReader, sides
from datamodules.store import SkeletonStore, open_derived, read_manifest

READER = PKUReader(phase=1)
NAME = "0002-L"


def frames_of(count: int = 8) -> np.ndarray:
    """(T, 2, 25, 3); the second body is there from frame 5 on."""
    frames = np.random.default_rng(0).normal(size=(count, 2, 25, 3)).round(4)
    frames[:5, 1] = 0
    return frames


def write(folder: Path, labels: str = "6,0,4,2\n8,3,8,1\n", content: bytes | None = None, name: str = NAME) -> Path:
    for part in ("PKU_Skeleton_Renew", "Train_Label_PKU_final", "Split"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "Train_Label_PKU_final" / f"{name}.txt").write_text(labels)
    for by in ("subject", "view"):
        (folder / "Split" / f"cross-{by}.txt").write_text(SPLIT)
    path = folder / "PKU_Skeleton_Renew" / f"{name}.txt"
    path.write_bytes(pku_text.text(frames_of()) if content is None else content)
    return path


SPLIT = f"Training videos: \n0003-M, {NAME},\nValidataion videos: \n0005-R, 0007-L, \n"


def only_reason(path: Path) -> MalformedFile:
    """The one thing that is wrong with the clips of a file, or with all of it."""
    try:
        (found,) = list(READER.clips(path))
    except MalformedFile as error:
        return error
    assert isinstance(found, MalformedFile)
    return found


def test_clips_are_cut_where_the_labels_say(tmp_path):
    path = write(tmp_path)
    assert READER.files(tmp_path) == [path]
    first, second = list(READER.clips(path))
    frames = frames_of().astype(np.float32)
    assert (first.name, first.label, first.camera, first.listed) == ("0002-L.001", 5, 1, 11)
    assert (second.name, second.label, second.performer) == ("0002-L.002", 7, -1)
    assert first.joints.dtype == np.float32 and np.array_equal(first.joints, frames[0:4, :1])
    assert np.array_equal(second.joints, frames[3:8])
    assert np.array_equal(first.body_ids, np.zeros((4, 1)))
    assert np.array_equal(second.body_ids, [[0, -1], [0, -1], [0, 1], [0, 1], [0, 1]])


def test_a_body_in_the_second_place_alone_keeps_its_number(tmp_path):
    frames = frames_of()
    frames[5:, 0] = 0
    (clip,) = READER.clips(write(tmp_path, "6,5,8,2", pku_text.text(frames)))
    assert clip.joints.shape == (3, 1, 25, 3) and (clip.body_ids == 1).all()


@pytest.mark.skipif("SKELFED_REALDATA" not in os.environ, reason="SKELFED_REALDATA names no folder")
def test_the_genuine_file(tmp_path):
    genuine = Path(os.environ["SKELFED_REALDATA"], "pku-mmd", "A10N08-L.txt")
    path = write(tmp_path, "10,0,1040,2\n3,1000,1041,2\n3,30,90,1\n", genuine.read_bytes(), "A10N08-L")
    for split in (tmp_path / "Split").iterdir():
        split.rename(split.with_name(f"{split.stem}_v2.txt"))
    for split in (tmp_path / "Split").iterdir():
        split.write_text(SPLIT.replace("0005-R", path.stem))
    whole, past, part = list(PKUReader(phase=2).clips(path))
    expected = np.array(genuine.read_text().split(), dtype=np.float64).reshape(1040, 2, 25, 3).astype(np.float32)
    assert np.array_equal(whole.joints, expected) and whole.listed == 22
    assert "ends at frame 1041, its video has 1040" in past.reason
    assert np.array_equal(part.joints, expected[30:90, : part.joints.shape[1]])
    there = expected.any(axis=(2, 3))
    assert np.array_equal(whole.body_ids >= 0, there) and there[:, 0].all() and there[:, 1].any()
    up = whole.joints[:, 0, 3, 1] - whole.joints[:, 0, 19, 1]
    assert 1.2 < np.median(up) < 2.1, "metres from foot to head"
    summary = prepare(PKUReader(phase=2), tmp_path, tmp_path / "out", ["agcn", "dsta"], name="pku2", workers=1)
    assert (summary["clips"], summary["rejected"]) == (2, 1)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("52,0,4,2", "an action from 1 to 51, found 52"),
        ("0,0,4,2", "found 0"),
        ("6,4,4,2", "the clip is empty: it starts at frame 4 and ends at 4"),
        ("6,5,4,2", "the clip is empty"),
        ("6,2,9,2", "ends at frame 9, its video has 8"),
        ("6,9,12,2", "ends at frame 12, its video has 8"),
        ("6,-1,4,2", "expected action,start,end,confidence, found '6,-1,4,2'"),
        ("6,0,4", "found '6,0,4'"),
        ("6,0,4,2,1", "expected action,start,end,confidence"),
        ("clap,0,4,2", "found 'clap,0,4,2'"),
        ("6,0,4.5,2", "expected action"),
        ("6,0,99999999999999999999,2", "expected action"),
    ],
)
def test_bad_labels_cost_one_clip(tmp_path, label, expected):
    path = write(tmp_path, f"6,0,4,2\n\n{label}\n8,3,8,1\n")
    before, found, after = list(READER.clips(path))
    assert isinstance(before, RawSample) and isinstance(after, RawSample)
    assert (before.name, after.name) == ("0002-L.001", "0002-L.004")
    assert isinstance(found, MalformedFile) and expected in found.reason
    assert (found.clip, found.line, found.path.parent.name) == ("0002-L.003", 3, "Train_Label_PKU_final")


def changed(frame: int, field: int, text: str) -> bytes:
    lines = [line.split() for line in pku_text.text(frames_of()).decode().splitlines()]
    lines[frame][field : field + 1] = text.split()
    return "\n".join(map(" ".join, lines)).encode()


@pytest.mark.parametrize(
    ("content", "line", "expected"),
    [
        (b"", None, "holds no frame"),
        (b"\n" + changed(2, 7, "1"), 1, "expected 150 numbers, found 0"),
        (changed(2, 7, ""), 3, "expected 150 numbers, found 149"),
        (changed(7, 149, "1 2"), 8, "found 151"),
        (changed(4, 7, "left"), 5, "a coordinate in metres, found 'left'"),
        (changed(4, 7, "nan"), 5, "found 'nan'"),
        (changed(4, 7, "-inf"), 5, "found '-inf'"),
        (changed(4, 7, "1e30"), 5, "found '1e30'"),
        (changed(4, 7, "#"), 5, "found '#'"),
        (changed(0, 0, "\\xff\\x00"), 1, "found "),
        (changed(3, 0, "1") + b"\n\n" + changed(3, 0, "1"), 9, "found 0"),
        (changed(3, 2, "1_0"), None, "unusual spelling"),
    ],
)
def test_bad_skeleton_files(tmp_path, content, line, expected):
    error = only_reason(write(tmp_path, "6,0,4,2", content))
    assert expected in error.reason and error.line == line and error.path.name == f"{NAME}.txt"


def test_lines_may_end_in_any_way(tmp_path):
    text = pku_text.text(frames_of())
    (clip,) = READER.clips(write(tmp_path, "6,0,8,2\r\n", text.replace(b"\n", b"\r\n")))
    assert np.array_equal(clip.joints, frames_of().astype(np.float32))


def test_too_large_is_refused_unread(tmp_path):
    path = write(tmp_path)
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert "1099511627776 bytes" in only_reason(path).reason


@pytest.mark.parametrize("name", ["002-L", "0002-X", "A10N08-L", "0002", "0002-L.old"])
def test_misnamed(tmp_path, name):
    assert "is not named like 0002-L.txt, a video of phase 1" in only_reason(write(tmp_path, name=name)).reason


def test_labels_that_are_not_there(tmp_path):
    path = write(tmp_path, "\n \n")
    assert "labels no action" in only_reason(path).reason
    (tmp_path / "Train_Label_PKU_final" / path.name).write_bytes(b"6,0,4,\xff")
    assert "is not plain text" in only_reason(path).reason
    (tmp_path / "Train_Label_PKU_final" / path.name).write_text("\n" * 999 + "6,0,4,2")
    assert "at most 999" in only_reason(path).reason
    (tmp_path / "Train_Label_PKU_final" / path.name).unlink()
    assert "has no label file in Train_Label_PKU_final" in only_reason(path).reason


def test_a_video_on_no_list(tmp_path):
    path = write(tmp_path, name="0004-M")
    assert "is on neither side of cross-subject.txt" in only_reason(path).reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "found 0"),
        ("Training videos:\n0002-L\n", "found 1"),
        ("0002-L\nTraining videos:\n0003-M\n", "expected a heading .* found '0002-L'"),
        (SPLIT.replace("0005-R", "0003-M"), "each on one side, found '0003-M'"),
        (SPLIT + "Test videos:\n", "found 'Test videos:'"),
    ],
)
def test_bad_split_files_stop_at_once(tmp_path, text, expected):
    write(tmp_path)
    split = tmp_path / "Split" / "cross-view.txt"
    split.write_text(text)
    with pytest.raises(InputError, match=expected):
        READER.files(tmp_path)


def test_a_split_file_is_read_again_when_it_changed(tmp_path):
    write(tmp_path)
    split = tmp_path / "Split" / "cross-view.txt"
    assert sides(split) == {"0003-M": 1, NAME: 1, "0005-R": 2, "0007-L": 2}
    split.write_text(SPLIT.replace("0005-R, ", ""))
    assert "0005-R" not in sides(split)


def test_folders_without_a_part(tmp_path):
    with pytest.raises(InputError, match="expected one folder with 'skeleton' in its name, found none"):
        READER.files(tmp_path / "absent")
    write(tmp_path)
    (tmp_path / "old_labels").mkdir()
    with pytest.raises(InputError, match="found Train_Label_PKU_final, old_labels: give the folder"):
        READER.files(tmp_path)
    (tmp_path / "old_labels").rmdir()
    split = tmp_path / "Split" / "cross-view.txt"
    split.rename(tmp_path / "cross_view.txt")
    assert Layout.of(tmp_path).splits[1] == tmp_path / "cross_view.txt"
    (tmp_path / "cross_view.txt").unlink()
    with pytest.raises(InputError, match=r"expected one file cross-view\*\.txt, found none"):
        READER.files(tmp_path)
    with pytest.raises(InputError, match="found 3"):
        PKUReader(phase=3)


@pytest.mark.parametrize("phase", [1, 2])
def test_miniature_round_trip(tmp_path, phase):
    report = skeletons.write_pku(tmp_path / "raw", phase, performers=(1, 2), takes=1, frames=(10, 14))
    reader = PKUReader(phase)
    assert report["banner"] == f"miniature, not PKU-MMD, phase {phase}"
    assert skeletons.write_pku(tmp_path / "raw", phase, performers=(1, 2), takes=1, frames=(10, 14)) == report
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
    summary = prepare(reader, tmp_path / "raw", tmp_path / "out", ["agcn", "dsta"], name=f"pku{phase}", workers=1)
    assert summary["clips"] == report["clips"] == 2 * 3 * (12 if phase == 1 else 10)
    rejected = read_manifest(tmp_path / "out" / "raw")["rejected"]
    assert [entry["clip"] for entry in rejected] == report["rejected"]
    assert len({entry["reason"] for entry in rejected}) == 7, "each is broken in a way of its own"
    assert {entry["file"].split("/")[0] for entry in rejected if "." in entry["clip"]} == {"Label_PKU"}
    store = SkeletonStore(tmp_path / "out" / "raw")
    index = store.index
    assert {str(label + 1) for label in index.labels} == set(report["actions"])
    assert (index.frames >= 10).all() and (index.frames <= 14).all()
    two = np.isin(index.labels + 1, (14, 26))
    assert (index.bodies == np.where(two, 2, 1)).all() and two.any() == (phase == 1)
    for split, counts in ((f"pku{phase}_xsub", (1, 1)), (f"pku{phase}_xview", (2, 1))):
        rows = protocols.split(index, split)
        assert len(rows["train"]) * counts[1] == len(rows["test"]) * counts[0]
    assert set(index.cameras[protocols.split(index, f"pku{phase}_xview")["test"]]) == {1}
    assert np.isfinite(open_derived(tmp_path / "out", "dsta").clip(0)).all()


def test_every_camera_sees_every_action_of_the_same_figure(tmp_path):
    skeletons.write_pku(tmp_path / "raw", 2, performers=(1, 2), takes=1, frames=(10, 14))
    spans, labels = {}, []
    for path in PKUReader(2).files(tmp_path / "raw")[:3]:
        clips = [clip for clip in PKUReader(2).clips(path) if isinstance(clip, RawSample)]
        labels.append(sorted(clip.label for clip in clips))
        joints = np.concatenate([clip.joints[:, 0] for clip in clips])
        spans[clips[0].camera] = np.median(np.linalg.norm(joints[:, 13] - joints[:, 12], axis=-1))
    assert labels[0] == labels[1] == labels[2] and len(set(labels[0])) == 10
    assert set(spans) == {1, 2, 3} and max(spans.values()) < 1.05 * min(spans.values()), "one performer's thigh"
