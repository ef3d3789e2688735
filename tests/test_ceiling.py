"""The limit of the machine: operations by hand, the peak of what was timed, and the table that sets ours beside it."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import __main__ as bench
from benchmarks import ceiling, table
from benchmarks.ceiling import Products, limit, peaks, products, rate
from benchmarks.harness import Case, Setting, Workload
from benchmarks.workloads import ALL

ROWS, IN, OUT = 5, 7, 3
LINEAR = 2 * ROWS * IN * OUT


def test_a_linear_layer_multiplies_once_forward_and_once_for_each_gradient():
    layer, rows = nn.Linear(IN, OUT), torch.randn(ROWS, IN)
    with Products() as seen:
        loss = layer(rows).square().sum()
    assert seen.operations == LINEAR
    with Products() as seen:
        loss.backward()
    assert seen.operations == LINEAR, "the rows need no gradient"
    with Products() as seen:
        layer(rows.requires_grad_()).square().sum().backward()
    assert seen.operations == 3 * LINEAR


def test_a_convolution_counts_its_output_places_and_each_gradient_as_much():
    layer, images = nn.Conv2d(3, 5, kernel_size=(3, 2), stride=(2, 1)), torch.randn(4, 3, 9, 6)
    places = 4 * 5  # (9 - 3) / 2 + 1 and 6 - 2 + 1
    once = 2 * 4 * places * 5 * 3 * (3 * 2)
    with Products() as seen:
        loss = layer(images).square().sum()
    assert seen.operations == once
    with Products() as seen:
        loss.backward()
    assert seen.operations == once
    with Products() as seen:
        layer(images.requires_grad_()).square().sum().backward()
    assert seen.operations == 3 * once


@pytest.mark.parametrize("dropout", [0.0, 0.5], ids=["fused", "in parts"])
def test_attention_is_two_products_a_head(dropout):
    clips, heads, tokens, width = 2, 3, 5, 4
    query, key, value = (torch.randn(clips, heads, tokens, width) for _ in range(3))
    with Products() as seen:
        F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    assert seen.operations == 2 * (2 * clips * heads * tokens * tokens * width)


def test_the_gradient_of_fused_attention_makes_the_scores_anew():
    query, key, value = (torch.randn(2, 3, 5, 4, requires_grad=True) for _ in range(3))
    attended = F.scaled_dot_product_attention(query, key, value)
    with Products() as seen:
        attended.sum().backward()
    assert seen.operations == 5 * (2 * 2 * 3 * 5 * 5 * 4)


def test_the_gradient_of_a_leaf_is_what_it_is_without_counting():
    network, leaf = nn.Sequential(nn.Linear(IN, OUT), nn.Tanh()), torch.randn(ROWS, IN, requires_grad=True)
    (expected,) = torch.autograd.grad(network(leaf).sum(), leaf)
    with Products() as seen:
        (found,) = torch.autograd.grad(network(leaf).sum(), leaf)
    assert torch.equal(found, expected)
    assert seen.operations == 2 * LINEAR, "the weights' gradient was not asked for"


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, weight):
        ctx.save_for_backward(rows, weight)
        return rows @ weight

    @staticmethod
    def backward(ctx, slope):
        rows, weight = ctx.saved_tensors
        return slope @ weight.T, rows.T @ slope


def test_products_inside_a_function_with_its_own_gradient_are_counted():
    rows, weight = torch.randn(ROWS, IN, requires_grad=True), torch.randn(IN, OUT, requires_grad=True)
    with Products() as seen:
        made = Own.apply(rows, weight)
    assert seen.operations == LINEAR
    with Products() as seen:
        made.sum().backward()
    assert seen.operations == 2 * LINEAR


def test_a_layer_that_arrives_whole_is_counted_and_computed_once():
    layer, rows = nn.Linear(IN, OUT), torch.randn(ROWS, IN)
    with torch.inference_mode(), Products() as seen:
        layer(rows)
    assert seen.operations == LINEAR
    torch.manual_seed(0)
    expected = F.dropout(rows), torch.rand(3)
    torch.manual_seed(0)
    with torch.inference_mode(), Products():
        found = F.dropout(rows), torch.rand(3)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)  # drawn once: parts are not computed a second time


def test_bf16_counts_what_float32_does_and_number_by_number_nothing():
    layer, rows = nn.Linear(IN, OUT), torch.randn(ROWS, IN)
    with torch.autocast("cpu", torch.bfloat16), Products() as seen:
        layer(rows).sum().backward()
    assert seen.operations == 2 * LINEAR
    with Products() as seen:
        (rows * rows + rows).exp().softmax(1).sum()
    assert seen.operations == 0


def squares(size: int, setting: Setting) -> Case:
    matrix = torch.randn(size, size, device=setting.device)
    before = matrix @ matrix  # what makes the case is no call of ours
    return Case(lambda: before @ matrix, lambda: before @ before @ before)


SQUARES = Workload("squares", "training", "", "", squares, "rows", (16, 4), 8, precisions=("fp32", "bf16"))


@pytest.mark.parametrize(("side", "calls"), [("ours", 1), ("plain", 2)])
def test_one_call_of_a_side_is_counted(side, calls):
    assert products(SQUARES, 16, small=True, threads=1, side=side) == calls * 2 * 16**3


def test_a_step_counts_its_attack_and_its_gradients():
    """Of the same clips: the attack is one of the parts of the released step of A2MC."""
    part, whole = (products(ALL[name], 2, small=True, threads=1) for name in ("attack", "step_a2mc_released"))
    assert 0 < 1.5 * part < whole


@pytest.mark.parametrize(("small", "size"), [(False, 16), (True, 8)])
def test_a_row_in_bf16_keeps_its_operations_and_the_peaks_of_its_run(monkeypatch, small, size):
    asked = []
    monkeypatch.setattr(ceiling, "apart", lambda function, *arguments: function(*arguments))

    def found(threads):
        asked.append(threads)
        return {"ours": 4e9}

    counted = {"flops": 2 * size**3, "plain_flops": 2 * 2 * size**3, "peaks": {"ours": 4e9}}
    assert limit(SQUARES, small, 1, found) == {"limit": counted}
    assert asked == [1]
    assert limit(ALL["parse"], small, 1, found) == {} and asked == [1], "nothing is timed for rows that show nothing"


def timed(seconds):
    """In place of the clock: calls, and takes the next of `seconds`."""
    left = iter(seconds)

    def amount(call, value):
        assert value == "time"
        call()
        return next(left)

    return amount


def test_the_peak_is_the_fastest_call_of_the_fastest_width(monkeypatch):
    monkeypatch.setattr(ceiling, "CALLS", 2)
    monkeypatch.setattr(ceiling, "WIDTHS", {"cpu": (10, 20)})
    monkeypatch.setattr(ceiling, "amount", timed([1.0, 2.0, 8.0, 4.0]))
    assert rate("cpu", "fp32", small=False, threads=1) == max(2 * 10**3 / 1.0, 2 * 20**3 / 4.0)


def test_the_peak_is_of_products_in_the_precision_asked_on_the_device_asked(monkeypatch):
    """A GPU's tensors are faked by ones without numbers."""
    made, told, randn = [], [], torch.randn

    def faked(*sizes, dtype, device):
        made.append((sizes, dtype, device))
        return randn(*sizes, dtype=dtype, device="meta")

    monkeypatch.setattr(torch, "randn", faked)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", told.append)
    assert rate("cuda", "bf16", small=True, threads=1) > 0
    assert made == [((64, 64), torch.bfloat16, "cuda")] * 2
    assert told == ["high"], "products of float32 may round as convolutions do"
    told.clear()
    assert rate("cpu", "fp32", small=True, threads=1) > 0
    assert made[2:] == [((64, 64), torch.float32, "cpu")] * 2 and not told


