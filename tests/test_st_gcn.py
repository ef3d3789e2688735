"""ST-GCN against a slow reading of its definition, in float64; its graph on every skeleton; its start; its head."""

import pytest
import torch
import torch.nn.functional as F
from mutants import Mutant, caught
from slow_st_gcn import edges, slow_st_gcn
from torch import nn

from datamodules.errors import InputError
from datamodules.randomness import generator
from datamodules.topology import TOPOLOGIES
from lightning_modules.encoders import st_gcn
from lightning_modules.encoders.st_gcn import STGCN, GraphConvolution, ProjectedSTGCN, Unit, partitioned_graph


def clips(n: int = 3, frames: int = 10, joints: int = 25, bodies: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, frames, joints, bodies, generator=generator(5, frames), dtype=torch.float64)


def small(topology: str = "ntu25", dropout: float = 0.0) -> STGCN:
    """With numbers of its own everywhere, so that a term left out or doubled shows."""
    torch.manual_seed(0)
    net = STGCN(topology, width=4, out_channels=6, dropout=dropout).double()
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value.copy_(0.3 + 0.4 * torch.rand_like(value))
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(torch.randn_like(module.weight) / module.weight[0].numel() ** 0.5)
    return net


@pytest.mark.parametrize("topology", list(TOPOLOGIES))
@pytest.mark.parametrize("training", [True, False])
def test_features_equal_the_slow_reading(topology, training):
    net = small(topology).train(training)
    x = clips(joints=TOPOLOGIES[topology].num_joints)
    expected = slow_st_gcn(net, x, training).detach()
    got = net(x)
    assert got.shape == (6, 6, 3, x.shape[3])
    assert torch.allclose(got, expected, rtol=1e-6, atol=1e-6) and expected.std() > 0.1


def test_gradients_equal_those_of_the_slow_reading():
    net, x = small().train(), clips(2)
    weights = torch.randn(net(x).shape, dtype=torch.float64)
    found = []
    for forward in (net, lambda x: slow_st_gcn(net, x, training=True)):
        net.zero_grad()
        (forward(x) * weights).sum().backward()
        found.append({name: p.grad.clone() for name, p in net.named_parameters()})
    for name, grad in found[0].items():  # the graph's weights are float32
        assert torch.allclose(grad, found[1][name], rtol=1e-5, atol=1e-5), name


def test_gradients_equal_numerical_ones():
    net = STGCN("ucla20", width=1, out_channels=1, dropout=0.0).double().eval()
    x = clips(1, 4, 20, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: net(x), (x,), atol=1e-7)


@pytest.mark.parametrize("topology", list(TOPOLOGIES))
def test_graph_holds_each_edge_once_in_its_subset(topology):
    graph = partitioned_graph(TOPOLOGIES[topology])
    expected = torch.zeros_like(graph)
    for subset, source, target, weight in edges(TOPOLOGIES[topology]):
        expected[subset, source, target] = weight
    assert torch.allclose(graph, expected)
    assert torch.allclose(graph.sum(dim=(0, 1)), torch.ones(graph.shape[-1]))


def test_a_hand_gathers_from_wrist_tip_and_thumb():
    """Joints counted by hand: left hand 7, wrist 6, thumb 22, hand tip 21 on the thumb's far side."""
    graph = partitioned_graph(TOPOLOGIES["ntu25"])
    sources = [graph[subset, :, 7].nonzero().flatten().tolist() for subset in range(3)]
    assert sources == [[7], [22], [6]]
    assert graph[:, :, 7].sum(0)[[6, 7, 22]].tolist() == pytest.approx([1 / 3] * 3)


def test_published_widths_strides_dropout_and_start():
    net = STGCN("ntu25")
    convolutions = [unit.temporal[2] for unit in net.units]
    assert [c.out_channels for c in convolutions] == [16, 16, 16, 16, 32, 32, 32, 64, 64, 256]
    assert [c.stride for c in convolutions] == [(2, 1) if n in (5, 8) else (1, 1) for n in range(1, 11)]
    assert [unit.temporal[4].p for unit in net.units] == [0.0] + [0.5] * 9
    assert net.units[0].residual is None
    identities = [n for n, unit in enumerate(net.units, start=1) if isinstance(unit.residual, nn.Identity)]
    assert identities == [2, 3, 4, 6, 7, 9]
    assert all((unit.graph_convolution.importance == 1).all() for unit in net.units)
    assert convolutions[-1].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert net.data_bn.weight.std().item() == pytest.approx(0.02, rel=0.4)
    assert net.data_bn.num_features == 75
    assert net.eval()(torch.zeros(1, 3, 50, 25, 2)).shape == (2, 256, 13, 25)


