"""DSTA-Net, the decoupled spatial-temporal attention backbone of SDS-CL and PSP (Shi et al., ACCV 2020)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from datamodules.errors import InputError
from datamodules.topology import TOPOLOGIES
from lightning_modules.copies import alike, once
from lightning_modules.layers import conv, conv_bn, leaky_


def positional_code(length: int, channels: int) -> Tensor:
    """(channels, length) sinusoidal code: PE[2i] = sin(p / 10000^(2i/C)), PE[2i+1] = cos of the same."""
    position = torch.arange(length, dtype=torch.float32)
    even = torch.arange(0, channels, 2, dtype=torch.float32)
    angle = position * 10000.0 ** (-even / channels)[:, None]
    return torch.stack([angle.sin(), angle.cos()], dim=1).flatten(0, 1)[:channels]


class SubsetAttention(nn.Module):
    """Attention over the last axis of (B, C, L, P), in S subsets of r inner channels, one map for all of L.

    a_s = a0_s + alpha_s tanh(sum_{c, l} q_s[p] k_s[p'] / (r L)), with the positional code added to x for q and k only;
    z_s[p'] = sum_p x[p] a_s[p, p']: the values are x itself, and the sum runs over the *query* index.

    start: (P, P) start of the learnable a0, None for no a0.
    """

    code: Tensor

    def __init__(self, channels: int, inner: int, subsets: int, positions: int, start: Tensor | None):
        super().__init__()
        self.subsets, self.inner = subsets, inner
        self.query_key = conv(channels, 2 * subsets * inner)
        self.alpha = nn.Parameter(torch.ones(1, subsets, 1, 1))
        self.a0 = None if start is None else nn.Parameter(start.repeat(1, subsets, 1, 1))
        self.register_buffer("code", positional_code(positions, channels)[None, :, None], persistent=False)

    def maps(self, x: Tensor) -> Tensor:
        """(B, S, P, P) maps a_s, query index first."""
        batch, _, length, positions = x.shape
        heads = self.query_key(x + self.code).reshape(batch, 2, self.subsets, self.inner * length, positions)
        scores = heads[:, 0].transpose(-1, -2) @ heads[:, 1] / (self.inner * length)
        maps = self.alpha * scores.tanh()
        return maps if self.a0 is None else self.a0 + maps

    def forward(self, x: Tensor) -> Tensor:
        """(B, S * C, L, P): z_1 to z_S one after the other."""
        # einsum multiplies x once by the maps side by side; a broadcast matmul would first copy x for every subset.
        attended = torch.einsum("bclu,bsuv->bsclv", x, self.maps(x))
        return attended.flatten(1, 2)


def _shortcut(in_channels: int, out_channels: int, learnt: bool, stride=(1, 1)) -> nn.Module:
    return conv_bn(in_channels, out_channels, stride=stride) if learnt else nn.Identity()


class AttentionStage(nn.Module):
    """y = LeakyReLU(D1 x + BN conv1x1[z_1..z_S]), then LeakyReLU(D2 x + BN conv1x1 y); attention over the last axis.

    learnt: whether the shortcuts D1 and D2 are conv1x1 + BN. A stride along the last axis is that of the second line.
    """

    def __init__(self, attention: SubsetAttention, in_channels: int, out_channels: int, learnt: bool, stride: int = 1):
        super().__init__()
        self.attention = attention
        self.project = conv_bn(attention.subsets * in_channels, out_channels)
        self.feed_forward = conv_bn(out_channels, out_channels, stride=(1, stride))
        self.shortcut1 = _shortcut(in_channels, out_channels, learnt)
        self.shortcut2 = _shortcut(in_channels, out_channels, learnt, (1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, L, P) -> (B, C', L, P / stride), rounded up"""
        skip = self.shortcut1(x)
        y = leaky_(self.project(self.attention(x)).add_(skip))
        skip = self.shortcut2(x)
        return leaky_(self.feed_forward(y).add_(skip))


class ConvolutionStage(nn.Module):
    """LeakyReLU(D x + BN conv(x)): what stands where an attention is switched off."""

    def __init__(self, in_channels: int, out_channels: int, learnt: bool, kernel: tuple[int, int], stride=(1, 1)):
        super().__init__()
        self.project = conv_bn(in_channels, out_channels, kernel, stride)
        self.shortcut = _shortcut(in_channels, out_channels, learnt, stride)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T, V) -> (B, C', T', V'), each axis divided by its stride, rounded up"""
        skip = self.shortcut(x)
        return leaky_(self.project(x).add_(skip))


class DSTABlock(nn.Module):
    """Attention over joints, then a 7x1 convolution or attention over frames (the stride is there)."""

    def __init__(self, spatial: nn.Module, temporal: nn.Module):
        super().__init__()
        self.spatial, self.temporal = spatial, temporal

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T, V) -> (B, C', T / stride, V), rounded up"""
        y = self.spatial(x)
        if isinstance(self.temporal, AttentionStage):
            return self.temporal(y.transpose(2, 3)).transpose(2, 3)
        return self.temporal(y)


class DSTANet(nn.Module):
    """DSTA-Net as SDS-CL and PSP publish it (methods §4.1, §4.2): clips (N, C, T, V, M) -> (N * M, C', T', V).

    topology: name of the skeleton in `datamodules.topology`.
    layers: one row (input width, output width, inner width r, stride) a block.
    subsets: S, attention maps of a block. num_frames: T, which temporal attention and its a0 are built for.
    spatial_attention, temporal_attention: off, a 1x3 convolution over joints or a 7x1 one over frames stands there.
    global_spatial, global_temporal: learnable a0, at start 1 / V everywhere and the identity.

    absent_once: all-zero bodies are computed once for the whole batch, which changes no more than rounding.

    Bodies are folded after the sample and never merged here: body m of sample n is row n * M + m.
    Raises InputError for blocks whose widths do not follow one another.
    """

    def __init__(
        self,
        topology: str,
        layers: Sequence[Sequence[int]],
        subsets: int = 4,
        num_frames: int = 50,
        in_channels: int = 3,
        spatial_attention: bool = True,
        temporal_attention: bool = False,
        global_spatial: bool = True,
        global_temporal: bool = False,
        absent_once: bool = True,
    ):
        super().__init__()
        for before, after in pairwise(layers):
            if before[1] != after[0]:
                raise InputError(
                    f"expected every block to take the width of the one before, found {list(after)} after "
                    f"{list(before)}; correct the encoder's layers (input width, output width, inner width, stride)"
                )
        self.in_channels, self.num_frames, self.absent_once = in_channels, num_frames, absent_once
        self.subsets, self.out_channels = subsets, layers[-1][1]
        self.num_joints = joints = TOPOLOGIES[topology].num_joints
        self.stem = conv_bn(in_channels, layers[0][0])
        self.blocks = nn.Sequential()
        frames = num_frames
        for width, out, inner, stride in layers:
            learnt = width != out or stride != 1
            spatial: nn.Module = ConvolutionStage(width, out, learnt, (1, 3))
            if spatial_attention:
                start = torch.full((joints, joints), 1 / joints) if global_spatial else None
                spatial = AttentionStage(SubsetAttention(width, inner, subsets, joints, start), width, out, learnt)
            temporal: nn.Module = ConvolutionStage(out, out, learnt, (7, 1), (stride, 1))
            if temporal_attention:
                start = torch.eye(frames) if global_temporal else None
                temporal = AttentionStage(SubsetAttention(out, inner, subsets, frames, start), out, out, learnt, stride)
            self.blocks.append(DSTABlock(spatial, temporal))
            frames = -(-frames // stride)

    def forward(self, clips: Tensor) -> Tensor:
        """(N * M, C', T', V) features; raises InputError for clips of other axes, frames or joints."""
        expected = (self.in_channels, self.num_frames, self.num_joints)
        if tuple(clips.shape[1:4]) != expected:
            raise InputError(
                f"DSTA-Net was built for (axes, frames, joints) = {expected}, but the clips have "
                f"{tuple(clips.shape[1:4])}: choose the encoder's topology and num_frames after the data"
            )
        rows = fold(clips)
        return once(self, self._features, alike(rows) if self.absent_once else None, rows)

    def _features(self, x: Tensor) -> Tensor:
        # Channels-last would be up to a fifth faster on the CPU, but its batch norm there is ten times less exact.
        return self.blocks(leaky_(self.stem(x)))


def fold(clips: Tensor) -> Tensor:
    """Clips (N, C, T, V, M) -> rows (N * M, C, T, V), one a body."""
    return clips.permute(0, 4, 1, 2, 3).flatten(0, 1)
