"""Client partitions: equal to the released generator's, complete, and refused where they cannot hold."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest

from datamodules.errors import InputError
from datamodules.partition import IID, ByAttribute, Dirichlet, Pooled, manifest

GOLDEN = json.loads((Path(__file__).parent / "golden" / "heterogeneity.json").read_text())
HATEFUL_MEMES_SIZES = [523, 1433, 173, 30, 1014, 3, 4285, 123, 507, 409]


def sizes(pieces):
    return [len(piece) for piece in pieces]


def test_dirichlet_equals_the_released_partition():
    rows = GOLDEN["manifest"]
    pieces = Dirichlet(alpha=0.5, clients=10).split({"labels": [row["label"] for row in rows]})
    found = {str(client): [rows[row]["id"] for row in piece] for client, piece in enumerate(pieces)}
    assert found == GOLDEN["partition"]["ids"]


def test_hateful_memes_sizes_follow_from_the_label_counts():
    assert sizes(Dirichlet(0.5, 10).split({"labels": [0] * 5481 + [1] * 3019})) == HATEFUL_MEMES_SIZES


@pytest.mark.skipif("SKELFED_REALDATA" not in os.environ, reason="real data not given")
def test_real_hateful_memes_manifest():
    lines = (Path(os.environ["SKELFED_REALDATA"]) / "hateful-memes" / "train.jsonl").read_text().splitlines()
    pieces = Dirichlet(0.5, 10).split({"labels": [json.loads(line)["label"] for line in lines]})
    assert sizes(pieces) == HATEFUL_MEMES_SIZES


def test_global_generators_are_left_alone():
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002 - the global state is what is tested
    Dirichlet(0.5, 10).split({"labels": [0] * 5481 + [1] * 3019})
    IID(3).split({"labels": list(range(9))})
    drawn = random.random(), np.random.rand()  # noqa: NPY002
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    assert drawn == (random.random(), np.random.rand())  # noqa: NPY002


@pytest.mark.parametrize(
    "partition",
    [Dirichlet(0.5, 4), Dirichlet(5, 4, at_least_one="first", shuffle=False), IID(4), Pooled(), ByAttribute("camera")],
)
def test_every_sample_has_one_client(partition):
    rng = np.random.default_rng(0)
    columns = {"labels": rng.integers(0, 3, 400), "camera": rng.integers(1, 4, 400)}
    rows = np.concatenate(partition.split(columns))
    assert sorted(rows.tolist()) == list(range(400))


def test_first_label_alone_can_be_guaranteed():
    labels = ["a"] * 60 + ["b"] * 2
    with pytest.raises(InputError, match="label 'b' for each of 5 clients"):
        Dirichlet(0.5, 5).split({"labels": labels})
    pieces = Dirichlet(0.5, 5, at_least_one="first").split({"labels": labels})
    assert min(np.sum(piece < 60) for piece in pieces) >= 1


def test_shuffle_changes_order_only():
    columns = {"labels": [0] * 60 + [1] * 40}
    ordered, shuffled = (Dirichlet(1.0, 3, shuffle=shuffle).split(columns) for shuffle in (False, True))
    for left, right in zip(ordered, shuffled, strict=True):
        assert np.array_equal(left, np.sort(left)) and not np.array_equal(left, right)
        assert np.array_equal(left, np.sort(right))


def test_iid_rounding_is_shared():
    assert sizes(IID(4).split({"labels": [0] * 11})) == [3, 3, 3, 2]


def test_iid_within_a_column_shares_out_each_value_by_itself():
    pictured = [True, False, False] * 12
    pieces = IID(4, within="pictured").split({"pictured": pictured})
    assert [sum(pictured[row] for row in piece) for piece in pieces] == [3] * 4 and sizes(pieces) == [9] * 4
    assert sorted(np.concatenate(pieces).tolist()) == list(range(36))
    with pytest.raises(InputError, match="expected 1 to 12 clients"):
        IID(13, within="pictured").split({"pictured": pictured})


def test_by_attribute_keeps_values_apart():
    cameras = np.array([3, 1, 3, 2, 1])
    assert [piece.tolist() for piece in ByAttribute("cameras").split({"cameras": cameras})] == [[1, 4], [3], [0, 2]]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Dirichlet(0, 4), "alpha above 0"),
        (lambda: Dirichlet(1, 4, at_least_one="none"), "'every' or 'first'"),
        (lambda: IID(4).split({"labels": [0]}), "expected 1 to 1 clients"),
        (lambda: ByAttribute("camera").split({"labels": [0]}), "column 'camera', found \\['labels'\\]"),
    ],
)
def test_mistakes_are_told(make, told):
    with pytest.raises(InputError, match=told):
        make()


def test_manifest_tells_skew_and_order():
    labels = [0, 0, 1, 1]
    alone, mixed = ByAttribute("labels").split({"labels": labels}), [np.array([0, 2]), np.array([1, 3])]
    told = manifest(ByAttribute("labels"), alone, labels)
    assert told["skew"] == 0.5 and told["label_counts"] == [[2, 0], [0, 2]] and told["sizes"] == [2, 2]
    assert manifest(Pooled(), mixed, labels)["skew"] == 0
    assert told["digest"] != manifest(Pooled(), [alone[0][::-1], alone[1]], labels)["digest"]
    json.dumps(told)
