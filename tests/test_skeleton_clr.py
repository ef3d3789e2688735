"""SkeletonCLR, and what AimCLR inherits: loss by hand, queue, key encoder, resume, ranks, published settings."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from test_a2mc import loader, trainer
from toys_a2mc import clips, step, terms_of, train
from toys_clr import BODIES, FRAMES, aim_clr, double, skeleton_clr, with_near_keys

from datamodules.batch import SkeletonBatch
from datamodules.errors import InputError
from datamodules.topology import TOPOLOGIES
from datamodules.transforms.temporal import resize_window

BOTH = pytest.mark.parametrize("make", [skeleton_clr, aim_clr])
CONF = Path(__file__).parents[1] / "conf"


def test_the_loss_is_info_nce_of_the_query_with_its_key_and_the_queue():
    module, batch = with_near_keys(skeleton_clr()).eval(), double(clips())
    got = module.objective(batch)
    assert terms_of(got) == ["contrast"] and 0.3 < got["contrast"] < 10
    first, second = module.views(batch)
    query, key = module.encoders.query(first), module.encoders.key(second)
    expected = 0.0
    for row in range(4):
        logits = torch.stack([query[row] @ key[row], *(query[row] @ module.queue.keys[:, j] for j in range(10))]) / 0.07
        expected += (logits.logsumexp(0) - logits[0]).item() / 4
    assert got["contrast"].item() == pytest.approx(expected, rel=1e-9)
    assert torch.allclose(got["key"], key) and not got["key"].requires_grad


def test_views_have_numbers_of_their_own_for_every_clip_step_and_view():
    module = skeleton_clr()
    query, key = module.views(clips())
    assert query.shape == key.shape == (4, 3, FRAMES, 25, BODIES)
    assert all(not torch.equal(query[row], key[row]) for row in range(4))
    again = module.views(clips())
    assert torch.equal(query, again[0]) and torch.equal(key, again[1])
    module.place.step = 1
    assert not torch.equal(module.views(clips())[0], query)
    module.place.step, module.place.epoch = 0, 1
    assert not torch.equal(module.views(clips())[0], query)


@BOTH
@pytest.mark.parametrize("n", [4, 3, 1, 13])
def test_queue_takes_the_keys_and_the_key_encoder_follows(n, make):
    module = make(momentum=0.75)
    start, before = module.queue.keys.clone(), copy.deepcopy(module.encoders.key.state_dict())
    outputs = step(module, module.configure_optimizers()["optimizer"], clips(n), 0)
    held = torch.cat([start.T, outputs["key"]])[-10:]
    assert torch.equal(module.queue.keys.T.roll(-int(module.queue.head), 0), held)
    for name, p in module.encoders.query.named_parameters():
        assert torch.allclose(module.encoders.key.get_buffer(name), 0.75 * before[name] + 0.25 * p, atol=1e-6), name


@BOTH
def test_objective_changes_no_state_but_the_statistics_of_its_own_passes(make):
    """AimCLR's query encoder sees two batches a step, the normal and the extreme view; EADM needs no third pass."""
    module = make().train()
    passes = {"query": 2 if make is aim_clr else 1, "key": 1}
    state = copy.deepcopy(module.state_dict())
    module.objective(clips())
    for name, value in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert value - state[name] == passes[name.split(".")[1]], name
        elif "running" not in name:
            assert torch.equal(value, state[name]), name


@BOTH
@pytest.mark.parametrize("topology", list(TOPOLOGIES))
@pytest.mark.parametrize("stream", ["joint", "motion", "bone"])
def test_a_step_on_any_skeleton_and_stream(topology, stream, make):
    module = make(topology, stream)
    outputs = step(module, module.configure_optimizers()["optimizer"], clips(joints=TOPOLOGIES[topology].num_joints), 0)
    assert all(value.isfinite().all() for value in outputs.values())


def test_features_are_the_pooled_encoder_on_the_whole_clip_without_augmentation():
    module, batch = skeleton_clr().eval(), clips()
    features = module.features(batch)
    whole = resize_window(batch.joints, torch.zeros_like(batch.num_frames), batch.num_frames, FRAMES)
    maps = module.encoders.query.encoder(whole).unflatten(0, (4, BODIES))
    assert features.shape == (4, 1, module.feature_width) and features.requires_grad
    assert torch.allclose(features[:, 0], maps.mean(dim=(1, 3, 4)), atol=1e-6)
    module.place.step = 9
    assert torch.equal(module.features(batch), features), "nothing random"
    streams = [skeleton_clr(stream=stream).eval().features(batch) for stream in ("motion", "bone")]
    assert not any(torch.allclose(other, features) for other in streams)


