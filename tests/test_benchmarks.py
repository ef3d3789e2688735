"""Every row of the table on a tiny size: ours is what the plain implementation computes; the record and its page."""

import json
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

from benchmarks import __main__ as bench
from benchmarks import harness, synthetic, table
from benchmarks.harness import Case, Goal, Setting, Workload, measured, ready
from benchmarks.plain.networks import published
from benchmarks.workloads import ALL, evaluation, training
from lightning_modules.copies import CountedBatchNorm2d
from lightning_modules.encoders.ctr_gcn import CTRGCN
from lightning_modules.encoders.dsta import DSTANet
from lightning_modules.encoders.st_gcn import STGCN

LAYERS = [[8, 8, 4, 1], [8, 12, 4, 2]]
STARTS = [name for name in ALL if name.startswith("start_")]


@pytest.mark.parametrize("name", [name for name in ALL if name not in STARTS])
def test_ours_equals_the_plain_implementation_and_both_run(name):
    workload = ALL[name]
    with ready(workload, workload.tiny, 1, small=True) as case:
        case.check()
        case.ours()
        assert case.plain is not None
        case.plain()


EXACT = ("parse", "parse_frames", "store_memory", "knn", "client_switch")  # compared to the bit
COMPARISONS = (
    (training, "assert_alike"),
    (evaluation, "assert_alike"),
    (torch.testing, "assert_close"),
    (np.testing, "assert_allclose"),
)
SPOILS = {
    "zeros": lambda values: values * 0,
    "rows in another order": lambda values: values[list(range(len(values)))[::-1]] if values.ndim else values,
}


@pytest.mark.parametrize("name", [name for name in ALL if name not in (*STARTS, *EXACT)])
def test_a_check_with_a_tolerance_finds_what_is_wrong(name, monkeypatch):
    """Its numbers are larger than the tolerance and differ from row to row: the two ways of giving none of them."""
    compared = []

    def spoiled(compare, ours, plain, **tolerance):
        compared.append(name)
        for spoil in SPOILS.values():
            with pytest.raises(AssertionError):
                compare(tree_map(spoil, ours), plain, **tolerance)

    for module, comparison in COMPARISONS:
        monkeypatch.setattr(module, comparison, partial(spoiled, getattr(module, comparison)))
    with ready(ALL[name], ALL[name].tiny, 1, small=True) as case:
        case.check()
    assert compared


@pytest.mark.parametrize(
    "encoder",
    [
        CTRGCN("ntu25", width=8),
        DSTANet("ntu25", LAYERS, subsets=2, num_frames=12),
        STGCN("ntu25", width=4, out_channels=8, dropout=0.0),
    ],
)
def test_every_row_is_computed_within_published(encoder):
    """Of four clips with two bodies each, of which the second is absent."""
    clips, rows = synthetic.batch(4, frames=12).joints, []
    for part in encoder.modules():
        if isinstance(part, CountedBatchNorm2d):
            part.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    with published(nn.ModuleList([encoder])):
        encoder(clips)
    assert rows and set(rows) == {8}
    rows.clear()
    encoder(clips)
    assert rows and max(rows) < 8 and encoder.absent_once


@pytest.mark.parametrize("method", training.PLAIN)
def test_the_plain_side_of_a_step_counts_no_copies(method, tmp_path):
    module, batch, copies = training.built(method, Setting(tmp_path, small=True)), training.batch_of(method, 4), []
    for part in module.modules():
        if isinstance(part, CountedBatchNorm2d) and part.training:
            part.register_forward_pre_hook(lambda part, _: copies.append(part.copies is not None))
    training.plainly(method, module, batch)
    assert copies and not any(copies)
    module.objective(batch)
    assert any(copies)


def test_curves_over_frames_are_of_clips_of_so_many_frames(tmp_path, monkeypatch):
    """The size of such a row is the length of its clips, not their number."""
    seen = []
    files, clips = synthetic.ntu_files, synthetic.batch
    monkeypatch.setattr(
        synthetic, "ntu_files", lambda *given, length: seen.append(length) or files(*given, length=length)
    )
    monkeypatch.setattr(synthetic, "batch", lambda count, frames: seen.append(frames) or clips(count, frames))
    rows = [workload for workload in ALL.values() if workload.unit == "frames" and workload.group == "data"]
    for workload in rows:
        workload.make(7, Setting(tmp_path, small=True))
    assert seen == [7] * len(rows) and len(rows) > 1
    assert [path.read_text().split("\n", 1)[0] for path in synthetic.ntu_files(tmp_path, 2, length=9)] == ["9", "9"]


@pytest.mark.slow
@pytest.mark.parametrize("name", STARTS)
def test_a_door_reaches_its_first_step(name):
    with ready(ALL[name], 1, 1, small=True) as case:
        assert 0 < case.ours() < 120


