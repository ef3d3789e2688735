"""SIIA, the spatiotemporal-decoupling intra-inter attention of SDS-CL (methods §4.1)."""

from typing import NamedTuple

from torch import Tensor, nn

from datamodules.errors import InputError
from lightning_modules.layers import conv, conv_bn, leaky_


def head_maps(queries: Tensor, keys: Tensor) -> Tensor:
    """(B, S, d, L, P) twice -> (B, S, P, P) maps tanh(q[u] . k[v] / (d L)), the product over d and L; no softmax."""
    inner = queries.shape[2] * queries.shape[3]
    return (queries.flatten(2, 3).transpose(-1, -2) @ keys.flatten(2, 3) / inner).tanh()


def attend(maps: Tensor, values: Tensor) -> Tensor:
    """(B, S * d, L, P): out[u] = sum_v map[u, v] value[v] of the values (B, S, d, L, P), over the *key* index."""
    attended = values.flatten(2, 3) @ maps.transpose(-1, -2)
    return attended.reshape(values.shape).flatten(1, 2)


def by_body(maps: Tensor, bodies: int) -> Tensor:
    """(N * M, S, P, P) maps -> (N, M, P, P) means over the heads of their size, for showing."""
    return maps.abs().mean(1).unflatten(0, (-1, bodies))


class HeadAttention(nn.Module):
    """LeakyReLU(x + BN(conv1x1(attended))) over the last axis of (B, C, L, P), in S heads of C / S channels.

    Which streams give queries, keys and values is the subclass's, in `heads`: (B, S, C / S, L, P) each.
    """

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.num_heads = heads
        self.feed_forward = conv_bn(channels, channels)

    def heads(self, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, S, C / S, L, P) of the streams x and other (B, C, L, P)."""
        raise NotImplementedError

    def split(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, parts * C, L, P) -> parts of (B, S, C / S, L, P)."""
        return projected.unflatten(1, (parts, self.num_heads, -1)).unbind(1)

    def maps(self, x: Tensor, other: Tensor) -> Tensor:
        """(B, S, P, P), query index first."""
        queries, keys, _ = self.heads(x, other)
        return head_maps(queries, keys)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """The stream x, attended, and the other one beside it, both (B, C, L, P) -> (B, C, L, P)"""
        queries, keys, values = self.heads(x, other)
        return leaky_(self.feed_forward(attend(head_maps(queries, keys), values)).add_(x))


class IntraAttention(HeadAttention):
    """Queries, keys and values are one projection of the own stream."""

    def __init__(self, channels: int, heads: int):
        super().__init__(channels, heads)
        self.query_key_value = conv(channels, 3 * channels)

    def heads(self, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Three of (B, S, C / S, L, P), all of x; the other stream is not read."""
        queries, keys, values = self.split(self.query_key_value(x), 3)
        return queries, keys, values


class InterAttention(HeadAttention):
    """Queries of the own stream, keys and values of the other, each with a projection of its own."""

    def __init__(self, channels: int, heads: int):
        super().__init__(channels, heads)
        self.query = conv(channels, channels)
        self.key_value = conv(channels, 2 * channels)

    def heads(self, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of x, keys and values of the other stream, (B, S, C / S, L, P) each."""
        (queries,) = self.split(self.query(x), 1)
        keys, values = self.split(self.key_value(other), 2)
        return queries, keys, values


class Decoupled(NamedTuple):
    """One tensor each of the four attentions of a stream, in the order in which GL concatenates them."""

    temporal_intra: Tensor
    spatial_intra: Tensor
    temporal_inter: Tensor
    spatial_inter: Tensor


class SIIA(nn.Module):
    """The four attentions over (B, C, T, V) features, their parameters shared by joint and motion stream.

    heads: S, published the backbone's subsets. A stream is called with the other one beside it, so that batch
    statistics are per stream; a result is named after the stream of its queries.
    Raises InputError if the heads do not divide the channels.
    """

    def __init__(self, channels: int, heads: int):
        super().__init__()
        if channels % heads:
            raise InputError(
                f"expected attention heads that divide the channels, found {heads} heads and {channels} channels; "
                "change the encoder's subsets or its last width"
            )
        self.intra_spatial = IntraAttention(channels, heads)
        self.intra_temporal = IntraAttention(channels, heads)
        self.inter_spatial = InterAttention(channels, heads)
        self.inter_temporal = InterAttention(channels, heads)

    def forward(self, x: Tensor, other: Tensor) -> Decoupled:
        """Attended features of the stream x, each (B, C, T, V)."""
        frames, other_frames = _frames_last(x), _frames_last(other)
        return Decoupled(
            temporal_intra=self.intra_temporal(frames, other_frames).transpose(2, 3),
            spatial_intra=self.intra_spatial(x, other),
            temporal_inter=self.inter_temporal(frames, other_frames).transpose(2, 3),
            spatial_inter=self.inter_spatial(x, other),
        )

    def maps(self, x: Tensor, other: Tensor) -> Decoupled:
        """Maps of the stream x: spatial (B, S, V, V), temporal (B, S, T, T), query index first."""
        frames, other_frames = _frames_last(x), _frames_last(other)
        return Decoupled(
            temporal_intra=self.intra_temporal.maps(frames, other_frames),
            spatial_intra=self.intra_spatial.maps(x, other),
            temporal_inter=self.inter_temporal.maps(frames, other_frames),
            spatial_inter=self.inter_spatial.maps(x, other),
        )


def _frames_last(x: Tensor) -> Tensor:
    return x.transpose(2, 3).contiguous()  # made once, or every projection of it would copy it again
