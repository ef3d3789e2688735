"""The positive-negative mixture of A2MC, on similarities: neither mixed features nor an N x K x D tensor are built."""

from torch import Tensor

from datamodules.precision import in_float32


@in_float32
def mixed(similarity: Tensor, norm: Tensor, share: float) -> Tensor:
    """Similarity q . (share q + (1 - share) d) of each query with its own mixtures.

    similarity: (N, S) q . d; norm: (N,) q . q, 1 for unit queries, kept because gradients flow through it.
    """
    return share * norm[:, None] + (1 - share) * similarity


@in_float32
def linear_mixing(
    similarity: Tensor, norm: Tensor, temperature: float, positive_ratio: float = 0.2, negative_ratio: float = 0.1
) -> Tensor:
    """(N, S) terms (-q . pos_mix + q . neg_mix) / T of the released mixer (methods §3.2, PNM).

    pos_mix = (1 - positive_ratio) q + positive_ratio d, neg_mix = negative_ratio q + (1 - negative_ratio) d. For unit
    queries a term is (1 - positive_ratio - negative_ratio) (q . d - 1) / T: a plain push away from the bank.
    """
    positive = mixed(similarity, norm, 1 - positive_ratio)
    negative = mixed(similarity, norm, negative_ratio)
    return (negative - positive) / temperature