def test_each_unit_has_an_importance_of_its_own_and_the_graph_is_not_learnt():
    net = small()
    names = [name for name, _ in net.named_parameters() if "importance" in name]
    assert len(names) == 10 and not [name for name, _ in net.named_parameters() if name.endswith("graph")]
    assert not [name for name in net.state_dict() if name.endswith(".graph")]


def test_dropout_acts_in_training_only():
    net, x = small(dropout=0.5), clips()
    assert torch.equal(net.eval()(x), net(x))
    assert not torch.equal(net.train()(x), net(x))


def test_bodies_are_rows_of_their_own():
    net, x = small().eval(), clips()
    assert torch.allclose(net(x)[3], net(x[1:2, ..., 1:])[0])


def test_clips_of_another_skeleton_are_refused():
    with pytest.raises(InputError, match=r"\(3, 25\), but the clips have \(3, 20\)"):
        small()(clips(joints=20))


def test_head_projects_the_mean_over_frames_joints_and_bodies_to_unit_length():
    net = ProjectedSTGCN(small(), dim=5).double().eval()
    x = clips()
    got = net(x)
    features = net.encoder(x)
    for clip in range(3):
        pooled = features[2 * clip : 2 * clip + 2].mean(dim=(0, 2, 3))
        first, _, second = net.head
        hidden = (first.weight @ pooled + first.bias).clamp(min=0)
        expected = second.weight @ hidden + second.bias
        assert torch.allclose(got[clip], F.normalize(expected, dim=0))
    assert torch.allclose(got.norm(dim=1), torch.ones(3, dtype=torch.float64))
    widths = [layer.weight.shape for layer in ProjectedSTGCN(STGCN("ntu25")).head if isinstance(layer, nn.Linear)]
    assert widths == [(256, 256), (128, 256)]


# ---- mutants


def errors() -> dict[str, float]:
    """Relative error of the features in either mode."""
    found, x = {}, clips()
    for training in (True, False):
        net = small().train(training)
        expected = slow_st_gcn(net, x, training).detach()
        found[f"training {training}"] = ((net(x) - expected).abs().max() / expected.abs().max()).item()
    return found


MUTANTS = [
    Mutant("subsets exchanged", st_gcn, "partitioned_graph", "inward.T, inward", "inward, inward.T"),
    Mutant("each subset normalised by itself", st_gcn, "partitioned_graph", "subsets.sum(dim=(0, 1))",
           "subsets.sum(dim=1, keepdim=True).clamp(min=1)"),
    Mutant("rows normalised", st_gcn, "partitioned_graph", "subsets.sum(dim=(0, 1))",
           "subsets.sum(dim=(0, 2))[:, None]"),
    Mutant("transposed graph", GraphConvolution, "forward", "bctv,kvw->bkctw", "bctw,kvw->bkctv"),
    Mutant("importance left out", GraphConvolution, "forward", "self.graph * self.importance", "self.graph"),
    Mutant("importance added", GraphConvolution, "forward", "self.graph * self.importance",
           "self.graph + self.importance"),
    Mutant("subsets taken channel by channel", GraphConvolution, "forward",
           "unflatten(0, (subsets, -1)).transpose(0, 1)", "unflatten(0, (-1, subsets))"),
    Mutant("subsets gathered in another order", GraphConvolution, "forward", "x, edges)", "x, edges.flip(0))"),
    Mutant("bias left out", GraphConvolution, "forward", ".add_(", ".add(0 * "),
    Mutant("bias not gathered", GraphConvolution, "forward", "bias, edges)", "bias, self.graph)"),
    Mutant("residual outside of the ReLU", Unit, "forward",
           "y = y.add_(self.residual(x))", "return y.relu_() + self.residual(x)"),
    Mutant("stride in the fourth unit", STGCN, "__init__", "(4, 7)", "(3, 7)"),
    Mutant("residual in the first unit", STGCN, "__init__", "0.0, residual=False", "0.0"),
    Mutant("batch norm over (C, V)", STGCN, "forward", "clips.permute(0, 4, 3, 1, 2)", "clips.permute(0, 4, 1, 3, 2)"),
    Mutant("bodies folded before the sample", STGCN, "forward", "clips.permute(0, 4, 3, 1, 2)",
           "clips.permute(4, 0, 3, 1, 2)"),
]  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_slow_reading_notices(mutant, monkeypatch):
    caught(mutant, errors, monkeypatch)
