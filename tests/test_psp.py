"""PSP Learning: released values, PPA and CCL beside slow readings, groups of every skeleton, one stage of training."""

import copy

import pytest
import pytorch_lightning as pl
import torch
from goldens import BOUND
from goldens_psp import compare, small
from pytorch_lightning.utilities import CombinedLoader
from torch.nn import functional

from datamodules.batch import SkeletonBatch
from datamodules.randomness import generator
from datamodules.topology import TOPOLOGIES
from lightning_modules.attention.ppa import PPA
from lightning_modules.losses.ccl import ccl


def test_every_feature_loss_and_gradient_equals_the_released_code():
    found = compare()
    assert max(found.values()) < BOUND, {name: value for name, value in found.items() if value >= BOUND}


# ---- PPA


def slow_level(level, x: torch.Tensor, coarser: list) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One level of one clip x (C, T, P), number by number; coarser: (coefficient, map, group of each unit)."""
    channels, frames, units = x.shape
    heads = level.num_heads
    d = channels // heads
    weight, bias = level.query_key_value.weight[:, :, 0, 0], level.query_key_value.bias
    projected = torch.zeros(3 * channels, frames, units)
    for t in range(frames):
        for u in range(units):
            projected[:, t, u] = weight @ x[:, t, u] + bias
    own, used = torch.zeros(heads, units, units), torch.zeros(heads, units, units)
    attended = torch.zeros_like(x)
    for h in range(heads):
        query, key, value = (projected[part * channels + h * d : part * channels + (h + 1) * d] for part in range(3))
        for u in range(units):
            for v in range(units):
                own[h, u, v] = torch.tanh((query[:, :, u] * key[:, :, v]).sum() / (d * frames))
                used[h, u, v] = own[h, u, v] + sum(c * coarse[h, of[u], of[v]] for c, coarse, of in coarser)
                attended[h * d : (h + 1) * d, :, u] += used[h, u, v] * value[:, :, v]
    return functional.leaky_relu(x + level.feed_forward(attended[None])[0], 0.1), own, used


@pytest.mark.parametrize("name", TOPOLOGIES)
@torch.no_grad()
def test_ppa_equals_a_slow_reading_on_every_skeleton(name):
    """Coefficients from the rule, groups counted joint by joint, the part map handed up without the body map."""
    skeleton = TOPOLOGIES[name]
    bodies, parts = skeleton.body_groups, skeleton.part_groups
    ppa = PPA(name, channels=8, heads=2).eval()
    x = torch.randn(2, 8, 3, skeleton.num_joints, generator=generator(1))
    levels, maps = ppa(x), ppa.maps(x)
    body_of = [next(g for g, group in enumerate(bodies) if joint in group) for joint in range(skeleton.num_joints)]
    part_of = [next(g for g, group in enumerate(parts) if joint in group) for joint in range(skeleton.num_joints)]
    body_of_part = [body_of[group[0]] for group in parts]
    units, largest_part, largest_body = skeleton.num_joints, max(map(len, parts)), max(map(len, bodies))
    parts_in_a_body = max(body_of_part.count(g) for g in range(len(bodies)))
    for clip in range(2):
        body_means, part_means = (
            torch.stack([x[clip, :, :, list(group)].mean(-1) for group in groups], -1) for groups in (bodies, parts)
        )
        body, body_map, _ = slow_level(ppa.body, body_means, [])
        onto_part = [(parts_in_a_body / len(parts), body_map, body_of_part)]
        part, part_map, part_used = slow_level(ppa.part, part_means, onto_part)
        onto_joint = [(largest_part / units, part_map, part_of), (largest_body / units, body_map, body_of)]
        joint, _, joint_used = slow_level(ppa.joint, x[clip], onto_joint)
        for got, slow in zip(levels, (body, part, joint), strict=True):
            assert torch.allclose(got[clip], slow, atol=1e-5)
        for got, slow in zip(maps, (body_map, part_used, joint_used), strict=True):
            assert torch.allclose(got[clip], slow, atol=1e-5)


def test_the_rule_gives_the_published_coefficients():
    ppa = PPA("ntu25", 8, 2)
    assert (ppa.body_in_part, ppa.part_in_joint, ppa.body_in_joint) == pytest.approx((0.2, 0.12, 0.24))


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_parts_lie_within_body_groups_and_take_every_joint_once(name):
    skeleton = TOPOLOGIES[name]
    for groups in (skeleton.body_groups, skeleton.part_groups):
        assert sorted(joint for group in groups for joint in group) == list(range(skeleton.num_joints))
    for part in skeleton.part_groups:
        assert sum(set(part) <= set(body) for body in skeleton.body_groups) == 1


def test_gradients_flow_through_the_coarse_maps():
    ppa = PPA("ntu25", 8, 2)
    ppa(torch.randn(2, 8, 3, 25, generator=generator(2))).joint.square().sum().backward()
    assert all(level.query_key_value.weight.grad.abs().sum() > 0 for level in (ppa.body, ppa.part, ppa.joint))


def test_published_size_stands_on_the_meta_device():
    with torch.device("meta"):
        ppa = PPA("ntu25", 256, 4)
    assert (ppa.body_in_part, ppa.part_in_joint, ppa.body_in_joint) == pytest.approx((0.2, 0.12, 0.24))
    assert [x.shape[-1] for x in ppa(torch.zeros(180, 256, 13, 25, device="meta"))] == [5, 10, 25]


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="10 channels do not divide into 4 heads"):
        PPA("ntu25", 10, 4)


# ---- CCL


def levels_of(n: int, seed: int) -> list[torch.Tensor]:
    return list(torch.randn(3, n, 5, generator=generator(seed), dtype=torch.float64))


def test_ccl_equals_a_slow_reading():
    joint, motion = levels_of(4, 1), levels_of(4, 2)
    for level, got in enumerate(ccl(joint, motion, 0.07)):
        vectors = [*joint[level], *motion[level]]
        slow = 0.0
        for anchor in range(8):
            similar = [functional.cosine_similarity(vectors[anchor], other, dim=0) / 0.07 for other in vectors]
            others = torch.stack([similar[i] for i in range(8) if i != anchor])
            slow += (others.logsumexp(0) - similar[(anchor + 4) % 8]) / 8
        assert torch.allclose(got, slow, rtol=1e-12)


def test_ccl_of_orthogonal_clips_has_a_closed_form():
    clips = torch.eye(3, dtype=torch.float64)
    expected = torch.log(1 + 4 * torch.exp(torch.tensor(-1 / 0.5, dtype=torch.float64)))
    assert torch.allclose(torch.stack(ccl([clips, 2 * clips], [clips, clips], 0.5)), expected, rtol=1e-12)


def test_ccl_gradient_is_its_derivative():
    inputs = [level.requires_grad_() for level in levels_of(3, 3) + levels_of(3, 4)]
    assert torch.autograd.gradcheck(lambda *x: tuple(ccl(x[:3], x[3:], 0.5)), inputs)


# ---- the method


def clips(n: int, frames: int, joints: int, seed: int, labelled: bool = True) -> SkeletonBatch:
    source = generator(seed)
    labels = torch.randint(0, 6, (n,), generator=source) if labelled else torch.full((n,), -1)
    return SkeletonBatch(
        joints=torch.randn(n, 3, frames, joints, 2, generator=source),
        num_frames=torch.randint(5, frames + 1, (n,), generator=source),
        labels=labels,
        ids=torch.arange(n),
    )


def step_of(joints: int = 25) -> dict[str, SkeletonBatch]:
    return {"labelled": clips(3, 30, joints, 1), "unlabelled": clips(5, 40, joints, 2, labelled=False)}


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_terms_and_shapes_on_every_skeleton(name):
    module, batch = small(name), step_of(TOPOLOGIES[name].num_joints)
    terms = module.objective(batch)
    assert list(terms) == ["cross_entropy", "ccl_body", "ccl_part", "ccl_joint"]
    assert all(term.ndim == 0 and term.isfinite() for term in terms.values())
    assert module.clips_in(batch) == 8
    module.eval()
    assert module.features(batch["labelled"]).shape == (3, 2, 16)
    assert module.embed(batch["labelled"]).shape == (3, 32)
    assert torch.allclose(module.logits(batch["labelled"]), module.fc(module.features(batch["labelled"])).sum(1))


def test_the_weight_scales_the_contrast_alone_and_0_leaves_cross_entropy_alone():
    module, batch = small(), step_of()
    published = module.objective(batch)
    state = copy.deepcopy(module.state_dict())
    module.weight = 0.4
    doubled = module.objective(batch)
    module.weight = 0.0
    module.load_state_dict(state)
    alone = module.objective(batch)
    assert torch.equal(alone["cross_entropy"], published["cross_entropy"])
    for level in ("ccl_body", "ccl_part", "ccl_joint"):
        assert torch.allclose(doubled[level], 2 * published[level])
        assert published[level] > 0 and alone[level] == 0
    gradients = torch.autograd.grad(alone["cross_entropy"], list(module.encoder.parameters()), retain_graph=True)
    torch.stack(list(alone.values())).sum().backward()
    for parameter, gradient in zip(module.encoder.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_the_four_streams_draw_frames_of_their_own():
    module, batch = small(), clips(4, 40, 25, 3)._replace(num_frames=torch.full((4,), 40))
    module.objective({"labelled": batch, "unlabelled": batch})
    keys = [module.draw(module.sampling, 4, view) for view in range(4)]
    assert len({tuple(key.flatten().tolist()) for key in keys}) == 4
    labelled, unlabelled = module.streams(batch, 0), module.streams(batch, 2)
    assert not torch.equal(labelled[0], unlabelled[0])
    assert torch.equal(labelled[0], module.streams(batch, 0)[0])
    chosen = module.sampling.choose(keys[3], batch.num_frames)
    expected = batch.joints.roll(-1, 2) - batch.joints
    for clip in range(4):
        inner = chosen[clip] < 39
        assert torch.equal(unlabelled[1][clip][:, inner], expected[clip][:, chosen[clip][inner]])


def test_unlabelled_clips_share_the_batch_statistics_of_the_labelled():
    module, batch = small(), step_of()
    first = module.objective(batch)["cross_entropy"]
    batch["unlabelled"] = batch["unlabelled"]._replace(joints=3 * batch["unlabelled"].joints)
    assert not torch.allclose(first, module.objective(batch)["cross_entropy"])


def test_running_statistics_move_once_a_pass_of_the_backbone_and_once_a_stream_in_ppa():
    module = small()
    module.objective(step_of())
    counters = {name: int(value) for name, value in module.state_dict().items() if name.endswith("tracked")}
    assert all(count == (2 if name.startswith("ppa") else 1) for name, count in counters.items())


class Epoch(torch.utils.data.Dataset):
    """Batches as a data module gives them."""

    def __init__(self, batches: list[SkeletonBatch]):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, position: int) -> SkeletonBatch:
        return self.batches[position]


def test_one_stage_learns_through_the_combined_loader():
    """Four labelled clips of two kinds are told apart after some steps, and all four terms stand in the log."""
    torch.manual_seed(0)
    kinds = torch.tensor([0, 1, 0, 1])
    known = clips(4, 12, 18, 5)._replace(labels=kinds, num_frames=torch.full((4,), 12))
    known = known._replace(joints=known.joints + 2 * kinds[:, None, None, None, None])
    unlabelled = known._replace(labels=torch.full((4,), -1))
    sides = {"labelled": Epoch([known] * 8), "unlabelled": Epoch([unlabelled] * 8)}
    loaders = {name: torch.utils.data.DataLoader(side, batch_size=None) for name, side in sides.items()}
    module = small("kinetics18", frames=4, classes=2)
    trainer = pl.Trainer(
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    validation = torch.utils.data.DataLoader(Epoch([known]), batch_size=None)
    trainer.fit(module, CombinedLoader(loaders, mode="min_size"), validation)
    logged = trainer.callback_metrics
    assert {"train/loss", "train/cross_entropy", "train/ccl_body", "train/ccl_part", "train/ccl_joint"} <= logged.keys()
    assert logged["train/cross_entropy"] < 0.5
    assert logged["test/top1"] >= 75
