"""The three-layer CTR-GCN of A2MC and SCD-Net: graph convolution, its topology refined for each channel and clip.

Sums and rectifiers act in place where no gradient needs what they replace: a new tensor costs more than its numbers.
"""

from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn

from datamodules.errors import InputError
from datamodules.topology import TOPOLOGIES, SkeletonTopology
from lightning_modules.copies import CountedBatchNorm2d, Rows, alike, once
from lightning_modules.layers import Pointwise

SMALLEST_RELATION_WIDTH = 8  # published for raw coordinates, whose three axes an eighth would leave empty


def normalised_graph(topology: SkeletonTopology) -> Tensor:
    """(3, V, V) adjacencies I, In (a parent collects its children) and Out, each column divided by its sum."""
    inward = torch.tensor(topology.inward())
    subsets = torch.stack([torch.eye(topology.num_joints), inward, inward.T])
    return subsets / subsets.sum(1, keepdim=True).clamp(min=1)


class Refinement(nn.Module):
    """One subset of the graph unit: its four 1x1 convolutions."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        relation = SMALLEST_RELATION_WIDTH if in_channels == 3 else in_channels // 8
        self.conv1 = Pointwise(in_channels, relation)
        self.conv2 = Pointwise(in_channels, relation)
        self.conv3 = Pointwise(in_channels, out_channels)
        self.conv4 = Pointwise(relation, out_channels)

    def forward(self, x: Tensor, pooled: Tensor, graph: Tensor, alpha: Tensor) -> Tensor:
        """x (N, C, T, V), pooled (N, C, 1, V) its mean over frames, graph (V, V) -> (N, C', T, V)."""
        source, target = self.conv1(pooled), self.conv2(pooled)
        relation = torch.tanh(source.transpose(2, 3) - target)  # (N, R, V of conv1, V of conv2)
        adjacency = graph + alpha * self.conv4(relation)
        return self.conv3(x) @ adjacency.transpose(2, 3)  # y[u] = sum_v A[u, v] x[v]


class GraphUnit(nn.Module):
    """ReLU(BN(sum over the subsets of A_k conv3_k x) + down x)."""

    def __init__(self, in_channels: int, out_channels: int, graph: Tensor):
        super().__init__()
        self.PA = nn.Parameter(graph.clone())
        self.alpha = nn.Parameter(torch.zeros(1))
        self.convs = nn.ModuleList(Refinement(in_channels, out_channels) for _ in graph)
        self.down: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.down = nn.Sequential(Pointwise(in_channels, out_channels), CountedBatchNorm2d(out_channels))
        self.bn = CountedBatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, T, V) -> (N, C', T, V)"""
        pooled = x.mean(2, keepdim=True)  # the mean over frames and a 1x1 convolution commute
        subsets = (conv(x, pooled, graph, self.alpha) for conv, graph in zip(self.convs, self.PA, strict=True))
        y = reduce(Tensor.add_, subsets)
        return self.bn(y).add_(self.down(x)).relu_()


class TemporalConv(nn.Module):
    """BN of a convolution along time that keeps T."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, dilation: int = 1):
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.conv: nn.Conv2d = (
            Pointwise(in_channels, out_channels)
            if kernel == 1
            else nn.Conv2d(in_channels, out_channels, (kernel, 1), padding=(padding, 0), dilation=(dilation, 1))
        )
        self.bn = CountedBatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, T, V) -> (N, C', T, V)"""
        return self.bn(self.conv(x))


class TemporalUnit(nn.Module):
    """Four branches of a quarter of the width, concatenated: 5x1, 5x1 dilated by 2, max over 3, 1x1."""

    def __init__(self, channels: int):
        super().__init__()
        width = channels // 4

        def reduced(*rest: nn.Module) -> nn.Sequential:
            return nn.Sequential(Pointwise(channels, width), CountedBatchNorm2d(width), *rest)

        self.branches = nn.ModuleList(
            [
                reduced(nn.ReLU(inplace=True), TemporalConv(width, width, 5)),
                reduced(nn.ReLU(inplace=True), TemporalConv(width, width, 5, dilation=2)),
                reduced(
                    nn.ReLU(inplace=True), nn.MaxPool2d((3, 1), stride=1, padding=(1, 0)), CountedBatchNorm2d(width)
                ),
                reduced(),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, T, V) -> the same shape"""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class CTRGCNLayer(nn.Module):
    """ReLU(temporal unit of the graph unit + residual of the layer's input); layer 1 has no residual."""

    def __init__(self, in_channels: int, out_channels: int, graph: Tensor, residual: bool):
        super().__init__()
        self.gcn1 = GraphUnit(in_channels, out_channels, graph)
        self.tcn1 = TemporalUnit(out_channels)
        self.residual = None
        if residual:
            same = in_channels == out_channels
            self.residual = nn.Identity() if same else TemporalConv(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, T, V) -> (N, C', T, V)"""
        y = self.tcn1(self.gcn1(x))
        if self.residual is not None:
            y = y.add_(self.residual(x))
        return y.relu_()


class CTRGCN(nn.Module):
    """Layers of widths in_channels - width - 4 width - width (A2MC, released code: 3-64-256-64).

    absent_once: all-zero bodies are computed once for the whole batch, which changes no more than rounding.

    Parameters carry the names of the released code, so that its checkpoints need no table. Raises InputError for a
    width whose quarters or eighths vanish.
    """

    def __init__(
        self, topology: str, width: int = 64, num_bodies: int = 2, in_channels: int = 3, absent_once: bool = True
    ):
        super().__init__()
        if width < 8 or width % 4:
            raise InputError(
                f"expected a CTR-GCN width that is at least 8 and divides by 4, found {width}: choose another"
            )
        skeleton = TOPOLOGIES[topology]
        graph, self.absent_once = normalised_graph(skeleton), absent_once
        self.data_bn = nn.BatchNorm1d(num_bodies * skeleton.num_joints * in_channels)
        self.l1 = CTRGCNLayer(in_channels, width, graph, residual=False)
        self.l2 = CTRGCNLayer(width, 4 * width, graph, residual=True)
        self.l3 = CTRGCNLayer(4 * width, width, graph, residual=True)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                nn.init.zeros_(module.bias)
        for layer in (self.l1, self.l2, self.l3):
            nn.init.constant_(layer.gcn1.bn.weight, 1e-6)  # a layer starts at its residual path
            for module in layer.tcn1.modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.normal_(module.weight, 1.0, 0.02)

    def alike_bodies(self, x: Tensor) -> Rows | None:
        """Which bodies of x (N, C, T, V, M) need a computation of their own (`absent_once`)."""
        return alike(x.permute(0, 4, 1, 2, 3).flatten(0, 1), slots=x.shape[-1]) if self.absent_once else None

    def forward(self, x: Tensor, rows: Rows | Literal["look"] | None = "look") -> Tensor:
        """x (N, C, T, V, M) -> (N * M, width, T, V), bodies of a clip side by side.

        rows: `alike_bodies(x)`, where another network has looked already.
        """
        n, c, t, v, m = x.shape
        rows = self.alike_bodies(x) if rows == "look" else rows
        x = self.data_bn(x.permute(0, 4, 3, 1, 2).reshape(n, m * v * c, t))
        x = x.reshape(n * m, v, c, t).permute(0, 2, 3, 1)
        layers = nn.Sequential(self.l1, self.l2, self.l3)
        return once(layers, layers, rows, x)