@pytest.mark.parametrize("gpu", [False, True])
def test_peaks_are_of_both_precisions_and_of_the_gpu_where_there_is_one(monkeypatch, gpu):
    done = []

    def apart(function, *arguments):
        assert function is rate
        done.append(arguments)
        return float(len(done))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(ceiling, "apart", apart)
    there = [
        ("cpu", "fp32", False, 2),
        ("cpu", "bf16", False, 2),
        ("cuda", "fp32", False, 2),
        ("cuda", "bf16", False, 2),
    ]
    names = ["ours", "ours_bf16", "ours_gpu_fp32", "ours_gpu_bf16"]
    count = 4 if gpu else 2
    assert peaks(2, small=False) == dict(zip(names[:count], (1.0, 2.0, 3.0, 4.0), strict=False))
    assert done == there[:count]


def test_peaks_are_measured_once_a_run_and_only_if_a_row_asks(monkeypatch, tmp_path):
    """The record of an earlier run keeps its own."""
    runs, out = [], tmp_path / "rows.json"
    point = {"size": 1, "ours": 1.0, "plain": 2.0, "plain_share": 1.0}

    def measured(threads, small):
        runs.append((threads, small))
        return {"ours": 1e9 * len(runs)}

    monkeypatch.setattr(bench, "measured", lambda workload, small, threads: {"points": [point], "facts": {}})
    monkeypatch.setattr(ceiling, "peaks", measured)
    monkeypatch.setattr(ceiling, "apart", lambda function, *arguments: 7)
    run = partial(bench.main, ["--small", "--threads", "1", "--out", str(out), "--only", "parse,step_psp,attack"])
    rows = run()["rows"]
    assert runs == [(1, True)] and "limit" not in rows["parse"]
    assert (
        rows["step_psp"]["limit"] == rows["attack"]["limit"] == {"flops": 7, "plain_flops": 7, "peaks": {"ours": 1e9}}
    )
    bench.main(["--small", "--out", str(out), "--only", "parse"])
    assert len(runs) == 1
    rows = bench.main(["--small", "--out", str(out), "--only", "attack"])["rows"]
    assert rows["attack"]["limit"]["peaks"] == {"ours": 2e9} and rows["step_psp"]["limit"]["peaks"] == {"ours": 1e9}


