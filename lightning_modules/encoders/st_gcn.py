"""ST-GCN, the graph network of SkeletonCLR and AimCLR (Yan et al., AAAI 2018), and its projection (MoCo v2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.errors import InputError
from datamodules.topology import TOPOLOGIES, SkeletonTopology
from lightning_modules.copies import CountedBatchNorm2d, alike, once
from lightning_modules.heads import pool, unit


def partitioned_graph(topology: SkeletonTopology) -> Tensor:
    """(3, V, V) adjacencies [source, target]: a joint itself, its neighbours away from the root, its parent.

    The spatial partition of ST-GCN: root, centripetal, centrifugal. Each target's column sums to 1 over the three.
    """
    inward = torch.tensor(topology.inward())
    subsets = torch.stack([torch.eye(topology.num_joints), inward.T, inward])
    return subsets / subsets.sum(dim=(0, 1))


class GraphConvolution(nn.Module):
    """y[w] = sum_k sum_v (A_k M_k)[v, w] (W_k x[v] + b_k), M the importance of the edges, learnt, 1 at first."""

    graph: Tensor

    def __init__(self, in_channels: int, out_channels: int, graph: Tensor):
        super().__init__()
        self.register_buffer("graph", graph, persistent=False)
        self.importance = nn.Parameter(torch.ones_like(graph))
        self.project = nn.Conv2d(in_channels, len(graph) * out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T, V) -> (B, C', T, V)"""
        # Joints are gathered before they are projected, which commutes: no unit has more channels before than behind.
        edges, subsets = self.graph * self.importance, len(self.graph)
        gathered = torch.einsum("bctv,kvw->bkctw", x, edges).flatten(1, 2)
        weight = self.project.weight.unflatten(0, (subsets, -1)).transpose(0, 1).flatten(1, 2)  # (C', K C, 1, 1)
        bias = self.project.bias.unflatten(0, (subsets, -1))  # type: ignore[union-attr]
        return F.conv2d(gathered, weight).add_(torch.einsum("kc,kvw->cw", bias, edges)[:, None])


class Unit(nn.Module):
    """ReLU(dropout BN conv9x1 ReLU BN graph convolution + residual); the stride is along time.

    residual: identity, or conv1x1 + BN where width or length change; False for none.
    """

    def __init__(
        self, in_channels: int, out_channels: int, graph: Tensor, stride: int, dropout: float, residual: bool = True
    ):
        super().__init__()
        self.graph_convolution = GraphConvolution(in_channels, out_channels, graph)
        self.temporal = nn.Sequential(
            CountedBatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, (9, 1), (stride, 1), padding=(4, 0)),
            CountedBatchNorm2d(out_channels),
            nn.Dropout(dropout),
        )
        self.residual: nn.Module | None = None
        if residual and in_channels == out_channels and stride == 1:
            self.residual = nn.Identity()
        elif residual:
            self.residual = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, (stride, 1)), CountedBatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T, V) -> (B, C', T / stride, V), rounded up"""
        y = self.temporal(self.graph_convolution(x))
        if self.residual is not None:
            y = y.add_(self.residual(x))
        return y.relu_()


class STGCN(nn.Module):
    """Ten units of widths h h h h 2h 2h 2h 4h 4h D, stride 2 in the fifth and the eighth (methods §6.2).

    Published: width h = 16, out_channels D = 256, dropout .5. The first unit has neither residual nor dropout, and
    convolutions start N(0, .02), batch norms N(1, .02), as in ST-GCN. Raises InputError for clips of other joints.

    absent_once: all-zero bodies are computed once for the whole batch where no dropout acts, as in evaluation, which
    changes no more than rounding; dropout draws for every body.
    """

    def __init__(
        self,
        topology: str,
        width: int = 16,
        out_channels: int = 256,
        dropout: float = 0.5,
        in_channels: int = 3,
        absent_once: bool = True,
    ):
        super().__init__()
        graph = partitioned_graph(TOPOLOGIES[topology])
        self.topology, self.in_channels, self.out_channels = topology, in_channels, out_channels
        self.absent_once = absent_once
        self.data_bn = nn.BatchNorm1d(graph.shape[-1] * in_channels)
        widths = [width] * 4 + [2 * width] * 3 + [4 * width] * 2 + [out_channels]
        units = [Unit(in_channels, width, graph, 1, 0.0, residual=False)]
        for number in range(1, len(widths)):
            stride = 2 if number in (4, 7) else 1
            units.append(Unit(widths[number - 1], widths[number], graph, stride, dropout))
        self.units = nn.Sequential(*units)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, clips: Tensor) -> Tensor:
        """clips (N, C, T, V, M) -> (N * M, D, T', V), T' = ceil(ceil(T / 2) / 2), bodies of a clip side by side."""
        n, c, t, v, m = clips.shape
        joints = TOPOLOGIES[self.topology].num_joints
        if (c, v) != (self.in_channels, joints):
            raise InputError(
                f"ST-GCN was built for (axes, joints) = {(self.in_channels, joints)}, but the clips have {(c, v)}: "
                "choose the encoder's topology after the data"
            )
        x = clips.permute(0, 4, 3, 1, 2).reshape(n * m, v * c, t)
        rows = alike(x) if self.absent_once and not self._drops() else None
        x = self.data_bn(x).reshape(n * m, v, c, t).permute(0, 2, 3, 1)
        return once(self.units, self.units, rows, x)

    def _drops(self) -> bool:
        return any(part.training and part.p > 0 for part in self.modules() if isinstance(part, nn.Dropout))


class ProjectedSTGCN(nn.Module):
    """ST-GCN with MoCo v2's head on its pooled features: Linear, ReLU, Linear to `dim`, then unit length."""

    def __init__(self, encoder: STGCN, dim: int = 128):
        super().__init__()
        width = encoder.out_channels
        self.encoder = encoder
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim))

    def project(self, features: Tensor, bodies: int) -> Tensor:
        """Features (N * M, D, T', V) of the encoder -> (N, dim) unit vectors."""
        return unit(self.head(pool(features, bodies)))

    def forward(self, clips: Tensor) -> Tensor:
        """(N, dim) unit vectors of clips (N, C, T, V, M)."""
        return self.project(self.encoder(clips), clips.shape[-1])
