"""The two-branch encoder: released values and gradients, slow token layouts, initialisation, published size."""

import math

import pytest
import torch
from goldens import BOUND
from goldens_a2mc import encoder_errors
from torch import nn

from datamodules.topology import TOPOLOGIES
from lightning_modules.encoders.hierarchical import (
    LEVELS,
    HierarchicalEncoder,
    Projected,
    ProjectedEncoder,
    SelfAttention,
)


def small(topology: str = "ntu25", frames: int = 16, dropout: float = 0.0) -> ProjectedEncoder:
    encoder = HierarchicalEncoder(topology, frames, width=8, token_width=16, heads=2, dropout=dropout)
    return ProjectedEncoder(encoder, dim=8)


def test_every_feature_and_gradient_equals_the_released_code_in_both_modes():
    found = encoder_errors()
    assert max(found.values()) < BOUND, max(found.items(), key=lambda item: item[1])


def test_tokens_are_laid_out_with_the_first_named_index_slowest():
    network = small().encoder.eval()
    seen = {}
    network.channel_t.register_forward_pre_hook(lambda _, args: seen.update(temporal=args[0]))
    network.channel_s.register_forward_pre_hook(lambda _, args: seen.update(spatial=args[0]))
    network.gcn_t.register_forward_hook(lambda *args: seen.update(gcn_t=args[2]))
    network.gcn_s.register_forward_hook(lambda *args: seen.update(gcn_s=args[2]))
    network(torch.randn(2, 3, 16, 25, 2))
    temporal, spatial = seen["gcn_t"].view(2, 2, 8, 16, 25), seen["gcn_s"].view(2, 2, 8, 16, 25)  # n m c t v
    for n, m, v, c, t in ((0, 0, 0, 0, 0), (1, 0, 3, 5, 7), (1, 1, 24, 7, 15), (0, 1, 11, 2, 9)):
        assert seen["temporal"][n, t, (m * 25 + v) * 8 + c] == temporal[n, m, c, t, v]
        assert seen["spatial"][n, m * 25 + v, t * 8 + c] == spatial[n, m, c, t, v]
    assert seen["temporal"].shape == (2, 16, 400) and seen["spatial"].shape == (2, 50, 128)


def test_order_of_tokens_does_not_matter():
    """No positions and a maximum: permuted tokens give the same branch vector."""
    network = small().encoder.eval()
    tokens = torch.randn(3, 50, 128)
    whole = network.s_encoder(network.channel_s(tokens)).amax(1)
    shuffled = network.s_encoder(network.channel_s(tokens[:, torch.randperm(50)])).amax(1)
    assert torch.allclose(whole, shuffled, atol=1e-5)


def test_projections_have_unit_length_and_features_are_both_branches():
    network = small().eval()
    clips = torch.randn(3, 3, 16, 25, 2)
    out = network(clips)
    v_t, v_s = network.encoder(clips)
    assert torch.equal(out.features, torch.cat([v_t, v_s], dim=1))
    for level, raw in zip(LEVELS, network.projections(v_t, v_s), strict=True):
        z = getattr(out, level)
        assert torch.allclose(z.norm(dim=1), torch.ones(3))
        assert torch.allclose(z, raw / raw.norm(dim=1, keepdim=True))


def test_dropout_acts_in_training_only():
    network, clips = small(dropout=0.5), torch.randn(2, 3, 16, 25, 2)
    network.train()
    assert not torch.equal(network(clips).instance, network(clips).instance)
    network.eval()
    assert torch.equal(network(clips).instance, network(clips).instance)


def test_matrices_start_xavier_uniform():
    torch.manual_seed(3)
    network = ProjectedEncoder(HierarchicalEncoder("ntu25", 16, width=16, token_width=64, heads=4), dim=32)
    matrices = {name: p for name, p in network.named_parameters() if p.ndim == 2}
    assert len(matrices) == 2 * (2 + 4) + 3 * 2
    for name, matrix in matrices.items():
        bound = math.sqrt(6 / sum(matrix.shape))
        assert bound * 0.97 < matrix.abs().max() <= bound, name


@pytest.mark.parametrize("topology", list(TOPOLOGIES))
def test_any_skeleton(topology):
    out = small(topology)(torch.randn(2, 3, 16, TOPOLOGIES[topology].num_joints, 2))
    assert isinstance(out, Projected) and out.features.shape == (2, 32)


def test_published_size_on_the_meta_device():
    with torch.device("meta"):
        network = ProjectedEncoder(HierarchicalEncoder("ntu25"))
    assert network.encoder.channel_t[0].in_features == 3200
    assert network.encoder.channel_s[0].in_features == 4096
    assert network.encoder.t_encoder.layers[0].self_attn.num_heads == 8
    assert network.i_proj[0].in_features == 4096 and network.i_proj[2].out_features == 128
    assert sum(p.numel() for p in network.parameters()) == 92_017_840


def test_attention_refuses_what_it_does_not_compute():
    layers, tokens = small().encoder.t_encoder.train(), torch.randn(3, 5, 16)
    attention = layers.layers[0].self_attn
    layers(tokens)
    for masks in ({"mask": torch.zeros(5, 5)}, {"src_key_padding_mask": torch.zeros(3, 5, dtype=torch.bool)}):
        with pytest.raises(ValueError, match="no mask, found \\['"):
            layers(tokens, **masks)
    for options in ({"need_weights": True}, {"is_causal": True}):
        with pytest.raises(ValueError, match=f"found \\['{next(iter(options))}'\\]"):
            attention(tokens, tokens, tokens, **options)
    with pytest.raises(ValueError, match="found other tokens"):
        attention(tokens, tokens.clone(), tokens)


@pytest.mark.parametrize("training", [True, False])
def test_attention_gives_torchs_numbers_gradients_and_draws(training):
    """The dropouts of and after it draw what they drew, so that a run of a seed stays what it was."""
    found = []
    for attention in (SelfAttention, nn.MultiheadAttention):
        torch.manual_seed(3)
        layers = small(dropout=0.3).encoder.t_encoder.double().train(training)
        layers.layers[0].self_attn.__class__ = attention
        tokens = torch.randn(3, 5, 16, dtype=torch.float64, requires_grad=True)
        out = layers(tokens)
        out.sin().sum().backward()
        found.append([out, tokens.grad, *(parameter.grad for parameter in layers.parameters())])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
