"""Layers whose computation differs from torch's and whose numbers do not."""

import copy

import pytest
import torch
from torch import nn

from lightning_modules.encoders.ctr_gcn import CTRGCN
from lightning_modules.layers import Pointwise

LAYOUTS = {
    "rows": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "frames last": lambda x: x.transpose(2, 3),
    "one frame": lambda x: x.mean(2, keepdim=True),
    "no rows": lambda x: x[:0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pointwise_convolution_gives_torchs_numbers_and_gradients(layout):
    torch.manual_seed(0)
    ours = Pointwise(6, 4).double()
    plain = nn.Conv2d(6, 4, 1).double()
    plain.load_state_dict(ours.state_dict())
    x, found = torch.randn(3, 6, 5, 7, dtype=torch.float64), []
    for layer in (ours, plain):
        rows = LAYOUTS[layout](x).clone(memory_format=torch.preserve_format).requires_grad_()
        out = layer(rows)
        out.sin().sum().backward()
        found.append([out, rows.grad, layer.weight.grad, layer.bias.grad])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_a_pointwise_convolution_follows_autocast():
    layer, x = Pointwise(6, 4), torch.randn(3, 6, 5, 7)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(x), rtol=2e-2, atol=2e-2)


def test_the_graph_network_is_that_of_torchs_convolutions():
    torch.manual_seed(0)
    ours = CTRGCN("ntu25", width=8).double().train()
    for parameter in ours.parameters():  # alpha and the last batch norms start near 0
        parameter.data += 0.1 * torch.randn_like(parameter)
    plain = copy.deepcopy(ours)
    replaced = [module for module in plain.modules() if isinstance(module, Pointwise)]
    for module in replaced:
        module.__class__ = nn.Conv2d
    assert len(replaced) == 3 * (3 * 4 + 1 + 4) + 2  # units, their shortcuts, branches, residuals of two layers
    found = []
    for network in (ours, plain):
        clips = torch.randn(2, 3, 9, 25, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        out = network(clips.requires_grad_())
        out.sin().sum().backward()
        found.append([out, clips.grad, *(parameter.grad for parameter in network.parameters())])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-10)
