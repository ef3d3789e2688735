"""A record comes back as it was written, or its file is named."""

import json
import os
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from tracking import records
from tracking.errors import UsageError
from tracking.records import Record


def record(**changes) -> Record:
    values = {
        "kind": "linear",
        "key": "a" * 64,
        "experiment": "ntu60/sds_cl_xsub",
        "method": "sds_cl",
        "metrics": {"top1": 71.25},
        "config": {"trainer": {"max_epochs": 3}, "list": [1, None, "é"]},
        "data": {
            "name": "NTU RGB+D",
            "fingerprint": "f" * 64,
            "miniature": False,
            "split": "xsub",
            "counts": {"train": 40091, "test": 16487},
        },
        "seeds": {"train": 0},
        "seconds": 12.5,
    }
    return Record(**(values | changes))


def test_round_trip_keeps_every_field(tmp_path):
    full = record(best={"top1": 72.0}, variant="random initialisation", setting="10 %", parents=["b" * 64], commit=None)
    full = replace(full, curves={"train/loss": [[1, 2.5], [2, 1.5]]}, cost={"peak_memory": 1e9})
    path = records.write(full, tmp_path / "deep" / "records")
    assert records.read(path) == full
    assert records.find(path.parent) == [full]
    assert [p.name for p in path.parent.iterdir()] == [path.name], "no temporary file may stay behind"


def test_what_repeats_a_result_is_filled_in(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["/somewhere/bin/python", "train.py", "seed=2"])
    made = record()
    assert made.versions["torch"].startswith(torch.__version__.split("+")[0])
    assert made.command == "python train.py seed=2"
    assert made.created.endswith("+00:00") and made.schema == records.SCHEMA


def test_numbers_of_libraries_become_plain_floats(tmp_path):
    made = record(metrics={"a": np.float32(0.5), "b": torch.tensor(2.0), "c": 3}, seconds=np.float64(1))
    assert made.metrics == {"a": 0.5, "b": 2.0, "c": 3.0}
    assert {type(v) for v in [*made.metrics.values(), made.seconds]} == {float}
    records.write(made, tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["metrics", "best"])
def test_a_number_that_is_not_finite_is_refused(where, bad):
    with pytest.raises(ValueError, match="top1"):
        record(**{where: {"top1": bad}})
    with pytest.raises(ValueError, match="seconds"):
        record(seconds=bad)


def test_curves_hold_finite_points():
    with pytest.raises(ValueError, match="train/loss"):
        record(curves={"train/loss": [[1, float("nan")]]})
    with pytest.raises(ValueError):
        record(curves={"train/loss": [[1, 2, 3]]})


def test_a_record_from_before_there_were_curves_is_read(tmp_path):
    content = asdict(record())
    del content["curves"], content["cost"]
    (tmp_path / "linear-old.json").write_text(json.dumps(content))
    (found,) = records.find(tmp_path)
    assert found.curves == {} and found.cost == {} and found.metrics == record().metrics


def test_not_a_number_inside_the_config_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError):
        records.write(record(config={"lr": float("nan")}), tmp_path / "records")
    assert not (tmp_path / "records").exists()


@pytest.mark.parametrize("kind", ["", "../up", "a b", "Linear"])
def test_a_kind_is_a_plain_word(kind):
    with pytest.raises(ValueError, match="kind"):
        record(kind=kind)


def test_data_must_say_whether_it_is_a_miniature():
    data = record().data
    del data["miniature"]
    with pytest.raises(ValueError, match="miniature"):
        record(data=data)


def test_every_result_of_one_job_has_its_own_file_and_a_repetition_takes_its_place(tmp_path):
    first = record()
    other_split = first.data | {"split": "xview"}
    for changes in (
        {"variant": "random initialisation"},
        {"setting": "10 %"},
        {"method": "coordinates"},
        {"data": other_split},
    ):
        records.write(record(**changes), tmp_path)
    records.write(first, tmp_path)
    records.write(replace(first, metrics={"top1": 50.0}, seconds=1), tmp_path)
    found = records.find(tmp_path)
    assert len(found) == 5
    same = records.find(tmp_path, variant="", setting="", method="sds_cl", data=first.data)
    assert [r.metrics["top1"] for r in same] == [50.0]


def test_find_matches_all_that_is_wanted(tmp_path):
    for kind, key in (("knn", "a"), ("knn", "b"), ("linear", "a")):
        records.write(record(kind=kind, key=key), tmp_path)
    assert [(r.kind, r.key) for r in records.find(tmp_path, kind="knn", key="b")] == [("knn", "b")]
    assert records.find(tmp_path, key="c") == []
    assert records.find(tmp_path / "absent") == []


def test_a_write_that_dies_leaves_the_old_record_and_nothing_else(tmp_path, monkeypatch):
    path = records.write(record(), tmp_path)
    before = path.read_bytes()

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        records.write(record(metrics={"top1": 1}), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_bytes() == before


def damaged(change) -> str:
    content = asdict(record())
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (damaged(lambda c: None)[:-20], "no readable record"),
        ("", "no readable record"),
        ("[]", "no record"),
        ("{}", "no record"),
        (damaged(lambda c: c.update(schema=records.SCHEMA + 1)), "update this checkout"),
        (damaged(lambda c: c.update(schema=records.SCHEMA - 1)), "run its command again"),
        (damaged(lambda c: c.pop("seeds")), "seeds"),
        (damaged(lambda c: c.update(surplus=1)), "surplus"),
        (damaged(lambda c: c["metrics"].update(top1=float("nan"))), "NaN"),
        (damaged(lambda c: c.update(metrics=[1])), "no valid record"),
        (damaged(lambda c: c["metrics"].update(top1=None)), "no valid record"),
    ],
)
def test_a_file_that_is_no_record_is_named_not_skipped(tmp_path, text, says):
    records.write(record(), tmp_path)
    (tmp_path / "linear-damaged.json").write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        records.find(tmp_path)
    assert "linear-damaged.json" in str(caught.value) and "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_named_too(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"x\.json"):
        records.find(tmp_path)
