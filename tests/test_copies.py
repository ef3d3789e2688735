"""Rows that are alike, computed once: features, losses, gradients and statistics of computing them all."""

from functools import partial
from pathlib import Path

import pytest
import torch
from goldens import BOUND
from goldens_a2mc import ctr_gcn_errors, encoder_errors
from goldens_sds_cl import compare
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from datamodules.batch import SkeletonBatch
from datamodules.randomness import generator
from lightning_modules.contrast.attack import frozen_statistics
from lightning_modules.copies import CountedBatchNorm2d, alike, countable, counted, once
from lightning_modules.encoders.dsta import DSTANet
from lightning_modules.encoders.hierarchical import HierarchicalEncoder, ProjectedEncoder
from lightning_modules.encoders.st_gcn import STGCN
from lightning_modules.layers import conv_bn
from lightning_modules.psp import PSP
from lightning_modules.schedules import Constant
from lightning_modules.sds_cl import SDSCL
from tracking.build import build

CONF = Path(__file__).parents[1] / "conf"
LAYERS = [[8, 8, 4, 1], [8, 16, 4, 2]]


def random(*shape: int, key: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(31, key), dtype=torch.float64)


def some_empty() -> Tensor:
    """(6, 3, 4, 5) rows of which 1, 3 and 4 are all zeros."""
    rows = random(6, 3, 4, 5)
    rows[[1, 3, 4]] = 0
    return rows


def test_zero_rows_are_one_kind_and_every_other_row_its_own():
    rows = alike(some_empty())
    assert rows.kept.tolist() == [0, 2, 5, 1] and rows.copies.tolist() == [1, 1, 1, 3]
    assert rows.place.tolist() == [0, 3, 1, 3, 3, 2]
    assert torch.equal(some_empty()[rows.kept][rows.place], some_empty())


def test_a_row_is_empty_only_if_it_is_in_every_input_and_a_single_one_is_left():
    first, second = some_empty(), some_empty()
    second[1, 0, 0, 0] = 1
    assert alike(first, second).kept.tolist() == [0, 1, 2, 5, 3]
    second[3, 0, 0, 0] = 1
    assert alike(first, second) is None, "one empty row saves nothing"


def test_bodies_of_different_places_are_different_kinds():
    rows = random(8, 2, 3)
    rows[[0, 1, 3, 6, 7]] = 0  # of two slots: 0 and 6 in the first, 1, 3 and 7 in the second
    found = alike(rows, slots=2)
    assert found.kept.tolist() == [2, 4, 5, 0, 1] and found.copies.tolist() == [1, 1, 1, 2, 3]
    assert found.place.tolist() == [3, 4, 0, 4, 1, 2, 3, 4]
    rows[[0, 3, 6]] = 1
    assert alike(rows, slots=2).copies.tolist() == [1] * 6 + [2]
    rows[1] = 1
    assert alike(rows, slots=2) is None


def test_rows_that_ask_for_a_gradient_get_one_each():
    assert alike(some_empty().requires_grad_()) is None


def test_counted_batch_norm_equals_batch_norm_over_all_copies():
    copies = torch.tensor([1.0, 4.0, 2.0], dtype=torch.float64)
    rows = random(3, 4, 5, 6).requires_grad_()
    every = rows.repeat_interleave(copies.long(), 0)
    plain, ours = nn.BatchNorm2d(4).double(), CountedBatchNorm2d(4).double()
    for norm in (plain, ours):
        norm.weight.data, norm.bias.data = random(4, key=1), random(4, key=2)
    expected = plain(every)
    with counted(ours, copies):
        got = ours(rows)
    assert ours.copies is None
    weights = random(*expected.shape, key=3)
    wanted = torch.autograd.grad((expected * weights).sum(), [rows, *plain.parameters()])
    found = torch.autograd.grad((got.repeat_interleave(copies.long(), 0) * weights).sum(), [rows, *ours.parameters()])
    torch.testing.assert_close(got.repeat_interleave(copies.long(), 0), expected)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(dict(ours.named_buffers()), dict(plain.named_buffers()))


