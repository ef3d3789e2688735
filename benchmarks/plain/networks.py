"""Layers as their equations stand in the papers or in released code: every body computed, maps pair by pair.

Each is the `forward` (or method) of one of our layers and reads its parameters, so that both compute the same.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.plain.ppa import polymerised_joint_map
from lightning_modules.attention.ppa import PPA
from lightning_modules.attention.siia import HeadAttention
from lightning_modules.encoders.ctr_gcn import GraphUnit
from lightning_modules.encoders.dsta import SubsetAttention
from lightning_modules.encoders.hierarchical import SelfAttention
from lightning_modules.encoders.st_gcn import GraphConvolution
from lightning_modules.layers import Pointwise


def subset_attention(self: SubsetAttention, x: Tensor) -> Tensor:
    """z_s[p'] = sum_p x[p] a_s[p, p'], all subsets in one product, as released."""
    batch, _, length, positions = x.shape
    heads = self.query_key(x + self.code).reshape(batch, 2 * self.subsets, self.inner, length, positions)
    query, key = heads.chunk(2, dim=1)
    scores = torch.einsum("nsctu,nsctv->nsuv", query, key) / (self.inner * length)
    attention = self.alpha * scores.tanh()
    if self.a0 is not None:
        attention = attention + self.a0
    return torch.einsum("nctu,nsuv->nsctv", x, attention).reshape(batch, -1, length, positions)


def head_attention(self: HeadAttention, x: Tensor, other: Tensor) -> Tensor:
    """tanh attention of SIIA, all heads in one product, as released."""
    queries, keys, values = self.heads(x, other)
    attention = (torch.einsum("nhctu,nhctv->nhuv", queries, keys) / (queries.shape[2] * queries.shape[3])).tanh()
    attended = torch.einsum("nhuv,nhctv->nhctu", attention, values)
    return functional.leaky_relu(x + self.feed_forward(attended.flatten(1, 2)), 0.1)


def onto_joints(self: PPA, part_map: Tensor, body_on_parts: Tensor) -> Tensor:
    """The part and body maps brought to the joints, pair by pair."""
    part_of, body_of = (membership.argmax(1).tolist() for membership in (self.joint_in_part, self.joint_in_body))
    of_body = self.part_in_body.argmax(1)
    first = [int((of_body == group).nonzero()[0]) for group in range(int(of_body.max()) + 1)]
    body = body_on_parts[:, :, first][:, :, :, first]
    nothing = part_map.new_zeros(*part_map.shape[:2], len(part_of), len(part_of))
    return polymerised_joint_map(nothing, part_map, body, part_of, body_of)


def graph_unit(self: GraphUnit, x: Tensor) -> Tensor:
    """CTR-GC as published: conv1 and conv2 on every frame, then their means over frames."""
    y: Tensor | float = 0
    for conv, graph in zip(self.convs, self.PA, strict=True):
        source, target = conv.conv1(x).mean(2), conv.conv2(x).mean(2)
        relation = torch.tanh(source[:, :, :, None] - target[:, :, None, :])
        adjacency = graph + self.alpha * conv.conv4(relation)
        y = y + torch.einsum("ncuv,nctv->nctu", adjacency, conv.conv3(x))
    return torch.relu(self.bn(y) + self.down(x))


def graph_convolution(self: GraphConvolution, x: Tensor) -> Tensor:
    """ST-GCN as published: every joint projected for every subset, then gathered."""
    subsets = self.project(x).unflatten(1, (len(self.graph), -1))
    return torch.einsum("bkctv,kvw->bctw", subsets, self.graph * self.importance)


@contextmanager
def every_body(*networks: nn.Module) -> Iterator[None]:
    """Within it the networks compute absent bodies like all others, whichever encoder is theirs."""
    sparing = [part for network in networks for part in network.modules() if hasattr(part, "absent_once")]
    with ExitStack() as stack:
        for part in sparing:
            stack.enter_context(patch.object(part, "absent_once", False))
        yield


@contextmanager
def published(*networks: nn.Module) -> Iterator[None]:
    """Within it our layers compute as above, and the networks every body."""
    with every_body(*networks), ExitStack() as stack:
        for layer, name, plain in (
            (SubsetAttention, "forward", subset_attention),
            (HeadAttention, "forward", head_attention),
            (PPA, "onto_joints", onto_joints),
            (GraphUnit, "forward", graph_unit),
            (GraphConvolution, "forward", graph_convolution),
            (SelfAttention, "forward", nn.MultiheadAttention.forward),
            (Pointwise, "forward", nn.Conv2d.forward),
        ):
            stack.enter_context(patch.object(layer, name, plain))
        yield
