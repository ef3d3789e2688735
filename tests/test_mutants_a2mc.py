"""A2MC with one thing changed at a time: every change must show in the comparison with the released values."""

import pytest
from goldens_a2mc import (
    ALLOWED,
    attack_faults,
    augmentation_errors,
    ctr_gcn_errors,
    encoder_errors,
    mixing_errors,
    perceptual_errors,
    view_errors,
)
from mutants import Mutant, caught

from datamodules.transforms import spatial, temporal
from datamodules.transforms.spatial import Flip, Shear, SpatialMask, TemporalMask
from datamodules.transforms.temporal import CropResize
from datamodules.transforms.views import CroppedView
from lightning_modules.contrast import attack, cross_level, mixer
from lightning_modules.contrast.adversarial_bank import AdversarialBank
from lightning_modules.contrast.attack import Attack
from lightning_modules.contrast.mixer import LinearMixer
from lightning_modules.encoders import ctr_gcn
from lightning_modules.encoders.ctr_gcn import CTRGCN, CTRGCNLayer, GraphUnit, Refinement, TemporalConv, TemporalUnit
from lightning_modules.encoders.hierarchical import HierarchicalEncoder, ProjectedEncoder
from lightning_modules.losses import mixing, perceptual


def attack_excess() -> dict[str, float]:
    return {name: float(faults > ALLOWED[name]) for name, faults in attack_faults().items()}


GRAPH = [
    Mutant("a child collects its parent first", ctr_gcn, "normalised_graph", "inward, inward.T", "inward.T, inward"),
    Mutant("rows normalised", ctr_gcn, "normalised_graph", "sum(1, keepdim=True)", "sum(2, keepdim=True)"),
    Mutant("transposed graph", Refinement, "forward", "@ adjacency.transpose(2, 3)", "@ adjacency"),
    Mutant("conv1 and conv2 exchanged", Refinement, "forward", "self.conv1(pooled), self.conv2(pooled)",
           "self.conv2(pooled), self.conv1(pooled)"),
    Mutant("tanh left out", Refinement, "forward", "torch.tanh(source.transpose(2, 3) - target)",
           "(source.transpose(2, 3) - target)"),
    Mutant("alpha left out", Refinement, "forward", "alpha * self.conv4", "self.conv4"),
    Mutant("refinement left out", Refinement, "forward", "graph + alpha * self.conv4(relation)",
           "graph + 0 * self.conv4(relation)"),
    Mutant("graph unit without its shortcut", GraphUnit, "forward", "self.bn(y).add_(self.down(x))", "self.bn(y)"),
    Mutant("residual a frame late", CTRGCNLayer, "forward", "self.residual(x)", "self.residual(x).roll(1, 2)"),
    Mutant("layers without residual", CTRGCNLayer, "forward", "y.add_(self.residual(x))", "y"),
    Mutant("dilated branch a frame late", TemporalConv, "forward", "self.bn(self.conv(x))",
           "self.bn(self.conv(x).roll(self.conv.dilation[0] - 1, 2))"),
    Mutant("branches in another order", TemporalUnit, "forward", "for branch in self.branches",
           "for branch in self.branches[::-1]"),
    Mutant("batch norm over (V, M, C)", CTRGCN, "forward",
           "x.permute(0, 4, 3, 1, 2).reshape(n, m * v * c, t)", "x.permute(0, 3, 4, 1, 2).reshape(n, m * v * c, t)"),
    Mutant("batch norm over (M, C, V)", CTRGCN, "forward",
           "x.permute(0, 4, 3, 1, 2).reshape(n, m * v * c, t)", "x.permute(0, 4, 1, 3, 2).reshape(n, m * v * c, t)"),
]  # fmt: skip

ENCODER = [
    Mutant("temporal tokens (V, M, C)", HierarchicalEncoder, "tokens", "n t (m v c)", "n t (v m c)"),
    Mutant("temporal tokens (M, C, V)", HierarchicalEncoder, "tokens", "n t (m v c)", "n t (m c v)"),
    Mutant("spatial tokens (C, T)", HierarchicalEncoder, "tokens", "n (m v) (t c)", "n (m v) (c t)"),
    Mutant("one graph network for both branches", HierarchicalEncoder, "tokens", "self.gcn_s(x, rows)",
           "(self.gcn_t(x, rows) + 0 * self.gcn_s(x, rows))"),
    Mutant("mean over the tokens", HierarchicalEncoder, "pooled",
           "self.t_encoder(temporal).amax(1)", "self.t_encoder(temporal).mean(1)"),
    Mutant("no transformer", HierarchicalEncoder, "pooled", "self.s_encoder(spatial)", "spatial"),
    Mutant("bodies folded before the sample", HierarchicalEncoder, "tokens",
           '"(n m) c t v -> n t', '"(m n) c t v -> n t'),
    Mutant("instance of [v_s, v_t]", ProjectedEncoder, "projections", "torch.cat([v_t, v_s], dim=1)",
           "torch.cat([v_s, v_t], dim=1)"),
]  # fmt: skip