def counting(copies: Tensor) -> CountedBatchNorm2d:
    norm = CountedBatchNorm2d(4).to(copies.dtype)
    norm.weight.data, norm.bias.data = random(4, key=1).to(copies.dtype), random(4, key=2).to(copies.dtype)
    norm.copies = copies
    return norm


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_counted_batch_norm_are_its_slopes(layout):
    norm = counting(torch.tensor([1.0, 4.0, 2.0], dtype=torch.float64))
    rows = (random(3, 4, 5, 6) + 7).contiguous(memory_format=layout).requires_grad_()
    parameters = norm.weight, norm.bias

    def function(x: Tensor, *_: Tensor) -> Tensor:
        return norm(x)

    assert torch.autograd.gradcheck(function, (rows, *parameters))
    assert norm(rows).is_contiguous(memory_format=layout)
    (slope,) = torch.autograd.grad(norm(rows).sin().sum(), rows)
    assert slope.is_contiguous(memory_format=layout)


def test_counted_batch_norm_of_bfloat16_rows_is_that_of_float32_but_for_the_last_rounding():
    copies = torch.tensor([1.0, 4.0, 2.0])
    half = (random(3, 4, 5, 6) + 7).bfloat16()
    found = []
    for rows in (half.clone(), half.float()):
        norm = counting(copies)
        with torch.autocast("cpu", torch.bfloat16, enabled=rows.dtype == torch.bfloat16):
            out = norm(rows.requires_grad_())
        out.backward(random(3, 4, 5, 6, key=3).bfloat16().to(out.dtype))
        found.append((out.detach(), rows.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var))
    assert [part.dtype for part in found[0]] == [torch.bfloat16] * 2 + [torch.float32] * 4
    for ours, wanted in zip(found[0], found[1], strict=True):
        assert torch.equal(ours, wanted.to(ours.dtype))


def test_without_copies_and_in_eval_mode_it_is_batch_norm_to_the_bit():
    plain, ours = nn.BatchNorm2d(3).double(), CountedBatchNorm2d(3).double()
    assert torch.equal(ours(some_empty()), plain(some_empty()))
    plain.eval(), ours.eval()
    with counted(ours, torch.ones(6)):
        assert torch.equal(ours(some_empty()), plain(some_empty()))


def test_a_network_that_cannot_count_computes_all_rows():
    network = nn.SyncBatchNorm.convert_sync_batchnorm(conv_bn(3, 4)).double().eval()
    assert not countable(network) and countable(conv_bn(3, 4))
    seen = []
    once(network, lambda x: seen.append(len(x)), alike(some_empty()), some_empty())
    once(conv_bn(3, 4), lambda x: seen.append(len(x)) or x, alike(some_empty()), some_empty())
    assert seen == [6, 4]


def clips(number: int, absent: list[int], key: int) -> Tensor:
    """(N, 3, 20, 25, 2); the second body of the clips `absent` is not there, the last clip's appears half way."""
    joints = random(number, 3, 20, 25, 2, key=key).cumsum(2)
    joints[absent, ..., 1] = 0
    joints[-1, :, :10, :, 1] = 0
    return joints


def batch(number: int, absent: list[int], key: int = 5) -> SkeletonBatch:
    labels = torch.arange(number) % 3
    return SkeletonBatch(clips(number, absent, key), torch.full((number,), 20), labels, torch.arange(number))


def method(cls, absent_once: bool, **options):
    torch.manual_seed(0)
    encoder = DSTANet("ntu25", LAYERS, subsets=2, num_frames=12, absent_once=absent_once)
    return cls(encoder=encoder, optimizer=partial(torch.optim.SGD, lr=1), schedule=Constant(), seed=3, **options)