@pytest.mark.slow
def test_a_row_is_measured_and_written_whole(tmp_path):
    out = tmp_path / "rows.json"
    found = bench.main(["--small", "--only", "parse,bank_and_mixer", "--threads", "1", "--out", str(out)])
    assert json.loads(out.read_text()) == found and list(found["rows"]) == ["parse", "bank_and_mixer"]
    point = found["rows"]["parse"]["points"][0]
    assert point["size"] == ALL["parse"].tiny and point["ours"] > 0 and point["plain"] > 0
    assert {"ours_peak", "plain_peak"} <= point.keys()
    again = bench.main(["--small", "--only", "parse", "--threads", "1", "--out", str(out)])
    assert again["rows"]["bank_and_mixer"] == found["rows"]["bank_and_mixer"], "other rows stay"


def test_small_sizes_are_tried_without_a_record(monkeypatch, capsys):
    """`make bench small=true`."""
    row = {"points": [{"size": 1, "ours": 2.0, "plain": 4.0}], "unit": "s"}
    monkeypatch.setattr(bench, "measured", lambda workload, small, threads: row)
    monkeypatch.setattr(bench.table, "row", lambda workload, found, about: found)
    monkeypatch.setattr(bench.table, "shown", lambda seconds, row: f"{seconds} s")
    monkeypatch.setattr(bench.table, "write", lambda found, path: pytest.fail(f"wrote {path}"))
    assert list(bench.main(["--small", "--only", "parse"])["rows"]) == ["parse"]
    assert "parse: 2.0 s  2 times as fast" in capsys.readouterr().out


def test_an_unknown_row_is_refused_by_the_known_ones():
    with pytest.raises(SystemExit, match="expected rows of parse, .*found 'parze'"):
        bench.main(["--only", "parze"])


def wrong(size: int, setting: Setting) -> Case:
    def check() -> None:
        raise AssertionError("apart")

    return Case(lambda: None, lambda: None, check)


def test_nothing_is_timed_that_does_not_agree():
    workload = Workload("wrong", "data", "", "", wrong, "clips", (1,), 1)
    with pytest.raises(AssertionError, match="apart"):
        measured(workload, small=True, threads=1)


@pytest.mark.parametrize(("warm", "share"), [(True, 1.0), (False, 0.5)])
def test_both_sides_are_warmed_and_take_turns_and_each_has_its_spread(monkeypatch, warm, share):
    done, seconds = [], iter((2.0, 10.0, 3.0, 50.0, 4.0, 20.0))

    def timed(call, value):
        call()
        done.append(value)
        return next(seconds)

    def make(size: int, setting: Setting) -> Case:
        return Case(*(partial(done.append, what) for what in ("ours", "plain", "check")), plain_share=share)

    monkeypatch.setattr(harness, "amount", timed)
    workload = Workload("both", "data", "", "slowly", make, "clips", (4,), 1, rounds=3, warm=warm)
    found = harness.sides(workload, 4, "cpu", "fp32", small=False, threads=1)
    assert done == ["check", *["ours", "plain"] * warm, *["ours", "time", "plain", "time"] * 3]
    assert found["ours"] == 3 and found["plain"] == 20 / share and found["rounds"] == 3
    assert found["spread"] == pytest.approx(2 / 3) and found["plain_spread"] == 40 / 20
    done.clear()
    seconds = iter((1.0, 2.0, 4.0))
    found = harness.sides(workload, 4, "cpu", "bf16", small=False, threads=1)
    assert done == ["ours"] * warm + ["ours", "time"] * 3 and "plain_spread" not in found and found["spread"] == 1.5


def test_others_that_want_a_core_are_counted_without_this_process(monkeypatch, tmp_path):
    looks = iter(("0.10 9.00 9.00 1/128 9447\n", "0.10 9.00 9.00 4/128 9448\n"))
    told = tmp_path / "loadavg"
    monkeypatch.setattr(bench, "LOOKS", 2)
    monkeypatch.setattr(bench, "LOADAVG", told)
    monkeypatch.setattr(bench.os, "getloadavg", lambda: (7.0, 8.0, 9.0))
    assert bench.load() == 7.0, "no such file"
    told.touch()
    monkeypatch.setattr(type(told), "read_text", lambda path: next(looks))
    assert bench.load() == 1.5


def test_each_row_tells_the_load_before_it(monkeypatch, tmp_path):
    """A row that was made while others wanted the cores does not mark those after it."""
    loads, row = iter((3.0, 0.5)), {"points": [{"size": 1, "ours": 1.0}], "facts": {}}
    monkeypatch.setattr(bench, "load", lambda: next(loads))
    monkeypatch.setattr(bench, "measured", lambda workload, small, threads: row)
    rows = bench.main(["--small", "--only", "parse,views", "--out", str(tmp_path / "rows.json")])["rows"]
    assert [one["made"]["load"] for one in rows.values()] == [3.0, 0.5]