MIXING = [
    Mutant("slots by block", mixer, "own_slots",
           "owners[:, None] + batch * torch.arange(-(-slots // batch))",
           "owners[:, None] * -(-slots // batch) + torch.arange(-(-slots // batch))"),
    Mutant("positive not mixed", mixing, "mixed", "share * norm", "round(share) * norm"),
    Mutant("shares exchanged", mixing, "mixed", "share * norm[:, None] + (1 - share) * similarity",
           "(1 - share) * norm[:, None] + share * similarity"),
    Mutant("mixing summed over the four terms", LinearMixer, "__call__", ".mean()", ".sum()"),
    Mutant("mixing not divided by T", LinearMixer, "_term", "norm, temperature,", "norm, 1.0,"),
    Mutant("norm of the query taken as 1", LinearMixer, "_term", "pair.query.square().sum(1)",
           "pair.query.square().sum(1).detach()"),
    Mutant("pairs within a level", cross_level, "cross_level", "getattr(keys, target)", "getattr(keys, source)"),
    Mutant("memory of the query's level", cross_level, "cross_level", "memory[target]",
           "memory[next(source for source, met in PAIRS if met == target)]"),
    Mutant("contrast without temperature", mixer, "contrast_terms", "pair.negatives, temperature",
           "pair.negatives, 1.0"),
]  # fmt: skip

BANK = [
    Mutant("stale bank norm", AdversarialBank, "climb",
           "for slope in slopes if self.aliased else [torch.stack(slopes).sum(0)]:\n"
           "        gradient = slope / self.weight.norm(dim=0)",
           "norm = self.weight.norm(dim=0).clone()\n    for slope in slopes:\n        gradient = slope / norm"),
    Mutant("fresh directions for the second update", AdversarialBank, "climb",
           "for slope in slopes if self.aliased else [torch.stack(slopes).sum(0)]:",
           "for query, key in contrasts:\n"
           "        slope = self._slope(query, key, query @ self.directions, self.directions)"),
    Mutant("one update of the sum", AdversarialBank, "climb", "slopes if self.aliased else", "[] if False else"),
    Mutant("norm left out", AdversarialBank, "climb", "slope / self.weight.norm(dim=0)", "slope"),
    Mutant("decay left out", AdversarialBank, "climb", "gradient + self.weight_decay * self.weight", "gradient"),
    Mutant("decay of the stale bank", AdversarialBank, "climb",
           "for slope in slopes if self.aliased else [torch.stack(slopes).sum(0)]:\n"
           "        gradient = slope / self.weight.norm(dim=0)\n"
           "        self.velocity.mul_(self.momentum).add_(gradient + self.weight_decay * self.weight)",
           "start = self.weight.clone()\n"
           "    for slope in slopes:\n"
           "        gradient = slope / self.weight.norm(dim=0)\n"
           "        self.velocity.mul_(self.momentum).add_(gradient + self.weight_decay * start)"),
    Mutant("descent", AdversarialBank, "climb", "self.weight.sub_", "self.weight.add_"),
    Mutant("momentum left out", AdversarialBank, "climb", "self.velocity.mul_(self.momentum)",
           "self.velocity.mul_(0.0)"),
    Mutant("positive left out of the softmax", AdversarialBank, "_slope",
           "torch.cat([positive, similarity], dim=1) / self.temperature).softmax(1)[:, 1:]",
           "similarity / self.temperature).softmax(1)"),
    Mutant("loss temperature in the bank", AdversarialBank, "_slope",
           "torch.cat([positive, similarity], dim=1) / self.temperature",
           "torch.cat([positive, similarity], dim=1) / 0.07"),
    Mutant("gradient not projected", AdversarialBank, "_slope", " - (p * similarity).sum(0) * directions", ""),
    Mutant("sum over the queries", AdversarialBank, "_slope", "(len(query) * self.temperature)", "self.temperature"),
]  # fmt: skip

ATTACK = [
    Mutant("towards the label", Attack, "_direction", "- self.away", "+ self.away"),
    Mutant("norm over the clip", attack, "per_body", "dim=(1, 3)", "dim=(1, 2, 3, 4)"),
    Mutant("norm over both bodies", attack, "per_body", "dim=(1, 3)", "dim=(1, 3, 4)"),
    Mutant("norm left out", attack, "per_body", "gradient / norm.clamp(min=torch.finfo(gradient.dtype).tiny)",
           "gradient"),
    Mutant("perceptual term left out", Attack, "_direction", "self.look * per_body(close) - ", "-"),
    Mutant("weights exchanged", Attack, "_direction",
           "self.look * per_body(close) - self.away * per_body(away)",
           "self.away * per_body(close) - self.look * per_body(away)"),
    Mutant("reference of the last step", Attack, "__call__", "self._direction(clip, reference,",
           "self._direction(clip, clip.detach(),"),
    Mutant("gradient for its sign", Attack, "_direction", "g / (g.abs() + EPSILON)", "g"),
    Mutant("epsilon behind Adam's correction", Attack, "_direction", "EPSILON", "1e-8"),
    Mutant("one step whatever asked", Attack, "__call__", "range(self.steps)", "range(1)"),
]  # fmt: skip