CASES = {
    "sds_cl": (SDSCL, {}, lambda: batch(6, [0, 2, 3])),
    "sds_cl by groups": (SDSCL, {"norm_groups": 4}, lambda: batch(6, [0, 2, 3])),
    "psp": (
        PSP,
        {"topology": "ntu25", "num_classes": 3},
        lambda: {"labelled": batch(4, [1, 2], key=6), "unlabelled": batch(6, [0, 2, 3])},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_training_step_is_that_of_all_bodies(name):
    cls, options, made = CASES[name]
    modules = [method(cls, absent_once, **options).double().train() for absent_once in (True, False)]
    seen: list[int] = []
    modules[0].encoder.stem.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    terms = [module.objective(made()) for module in modules]
    for losses in terms:
        sum(losses.values()).backward()
    torch.testing.assert_close(*terms, rtol=1e-11, atol=1e-11)
    gradients = [{key: p.grad for key, p in module.named_parameters() if p.grad is not None} for module in modules]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(*(dict(module.named_buffers()) for module in modules), rtol=1e-11, atol=1e-11)
    every = 2 * 2 * sum(len(part.labels) for part in (made().values() if name == "psp" else [made()]))
    absent = 2 * (5 if name == "psp" else 3)
    assert seen == [every - absent + 1]


# Of the golden batches, each of one clip with an absent second body, given twice over: rows computed, rows counted.
TWICE = {
    "sds_cl": (partial(compare, "sds_cl"), {(21, 24), (11, 12)}),  # encoder on both streams, SIIA on either
    "sds_cl_temporal": (partial(compare, "sds_cl_temporal"), {(21, 24), (11, 12)}),
    "a2mc_encoder": (encoder_errors, {(11, 12)}),
    "ctr_gcn": (ctr_gcn_errors, {(7, 8)}),
}


@pytest.mark.parametrize("name", TWICE)
def test_absent_bodies_computed_once_give_every_number_of_the_released_code(name, monkeypatch):
    """Batch statistics of a batch given twice over are those of the batch, so that features, losses of either copy
    and gradients are the released ones: which hold no multiplicity of ours."""
    errors, expected = TWICE[name]
    seen, original = set(), CountedBatchNorm2d.forward

    def watched(norm: CountedBatchNorm2d, x: Tensor) -> Tensor:
        seen.add((norm.training, len(x), len(x) if norm.copies is None else int(norm.copies.sum())))
        return original(norm, x)

    monkeypatch.setattr(CountedBatchNorm2d, "forward", watched)
    found = errors(times=2)
    assert max(found.values()) < BOUND, max(found.items(), key=lambda item: item[1])
    assert seen == {(training, *rows) for training in (True, False) for rows in expected}


def hierarchical(absent_once: bool, clips: Tensor) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    branches = HierarchicalEncoder(
        "ntu25", 20, 2, width=8, token_width=8, heads=2, dropout=0.0, absent_once=absent_once
    )
    encoder = ProjectedEncoder(branches, 4)
    for parameter in encoder.parameters():  # alpha and the last batch norms start near 0
        parameter.data += 0.1 * torch.randn_like(parameter)
    encoder = encoder.double().train()
    return encoder, torch.cat(encoder(clips)[1:], dim=1)


def test_the_graph_networks_compute_absent_bodies_once_for_each_place():
    joints = clips(6, [0, 2, 3], key=5)
    joints[[1, 4], ..., 0] = 0
    weights = random(6, 12, key=4)
    encoders, outputs = zip(*(hierarchical(once, joints) for once in (True, False)), strict=True)
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-10)
    for output in outputs:
        (output * weights).sum().backward()
    gradients = [{name: p.grad for name, p in encoder.named_parameters()} for encoder in encoders]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(*(dict(encoder.named_buffers()) for encoder in encoders), rtol=1e-10, atol=1e-10)
    seen: list[int] = []
    encoders[0].encoder.gcn_t.l1.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    encoders[0](joints)
    encoders[0](joints.requires_grad_())
    assert seen == [12 - 5 + 2, 12]


def test_the_gradient_of_a_clip_is_that_of_all_bodies():
    """An attack moves absent bodies too, each clip's its own way."""
    found = []
    for absent_once in (True, False):
        joints = clips(6, [0, 2, 3], key=5).requires_grad_()
        _, output = hierarchical(absent_once, joints)
        found.append(torch.autograd.grad((output * random(6, 12, key=4)).sum(), joints)[0])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)
    assert found[0][[0, 2, 3], ..., 1].abs().amax((1, 2, 3)).min() > 0


