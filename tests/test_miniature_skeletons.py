"""The miniature skeleton sets: same bytes for the same seed, real formats, figures that keep their limbs."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from datamodules import protocols
from datamodules.errors import InputError
from datamodules.miniature import actions, kinect_text, kinematics, scenes, skeletons
from datamodules.normalise import dsta
from datamodules.readers import MalformedFile
from datamodules.readers.ntu_rgbd import NTUReader
from datamodules.readers.nw_ucla import UCLAReader
from datamodules.topology import NTU25, UCLA20

SMALL = {"performers": (1, 11), "replications": 1, "frames": (12, 16)}
ROLES = [role for roles in (actions.NTU_ACTIONS | actions.NTU120_ACTIONS).values() for role in roles]


@pytest.fixture(scope="module")
def ntu(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("miniature") / "ntu"
    return folder, skeletons.write_ntu(folder, **SMALL)


@pytest.fixture(scope="module")
def samples(ntu) -> list:
    folder, report = ntu
    reader = NTUReader()
    return [reader.read(path) for path in reader.files(folder) if path.name not in report["rejected"]]


def contents(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def test_the_seed_decides_every_byte(ntu, tmp_path):
    folder, report = ntu
    assert skeletons.write_ntu(tmp_path / "same", **SMALL) == report
    assert contents(tmp_path / "same") == contents(folder)
    skeletons.write_ntu(tmp_path / "other", seed=1, **SMALL)
    shared = {
        path.name for path in folder.iterdir() if path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()
    }
    assert shared == {"S001C001P002R001A002.skeleton"}, "only the file without bodies knows no seed"
    assert {path.name for path in tmp_path.iterdir()} == {"same", "other"}, "something was left behind"


def test_writing_again_leaves_the_files_alone_and_mends_damage(tmp_path):
    folder = tmp_path / "ntu"
    few = SMALL | {"performers": (1,)}
    report = skeletons.write_ntu(folder, **few)
    whole, stamp = contents(folder), folder.stat().st_ino
    assert skeletons.write_ntu(folder, **few) == report and folder.stat().st_ino == stamp
    next(folder.glob("S001C001*A001*")).write_text("1\n0\n")
    assert skeletons.write_ntu(folder, **few) == report and contents(folder) == whole
    assert skeletons.write_ntu(folder, **few | {"seed": 3})["seed"] == 3 and contents(folder) != whole


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "precious.skeleton").write_text("mine")
    with pytest.raises(InputError, match="expected a miniature or nothing"):
        skeletons.write_ntu(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.skeleton"]


def test_clips_too_short_are_refused(tmp_path):
    with pytest.raises(InputError, match="expected at least 10 a clip, found 3"):
        skeletons.write_ntu(tmp_path / "ntu", **SMALL | {"frames": (3, 12)})
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(skeletons.kinect_text, "broken", lambda rng: [].pop())
    with pytest.raises(IndexError):
        skeletons.write_ntu(tmp_path / "ntu", **SMALL | {"performers": (1,)})
    assert not list(tmp_path.iterdir())


def test_the_reader_takes_every_clip(ntu, samples):
    _, report = ntu
    assert len(samples) == report["clips"] == 2 * 10 * 3
    assert report["banner"] == "miniature, not NTU RGB+D"
    assert {str(sample.label + 1) for sample in samples} == set(report["actions"])
    assert {sample.camera for sample in samples} == {1, 2, 3}
    assert {sample.setup for sample in samples} == {1, 2}
    assert all(12 <= len(sample.joints) <= 16 and np.isfinite(sample.joints).all() for sample in samples)
    depths = [sample.joints[sample.body_ids >= 0][..., 2].mean() for sample in samples]
    assert 1 < min(depths) < max(depths) < 6, "metres from a camera"


def test_the_reader_rejects_every_broken_file(ntu):
    folder, report = ntu
    reader = NTUReader()
    rejected = {}
    for name in report["rejected"]:
        with pytest.raises(MalformedFile) as failure:
            reader.read(folder / name)
        rejected[name] = failure.value.reason
    assert len(set(rejected.values())) == len(rejected) == 5, "each is broken in a way of its own"
    assert any("1000000000 frames" in reason for reason in rejected.values())


def test_two_people_act_in_the_two_person_actions(samples):
    for sample in samples:
        people = len({int(one) for one in sample.body_ids.ravel() if one >= 0})
        if sample.label + 1 in (50, 58):
            assert people >= 2
    crowded = [sample for sample in samples if sample.label + 1 not in (50, 58) and sample.joints.shape[1] > 1]
    assert len(crowded) < 0.2 * len(samples), "a second body in other clips is a rare ghost"


def test_a_body_is_lost_and_found_under_another_id(monkeypatch, tmp_path):
    for quirk, chance in {"GHOST": 1, "LOST": 1, "LATE": 1}.items():
        monkeypatch.setattr(kinect_text, quirk, chance)
    camera = scenes.Camera(azimuth=0.0, height=1.0, distance=3.0, tilt=0.0)
    standing = np.repeat(kinematics.forward_kinematics(scenes.cast(0, 1), np.zeros((1, 25, 3))), 40, axis=0)
    bodies = kinect_text.track(np.random.default_rng(0), [standing], camera)
    (tmp_path / "S001C001P001R001A001.skeleton").write_bytes(kinect_text.recording(bodies, "\r\n"))
    sample = NTUReader().read(tmp_path / "S001C001P001R001A001.skeleton")
    assert len(sample.joints) == 40 and len(np.unique(sample.body_ids[sample.body_ids >= 0])) == 3
    tall = np.ptp(sample.joints[..., 1], axis=-1) > 1
    assert tall.any(axis=1).sum() > 30 and tall.sum(axis=1).max() == 1, "one person throughout, the third is a ghost"
    early, later = (np.unique(sample.body_ids[rows][tall[rows]]) for rows in (slice(0, 13), slice(38, 40)))
    assert len(early) == len(later) == 1 and early != later
    assert not tall[0].any(), "tracking begins late"


def test_the_whole_set_has_both_sides_of_every_protocol_and_no_missing_name():
    train = protocols.NTU60_PERFORMERS
    assert len(train & set(skeletons.NTU_PERFORMERS)) == 8 and len(set(skeletons.NTU_PERFORMERS) - train) == 5
    names = {
        f"S{1 if performer <= 8 else 2:03}C{camera:03}P{performer:03}R{replication:03}A{action:03}"
        for performer in skeletons.NTU_PERFORMERS
        for camera in (1, 2, 3)
        for replication in (1, 2)
        for action in actions.NTU_ACTIONS
    }
    assert len(names) == 780 and not names & protocols.missing("ntu60")


def test_ntu120_has_both_sides_of_both_protocols_and_no_missing_name(tmp_path):
    report = skeletons.write_ntu120(tmp_path / "ntu", performers=(1, 41, 47), replications=1, frames=(12, 14))
    reader = NTUReader(actions=120)
    paths = [path for path in reader.files(tmp_path / "ntu") if path.name not in report["rejected"]]
    found = [reader.read(path) for path in paths]
    assert len(found) == report["clips"] == 3 * (10 + 8 + 8) and report["banner"] == "miniature, not NTU RGB+D 120"
    assert {str(one.label + 1) for one in found} == set(report["actions"])
    assert {(one.setup, one.performer) for one in found} == {(1, 1), (18, 41), (19, 47)}
    crowds = {one.label + 1 for one in found if len(np.unique(one.body_ids[one.body_ids >= 0])) > 1}
    assert {50, 58, 112} <= crowds

    setups = skeletons._NTU120_SETUPS
    names = {
        f"S{setup:03}C{camera:03}P{performer:03}R{replication:03}A{action:03}"
        for performer, setup in setups.items()
        for camera in (1, 2, 3)
        for replication in (1, 2)
        for action in (actions.NTU_ACTIONS if performer <= 40 else actions.NTU120_ACTIONS)
    }
    assert not names & protocols.missing("ntu120")
    assert len(protocols.NTU120_PERFORMERS & set(setups)) == 9 and len(setups) == 16
    assert set(setups.values()) == {1, 2, 18, 19, 20}


@pytest.mark.parametrize("action", ROLES, ids=lambda role: role.name)
def test_limbs_keep_their_length_and_feet_the_floor(action):
    offsets = scenes.cast(seed=0, performer=4)
    rng = np.random.default_rng(5)
    joints = kinematics.perform(rng, offsets, action, kinematics.Timing.draw(rng, action, 60), left_handed=True)
    child, parent = np.array(NTU25.bones).T
    lengths = np.linalg.norm(joints[:, child] - joints[:, parent], axis=-1)
    np.testing.assert_allclose(lengths, np.broadcast_to(lengths[0], lengths.shape), rtol=1e-9)
    assert joints.std(axis=0).max() > 0.02, "somebody moves"
    lowest = joints[..., 1].min(axis=1)
    assert (lowest > -1e-9).all()
    if not action.lift:
        np.testing.assert_allclose(lowest, 0, atol=1e-9)
    else:
        assert lowest.max() > 0.1


def test_performers_differ_and_are_of_human_size():
    heights = []
    for performer in skeletons.NTU_PERFORMERS:
        standing = kinematics.forward_kinematics(scenes.cast(0, performer), np.zeros((1, NTU25.num_joints, 3)))
        heights.append(np.ptp(standing[0, :, 1]))
    assert 1.2 < min(heights) < max(heights) < 2.1 and len(set(np.round(heights, 4))) == len(heights)
    assert (scenes.cast(0, 1) != scenes.cast(1, 1)).any()


def test_limb_lengths_in_the_files_are_the_performers(samples):
    child, parent = np.array(NTU25.bones).T
    thigh = list(zip(child, parent, strict=True)).index((13, 12))
    for performer in (1, 11):
        true = np.linalg.norm(scenes.cast(0, performer)[13])
        measured = [
            np.median(np.linalg.norm(sample.joints[:, 0][:, child] - sample.joints[:, 0][:, parent], axis=-1)[:, thigh])
            for sample in samples
            if sample.performer == performer and sample.joints.shape[1] == 1
        ]
        assert len(measured) > 10 and np.median(measured) == pytest.approx(true, rel=0.04)


def test_a_left_hander_is_the_mirror_image():
    rest = scenes.cast(0, 1)
    right = kinematics.forward_kinematics(rest, kinematics.pose(actions.WAVE.hold)[None])
    left = kinematics.forward_kinematics(rest, kinematics.pose(actions.WAVE.hold, left_handed=True)[None])
    np.testing.assert_allclose(left[:, list(NTU25.mirrored)] * (-1, 1, 1), right, atol=1e-12)
    hand, head = NTU25.joint_names.index("right hand"), NTU25.joint_names.index("head")
    assert right[0, hand, 1] > right[0, head, 1] - 0.15, "a waving hand is up"


def test_forward_kinematics_turns_an_arm_as_matrices_do():
    offsets = scenes.cast(0, 2)
    flex, twist, out = 70.0, -40.0, 25.0
    joints = kinematics.forward_kinematics(offsets, kinematics.pose({"right shoulder": (flex, twist, out)})[None])[0]
    (cf, ct, co), (sf, st, so) = np.cos(np.deg2rad([flex, twist, out])), np.sin(np.deg2rad([flex, twist, out]))
    about_x = np.array([[1, 0, 0], [0, cf, -sf], [0, sf, cf]])
    about_y = np.array([[ct, 0, st], [0, 1, 0], [-st, 0, ct]])
    about_z = np.array([[co, -so, 0], [so, co, 0], [0, 0, 1]])
    expected = about_z @ about_x @ about_y @ (offsets[9] + offsets[10])
    np.testing.assert_allclose(joints[10] - joints[8], expected, atol=1e-12)


def test_camera_1_sees_at_45_degrees_what_another_sees_from_the_front():
    shoulders = np.array([[0.2, 1.4, 0.0], [-0.2, 1.4, 0.0]])
    for number, towards, share in ((1, 3, np.cos(np.pi / 4)), (3, 3, 1.0), (2, 3, 0.0), (2, 2, 1.0)):
        camera = scenes.Camera(scenes.AZIMUTHS[number], height=1.0, distance=3.0, tilt=0.0)
        turned = shoulders @ kinematics.rotation(scenes.AZIMUTHS[towards], axis=1).T
        seen = camera.view(turned)
        assert seen[0, 0] - seen[1, 0] == pytest.approx(0.4 * share, abs=1e-9)
        assert seen[:, 1] == pytest.approx(0.4) and seen[:, 2].mean() == pytest.approx(3.0)


def test_recipe_takes_the_clips(samples):
    for sample in samples:
        clip = dsta(sample.joints, sample.body_ids, NTU25)
        assert np.isfinite(clip).all() and clip.shape[1] in (1, 2)
        assert np.abs(clip).max() < 40


def test_nw_ucla_format(tmp_path):
    report = skeletons.write_ucla(tmp_path / "ucla", performers=(1, 7), replications=1, frames=(10, 12))
    reader = UCLAReader()
    samples = [reader.read(path) for path in reader.files(tmp_path / "ucla")]
    assert len(samples) == report["clips"] == 10 * 2 * 3 and report["banner"] == "miniature, not NW-UCLA"
    assert sorted({sample.label for sample in samples}) == list(range(10))
    assert {(sample.performer, sample.camera) for sample in samples} == {(p, v) for p in (1, 7) for v in (1, 2, 3)}
    for sample in samples:
        assert sample.joints.shape[1:] == (1, UCLA20.num_joints, 3) and 10 <= len(sample.joints) <= 12
        up = sample.joints[:, 0, UCLA20.joint_names.index("head"), 1] - sample.joints[:, 0, 15, 1]
        assert up.max() > 0.8, "the head is above the feet"
    one = json.loads((tmp_path / "ucla" / "a12_s07_e00_v02.json").read_text())
    assert one["label"] == 10 and one["file_name"] == "a12_s07_e00_v02"
