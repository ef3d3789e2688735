"""EADM, D3M and nearest-neighbour mining: slow readings, closed forms, numerical gradients, mutants."""

import math

import pytest
import slow_aim_clr
import torch
from mutants import Mutant, caught
from slow_aim_clr import TEMPERATURE, errors, random, similarities, slow_drop, spiky_features

from lightning_modules.attention import eadm
from lightning_modules.attention.eadm import energy_attention, energy_drop
from lightning_modules.losses.d3m import d3m
from lightning_modules.losses.info_nce import info_nce
from lightning_modules.losses.mined_info_nce import mined_info_nce, nearest


def test_all_equal_the_slow_readings():
    found = errors()
    assert max(found.values()) < 1e-9, max(found.items(), key=lambda item: item[1])


# ---- EADM


def test_the_toy_features_lose_a_joint_and_cells_so_that_the_comparison_bites():
    features = spiky_features()
    dropped = energy_drop(features) == 0
    assert dropped[0, :, :, 3].all() and not dropped[0].all(dim=(0, 1))[[0, 1, 2, 4, 5, 6]].any()
    assert dropped[2].any() and not dropped[2].all(dim=(0, 1)).any()
    assert torch.equal(energy_drop(features)[3], features[3]), "an absent body is flat: nothing of it stands out"


def test_a_single_spike_in_closed_form():
    """One cell of n at height h, the others 0: its deviation is h (n - 1) / n, the variance h^2 / n."""
    features = torch.zeros(1, 1, 4, 5, dtype=torch.float64)
    features[0, 0, 1, 2] = 3.0
    n, height = 20, 3.0
    variance = height**2 / n
    spike = (height * (n - 1) / n) ** 2 / (4 * (variance + 1e-4)) + 0.5
    rest = (height / n) ** 2 / (4 * (variance + 1e-4)) + 0.5
    attention = energy_attention(features)
    assert attention[0, 0, 1, 2].item() == pytest.approx(1 / (1 + math.exp(-spike)))
    assert attention[0, 0, 0, 0].item() == pytest.approx(1 / (1 + math.exp(-rest)))


def test_what_is_left_is_scaled_by_what_was_dropped():
    features = torch.ones(1, 2, 10, 5, dtype=torch.float64)
    features[:, :, :, 4] = 9.0  # one joint of five stands out in every cell
    got = energy_drop(features)
    joints, cells = 5 / 4, 100 / 80
    assert (got[..., 4] == 0).all() and torch.allclose(got[..., :4], features[..., :4] * joints * cells)


def test_a_clip_does_not_depend_on_its_batch_and_order_of_joints_and_frames_does_not_matter():
    features = spiky_features()
    whole = energy_drop(features)
    assert torch.equal(torch.cat([energy_drop(row[None]) for row in features]), whole)
    assert torch.allclose(energy_drop(features.flip(2, 3)).flip(2, 3), whole)


@pytest.mark.parametrize("seed", range(5))
def test_something_always_stays_at_the_published_threshold(seed):
    features = random(50, 2, 3, 4, key=seed) ** 5  # heavy tails
    attention = energy_attention(features)
    assert attention.mean(dim=(1, 2, 3)).max() < 1 / (1 + math.exp(-0.75))
    got = energy_drop(features)
    assert got.isfinite().all() and (got != 0).flatten(1).any(1).all()


def test_a_lower_threshold_that_drops_everything_leaves_zeros():
    assert not energy_drop(spiky_features(), threshold=0.5).any()


def test_gradient_is_the_scale_of_what_stays():
    features = spiky_features().requires_grad_()
    got = energy_drop(features)
    (gradient,) = torch.autograd.grad(got.sum(), features)
    assert torch.allclose(gradient * features, got)
    assert torch.autograd.gradcheck(energy_drop, (random(1, 2, 3, 4).requires_grad_(),))


def test_input_is_not_written_to_and_single_precision_agrees():
    features = spiky_features()
    before = features.clone()
    got = energy_drop(features.float())
    assert torch.equal(features, before)
    assert torch.allclose(got.double(), slow_drop(features), rtol=1e-5)


# ---- D3M


def test_equal_distributions_give_their_entropy_and_no_gradient():
    same = random(3, 6)
    moving = same.clone().requires_grad_()
    p = (same / TEMPERATURE).softmax(1)
    loss = d3m(same, moving, TEMPERATURE)
    loss.backward()
    assert loss.item() == pytest.approx(float(-(p * p.log()).sum(1).mean()))
    assert moving.grad.abs().max() < 1e-12


def test_even_distributions_give_the_logarithm_of_their_number():
    flat = torch.zeros(2, 8, dtype=torch.float64)
    assert d3m(flat, flat, TEMPERATURE).item() == pytest.approx(math.log(8))
    assert d3m(random(2, 8), flat, TEMPERATURE).item() == pytest.approx(math.log(8)), "whatever the target"


def test_a_certain_target_makes_it_info_nce():
    certain = torch.full((4, 6), -100.0, dtype=torch.float64)
    certain[:, 0] = 100
    moving = random(4, 6)
    expected = info_nce(moving[:, 0], moving[:, 1:], TEMPERATURE)
    assert d3m(certain, moving, TEMPERATURE).item() == pytest.approx(expected.item())


