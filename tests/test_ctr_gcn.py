"""CTR-GCN: released values, a slow reading of its graph unit, graphs of every skeleton, initialisation."""

import math

import pytest
import torch
from goldens import BOUND
from goldens_a2mc import ctr_gcn_errors
from torch import nn

from datamodules.errors import InputError
from datamodules.topology import TOPOLOGIES
from lightning_modules.encoders.ctr_gcn import CTRGCN, GraphUnit, TemporalUnit, normalised_graph


def test_every_number_equals_the_released_code_in_both_modes():
    found = ctr_gcn_errors()
    assert max(found.values()) < BOUND, found


@pytest.mark.parametrize("topology", list(TOPOLOGIES))
def test_graph_columns_sum_to_one_and_parents_collect_children(topology):
    skeleton = TOPOLOGIES[topology]
    own, inward, outward = normalised_graph(skeleton)
    assert torch.equal(own, torch.eye(skeleton.num_joints))
    for child, parent in skeleton.bones:
        assert inward[parent, child] == 1, "a child has one parent, so its column of In is already normalised"
        siblings = sum(p == parent for _, p in skeleton.bones)
        assert outward[child, parent] == pytest.approx(1 / siblings)
    assert inward.count_nonzero() == outward.count_nonzero() == len(skeleton.bones)


def slow_graph_unit(unit: GraphUnit, x: torch.Tensor) -> torch.Tensor:
    """Methods §3.2 joint by joint: A_k[u, v] = PA + alpha conv4(tanh(mean_t conv1 x (u) - mean_t conv2 x (v)))."""

    def conv(layer: nn.Conv2d, value: torch.Tensor) -> torch.Tensor:
        return torch.einsum("oc,nc...->no...", layer.weight[:, :, 0, 0], value) + layer.bias.view(
            1, -1, *[1] * (value.ndim - 2)
        )

    n, _, t, joints = x.shape
    y = torch.zeros(n, unit.bn.num_features, t, joints, dtype=x.dtype)
    for k, subset in enumerate(unit.convs):
        first, second = conv(subset.conv1, x).mean(2), conv(subset.conv2, x).mean(2)
        values = conv(subset.conv3, x)
        for u in range(joints):
            for v in range(joints):
                relation = conv(subset.conv4, (first[:, :, u] - second[:, :, v]).tanh())
                y[..., u] += (unit.PA[k, u, v] + unit.alpha * relation)[:, :, None] * values[..., v]
    return torch.relu(unit.bn(y) + unit.down(x))


def test_graph_unit_equals_its_slow_reading():
    torch.manual_seed(0)
    graph = torch.rand(3, 5, 5)
    unit = GraphUnit(3, 8, graph).double().eval()
    with torch.no_grad():
        unit.alpha.fill_(0.7)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    assert torch.allclose(unit(x), slow_graph_unit(unit, x), atol=1e-10)


def test_gradients_of_a_layer_in_float64():
    torch.manual_seed(1)
    unit = GraphUnit(3, 4, torch.rand(3, 4, 4)).double().eval()
    with torch.no_grad():
        unit.alpha.fill_(0.5)
    x = torch.randn(1, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit, (x,))


def test_temporal_unit_keeps_the_frames_and_sees_as_far_as_its_branches_reach():
    unit = TemporalUnit(8).eval()
    x = torch.randn(1, 8, 20, 3, requires_grad=True)
    y = unit(x)
    assert y.shape == x.shape
    for branch, reach in enumerate((2, 4, 1, 0)):
        (gradient,) = torch.autograd.grad(y[0, 2 * branch : 2 * branch + 2, 10].abs().sum(), x, retain_graph=True)
        seen = gradient[0].abs().sum((0, 2)).nonzero().flatten()
        assert seen.min() >= 10 - reach and seen.max() <= 10 + reach
        if reach in (0, 2, 4):
            assert seen.min() == 10 - reach and seen.max() == 10 + reach


def test_relation_widths_and_layer_widths():
    network = CTRGCN("ntu25")
    widths = [layer.gcn1.convs[0].conv1.out_channels for layer in (network.l1, network.l2, network.l3)]
    assert widths == [8, 8, 32]
    assert [layer.gcn1.bn.num_features for layer in (network.l1, network.l2, network.l3)] == [64, 256, 64]


def test_initialisation_is_the_published_one():
    torch.manual_seed(2)
    network = CTRGCN("ntu25")
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            assert not module.bias.any()
            if module.weight.numel() > 4000:
                assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1), name
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            assert not module.bias.any()
            if name.endswith("gcn1.bn"):
                assert (module.weight == 1e-6).all()
            elif "tcn1" in name:
                assert 0 < (module.weight - 1).abs().max() < 0.1, name
            else:
                assert (module.weight == 1).all(), name
    for layer in (network.l1, network.l2, network.l3):
        assert layer.gcn1.alpha.item() == 0
        assert torch.equal(layer.gcn1.PA, normalised_graph(TOPOLOGIES["ntu25"]))


@pytest.mark.parametrize("topology", list(TOPOLOGIES))
def test_any_skeleton_any_number_of_frames_and_bodies(topology):
    joints = TOPOLOGIES[topology].num_joints
    network = CTRGCN(topology, width=8, num_bodies=3)
    assert network(torch.randn(2, 3, 10, joints, 3)).shape == (6, 8, 10, joints)


def test_bodies_of_a_clip_lie_side_by_side():
    network = CTRGCN("ntu25", width=8).eval()
    x = torch.randn(2, 3, 6, 25, 2)
    changed = x.clone()
    changed[1, ..., 0] += 1
    differs = (network(x) != network(changed)).flatten(1).any(1)
    assert differs.tolist() == [False, False, True, False]


@pytest.mark.parametrize("width", [4, 10])
def test_a_width_without_quarters_or_eighths_is_refused(width):
    with pytest.raises(InputError, match=f"divides by 4, found {width}"):
        CTRGCN("ntu25", width)
