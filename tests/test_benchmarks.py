"""Every row of the table on a tiny size: ours is what the plain implementation computes; the record and its page."""

import json
from concurrent.futures.process import BrokenProcessPool

import pytest
from torch import nn

from benchmarks import __main__ as bench
from benchmarks import synthetic, table
from benchmarks.harness import Case, Goal, Setting, Workload, measured, ready
from benchmarks.plain.networks import published
from benchmarks.workloads import ALL, training
from lightning_modules.copies import CountedBatchNorm2d
from lightning_modules.encoders.ctr_gcn import CTRGCN
from lightning_modules.encoders.dsta import DSTANet

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


@pytest.mark.parametrize("encoder", [CTRGCN("ntu25", width=8), DSTANet("ntu25", LAYERS, subsets=2, num_frames=12)])
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
    ],
)
def test_a_goal_is_judged_by_its_measure(goal, measure, met):
    row = {"points": [{"size": 10, "ours": 2.0, "plain": 8.0}], "facts": {"of": 4.0}}
    assert goal.of(row) == measure and goal.met(row) == met


def test_the_page_shows_the_record():
    found = table.read()
    assert set(found["rows"]) <= set(ALL)
    assert table.markdown(found, ALL) in table.PAGE.read_text()


def test_the_record_was_made_where_it_says():
    for name, row in table.read()["rows"].items():
        made = row["made"]
        assert made["command"].startswith("python -m benchmarks") and made["commit"], name
        assert row["points"][0]["size"] == ALL[name].sizes[0]


def test_the_page_needs_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("no marks\n")
    with pytest.raises(ValueError, match="expected <!-- table -->"):
        table.place("| |", page)
    page.write_text("before\n<!-- table -->\nold\n<!-- /table -->\nafter\n")
    table.place("new\n", page)
    assert page.read_text() == "before\n<!-- table -->\nnew\n<!-- /table -->\nafter\n"


def test_plain_sides_are_named():
    for workload in ALL.values():
        assert bool(workload.against) == (workload.name not in STARTS), workload.name