def test_target_learns_nothing():
    target, moving = random(3, 5).requires_grad_(), random(3, 5, key=1).requires_grad_()
    d3m(target, moving, TEMPERATURE).backward()
    assert target.grad is None and moving.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda x: d3m(target.detach(), x, 0.5), (moving,))


# ---- mining


def test_views_mine_their_nearest_entries_and_agreement_counts_once():
    _, views = similarities()
    mined = nearest(views)
    for row in range(5):
        assert mined[row].nonzero().flatten().tolist() == sorted({int(view[row].argmax()) for view in views})
    assert mined[0].sum() <= 2


def test_nothing_mined_is_info_nce():
    positive, views = similarities()
    none = torch.zeros_like(views[0], dtype=torch.bool)
    expected = info_nce(positive, views[0], TEMPERATURE)
    assert mined_info_nce(positive, views[0], none, TEMPERATURE).item() == pytest.approx(expected.item())


def test_everything_alike_gives_the_logarithm_whatever_is_mined():
    positive, negatives = torch.zeros(3, dtype=torch.float64), torch.zeros(3, 7, dtype=torch.float64)
    mined = torch.rand(3, 7) < 0.5
    assert mined_info_nce(positive, negatives, mined, TEMPERATURE).item() == pytest.approx(math.log(8))


def test_mined_entries_are_pulled_and_the_others_pushed():
    positive, views = similarities()
    negatives, mined = views[0].clone().requires_grad_(), nearest(views[1:])
    # In a row where a positive holds more than its share of the softmax it is pushed: raise none that high.
    (gradient,) = torch.autograd.grad(mined_info_nce(positive, negatives, mined, 5.0), negatives)
    assert (gradient[mined] < 0).all() and (gradient[~mined] > 0).all()


def test_numerical_gradients_of_mined_info_nce():
    positive, views = similarities()
    mined = nearest(views)
    leaves = positive.clone().requires_grad_(), views[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p, n: mined_info_nce(p, n, mined, 0.5), leaves)


# ---- mutants

MUTANTS = [
    Mutant("variance over all cells", slow_aim_clr, "energy_attention", "(cells - 1)", "cells"),
    Mutant("variance without its regulariser", slow_aim_clr, "energy_attention", "variance + REGULARISER",
           "variance + 1e-6"),
    Mutant("mean over the frames alone", slow_aim_clr, "energy_attention", "features.mean(dim=(2, 3), keepdim=True)",
           "features.mean(dim=2, keepdim=True)"),
    Mutant("a quarter left out", slow_aim_clr, "energy_attention", "4 * (variance", "(variance"),
    Mutant("no half", slow_aim_clr, "energy_attention", " + 0.5", ""),
    Mutant("joints of single channels", slow_aim_clr, "energy_drop", "attention.mean(dim=(1, 2), keepdim=True)",
           "attention.mean(dim=2, keepdim=True).amax(1, keepdim=True)"),
    Mutant("frames for joints", slow_aim_clr, "energy_drop", "attention.mean(dim=(1, 2), keepdim=True)",
           "attention.mean(dim=(1, 3), keepdim=True)"),
    Mutant("the inconspicuous dropped", slow_aim_clr, "energy_drop", "cells = attention >= threshold",
           "cells = attention < threshold"),
    Mutant("cells only", slow_aim_clr, "energy_drop", "_without(_without(features, joints), cells)",
           "_without(features, cells)"),
    Mutant("joints only", slow_aim_clr, "energy_drop", "_without(_without(features, joints), cells)",
           "_without(features, joints)"),
    Mutant("rest not rescaled", eadm, "_without", " / left[:, None, None, None]", ""),
    Mutant("rest scaled over the batch", eadm, "_without", "/ left[:, None, None, None]", "/ left.mean()"),
    Mutant("target not detached", slow_aim_clr, "d3m", "normal.detach()", "normal"),
    Mutant("target and query exchanged", slow_aim_clr, "d3m", "(normal.detach() / temperature)",
           "(extreme.detach() / temperature)"),
    Mutant("target without temperature", slow_aim_clr, "d3m", "normal.detach() / temperature", "normal.detach()"),
    Mutant("divergence summed over queries", slow_aim_clr, "d3m", ".sum(1).mean()", ".sum()"),
    Mutant("sum over the positives", slow_aim_clr, "mined_info_nce", " / chosen.sum(1)", ""),
    Mutant("key left out of the positives", slow_aim_clr, "mined_info_nce", "torch.ones_like(mined[:, :1])",
           "torch.zeros_like(mined[:, :1])"),
    Mutant("positives summed inside the logarithm", slow_aim_clr, "mined_info_nce",
           "-(logs.masked_fill(~chosen, 0).sum(1) / chosen.sum(1)).mean()",
           "-logs.masked_fill(~chosen, -torch.inf).logsumexp(1).mean()"),
    Mutant("the last view mines alone", slow_aim_clr, "nearest", "mined.scatter_(1,", "mined.zero_().scatter_(1,"),
    Mutant("the farthest mined", slow_aim_clr, "nearest", "argmax", "argmin"),
]  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_slow_readings_notice(mutant, monkeypatch):
    caught(mutant, errors, monkeypatch)