POINT = {"size": 8, "ours": 8.0, "plain": 12.0, "plain_share": 1.0, "spread": 0.0, "rounds": 1, "ours_bf16": 2.0}
PEAKS = {"ours": 160e9, "ours_bf16": 400e9, "ours_gpu_fp32": 64e12, "ours_gpu_bf16": 640e12}
LIMIT = {"flops": 640e9, "plain_flops": 845e9, "peaks": PEAKS}
ROW = {"title": "", "against": "", "unit": "clips", "value": "time", "facts": {}, "group": "training", "goals": []}


def shown(one: dict) -> list[str]:
    """The lines of the table about the limit, without its head."""
    text = table.markdown({"rows": {"attack": ROW | one}, "profiles": {}}, ["attack"])
    _, _, about = text.partition("### How far from the machine's limit")
    return about.strip().splitlines()[2:]


def test_the_table_sets_ours_beside_the_least_seconds():
    found = {"made": {"load": 0.0}, "limit": LIMIT}
    gpu = {"ours_gpu_fp32": 0.1, "ours_gpu_bf16": 0.004}
    lines = shown({"points": [POINT | gpu], **found})
    assert lines == [
        "| `attack` | fp32 | 640 / 845 | 160 | 4 s | 8 s | 50 % |",
        "| `attack` | bf16 | 640 / 845 | 400 | 1.6 s | 2 s | 80 % |",
        "| `attack` | fp32, GPU | 640 / 845 | 64,000 | 10 ms | 100 ms | 10 % |",
        "| `attack` | bf16, GPU | 640 / 845 | 640,000 | 1 ms | 4 ms | 25 % |",
    ]
    assert shown({"points": [POINT], **found}) == lines[:2], "what was not timed is not shown"


def test_a_share_of_a_busy_machine_says_so():
    (line, _) = shown({"points": [POINT], "made": {"load": 2.6}, "limit": LIMIT})
    assert line.endswith("| 50 %, **on a busy machine** (load 2.6) |")


def test_rows_from_before_the_limit_was_written_down_are_shown_without():
    assert shown({"points": [POINT], "made": {"load": 0.0}}) == []
