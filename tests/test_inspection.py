"""What the report shows of a network is what the network does, in numbers that can be checked."""

from functools import partial

import numpy as np
import pytest
import test_sds_cl
import torch
import toys_a2mc
from toys import ToyMethod, toy_data, write_toy_stores

from datamodules.topology import NTU25
from lightning_modules.encoders.dsta import DSTANet
from lightning_modules.evaluation.collapse import effective_rank, spread
from lightning_modules.evaluation.inspection import VISIBLE, Inspection, in_the_plane, look_at, present
from lightning_modules.evaluation.subject import Subject
from lightning_modules.psp import PSP
from lightning_modules.schedules import Constant


def psp() -> PSP:
    torch.manual_seed(0)
    encoder = DSTANet("ntu25", test_sds_cl.LAYERS, subsets=2, num_frames=12)
    return PSP(encoder, "ntu25", 3, partial(torch.optim.SGD, lr=0.1), Constant(), seed=3)


def one_clip(bodies: int = 2):
    batch = toys_a2mc.clips(1, frames=20)
    batch.joints[..., bodies:] = 0
    return batch


@pytest.mark.parametrize("bodies", [1, 2])
def test_the_maps_of_siia_are_shown_as_they_attend(bodies):
    module, clip = test_sds_cl.module().eval(), one_clip(bodies)
    shown = look_at(module, clip)
    names = [one["name"] for one in shown["maps"]]
    assert len(names) == 8 and names[0] == "joint stream, temporal intra"
    with torch.no_grad():
        joint, motion = module.backbone(*module.streams(clip))
        expected = module.siia.maps(motion, joint)
    for name in expected._fields:
        (found,) = [one for one in shown["maps"] if one["name"] == f"motion stream, {name.replace('_', ' ')}"]
        theirs = getattr(expected, name)[:bodies].abs().mean(1)
        np.testing.assert_allclose(found["values"], theirs, atol=1e-4)
        assert found["over"] == ("joints" if name.startswith("spatial") else "frames")
        assert len(found["values"][0]) == (25 if found["over"] == "joints" else joint.shape[2])
    assert np.asarray(shown["joints"]).shape == (module.encoder.num_frames, bodies, 25, 3)


def test_a_group_hands_its_attention_to_its_joints():
    module, clip = psp().eval(), one_clip()
    for level in (module.ppa.body, module.ppa.part, module.ppa.joint):
        level.query_key_value.weight.data *= 5e-4  # or every tanh would be 1
    shown = {one["name"]: np.asarray(one["values"]) for one in look_at(module, clip)["maps"]}
    assert len(shown) == 6 and {values.shape for values in shown.values()} == {(2, 25, 25)}
    body = shown["joint stream, body level"]
    for members in NTU25.body_groups:
        assert np.ptp(body[:, members], axis=1).max() == 0, "one row for all joints of a group"
    assert len(np.unique(body[0].round(4), axis=0)) == 5
    assert len(np.unique(shown["joint stream, joint level"][0], axis=0)) == 25


def test_the_shift_of_an_attack_is_that_of_the_attack():
    module, clip = toys_a2mc.full(toys_a2mc.a2mc()).eval(), one_clip()
    weak, strong = look_at(module, clip)["twins"]
    assert [weak["name"], strong["name"]] == ["1 step of 0.001", "2 steps of 0.001"]
    seen = module.shown(clip)
    attacked = module.attacks[1](seen, module.logits, module)
    scale = 1000 / seen.abs().max()
    found = torch.tensor(strong["shift"]).permute(3, 0, 2, 1)[None] * strong["unit"]
    torch.testing.assert_close(found, (attacked - seen) * scale, atol=strong["unit"], rtol=0)
    assert np.abs(strong["shift"]).max() == 1000 and 0.5 < strong["enlarge"] * strong["unit"] * 1000 / VISIBLE < 2


def test_an_attack_on_another_stream_moves_no_joint():
    assert toys_a2mc.a2mc(stream="bone").eval().attacked_twins(one_clip()) == {}


