"""What W&B's offline files hold after training and evaluation: who the runs are, numbers, pictures, clips."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_chain import SMALL, config, prepared, small
from test_dashboards import SHIPPED
from test_loggers import contents

import eval as evaluation
import report
import train
from tracking import records

OFFLINE = ["logger=wandb", "logger.mode=offline"]
__all__ = ["prepared"]  # the fixture


@pytest.fixture(scope="module")
def runs(prepared):
    """Contents of the offline file of each job, by its job type (of the trained network)."""
    root, raw, _ = prepared
    train.main.run(small("train", root, raw, *OFFLINE, "clips_every=2"))
    for protocol in ("knn", "linear", "inspect"):
        evaluation.main.run(small("eval", root, raw, *OFFLINE, f"protocol={protocol}", "protocol.rows=[trained]"))
    found = {}
    for folder in sorted({path.parents[2] for path in Path(root).rglob("*.wandb")}):
        run, *rest = contents(folder)
        found[run.job_type] = (run, *rest, folder)
    return root, found


def keys(history) -> set[str]:
    """What was logged; W&B writes a picture `a` as a._type, a.path and so on."""
    return {name.split(".")[0] for row in history for name in row}


def test_every_job_is_a_run_of_one_group_under_its_own_key(runs):
    root, found = runs
    assert set(found) == {"pretrain", "knn", "linear", "inspect"}
    known = {record.key[:16] for record in records.find(root / "records")}
    assert {run.run_id for run, *_ in found.values()} == known
    assert {run.run_group for run, *_ in found.values()} == {"ntu60/sds_cl"}
    assert all({"sds_cl", "ntu60", "ntu60_xsub"} <= set(run.tags) for run, *_ in found.values())
    for run, logged, _, exits, _ in found.values():
        assert logged["method.temperature"] == 0.07 and logged["batch_size"] == 8 and exits == [0], run.job_type
        assert not any(name.startswith(("paths", "raw")) for name in logged), "locations go nowhere"


def test_training_tells_its_terms_its_vitals_and_its_clips(runs):
    _, found = runs
    history = found["pretrain"][2]
    terms = {"train/loss", "train/stl", "train/tsl", "train/gl"}
    vitals = {"train/lr", "train/gradient_norm", "train/clips_per_second"}
    collapse = {"embedding/effective_rank", "embedding/spread", "test/knn1"}
    assert terms | vitals | collapse | {"clips/0", "clips/1"} <= keys(history)
    assert len([row for row in history if "train/loss" in row]) == 2
    names = set(re.findall(r"[^/\"]+\.gif", json.dumps(history)))
    files = [path for path in found["pretrain"][4].rglob("*.gif") if path.name in names]
    assert len(names) == 2 and len(files) >= 2
    assert all(path.read_bytes().startswith(b"GIF8") for path in files)


def test_evaluations_tell_their_numbers_curves_and_pictures(runs):
    root, found = runs
    knn, linear, inspected = (found[kind][2] for kind in ("knn", "linear", "inspect"))
    (record,) = records.find(root / "records", kind="knn")
    assert [row["k1"] for row in knn if "k1" in row] == [record.metrics["k1"]]
    assert len([row for row in linear if "test/top1" in row]) == 3, "one point an epoch"
    assert {"top1", "best/top1", "confusion"} <= keys(linear) and "confusion" in keys(knn)
    assert {"points", "effective_rank", "feature_spread"} <= keys(inspected)
    folder = found["knn"][4]
    assert any(path.read_bytes().startswith(b"\x89PNG") for path in folder.rglob("confusion*.png"))


def test_the_dashboards_show_what_is_logged(runs):
    _, found = runs
    logged: set[str] = set().union(*(keys(history) for _, _, history, _, _ in found.values()))
    (skeleton,) = [one for one in SHIPPED if one.family == "skeleton"]
    named = {name for s in skeleton.sections for names in (s.lines, s.bars, s.media) for name in names}
    assert named <= logged
    (sweeps,) = [one for one in SHIPPED if one.family == "sweeps"]
    (parallel,) = [section.parallel for section in sweeps.sections if section.parallel]
    assert all(set(parallel["parameters"]) <= set(config) for _, config, *_ in found.values())
    begun = [start for section in skeleton.sections for start in section.terms]
    assert all(any(name.startswith(start) for name in logged) for start in begun)


def test_the_report_is_none_the_worse_for_it(runs):
    root, _ = runs
    assert report.main.run(config("report", root, "name=ntu60"))["records"] == 4


@pytest.mark.slow
def test_a_job_that_fails_in_a_sweep_closes_its_run_as_failed_and_no_other(prepared, tmp_path):
    """Three jobs in one process, the second fails with its run open: three runs of one group, each with its end."""
    root, raw, _ = prepared
    line = [sys.executable, "train.py", "-m", *[override.removeprefix("+") for override in SMALL], *OFFLINE]
    line += [f"raw={raw}", f"paths.root={root}", *[f"paths.{kind}={tmp_path}/{kind}" for kind in ("runs", "records")]]
    line += ["trainer.precision=32-true,none-such,64-true", f"hydra.sweep.dir={tmp_path}/multirun"]
    sweep = subprocess.run(
        line, cwd=Path(__file__).parents[1], env=os.environ, capture_output=True, text=True, timeout=300
    )
    assert sweep.returncode == 2
    assert sweep.stderr.splitlines()[-1].startswith("error: 1 of 3 jobs failed"), sweep.stderr
    assert "(trainer.precision=none-such)" in sweep.stderr.splitlines()[-1]
    found = [contents(path.parents[2]) for path in tmp_path.rglob("*.wandb")]
    assert {logged["trainer.precision"]: exits for _, logged, _, exits in found} == {
        "32-true": [0],
        "none-such": [1],
        "64-true": [0],
    }
    assert len({run.run_id for run, *_ in found}) == 3 and {run.run_group for run, *_ in found} == {"ntu60/sds_cl"}
    trained = {record.key[:16] for record in records.find(tmp_path / "records", kind="train")}
    assert trained == {run.run_id for run, _, _, exits in found if exits == [0]}
    for _, _, history, exits in found:
        assert any("train/loss" in row for row in history) == (exits == [0]), "what one logs goes to its own run"