def spatial_temporal(absent_once: bool, dropout: float = 0.0) -> STGCN:
    torch.manual_seed(0)
    encoder = STGCN("ntu25", width=4, out_channels=8, dropout=dropout, absent_once=absent_once)
    for parameter in encoder.parameters():  # convolutions start near 0
        parameter.data += 0.1 * torch.randn_like(parameter)
    return encoder.double()


@pytest.mark.parametrize("training", [True, False])
def test_st_gcn_without_dropout_gives_what_all_bodies_give(training):
    encoders = [spatial_temporal(once).train(training) for once in (True, False)]
    rows: list[int] = []
    encoders[0].units.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    joints = clips(6, [0, 2, 3], key=5)
    joints[1, ..., 0] = 0  # an absent first body is the same row as an absent second
    outputs = [encoder(joints) for encoder in encoders]
    assert rows == [12 - 4 + 1]
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-10)
    for output in outputs:
        (output * random(*output.shape, key=4)).sum().backward()
    gradients = [{name: p.grad for name, p in encoder.named_parameters()} for encoder in encoders]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(*(dict(encoder.named_buffers()) for encoder in encoders), rtol=1e-10, atol=1e-10)


def test_where_dropout_acts_every_absent_body_has_numbers_of_its_own():
    """The features of training are those of all bodies to the bit; in evaluation absent ones are one row."""
    encoders = [spatial_temporal(once, dropout=0.5).train() for once in (True, False)]
    rows: list[int] = []
    encoders[0].units.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    joints, outputs = clips(6, [0, 2, 3], key=5), []
    for encoder in encoders:
        torch.manual_seed(1)
        outputs.append(encoder(joints))
    assert torch.equal(*outputs) and not torch.equal(outputs[0][1], outputs[0][5])
    torch.testing.assert_close(*(encoder.eval()(joints) for encoder in encoders), rtol=1e-10, atol=1e-10)
    assert rows == [12, 12 - 3 + 1]


def test_statistics_that_are_frozen_stay_under_counting_too():
    norm = CountedBatchNorm2d(3).double()
    before = {name: tensor.clone() for name, tensor in norm.named_buffers()}
    with frozen_statistics(norm), counted(norm, torch.ones(6, dtype=torch.float64)):
        norm(random(6, 3, 4, 5))
    assert all(torch.equal(before[name], tensor) for name, tensor in norm.named_buffers())
    with counted(norm, torch.ones(6, dtype=torch.float64)):
        norm(random(6, 3, 4, 5))
    assert not torch.equal(before["running_mean"], norm.running_mean)


def test_the_multiplicity_matters():
    """Computing an absent body once without counting it as often as it occurs gives other losses."""
    module = method(SDSCL, True).double().train()
    right = module.objective(batch(6, [0, 2, 3]))["stl"].item()
    original = CountedBatchNorm2d.forward
    try:
        CountedBatchNorm2d.forward = nn.BatchNorm2d.forward
        wrong = module.objective(batch(6, [0, 2, 3]))["stl"].item()
    finally:
        CountedBatchNorm2d.forward = original
    assert abs(right - wrong) > 1e-4


def test_embeddings_are_those_of_all_bodies():
    embeddings = [
        method(SDSCL, absent_once).double().eval().embed(batch(6, [0, 2, 3])) for absent_once in (True, False)
    ]
    torch.testing.assert_close(*embeddings, rtol=1e-12, atol=1e-12)


# Method -> how the page says that it computes every body.
SWITCHES = dict.fromkeys(("sds_cl", "psp", "psp_ce"), "method.encoder.absent_once=false") | dict.fromkeys(
    ("scd_net", "a2mc", "a2mc_released", "skeleton_clr", "aim_clr"), "+method.encoder.absent_once=false"
)


def test_there_is_a_switch_for_every_method_on_skeletons():
    assert {path.stem for path in (CONF / "method").glob("*.yaml")} - {"fedmllm"} == set(SWITCHES)


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("off", [False, True])
def test_every_network_of_a_method_computes_every_body_where_told_so(name, off):
    switch = [SWITCHES[name]] if off else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"experiment=ntu60/{name}_xsub", "scale=mini", *switch])
    sparing = [part for part in build(config.method).modules() if hasattr(part, "absent_once")]
    assert sparing and all(part.absent_once is not off for part in sparing)