def test_views_for_showing_are_those_of_training_and_leave_the_mode():
    batch = toys_a2mc.clips(3)
    for module in (test_sds_cl.module().eval(), toys_a2mc.a2mc().eval()):
        views = module.augmented(batch)
        assert not module.training and all(len(view) == 3 for view in views.values())
        again = module.augmented(batch)
        assert all(torch.equal(views[name], again[name]) for name in views) and len(views) == 2
        module.place.step = 1
        assert not all(torch.equal(views[name], view) for name, view in module.augmented(batch).items())


def test_absent_bodies_are_left_out_but_the_first():
    joints = torch.zeros(3, 4, 5, 3)
    assert present(joints).shape[-1] == 1
    joints[0, 0, 0, 1] = 1
    assert present(joints).shape[-1] == 2


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspected")
    data = toy_data(write_toy_stores(folder))

    def backbone():
        torch.manual_seed(0)
        return ToyMethod()

    make = partial(Subject, key="k", work=folder, data=data, num_classes=3, trainer={"accelerator": "cpu"})
    return partial(make, folder=folder / "e", make_data=toy_data, make_backbone=backbone)


def test_clips_of_as_many_labels_with_their_nearest_neighbours(subject):
    shown = subject(name="")
    inspection = Inspection(clips=4, near=2, points=10)
    metrics, _, _, _, parts = inspection.measure(shown)
    test, train = shown.embedding("test"), shown.embedding("train")
    assert set(metrics) == {"k1", "effective_rank", "feature_spread"}
    assert metrics["effective_rank"] == pytest.approx(effective_rank(test.vectors))
    clips = parts["samples"]["clips"]
    assert len(clips) == 4 and {clip["title"][-1] for clip in clips[:3]} == {"0", "1", "2"}
    names = shown.data.store.index.names
    for clip in clips:
        (row,) = np.flatnonzero(names == clip["title"].split(",")[0])
        vector = test.vectors[test.ids == row]
        likeness = torch.cosine_similarity(vector, train.vectors)
        best = likeness.topk(2)
        told = [f"label {train.labels[i]}, cosine {x:.2f}" for x, i in zip(best.values, best.indices, strict=True)]
        assert [near["title"] for near in clip["neighbours"]] == told
        raw = np.asarray(clip["joints"]).transpose(0, 1, 2, 3) / 1000
        stored = shown.data.store.clip(row)
        np.testing.assert_allclose(raw[: len(stored)] * np.abs(stored).max(), stored, atol=np.abs(stored).max() / 1000)
    again = inspection.measure(shown)
    assert (again.metrics, again.parts) == (metrics, parts), "a function of the seed"


def test_points_are_named_and_few_enough(subject):
    parts = Inspection(points=10).measure(subject(name="random initialisation")).parts
    assert set(parts) == {"points"}
    points = parts["points"]
    assert len(points["xy"]) == len(points["labels"]) == len(points["names"]) == 10 and points["of"] == 15
    assert all(name.startswith("clip") for name in points["names"]) and points["method"] == "t-SNE"


def test_clusters_stay_apart_in_the_plane_and_few_points_have_one_too():
    source = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    vectors = torch.eye(3).repeat(1, 30)[labels] + 0.05 * torch.randn(90, 90, generator=source)
    method, xy = in_the_plane(vectors, 1)
    assert method == "t-SNE" and xy.shape == (90, 2)
    centres = np.stack([xy[labels == n].mean(0) for n in range(3)])
    nearest = np.linalg.norm(xy[:, None] - centres, axis=2).argmin(1)
    assert (nearest == labels.numpy()).all()
    assert [in_the_plane(vectors[:n], 1)[1].shape for n in (1, 2, 4)] == [(1, 2), (2, 2), (4, 2)]


def test_effective_rank_and_spread_of_what_is_known():
    assert effective_rank(torch.ones(10, 4)) == 0
    assert effective_rank(torch.arange(10.0)[:, None] * torch.tensor([1.0, 2.0, 0.0])) == pytest.approx(1)
    cross = torch.cat([torch.eye(4), -torch.eye(4)])
    assert effective_rank(cross) == pytest.approx(4) and spread(cross) == pytest.approx(1)
    assert spread(torch.ones(10, 4) * torch.arange(1, 11)[:, None]) == pytest.approx(0, abs=1e-7)
    gaussian = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    assert spread(gaussian) == pytest.approx(1, abs=0.02) and 15.9 < effective_rank(gaussian) <= 16
