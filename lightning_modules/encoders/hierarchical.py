"""A2MC's and SCD-Net's encoder: two CTR-GCNs whose features become temporal and spatial tokens, and its projections."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from datamodules.topology import TOPOLOGIES
from lightning_modules.encoders.ctr_gcn import CTRGCN
from lightning_modules.heads import unit

LEVELS = ("temporal", "spatial", "instance")


def xavier_uniform(module: nn.Module) -> None:
    """Redraw every matrix of a module (released code: both encoders); vectors and convolutions stay."""
    for parameter in module.parameters():
        if parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter)


def _tokens(in_features: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_features, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width))


class SelfAttention(nn.MultiheadAttention):
    """nn.MultiheadAttention of tokens (N, L, D) with themselves, without masks: its numbers, parameters and draws.

    Torch's own turns (N, L, D) into (L, N, D) first, a view of which it cannot make one product with the projection:
    it multiplies the matrix anew for each of the L positions.
    """

    def forward(self, query: Tensor, *others: Tensor, **options: object) -> tuple[Tensor, None]:  # type: ignore[override]
        """(N, L, D) attended tokens, and no maps. Raises ValueError for a mask, other tokens or wanted maps."""
        given = [name for name, value in options.items() if value is not None and value is not False]
        if given or any(other is not query for other in others):
            raise ValueError(f"expected tokens with themselves and no mask, found {given or 'other tokens'}")
        projected = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        q, k, v = projected.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        # Laid out as torch's, (L, N, D): a dropout that follows draws in the order of memory.
        return self.out_proj(attended.permute(2, 0, 1, 3).flatten(2)).transpose(0, 1), None


def _transformer(width: int, heads: int, dropout: float) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(width, heads, dim_feedforward=width, dropout=dropout, batch_first=True)
    # In place: a new attention would draw its weights once more, and a run of a seed would become another.
    layer.self_attn.__class__ = SelfAttention
    return nn.TransformerEncoder(layer, num_layers=1, enable_nested_tensor=False)


class HierarchicalEncoder(nn.Module):
    """Two branches, each CTR-GCN -> tokens -> one Transformer layer without positions -> maximum over the tokens.

    The temporal branch has T tokens of M V width numbers, the spatial one M V tokens of T width numbers.
    Published: width 64, token_width 2048 (also the feed-forward width), 8 heads, dropout .1, 64 frames.
    absent_once: all-zero bodies are computed once for the whole batch, which changes no more than rounding.
    """

    def __init__(
        self,
        topology: str,
        num_frames: int = 64,
        num_bodies: int = 2,
        width: int = 64,
        token_width: int = 2048,
        heads: int = 8,
        dropout: float = 0.1,
        absent_once: bool = True,
    ):
        super().__init__()
        self.num_bodies = num_bodies
        self.token_width = token_width
        self.gcn_t = CTRGCN(topology, width, num_bodies, absent_once=absent_once)
        self.gcn_s = CTRGCN(topology, width, num_bodies, absent_once=absent_once)
        self.channel_t = _tokens(num_bodies * TOPOLOGIES[topology].num_joints * width, token_width)
        self.channel_s = _tokens(num_frames * width, token_width)
        self.t_encoder = _transformer(token_width, heads, dropout)
        self.s_encoder = _transformer(token_width, heads, dropout)
        xavier_uniform(self)

    def tokens(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, C, T, V, M) -> temporal tokens (N, T, token_width) and spatial ones (N, M V, token_width)."""
        rows = self.gcn_t.alike_bodies(x)  # a look at x waits for the device: one serves both branches
        temporal = rearrange(self.gcn_t(x, rows), "(n m) c t v -> n t (m v c)", m=self.num_bodies)
        spatial = rearrange(self.gcn_s(x, rows), "(n m) c t v -> n (m v) (t c)", m=self.num_bodies)
        return self.channel_t(temporal), self.channel_s(spatial)

    def pooled(self, temporal: Tensor, spatial: Tensor) -> tuple[Tensor, Tensor]:
        """v_t and v_s (N, token_width) of the tokens; what dropout there is acts here."""
        return self.t_encoder(temporal).amax(1), self.s_encoder(spatial).amax(1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, C, T, V, M) -> v_t and v_s, each (N, token_width)."""
        return self.pooled(*self.tokens(x))


class Projected(NamedTuple):
    """features: (N, 2 D), [v_t, v_s]; temporal, spatial, instance: (N, d) projections of unit length."""

    features: Tensor
    temporal: Tensor
    spatial: Tensor
    instance: Tensor


def _projection(in_features: int, width: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_features, width), nn.ReLU(), nn.Linear(width, dim))


class ProjectedEncoder(nn.Module):
    """A hierarchical encoder with one projection a level: z_t of v_t, z_s of v_s, z_i of both (published dim 128)."""

    def __init__(self, encoder: HierarchicalEncoder, dim: int = 128):
        super().__init__()
        width = encoder.token_width
        self.encoder = encoder
        self.t_proj = _projection(width, width, dim)
        self.s_proj = _projection(width, width, dim)
        self.i_proj = _projection(2 * width, width, dim)
        for projection in (self.t_proj, self.s_proj, self.i_proj):
            xavier_uniform(projection)

    def projections(self, v_t: Tensor, v_s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z_t, z_s, z_i (N, dim) of v_t, v_s (N, D), before they are normalised."""
        return self.t_proj(v_t), self.s_proj(v_s), self.i_proj(torch.cat([v_t, v_s], dim=1))

    def forward(self, x: Tensor) -> Projected:
        """x (N, C, T, V, M) -> features and unit projections."""
        return self.projected(*self.encoder(x))

    def projected(self, v_t: Tensor, v_s: Tensor) -> Projected:
        """Features and unit projections of v_t, v_s (N, D)."""
        levels = (unit(z) for z in self.projections(v_t, v_s))
        return Projected(torch.cat([v_t, v_s], dim=1), *levels)
