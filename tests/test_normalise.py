"""The recipes: against the released code's results, against plain loops, and against what each one promises."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.plain.ntu_reader import read_plainly
from benchmarks.plain.recipes import agcn_plainly, dsta_plainly
from datamodules.errors import InputError
from datamodules.normalise import RECIPES, agcn, dsta
from datamodules.topology import KINETICS18, NTU25, UCLA20

GOLDEN = Path(__file__).parent / "golden" / "ntu"
RAW = sorted((GOLDEN / "raw").glob("*.skeleton"))
PLAIN = {"agcn": agcn_plainly, "dsta": dsta_plainly}  # recipe `kinetics` is tested beside its reader


def error(got, expected):
    return np.abs(got - expected).max() / np.abs(expected).max()


def two_bodies(clip):
    """(T, M, V, 3) -> (3, T, V, 2), the order of the golden arrays."""
    padded = np.zeros((len(clip), 2, *clip.shape[2:]), dtype=np.float32)
    padded[:, : clip.shape[1]] = clip
    return padded.transpose(3, 0, 2, 1)


def figure(seed=0, frames=12, bodies=1, joints=25):
    """(T, M, V, 3) upright random figures some metres away that move a little, with ids that stay."""
    rng = np.random.default_rng(seed)
    start = rng.normal(scale=(0.2, 0.5, 0.1), size=(1, bodies, joints, 3)) + np.array((0.3, 0.1, 3))
    steps = rng.normal(scale=0.05, size=(frames, bodies, joints, 3)).cumsum(axis=0)
    return (start + steps).astype(np.float32), np.tile(np.arange(bodies), (frames, 1))


def messy(seed):
    """A clip with what recordings hold: gaps, late and early bodies, absent joints, ids that change or repeat."""
    rng = np.random.default_rng(seed)
    frames, slots = int(rng.integers(1, 16)), int(rng.integers(1, 6))
    joints, _ = figure(seed, frames, slots)
    joints *= rng.choice([0.3, 1, 1.02], size=(1, slots, 1, 1)).astype(np.float32)
    wide = rng.random(slots) < 0.3
    joints[:, wide] = joints[:, wide][..., [1, 0, 2]]
    joints[rng.random((frames, slots)) < rng.choice([0, 0.4])] = 0
    joints[: rng.integers(0, frames), rng.random(slots) < 0.4] = 0
    joints[rng.random((frames, slots, 25)) < rng.choice([0, 0.02])] = 0
    joints[rng.integers(frames), 0] = figure(seed + 1)[0][0, 0]
    ids = np.where(joints.any(axis=(2, 3)), rng.choice([7, 8, 50], size=(frames, slots)), -1)
    return joints, ids


@pytest.mark.parametrize("path", RAW, ids=lambda path: path.stem)
def test_golden(path):
    with np.load(GOLDEN / "expected.npz") as golden:
        row = golden["names"].tolist().index(path.stem)
        padded = two_bodies(agcn(*read_plainly(path), NTU25, frames=300))
        expected = golden["agcn/normalised"][row]
        assert padded.shape == (3, 300, 25, 2) and error(padded[:, : expected.shape[1]], expected) < 2e-6
        clip = dsta(*read_plainly(path), NTU25)
        assert clip.shape[1] == golden[f"dsta/num_bodies/{path.stem}"]
        assert error(two_bodies(clip), golden[f"dsta/normalised/{path.stem}"]) < 2e-6


@pytest.mark.parametrize("recipe", PLAIN)
def test_equal_to_plain_loops(recipe):
    several = 0
    for seed in range(100):
        joints, ids = messy(seed)
        got, expected = RECIPES[recipe](joints, ids, NTU25), PLAIN[recipe](joints, ids)
        assert got.shape == expected.shape and got.dtype == np.float32, seed
        assert error(got, expected) < 1e-5, seed
        several += got.shape[1] == 2
    assert 5 <= several <= 95, "both cases occur"


@pytest.mark.parametrize("recipe", PLAIN)
def test_a_recipe_is_a_function(recipe):
    joints, ids = messy(3)
    before = joints.tobytes(), ids.tobytes()
    assert RECIPES[recipe](joints, ids, NTU25).tobytes() == RECIPES[recipe](joints, ids, NTU25).tobytes()
    assert (joints.tobytes(), ids.tobytes()) == before


def test_agcn_does_not_depend_on_the_padding():
    joints, ids = figure(frames=10, bodies=2)
    joints[6:, 0] = 0
    padded = agcn(joints, ids, NTU25, frames=300)
    assert padded.shape == (300, 2, 25, 3) and (padded[:10] == agcn(joints, ids, NTU25)).all()
    assert (padded[30:60] == padded[:30]).all(), "bodies of 6 and 10 frames, each repeated, meet every 30"


def test_agcn_promises():
    joints, ids = figure(bodies=2)
    clip = agcn(joints, ids, NTU25)
    assert (clip[:, 0, 1] == 0).all(), "the spine is the origin of every frame"
    shoulders = clip[0, 0, 8] - clip[0, 0, 4]
    assert abs(shoulders[0] - np.linalg.norm(shoulders)) < 1e-6 < shoulders[0], "the shoulders lie on x"
    metres = np.linalg.norm(joints[0, :, 8] - joints[0, :, 4], axis=-1)
    assert np.abs(metres - shoulders[0]).min() < 1e-6, "lengths stay what they were"
    assert error(agcn(joints + np.float32(2), ids, NTU25), clip) < 1e-4, "a step aside changes nothing"


@pytest.mark.parametrize("topology", [NTU25, UCLA20], ids=lambda topology: topology.name)
def test_dsta_promises(topology):
    joints, ids = figure(joints=topology.num_joints)
    clip = dsta(joints, ids, topology)[0, 0]
    trunk, sideways = topology.z_axis[1], topology.x_axis
    assert (clip[topology.origin] == 0).all()
    assert error(clip[trunk], np.array([0, 0, 1])) < 1e-6, "the trunk is the unit and points up"
    arm = clip[sideways[1]] - clip[sideways[0]]
    assert abs(arm[1]) < 1e-6 < arm[0], "the arm lies above x"


@pytest.mark.parametrize("bodies", [1, 2])
def test_dsta_does_not_see_where_the_camera_stands(bodies):
    joints, ids = figure(bodies=bodies)
    if bodies == 2:  # the choice of bodies is not invariant, so it must be clear: the second moves 5 % less
        joints[:, 1] = 0.95 * joints[:, 0] + np.float32(0.4)
    rotation, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))
    rotation *= np.linalg.det(rotation)
    elsewhere = (joints @ rotation.T + (1.5, -0.7, 2)).astype(np.float32)
    assert dsta(joints, ids, NTU25).shape[1] == bodies
    assert error(dsta(elsewhere, ids, NTU25), dsta(joints, ids, NTU25)) < 1e-4
    assert error(dsta(joints * 3, ids, NTU25), dsta(joints, ids, NTU25)) < 1e-4, "nor how tall the figure is"


@pytest.mark.parametrize(("width", "bodies"), [(0.79, 2), (0.81, 1)])
def test_a_still_body_stays_only_if_upright(width, bodies):
    joints, ids = figure(bodies=2)
    joints[:, 1] = 0
    joints[:, 1, :, 0], joints[:, 1, :, 1] = np.linspace(0, 0.1 * width, 25), np.linspace(0.1, 0, 25)
    assert dsta(joints, ids, NTU25).shape[1] == bodies


def test_bodies_that_move_alike_stay_in_the_order_of_appearance():
    joints, ids = figure(bodies=2)
    joints = np.round(joints * 256) / 256
    joints[:, 1] = joints[:, 0] + np.float32(0.5)
    assert dsta(joints, ids + np.array([9, 0]), NTU25).tobytes() == dsta(joints, ids, NTU25).tobytes()


def test_a_body_keeps_its_row_when_it_changes_slots():
    joints, ids = figure(bodies=2)
    swapped, swapped_ids = joints.copy(), ids.copy()
    swapped[5:], swapped_ids[5:] = joints[5:, ::-1], ids[5:, ::-1]
    assert (dsta(swapped, swapped_ids, NTU25) == dsta(joints, ids, NTU25)).all()


def test_the_largest_id_twice_in_a_frame():
    joints, ids = figure(bodies=2)
    assert dsta(joints, np.full_like(ids, 2**63 - 1), NTU25).tobytes() == dsta(joints, ids, NTU25).tobytes()


@pytest.mark.parametrize("recipe", PLAIN)
def test_a_clip_without_a_body_is_refused(recipe):
    with pytest.raises(InputError, match="body in at least one frame"):
        RECIPES[recipe](np.zeros((4, 2, 25, 3), np.float32), np.zeros((4, 2), np.int64), NTU25)


@pytest.mark.parametrize("recipe", PLAIN)
def test_figures_without_direction_stay_finite(recipe):
    """One joint only, or a figure upside down: no axis to turn about, no length to divide by."""
    joints, ids = np.zeros((3, 1, 25, 3), np.float32), np.zeros((3, 1), np.int64)
    joints[1, 0, 7] = 1
    assert np.isfinite(RECIPES[recipe](joints, ids, NTU25)).all()
    joints[:, 0] = np.linspace(0, -1, 25)[:, None] * np.array([0, 0, 1]) + (0, 0, 3)
    assert np.isfinite(RECIPES[recipe](joints, ids, NTU25)).all()


def test_agcn_wants_a_topology_that_has_its_axes():
    with pytest.raises(InputError, match="kinetics18"):
        agcn(np.ones((3, 1, 18, 3), np.float32), np.zeros((3, 1), np.int64), KINETICS18)
