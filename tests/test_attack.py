"""Att-Aug: released steps, each perceptual term by itself, and everything that an attack must leave as it was."""

import pytest
import torch
from goldens import BOUND, read
from goldens_a2mc import ALLOWED, attack_faults, perceptual_errors
from torch import nn

from datamodules.errors import InputError
from datamodules.topology import NTU25, TOPOLOGIES, UCLA20
from lightning_modules.contrast.attack import EPSILON, Attack, frozen_statistics, per_body
from lightning_modules.encoders.hierarchical import HierarchicalEncoder, ProjectedEncoder
from lightning_modules.losses.perceptual import (
    FRAME_TIME,
    PERCEPTUAL,
    acceleration_change,
    bone_change,
    displacement,
    joint_weights,
    squared_bone_lengths,
)


def clips(n: int = 3, frames: int = 8, joints: int = 25, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(n, 3, frames, joints, 2, generator=torch.Generator().manual_seed(n), dtype=dtype)


class Toy(nn.Module):
    """Logits of clips, through batch norm and dropout."""

    def __init__(self, joints: int = 25):
        super().__init__()
        self.norm = nn.BatchNorm1d(3 * 8 * joints * 2)
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(3 * 8 * joints * 2, 5)

    def forward(self, x):
        return self.fc(self.drop(self.norm(x.flatten(1)).tanh()))


def toy() -> Toy:
    torch.manual_seed(0)
    return Toy()


def test_steps_equal_the_released_attack():
    faults = attack_faults()
    assert faults.keys() == ALLOWED.keys()
    assert all(faults[name] <= ALLOWED[name] for name in faults), faults


def test_perceptual_losses_of_every_kind_equal_the_released_ones():
    found = perceptual_errors()
    assert max(found.values()) < BOUND, found


def test_each_perceptual_term_by_itself_against_loops():
    """On a perturbation constant in time, where the second differences vanish, and on a free one, where they rule."""
    reference = clips(2, 5, dtype=torch.float64)
    constant = reference + 0.05 * torch.randn(2, 3, 1, 25, 2, dtype=torch.float64)
    free = reference + 0.05 * torch.randn(2, 3, 5, 25, 2, dtype=torch.float64)
    for attacked in (constant, free):
        moved = bones = 0.0
        for n in range(2):
            for m in range(2):
                for t in range(5):
                    here, there = attacked[n, :, t, :, m], reference[n, :, t, :, m]
                    moved += ((here - there) ** 2).sum() / 4
                    for child, parent in NTU25.bones:
                        new = ((here[:, child] - here[:, parent]) ** 2).sum()
                        old = ((there[:, child] - there[:, parent]) ** 2).sum()
                        bones += (new - old) ** 2 / 4
        assert displacement(attacked, reference) == pytest.approx(float(moved))
        assert bone_change(attacked, reference, NTU25) == pytest.approx(float(bones))
    assert acceleration_change(constant, reference) < 1e-15 * displacement(constant, reference) / FRAME_TIME**4
    expected = 0.42 * bone_change(constant, reference, NTU25) + 0.4 * displacement(constant, reference)
    assert PERCEPTUAL["acc_bone"](constant, reference, NTU25) == pytest.approx(float(expected), rel=1e-9)
    wiggle = free - reference
    second = (wiggle[:, :, 2:] - 2 * wiggle[:, :, 1:-1] + wiggle[:, :, :-2]) * 30**2
    weights = torch.tensor([0.04 if 10 <= joint <= 14 else 0.02 for joint in range(25)], dtype=torch.float64)
    expected = torch.einsum("nctvm,v->nm", second**2, weights).mean()
    got = acceleration_change(free, reference, joint_weights(NTU25, free))
    assert got == pytest.approx(float(expected), rel=1e-9)


def test_joint_weights_of_another_skeleton_are_all_alike():
    assert joint_weights(UCLA20, clips()).unique().tolist() == [pytest.approx(0.02)]


def test_rotation_changes_no_bone_and_translation_neither_bone_nor_acceleration():
    reference = clips(2, 5, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    assert bone_change(torch.einsum("ij,njtvm->nitvm", turn, reference), reference, NTU25) < 1e-20
    shifted = reference + torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)[:, None, None, None]
    assert bone_change(shifted, reference, NTU25) < 1e-20
    assert acceleration_change(shifted, reference) < 1e-18


@pytest.mark.parametrize("kind", list(PERCEPTUAL))
def test_perceptual_gradients_in_float64(kind):
    reference = clips(1, 4, joints=20, dtype=torch.float64)
    attacked = (reference + 0.1 * torch.randn_like(reference)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: PERCEPTUAL[kind](x, reference, UCLA20), (attacked,), rtol=1e-3)


def test_gradient_is_normalised_per_clip_frame_and_body():
    gradient = clips(2, 4)
    gradient[0, :, 1, :, 1] = 0
    normalised = per_body(gradient)
    for n in range(2):
        for t in range(4):
            for m in range(2):
                expected = 0.0 if (n, t, m) == (0, 1, 1) else 1.0
                assert normalised[n, :, t, :, m].norm() == pytest.approx(expected, abs=1e-6)


def test_one_step_is_the_sign_of_the_gradient_away_from_the_label():
    network, x = toy().eval(), clips()
    labels = network(x).argmax(1)
    leaf = x.clone().requires_grad_()
    torch.nn.functional.cross_entropy(network(leaf), labels).backward()
    attacked = Attack("ntu25", steps=1, step_size=0.01)(x, network, network, labels)
    sure = per_body(leaf.grad).abs() > 1e-3  # elsewhere epsilon shortens the step
    assert torch.allclose(((attacked - x) / 0.01)[sure], leaf.grad.sign()[sure], atol=1e-3)
    cross_entropy = torch.nn.functional.cross_entropy
    assert cross_entropy(network(attacked), labels) > cross_entropy(network(x), labels)


def test_perceptual_term_acts_from_the_second_step_on():
    network, x = toy().eval(), clips()
    for steps, differs in ((1, False), (2, True)):
        free, bound = (Attack("ntu25", steps, 0.01, look=look)(x, network, network) for look in (0.0, 0.4))
        assert torch.allclose(free, bound, atol=1e-5) != differs


def test_the_perceptual_reference_is_the_clip_before_any_step(monkeypatch):
    seen = []
    monkeypatch.setitem(PERCEPTUAL, "l2", lambda x, ref, _: seen.append(ref) or (x - ref).square().sum())
    network, x = toy().eval(), clips()
    Attack("ntu25", 3, 0.01, perceptual="l2")(x, network, network)
    assert len(seen) == 3 and all(torch.equal(reference, x) for reference in seen)


def test_labels_are_those_of_the_first_pass_unless_given():
    network, x = toy().eval(), clips()
    own = Attack("ntu25", 2, 0.01)(x, network, network)
    assert torch.equal(own, Attack("ntu25", 2, 0.01)(x, network, network, network(x).argmax(1)))
    other = (network(x).argmax(1) + 1) % 5
    assert not torch.allclose(own, Attack("ntu25", 2, 0.01)(x, network, network, other), atol=1e-4)


def test_no_number_moves_further_than_the_steps_allow():
    network, x = toy(), clips()
    attacked = Attack("ntu25", steps=4, step_size=1e-3)(x, network, network)
    assert (attacked - x).abs().max() <= 4e-3 * (1 + 1e-3)
    assert (attacked != x).any() and not attacked.requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_was(training):
    torch.manual_seed(1)
    encoder = HierarchicalEncoder("ntu25", num_frames=8, width=8, token_width=16, heads=2)
    network = ProjectedEncoder(encoder, dim=8).train(training)
    frozen = network.encoder.gcn_t.l1.gcn1.PA.requires_grad_(False)
    network.i_proj[0].weight.grad = torch.ones_like(network.i_proj[0].weight)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    flags = [p.requires_grad for p in network.parameters()]
    modes = [m.training for m in network.modules()]
    x = clips()
    before = x.clone()
    Attack("ntu25", steps=3, step_size=0.01)(x, lambda clip: network(clip).instance, network)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert [p.requires_grad for p in network.parameters()] == flags and not frozen.requires_grad
    assert [m.training for m in network.modules()] == modes
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert list(gradients) == ["i_proj.0.weight"] and (gradients["i_proj.0.weight"] == 1).all()
    assert torch.equal(x, before) and not x.requires_grad
    assert all(m.track_running_stats for m in network.modules() if isinstance(m, nn.BatchNorm2d))


def test_statistics_move_again_after_the_attack_and_after_an_error():
    network, x = toy(), clips()
    with pytest.raises(RuntimeError, match="stop"), frozen_statistics(network):
        raise RuntimeError("stop")
    before = network.norm.running_mean.clone()
    with frozen_statistics(network):
        frozen = network.norm(x.flatten(1))
    assert torch.equal(network.norm.running_mean, before)
    assert torch.equal(network.norm(x.flatten(1)), frozen), "the batch normalises, as without the freeze"
    assert not torch.equal(network.norm.running_mean, before)


def test_attack_works_where_gradients_are_off():
    network, x = toy().eval(), clips()
    with torch.no_grad():
        inside = Attack("ntu25", 2, 0.01)(x, network, network)
    assert torch.equal(inside, Attack("ntu25", 2, 0.01)(x, network, network))


def test_epsilon_is_where_adam_has_it():
    assert pytest.approx(1e-8 / (1 - 0.999) ** 0.5, rel=1e-3) == EPSILON


@pytest.mark.parametrize("topology", list(TOPOLOGIES))
def test_any_skeleton(topology):
    joints = TOPOLOGIES[topology].num_joints
    network = Toy(joints).eval()
    assert torch.isfinite(Attack(topology, 2, 0.01)(clips(joints=joints), network, network)).all()


def test_empty_body_stays_where_it_is_under_the_perceptual_term():
    """A body of zeros has bones of no length: no gradient may become nan."""
    network, x = toy().eval(), clips()
    x[..., 1] = 0
    assert torch.isfinite(Attack("ntu25", 3, 0.01)(x, network, network)).all()


def test_bones_are_those_of_the_topology():
    x = clips(1, 2)
    lengths = squared_bone_lengths(x, NTU25)
    assert lengths.shape == (1, 1, 2, 24, 2)
    child, parent = NTU25.bones[7]
    expected = (x[0, :, 0, child, 0] - x[0, :, 0, parent, 0]).norm() ** 2
    assert lengths[0, 0, 0, 7, 0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_unknown_perceptual_term_is_refused():
    with pytest.raises(InputError, match=r"acc_bone.*found 'acc_bones'"):
        Attack("ntu25", perceptual="acc_bones")


def test_golden_labels_are_the_toy_classifiers_own():
    golden = read("a2mc_attack")
    clip, weight = torch.from_numpy(golden["in/x"]), torch.from_numpy(golden["in/weight"])
    logits = torch.einsum("nctvm,lctvm->nl", clip.tanh(), weight)
    assert logits.argmax(1).tolist() == golden["in/pseudo_label"].astype(int).tolist()
