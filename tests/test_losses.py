"""InfoNCE, STL, TSL and GL: released values, slow loops, closed forms, numerical gradients."""

import math

import pytest
import torch
from goldens import BOUND, error, read
from torch import Tensor

from datamodules.randomness import generator
from lightning_modules.losses.gl import gl, squeeze_all
from lightning_modules.losses.nt_xent import nt_xent
from lightning_modules.losses.stl import squeeze_space, stl
from lightning_modules.losses.tsl import squeeze_time, tsl

TEMPERATURE = 0.07


def random(*shape: int, key: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(3, key), dtype=torch.float64)


def slow_token_loss(views: list[Tensor], anchor: int, twin: int) -> float:
    """-log softmax of the twin's cosine among all tokens but the anchor, token by token."""

    def cosine(left: Tensor, right: Tensor) -> float:
        return float(left @ right) / (float(left @ left) * float(right @ right)) ** 0.5

    scores = {i: cosine(views[anchor], token) / TEMPERATURE for i, token in enumerate(views) if i != anchor}
    return math.log(sum(math.exp(score) for score in scores.values())) - scores[twin]


def slow_nt_xent(a: Tensor, b: Tensor) -> float:
    """InfoNCE of (N, K, C) tokens as the definition reads: sample by sample, anchor by anchor."""
    losses = []
    for left, right in zip(a, b, strict=True):
        views, k = [*left, *right], len(left)
        losses += [slow_token_loss(views, i, i + k) for i in range(k)]
        losses += [slow_token_loss(views, i + k, i) for i in range(k)]
    return sum(losses) / len(losses)


def slow_pairings(intra_joint: Tensor, intra_motion: Tensor, inter_joint: Tensor, inter_motion: Tensor) -> float:
    return (
        slow_nt_xent(intra_joint, intra_motion)
        + slow_nt_xent(intra_joint, inter_motion)
        + slow_nt_xent(intra_motion, inter_joint)
        + slow_nt_xent(inter_joint, inter_motion)
    )


@pytest.mark.parametrize(("names", "loss"), [("ab", "loss"), ("cd", "loss_batch")])
def test_nt_xent_equals_the_released_values_and_gradients(names, loss):
    golden = read("nt_xent")
    views = [torch.from_numpy(golden[f"in/{name}"]).requires_grad_() for name in names]
    value = nt_xent(*views, temperature=TEMPERATURE)
    value.backward()
    found = [error(value, golden[f"out/{loss}"])]
    found += [error(view.grad, golden[f"grad/{name}"]) for name, view in zip(names, views, strict=True)]
    assert max(found) < BOUND


def test_nt_xent_equals_a_loop_over_anchors_within_samples_and_over_the_batch():
    a, b = random(3, 4, 5), random(3, 4, 5, key=1)
    assert nt_xent(a, b, TEMPERATURE).item() == pytest.approx(slow_nt_xent(a, b), rel=1e-12)
    assert nt_xent(a[0], b[0], TEMPERATURE).item() == pytest.approx(slow_nt_xent(a[:1], b[:1]), rel=1e-12)


def test_nt_xent_of_equal_and_of_orthogonal_tokens_has_a_closed_form():
    k = 6
    equal = torch.ones(2, k, 3, dtype=torch.float64)
    assert nt_xent(equal, 2 * equal, TEMPERATURE).item() == pytest.approx(math.log(2 * k - 1), rel=1e-12)
    orthogonal = torch.eye(k, dtype=torch.float64)[None]
    expected = math.log(1 + (2 * k - 2) * math.exp(-1 / TEMPERATURE))
    assert nt_xent(orthogonal, 3 * orthogonal, TEMPERATURE).item() == pytest.approx(expected, rel=1e-6)


def test_nt_xent_without_negatives_is_zero_and_has_no_gradient():
    a = random(1, 5).requires_grad_()
    loss = nt_xent(a, random(1, 5, key=1), TEMPERATURE)
    loss.backward()
    assert loss.item() == 0
    assert a.grad.abs().max() == 0


def test_nt_xent_refuses_views_of_different_shape():
    with pytest.raises(ValueError, match="differ in shape"):
        nt_xent(random(2, 3, 4), random(2, 1, 4), TEMPERATURE)


@pytest.mark.parametrize("loss", [stl, tsl])
def test_stl_and_tsl_equal_a_loop_over_the_four_pairings(loss):
    views = [random(3, 4, 5, key=key) for key in range(4)]
    assert loss(*views, temperature=TEMPERATURE).item() == pytest.approx(slow_pairings(*views), rel=1e-12)


@pytest.mark.parametrize("loss", [stl, tsl])
def test_stl_and_tsl_of_equal_tokens_are_four_logarithms(loss):
    views = [torch.ones(2, 7, 3, dtype=torch.float64)] * 4
    assert loss(*views, temperature=TEMPERATURE).item() == pytest.approx(4 * math.log(13), rel=1e-12)


def test_gl_equals_a_loop_over_the_batch_and_its_closed_form():
    joint, motion = random(6, 8), random(6, 8, key=1)
    assert gl(joint, motion, TEMPERATURE).item() == pytest.approx(slow_nt_xent(joint[None], motion[None]), rel=1e-12)
    equal = torch.ones(6, 8, dtype=torch.float64)
    assert gl(equal, equal, TEMPERATURE).item() == pytest.approx(math.log(11), rel=1e-12)


@pytest.mark.parametrize("loss", [nt_xent, gl, stl, tsl])
def test_gradients_equal_numerical_ones(loss):
    count, shape = {gl: (2, (3, 4)), nt_xent: (2, (2, 2, 3)), stl: (4, (2, 2, 3)), tsl: (4, (2, 2, 3))}[loss]
    views = [random(*shape, key=key).requires_grad_() for key in range(count)]
    assert torch.autograd.gradcheck(lambda *inputs: loss(*inputs, temperature=0.5), views)


def test_squeezing_averages_over_what_a_loss_does_not_contrast():
    clips, bodies, channels, frames, joints = 2, 3, 4, 5, 6
    features = random(clips * bodies, channels, frames, joints)
    space, time = squeeze_space(features, bodies), squeeze_time(features, bodies)
    assert space.shape == (clips, frames, channels) and time.shape == (clips, joints, channels)
    for clip in range(clips):
        rows = features[clip * bodies : (clip + 1) * bodies]
        for channel in range(channels):
            for frame in range(frames):
                assert space[clip, frame, channel].item() == pytest.approx(rows[:, channel, frame].mean().item())
            for joint in range(joints):
                assert time[clip, joint, channel].item() == pytest.approx(rows[:, channel, :, joint].mean().item())


def test_a_clip_vector_holds_the_four_means_in_the_published_order():
    names = ("temporal_intra", "spatial_intra", "temporal_inter", "spatial_inter")
    attended = {name: torch.full((4, 2, 3, 5), place) for place, name in enumerate(names, start=1)}
    clip = squeeze_all(**{name: value.float() for name, value in reversed(attended.items())}, bodies=2)
    assert clip.tolist() == [[1, 1, 2, 2, 3, 3, 4, 4]] * 2