@pytest.fixture
def gpu(monkeypatch):
    """A machine that says it has a GPU; gives what is done in order, to which calls may add."""
    done, allocated = [], iter((100, 350, 1000, 1001))  # before and most, of ours and of plain
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("waited"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: done.append("anew"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: next(allocated))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: next(allocated))
    return done


def test_the_clock_of_a_gpu_starts_when_nothing_is_left_to_do(gpu):
    assert harness.amount(lambda: gpu.append("call"), "time") >= 0
    assert gpu == ["waited", "call", "waited"]


@pytest.mark.parametrize("precisions", [("fp32",), ("fp32", "bf16")])
def test_on_a_gpu_both_sides_run_there_and_are_checked_there(gpu, monkeypatch, precisions):
    def make(size: int, setting: Setting) -> Case:
        where = setting.device, setting.precision
        return Case(*(partial(gpu.append, (*where, what)) for what in ("ours", "plain", "check")))

    def here(function, *arguments):
        return 0.0 if function is harness.peak and "cpu" in arguments else function(*arguments)

    monkeypatch.setattr(harness, "apart", here)
    workload = Workload(
        "both", "data", "", "slowly", make, "clips", (4,), 1, warm=False, precisions=precisions, gpu=True
    )
    point = measured(workload, small=True, threads=1)["points"][0]
    there = [one[1:] for one in gpu if one[0] == "cuda"]
    fp32, half = [("fp32", what) for what in ("check", "ours", "plain")], "bf16" in precisions
    assert there == [*fp32, *[("bf16", "ours")] * half, *fp32[1:]]
    assert point["ours_gpu_peak"] == 250 and point["plain_gpu_peak"] == 1
    assert {"ours_gpu_fp32", "plain_gpu_fp32"} < point.keys() and "plain_gpu_bf16" not in point
    assert ("ours_gpu_bf16" in point) == half
    gpu.clear()
    point = measured(replace(workload, gpu=False), small=True, threads=1)["points"][0]
    assert "cuda" not in {one[0] for one in gpu} and not [name for name in point if "gpu" in name]


def test_rows_whose_tensors_are_moved_run_on_a_gpu():
    """With and without bf16; no row of bf16 is left out."""
    there = {name for name, workload in ALL.items() if workload.gpu}
    assert there >= {name for name, workload in ALL.items() if "bf16" in workload.precisions}
    assert there >= {"absent_bodies", "bank_and_mixer"} and not there & {"parse", "round", *STARTS}


def test_bank_and_mixer_are_wholly_on_the_device_asked(tmp_path):
    """A device without numbers refuses to compute with tensors of the CPU, as a GPU does."""
    case = ALL["bank_and_mixer"].make(12, Setting(tmp_path, device="meta", small=True))
    for call in case.ours, case.plain:
        assert {tensor.device.type for tensor in call()} == {"meta"}


ROW = {"title": "", "against": "slowly", "unit": "clips", "value": "time", "facts": {}, "group": "data", "goals": []}


@pytest.mark.parametrize(("load", "told"), [(0.9, ""), (1.6, "**on a busy machine** (load 1.6)")])
def test_a_row_says_that_the_machine_was_busy(load, told):
    point = {"size": 1, "ours": 2.0, "plain": 8.0, "plain_share": 1.0, "spread": 0.25, "rounds": 3}
    row = {**ROW, "points": [point], "made": {"load": load}}
    cells = table.markdown({"rows": {"parse": row}, "profiles": {}}, ["parse"]).splitlines()[4].split(" | ")
    assert cells[-1].strip(" |") == told and cells[3] == "25 % of 3" and cells[7] == ""
    row["points"] = [point | {"plain_spread": 0.5}]
    cells = table.markdown({"rows": {"parse": row}, "profiles": {}}, ["parse"]).splitlines()[4].split(" | ")
    assert cells[3] == "25 % / 50 % of 3"


def test_bf16_is_held_against_the_plain_side_and_against_ours():
    point = {"size": 1, "ours": 3.0, "plain": 8.0, "plain_share": 1.0, "spread": 0.0, "rounds": 1, "ours_bf16": 2.0}
    row = {**ROW, "points": [point], "made": {"load": 0.0}}
    cells = table.markdown({"rows": {"parse": row}, "profiles": {}}, ["parse"]).splitlines()[4].split(" | ")
    assert cells[6] == "2 s, 4 (1.5 of ours)"


