"""DSTA-Net: its code, attention over joints and frames against loops, switches, start, shapes."""

import math

import pytest
import torch
from goldens import read
from torch import Tensor, nn

from datamodules.errors import InputError
from datamodules.randomness import generator
from lightning_modules.encoders.dsta import AttentionStage, ConvolutionStage, DSTANet, SubsetAttention, positional_code
from lightning_modules.heads import projection_head

LAYERS = [[8, 8, 4, 1], [8, 16, 4, 2], [16, 16, 8, 1]]
PUBLISHED = [
    [64, 64, 16, 1],
    [64, 64, 16, 1],
    [64, 128, 32, 2],
    [128, 128, 32, 1],
    [128, 256, 64, 2],
    [256, 256, 64, 1],
    [256, 256, 64, 1],
    [256, 256, 64, 1],
]


def random(*shape: int, key: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(5, key))


def slow_attention(attention: SubsetAttention, x: Tensor) -> Tensor:
    """z_s[p'] = sum_p x[p] a_s[p, p'], position by position, of x (B, C, L, P); all subsets, one after the other."""
    batch, channels, length, positions = x.shape
    subsets, inner = attention.subsets, attention.inner
    code = torch.zeros(channels, positions)
    for channel in range(channels):
        for position in range(positions):
            angle = position / 10000 ** (channel // 2 * 2 / channels)
            code[channel, position] = math.cos(angle) if channel % 2 else math.sin(angle)
    weight, bias = attention.query_key.weight[:, :, 0, 0], attention.query_key.bias
    heads = torch.einsum("oc,bclp->bolp", weight, x + code[:, None]) + bias[:, None, None]
    out = torch.zeros(batch, subsets, channels, length, positions)
    for subset in range(subsets):
        queries = heads[:, subset * inner : (subset + 1) * inner]
        keys = heads[:, (subsets + subset) * inner : (subsets + subset + 1) * inner]
        for query in range(positions):
            for key in range(positions):
                score = (queries[..., query] * keys[..., key]).sum((1, 2)) / (inner * length)
                weight_of = attention.alpha[0, subset, 0, 0] * score.tanh()
                if attention.a0 is not None:
                    weight_of = weight_of + attention.a0[0, subset, query, key]
                out[:, subset, :, :, key] += weight_of[:, None, None] * x[..., query]
    return out.flatten(1, 2)


def slow_stage(stage: AttentionStage, x: Tensor) -> Tensor:
    """The two lines of the equation, on the last axis, with the loops above."""
    y = nn.functional.leaky_relu(stage.shortcut1(x) + stage.project(slow_attention(stage.attention, x)), 0.1)
    return nn.functional.leaky_relu(stage.shortcut2(x) + stage.feed_forward(y), 0.1)


def randomised(net: nn.Module) -> nn.Module:
    """Parameters away from their start, so that none is a neutral element."""
    for key, parameter in enumerate(net.parameters()):
        parameter.data = parameter.data + 0.2 * random(*parameter.shape, key=key)
    return net


def test_the_generated_code_equals_the_released_one():
    golden = read("sds_cl_temporal")
    codes = {name: value for name, value in golden.items() if name.endswith(".pe")}
    assert len(codes) == 6
    for name, code in codes.items():
        _, channels, frames, joints = code.shape
        if ".pes." in name:
            ours = positional_code(joints, channels)[None, :, None, :].expand(code.shape)
        else:
            ours = positional_code(frames, channels)[None, :, :, None].expand(code.shape)
        assert (ours - torch.from_numpy(code)).abs().max() < 1e-6


def test_the_code_is_no_parameter_and_not_stored():
    state = DSTANet("ntu25", LAYERS, subsets=2, num_frames=12).state_dict()
    assert not [name for name in state if "code" in name]


@pytest.mark.parametrize("start", [None, torch.eye(5)])
def test_attention_equals_a_loop_over_positions_with_and_without_a0(start):
    attention = randomised(SubsetAttention(6, 3, subsets=2, positions=5, start=start))
    x = random(2, 6, 4, 5)
    torch.testing.assert_close(attention(x), slow_attention(attention, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("global_temporal", [True, False])
def test_a_block_with_temporal_attention_equals_the_equations(global_temporal, mode):
    layers = [[6, 8, 3, 2]]
    net = DSTANet("ucla20", layers, 2, num_frames=5, temporal_attention=True, global_temporal=global_temporal)
    block = randomised(net).train(mode).blocks[0]
    x = random(3, 6, 5, 20)
    # Attention over frames is attention over the last axis of the transposed tensor, strided only in its last line.
    expected = slow_stage(block.temporal, block.spatial(x).transpose(2, 3)).transpose(2, 3)
    assert expected.shape == (3, 8, 3, 20)
    torch.testing.assert_close(block(x), expected, rtol=1e-3, atol=1e-4)


def test_without_spatial_attention_a_convolution_over_joints_stands_there():
    net = randomised(DSTANet("ntu25", [[6, 8, 3, 2]], 2, num_frames=5, spatial_attention=False)).eval()
    stage = net.blocks[0].spatial
    assert isinstance(stage, ConvolutionStage)
    x = random(2, 6, 5, 25)
    weight, padded = stage.project[0].weight[:, :, 0], nn.functional.pad(x, (1, 1))
    convolved = sum(torch.einsum("oc,bctv->botv", weight[..., k], padded[..., k : k + 25]) for k in range(3))
    convolved = stage.project[1](convolved + stage.project[0].bias[:, None, None])
    expected = nn.functional.leaky_relu(stage.shortcut(x) + convolved, 0.1)
    torch.testing.assert_close(stage(x), expected, rtol=1e-4, atol=1e-4)


def test_the_shortcuts_are_identities_where_a_block_keeps_width_and_length():
    net = DSTANet("ntu25", [*LAYERS, [16, 16, 8, 2]], 2, num_frames=12, temporal_attention=True)
    for block, learnt in zip(net.blocks, [False, True, False, True], strict=True):
        shortcuts = [getattr(stage, f"shortcut{i}") for stage in (block.spatial, block.temporal) for i in (1, 2)]
        assert [isinstance(shortcut, nn.Sequential) for shortcut in shortcuts] == [learnt] * 4


def test_attention_starts_as_published():
    net = DSTANet("ntu25", LAYERS, 2, num_frames=12, temporal_attention=True, global_temporal=True)
    for block, frames in zip(net.blocks, [12, 12, 6], strict=True):
        spatial, temporal = block.spatial.attention, block.temporal.attention
        assert (spatial.alpha == 1).all() and (temporal.alpha == 1).all()
        assert spatial.a0.shape == (1, 2, 25, 25) and (spatial.a0 == 1 / 25).all()
        assert torch.equal(temporal.a0.data, torch.eye(frames).expand(1, 2, frames, frames))
    switched_off = DSTANet("ntu25", LAYERS, 2, 12, temporal_attention=True, global_spatial=False)
    assert not [name for name, _ in switched_off.named_parameters() if "a0" in name]


def test_convolutions_start_he_normal_by_fan_out_and_linear_layers_xavier_normal():
    torch.manual_seed(0)
    net = DSTANet("ntu25", [[64, 128, 32, 1]], 4, num_frames=12)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            deviation = (2 / (layer.out_channels * math.prod(layer.kernel_size))) ** 0.5
            if layer.weight.numel() > 4000:
                assert layer.weight.std().item() == pytest.approx(deviation, rel=0.05)
                assert layer.weight.abs().max() > 3 * deviation  # normal: a uniform start ends at 1.7 deviations
            bound = (layer.in_channels * math.prod(layer.kernel_size)) ** -0.5
            assert 0.8 * bound < layer.bias.abs().max() <= bound
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all() and (layer.bias == 0).all()
            assert (layer.eps, layer.momentum) == (1e-5, 0.1)
    for layer in projection_head(64)[::2]:
        assert layer.weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.05)
        assert layer.weight.abs().max() > 3 * (2 / 128) ** 0.5
        assert (layer.bias == 0).all()


def test_bodies_are_folded_after_the_sample_and_never_mixed():
    net = DSTANet("ntu25", LAYERS, 2, num_frames=12).eval()
    clips = random(3, 3, 12, 25, 2)
    whole = net(clips)
    assert whole.shape == (6, 16, 6, 25)
    for sample in range(3):
        for body in range(2):
            alone = net(clips[sample : sample + 1, ..., body : body + 1])
            assert (whole[2 * sample + body] - alone[0]).abs().max() < 1e-5 * whole.abs().max()


def test_the_published_size_builds_and_runs_without_memory():
    with torch.device("meta"):
        net = DSTANet("ntu25", PUBLISHED, subsets=4, num_frames=50, absent_once=False)
        assert net(torch.empty(8, 3, 50, 25, 2)).shape == (16, 256, 13, 25)


@pytest.mark.parametrize("shape", [(2, 3, 12, 20, 2), (2, 3, 11, 25, 2), (2, 2, 12, 25, 2)])
def test_clips_of_another_skeleton_or_length_are_refused_in_one_line(shape):
    with pytest.raises(InputError, match=r"built for .*\(3, 12, 25\).*clips have") as refusal:
        DSTANet("ntu25", LAYERS, 2, num_frames=12)(torch.zeros(shape))
    assert "\n" not in str(refusal.value)


def test_blocks_whose_widths_do_not_follow_one_another_are_refused():
    with pytest.raises(InputError, match=r"found \[8, 16, 4, 1\] after \[8, 4, 4, 1\]"):
        DSTANet("ntu25", [[8, 4, 4, 1], [8, 16, 4, 1]], 2)