@BOTH
@pytest.mark.parametrize("before", [1, 3])
def test_n_and_m_steps_are_n_stop_m_bitwise(before, make):
    whole = make(dropout=0.5)
    optimizer = train(whole, range(before))
    checkpoint = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    resumed = make(dropout=0.5)
    resumed.load_state_dict(checkpoint[0])
    other = resumed.configure_optimizers()["optimizer"]
    other.load_state_dict(checkpoint[1])
    for number in range(before, 4):
        step(whole, optimizer, clips(seed=number), number)
        step(resumed, other, clips(seed=number), number)
    state = resumed.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.state_dict().items())
    assert {"queue.keys", "queue.head"} <= set(state)


def halves_of(batch: SkeletonBatch) -> list[SkeletonBatch]:
    n = len(batch.labels) // 2
    return [SkeletonBatch(*(part[n * rank : n * rank + n] for part in batch)) for rank in range(2)]


@BOTH
def test_two_ranks_compute_what_one_process_would(make, monkeypatch):
    """Mean of the ranks' losses and gradients, and the queue after the step, in float64 with statistics at rest."""
    batch = double(clips(6))
    whole = with_near_keys(make()).eval()
    whole.place.epoch = 1  # AimCLR mines
    ranks = [copy.deepcopy(whole) for _ in range(2)]
    outputs, shares = whole.objective(batch), []
    for rank, (module, half) in enumerate(zip(ranks, halves_of(batch), strict=True)):
        module.place.rank, module.place.world = rank, 2
        monkeypatch.setattr(module, "gathered", lambda rows: rows)
        shares.append(module.objective(half))
    for name in terms_of(outputs):
        assert abs((shares[0][name] + shares[1][name]) / 2 - outputs[name]) < 1e-10, name
    for part in (outputs, *shares):
        torch.stack([part[name] for name in terms_of(part)]).sum().backward()
    for p, *q in zip(*(module.parameters() for module in (whole, *ranks)), strict=True):
        assert torch.allclose((q[0].grad + q[1].grad) / 2, p.grad, atol=1e-10)
    keys = torch.cat([share["key"] for share in shares])
    assert torch.allclose(keys, outputs["key"], atol=1e-12)


def test_memory_larger_than_the_data_is_refused():
    with pytest.raises(InputError, match="slots, 15, found 14; set memory_size to at most 14"):
        trainer().fit(skeleton_clr(memory_size=15), loader(4))


def test_published_settings():
    config = yaml.safe_load((CONF / "method" / "skeleton_clr.yaml").read_text())
    method, linear = config["method"], config["linear"]
    found = {name: method[name] for name in ("dim", "memory_size", "momentum", "temperature")}
    assert found == {"dim": 128, "memory_size": 32768, "momentum": 0.999, "temperature": 0.07}
    found = {name: method["encoder"][name] for name in ("width", "out_channels", "dropout")}
    assert found == {"width": 16, "out_channels": 256, "dropout": 0.5} and method["view"]["frames"] == 50
    assert [method["optimizer"][name] for name in ("lr", "momentum", "weight_decay")] == [0.1, 0.9, 1e-4]
    assert method["schedule"]["milestones"] == [250] and "warmup" not in method["schedule"]
    assert (config["batch_size"], config["trainer"]["max_epochs"]) == (128, 300)
    assert (linear["batch_size"], linear["epochs"], linear["lr"]) == (128, 100, 3)
    assert linear["schedule"]["milestones"] == [80] and not linear["standardised"]


def test_unit_queries_meet_unit_keys():
    module, batch = skeleton_clr(), clips()
    outputs = module.objective(batch)
    ones = torch.ones(4)
    assert torch.allclose(outputs["key"].norm(dim=1), ones)
    assert torch.allclose(module.encoders.query(module.views(batch)[0]).norm(dim=1), ones)
    assert torch.allclose(F.normalize(module.queue.keys, dim=0), module.queue.keys)