PERCEPTUAL = [
    Mutant("bone lengths for their squares", perceptual, "squared_bone_lengths",
           ".square().sum(1, keepdim=True)", ".square().sum(1, keepdim=True).sqrt()"),
    Mutant("acceleration per frame", perceptual, "acceleration", " / FRAME_TIME**2", ""),
    Mutant("all joints alike", perceptual, "joint_weights", "2 if name in emphasised else 1", "1"),
    Mutant("sum over the bodies", perceptual, "_total", ".mean()", ".sum(1).mean()"),
    Mutant("jerk repaired", perceptual, "jerk", "+ x[:, :, :-3]", "- x[:, :, :-3]"),
]  # fmt: skip

AUGMENTATIONS = [
    Mutant("anticlockwise", spatial, "_turned", "-1, 3, 3)", "-1, 3, 3).mT"),
    Mutant("z before x", spatial, "_turned", "z @ y @ x", "x @ y @ z"),
    Mutant("radians", spatial, "_turned", " * math.pi / 180", ""),
    Mutant("coordinates as rows", spatial, "_transformed", "bmm(matrices", "bmm(matrices.mT"),
    Mutant("mirrored flip", Flip, "change", "view_as(joints)",
           "view_as(joints) * joints.new_tensor([-1, 1, 1]).view(3, 1, 1, 1)"),
    Mutant("shear by columns", Shear, "change", ".view(-1, 3, 3)", ".view(-1, 3, 3).mT"),
    Mutant("walks of one step", spatial, "_walks", "near @ near", "near"),
    Mutant("walks that never stand", spatial, "_walks", "torch.eye(len(inward)) + inward", "inward"),
    Mutant("a seed counts once", SpatialMask, "hidden", '[drawn["joints"]].sum(1)', '[drawn["joints"]].amax(1)'),
    Mutant("segments dealt out in turn", TemporalMask, "hidden", ".repeat_interleave(self.length, dim=1)",
           ".repeat(1, self.length)"),
]  # fmt: skip

VIEW = [
    Mutant("crop with probability", CroppedView, "apply", "stream = ",
           "cropped[1::2] = joints[1::2, :, : self.crop.frames]\n"
           "    stream = "),
    Mutant("centre crop in training", CroppedView, "apply", 'None if drawn is None else drawn["crop"]', "None"),
    Mutant("centre crop of another width", CropResize, "centre", "(1 - self.keep) * num_frames.double() / 2",
           "(1 - self.keep) * num_frames.double()"),
    Mutant("ends aligned", temporal, "resize_window", "centres * length[:, None] / frames - 0.5",
           "(centres - 0.5) * (length[:, None] - 1) / (frames - 1)"),
    Mutant("frames past the real ones", CropResize, "apply", "num_frames)\n    return",
           "num_frames + 3)\n    return"),
]  # fmt: skip


@pytest.mark.parametrize("mutant", GRAPH, ids=lambda mutant: mutant.name)
def test_the_released_ctr_gcn_notices(mutant, monkeypatch):
    caught(mutant, ctr_gcn_errors, monkeypatch)


@pytest.mark.parametrize("mutant", ENCODER, ids=lambda mutant: mutant.name)
def test_the_released_encoder_notices(mutant, monkeypatch):
    caught(mutant, encoder_errors, monkeypatch)


@pytest.mark.parametrize("mutant", MIXING + BANK, ids=lambda mutant: mutant.name)
def test_the_released_mixer_and_banks_notice(mutant, monkeypatch):
    caught(mutant, mixing_errors, monkeypatch)


@pytest.mark.parametrize("mutant", ATTACK, ids=lambda mutant: mutant.name)
def test_the_released_attack_notices(mutant, monkeypatch):
    caught(mutant, attack_excess, monkeypatch)


@pytest.mark.parametrize("mutant", PERCEPTUAL, ids=lambda mutant: mutant.name)
def test_the_released_perceptual_losses_notice(mutant, monkeypatch):
    caught(mutant, perceptual_errors, monkeypatch)


@pytest.mark.parametrize("mutant", AUGMENTATIONS, ids=lambda mutant: mutant.name)
def test_the_released_augmentations_notice(mutant, monkeypatch):
    caught(mutant, augmentation_errors, monkeypatch)


@pytest.mark.parametrize("mutant", VIEW, ids=lambda mutant: mutant.name)
def test_the_released_crops_notice(mutant, monkeypatch):
    caught(mutant, view_errors, monkeypatch)