def test_the_table_shows_every_number_of_a_gpu():
    point = {"size": 1, "ours": 2.0, "plain": 8.0, "plain_share": 1.0, "spread": 0.0, "rounds": 1}
    gpu = {"ours_gpu_fp32": 0.02, "plain_gpu_fp32": 0.05, "ours_gpu_bf16": 0.01}
    row = {**ROW, "points": [point | gpu | {"ours_gpu_peak": 3e6, "plain_gpu_peak": 7e6}], "made": {"load": 0.0}}
    text = table.markdown({"rows": {"parse": row}, "profiles": {}}, ["parse"])
    assert "| fp32 20 ms, 2.5; bf16 10 ms, 5; plain 50 ms; peak MB 3 / 7 |" in text


@pytest.mark.parametrize("error", [AssertionError("apart"), SystemExit(2), BrokenProcessPool("killed")])
def test_a_row_that_fails_is_named_and_the_others_go_on(monkeypatch, tmp_path, capsys, error):
    def measure(workload, small, threads):
        if workload.name == "views":
            raise error
        return {"points": [{"size": 1, "ours": 1.0, "plain": 2.0, "plain_share": 1.0}], "facts": {}}

    monkeypatch.setattr(bench, "measured", measure)
    out = tmp_path / "rows.json"
    with pytest.raises(SystemExit, match="error: 1 rows were not measured: views"):
        bench.main(["--small", "--only", "parse,views,loader", "--out", str(out)])
    assert list(json.loads(out.read_text())["rows"]) == ["parse", "loader"]
    assert f"error: views: {type(error).__name__}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("goal", "measure", "met"),
    [
        (Goal("ratio", 3, True, ""), 4, True),
        (Goal("ratio", 5, True, ""), 4, False),
        (Goal("rate", 3, True, ""), 5, True),
        (Goal("amount", 1, False, ""), 2, False),
        (Goal("overhead", -0.7, False, ""), -0.75, True),
        (Goal("share", 1.3, False, ""), 0.5, True),
        (Goal("bf16", 15, True, ""), 16, True),
        (Goal("bf16", 17, True, ""), 16, False),
        (Goal("peak", 6, False, ""), 5, True),
        (Goal("peak", 6, False, "", beside=2), 7, False),
        (Goal("overhead", 2, False, "", size=5), 1, True),
        (Goal("ratio", 1, True, "", size=5), 0.5, False),
        (Goal("rate", 1, True, "", size=5), 0.625, False),
        (Goal("bf16", 1, True, "", size=5), None, None),
        (Goal("peak", 6, False, "", size=5), None, None),
        (Goal("ratio", 1, True, "", size=7), None, None),
    ],
)
def test_a_goal_is_judged_by_its_measure(goal, measure, met):
    """Of the first size or of its own; not at all where that was not measured."""
    first = {"size": 10, "ours": 2.0, "plain": 8.0, "ours_bf16": 0.5, "ours_peak": 5}
    row = {"points": [first, {"size": 5, "ours": 8.0, "plain": 4.0, "ours_peak": None}], "facts": {"of": 4.0}}
    assert goal.of(row) == measure and goal.met(row) is met


def test_every_goal_has_a_line_that_says_whether_it_is_met():
    """Three goals of one row, of which one is met, one missed and one not measured; another row has none."""
    points = [
        {"size": 2000, "ours": 2.0, "plain": 8.0, "plain_share": 1.0, "spread": 0.0, "rounds": 1, "ours_peak": 3e9}
    ]
    points.append(points[0] | {"size": 5, "ours": 8.2})
    row = {**ROW, "points": points, "made": {"load": 0.0}}
    goals = (
        Goal("ratio", 4, True, "fast"),
        Goal("overhead", 0.02, False, "few", size=5),
        Goal("bf16", 9, True, "half"),
        Goal("peak", 4e9, False, "small", beside=1e9),
    )
    aiming = Workload("parse", "data", "", "", wrong, "clips", (2000, 5), 1, goals=goals)
    found = {"rows": {"parse": row, "views": dict(row), "gone": dict(row)}, "profiles": {}}
    workloads = {"parse": aiming, "views": replace(aiming, goals=())}
    table.judge(found, workloads)
    assert list(found["rows"]) == ["parse", "views"] and json.loads(json.dumps(found)) == found
    expected = [
        "| fast | `parse`, 2,000 clips | 4 times | met |",
        "| few | `parse`, 5 clips | 2.5 % | **missed** |",
        "| half | `parse`, 2,000 clips |  | not measured |",
        "| small | `parse`, 2,000 clips | 4 GB | met |",
    ]
    text = table.markdown(found, workloads)
    assert text.splitlines()[4:8] == expected and text.startswith("### Goals\n") and text.count("| met |") == 2
    row["made"]["load"] = 1.6
    assert "| 4 GB, **on a busy machine** (load 1.6) | met |" in table.markdown(found, workloads)


def test_plain_sides_are_named():
    for workload in ALL.values():
        assert bool(workload.against) == (workload.name not in STARTS), workload.name
