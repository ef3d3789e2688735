"""Splits and label lists: official counts, and draws that do not depend on the store."""

import os
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from datamodules import protocols
from datamodules.errors import InputError

# Who performed in which setup of NTU-60; each took part twice, before three cameras, in all sixty actions.
PERFORMERS_OF_SETUP = {
    1: (1, 2, 3, 4, 5, 6, 7, 8), 2: (3, 7, 8, 9, 10, 11, 12, 13, 14), 3: (1, 2, 7, 8, 15, 16, 17, 18, 19),
    4: (3, 7, 8, 20), 5: (4, 10, 13, 15, 16, 17, 18, 21), 6: (1, 7, 8, 15, 16, 17, 19, 22, 23, 24),
    7: (1, 7, 8, 15, 16, 17, 18, 19, 25, 26, 27, 28), 8: (1, 7, 8, 15, 19, 25, 29, 30, 31, 32, 33, 34, 35, 36),
    9: (7, 8, 15, 16, 17, 19, 25), 10: (7, 8, 13, 15, 16, 17, 18, 19, 21, 25),
    11: (1, 2, 7, 8, 15, 16, 17, 18, 19, 25, 27, 28, 38), 12: (7, 8, 15, 16, 17, 18, 19, 25, 27, 28, 37),
    13: (7, 8, 15, 16, 17, 18, 19, 25, 27, 28, 37), 14: (7, 8, 15, 17, 19, 25, 27, 37, 39),
    15: (7, 8, 15, 16, 17, 19, 25, 37), 16: (7, 8, 19, 21, 25, 39, 40), 17: (3, 7, 8, 9, 15, 16, 17, 20),
}  # fmt: skip


def ntu60_names() -> list[str]:
    """All 56,880 samples, sorted."""
    return sorted(
        f"S{setup:03}C{camera:03}P{performer:03}R{replication:03}A{action:03}"
        for setup, performers in PERFORMERS_OF_SETUP.items()
        for performer, camera, replication, action in product(performers, (1, 2, 3), (1, 2), range(1, 61))
    )


def index_of(names: list[str]) -> SimpleNamespace:
    numbers = np.array([[int(name[at : at + 3]) for at in range(1, 20, 4)] for name in names])
    setups, cameras, performers, _, actions = numbers.T
    columns = {"setups": setups, "cameras": cameras, "performers": performers, "labels": actions - 1}
    return SimpleNamespace(names=np.array(names), **columns)


@pytest.fixture(scope="module")
def ntu60() -> SimpleNamespace:
    return index_of([name for name in ntu60_names() if name not in protocols.missing("ntu60")])


def test_missing_lists_have_the_official_lengths():
    assert len(protocols.missing("ntu60")) == 302
    assert len(protocols.missing("ntu120")) == 535
    assert protocols.missing("ntu60") < protocols.missing("ntu120")
    for name in ("ntu60", "ntu120"):
        lines = (Path(protocols.__file__).parent / "missing" / f"{name}.txt").read_text().split("\n")
        assert lines[-1] == "" and lines[:-1] == sorted(set(lines[:-1]))
    with pytest.raises(InputError, match="ntu120, ntu60, found 'ntu61'"):
        protocols.missing("ntu61")


@pytest.mark.parametrize(("name", "train", "test"), [("ntu60_xsub", 40_091, 16_487), ("ntu60_xview", 37_646, 18_932)])
def test_ntu60_splits_have_the_official_counts(ntu60, name, train, test):
    assert len(ntu60_names()) == 56_880
    assert len(ntu60.names) == 56_578
    sides = protocols.split(ntu60, name)
    assert (len(sides["train"]), len(sides["test"])) == (train, test)
    assert protocols.PROTOCOLS[name].clips == (train, test)
    both = np.concatenate((sides["train"], sides["test"]))
    assert both.dtype == np.int64 and np.array_equal(np.sort(both), np.arange(56_578))
    assert all((np.diff(rows) > 0).all() for rows in sides.values())


def test_generated_names_are_the_real_ones(ntu60):
    if "SKELFED_REALDATA" not in os.environ:
        pytest.skip("SKELFED_REALDATA is not set")
    real = Path(os.environ["SKELFED_REALDATA"], "ntu-rgbd", "ntu60_available_names.txt").read_text().split()
    assert ntu60.names.tolist() == sorted(real)


def test_ntu120_rules():
    performers = SimpleNamespace(performers=np.arange(1, 107), names=np.arange(1, 107).astype(str))
    sides = protocols.split(performers, "ntu120_xsub")
    assert len(sides["train"]) == len(sides["test"]) == 53
    # Performers of NTU-60 stay where they were.
    assert {row + 1 for row in sides["train"] if row < 40} == protocols.NTU60_PERFORMERS
    setups = SimpleNamespace(setups=np.arange(1, 33), names=np.arange(1, 33).astype(str))
    sides = protocols.split(setups, "ntu120_xset")
    assert (setups.setups[sides["train"]] % 2 == 0).all() and len(sides["train"]) == 16
    assert (setups.setups[sides["test"]] % 2 == 1).all() and len(sides["test"]) == 16


@pytest.mark.parametrize("name", ["ntu120_xsub", "ntu120_xset"])
def test_official_counts_of_ntu120_agree_with_the_missing_list(name):
    """Every performer of a setup gave 60 actions x 3 cameras x 2 takes: with the names on the list, sides are whole."""
    missing = index_of(sorted(protocols.missing("ntu120")))
    lost = protocols.split(missing, name)
    official = protocols.PROTOCOLS[name].clips
    whole = [count + len(rows) for count, rows in zip(official, lost.values(), strict=True)]
    assert sum(whole) == 114_480 and all(count % 360 == 0 for count in whole)


def test_ntu120_splits_part_old_and_new_clips():
    """The half that is NTU-60, and of the newer half names as they would be: no list of them all is at hand."""
    newer = {18: (8, 41, 42, 43, 44, 45), 19: (8, 41, 42, 46, 47, 48, 49, 50, 51), 20: (8, 41, 43, 44, 52, 53, 54)}
    names = ntu60_names() + [
        f"S{setup:03}C{camera:03}P{performer:03}R{replication:03}A{action:03}"
        for setup, performers in newer.items()
        for performer, camera, replication, action in product(performers, (1, 2, 3), (1, 2), range(61, 121))
    ]
    index = index_of(sorted(set(names) - protocols.missing("ntu120")))
    for split, column in (("ntu120_xsub", index.performers), ("ntu120_xset", index.setups)):
        sides = protocols.split(index, split)
        assert np.array_equal(np.sort(np.concatenate(list(sides.values()))), np.arange(len(index.names)))
        assert not set(column[sides["train"]]) & set(column[sides["test"]])
    of_ntu60 = SimpleNamespace(**{key: values[index.labels < 60] for key, values in vars(index).items()})
    assert protocols.verdict(of_ntu60, "ntu120_xsub").startswith("ntu120_xsub: 40091 training and 16487 test clips")


def test_missing_lists_are_the_official_files():
    if "SKELFED_REALDATA" not in os.environ:
        pytest.skip("SKELFED_REALDATA is not set")
    for name, file in (("ntu60", "NTU_RGBD"), ("ntu120", "NTU_RGBD120")):
        lines = Path(os.environ["SKELFED_REALDATA"], "ntu-rgbd", f"{file}_samples_with_missing_skeletons.txt")
        assert set(lines.read_text().split("\n")[3:]) - {""} == protocols.missing(name)


def test_verdict_knows_the_whole_set_and_what_nobody_counted(ntu60, monkeypatch):
    whole = protocols.verdict(ntu60, "ntu60_xview")
    assert whole == "ntu60_xview: 37646 training and 18932 test clips, the official numbers"
    part = SimpleNamespace(**{key: values[:-1] for key, values in vars(ntu60).items()})
    assert protocols.verdict(part, "ntu60_xview").endswith("not the whole set, which has 37646 and 18932")
    nobody = protocols.Protocol("cameras", frozenset((1, 2)), frozenset((3,)))
    monkeypatch.setitem(protocols.PROTOCOLS, "ntu60_mine", nobody)
    assert protocols.names_of("ntu60") == ["ntu60_xsub", "ntu60_xview", "ntu60_mine"]
    assert "unverified" in protocols.verdict(ntu60, "ntu60_mine")


def test_views_of_ucla():
    sides = protocols.split(SimpleNamespace(cameras=np.array([3, 1, 2, 3]), names=np.array(list("abcd"))), "ucla_views")
    assert sides["train"].tolist() == [1, 2] and sides["test"].tolist() == [0, 3]


def test_a_clip_on_neither_side_is_refused(ntu60):
    foreign = SimpleNamespace(performers=np.array([1, 57]), names=np.array(["one", "other"]))
    with pytest.raises(InputError, match="performers 1 to 40, found 1 clips of others, first other of 57"):
        protocols.split(foreign, "ntu60_xsub")
    with pytest.raises(InputError, match="found 'xsub'"):
        protocols.split(ntu60, "xsub")


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("ntu60_xsub", {0.01: 7, 0.05: 33, 0.1: 66, 0.2: 132, 0.4: 264}),
        ("ntu60_xview", {0.01: 7, 0.05: 31, 0.1: 62, 0.2: 124, 0.4: 248}),
    ],
)
def test_published_label_counts_and_lists_of_ntu60(ntu60, name, counts):
    rows = protocols.split(ntu60, name)["train"]
    labels = ntu60.labels[rows]
    for fraction, expected in counts.items():
        per_class = protocols.per_class_count(name, fraction, labels)
        assert per_class == expected
        chosen = labels[protocols.label_list(ntu60.names[rows], labels, per_class, seed=1)]
        assert (np.bincount(chosen, minlength=60) == expected).all()


def test_label_count_of_other_sets_is_proportional():
    miniature = np.repeat(np.arange(10), 20)
    assert protocols.per_class_count("ntu60_xsub", 0.1, miniature) == 2
    assert protocols.per_class_count("ntu60_xsub", 0.01, miniature) == 1
    assert protocols.per_class_count("ntu120_xset", 0.05, np.repeat(np.arange(120), 450)) == 22
    uneven = np.repeat((0, 1), (30, 10))
    assert protocols.per_class_count("ucla_views", 0.5, uneven) == 5
    ucla = np.repeat(np.arange(10), 102)
    assert [protocols.per_class_count("ucla_views", f, ucla) for f in (0.05, 0.15, 0.3, 0.4)] == [5, 15, 30, 40]
    assert protocols.per_class_count("ucla_views", 0.1, ucla) == 10
    for fraction, labels in ((0.0, ucla), (1.1, ucla), (0.1, ucla[:0])):
        with pytest.raises(InputError):
            protocols.per_class_count("ucla_views", fraction, labels)


def test_label_list_ignores_the_order_of_the_store():
    rng = np.random.default_rng(0)
    names = np.array([f"clip{number:03}" for number in range(200)])
    labels = rng.integers(0, 4, 200)
    drawn = protocols.label_list(names, labels, 5, seed=7)
    order = rng.permutation(200)
    again = protocols.label_list(names[order], labels[order], 5, seed=7)
    assert set(names[drawn]) == set(names[order][again])
    assert drawn.dtype == np.int64 and (np.diff(drawn) > 0).all() and (np.diff(again) > 0).all()
    assert (np.bincount(labels[drawn]) == 5).all()
    assert set(drawn) < set(protocols.label_list(names, labels, 10, seed=7)), "more labels keep the fewer"
    assert set(drawn) != set(protocols.label_list(names, labels, 5, seed=8))


def test_label_list_reaches_every_clip():
    labels = np.repeat((0, 1), 10)
    names = np.array([f"clip{number:03}" for number in range(20)])
    hits = sum(np.isin(np.arange(20), protocols.label_list(names, labels, 3, seed)) for seed in range(200))
    assert hits.sum() == 200 * 6
    assert hits.min() > 30 and hits.max() < 95  # 60 expected, standard deviation 6.5


def test_label_list_wants_enough_clips():
    labels = np.repeat((0, 3), (4, 2))
    names = np.array(list("abcdef"))
    with pytest.raises(InputError, match="the smallest class, 3, has 2"):
        protocols.label_list(names, labels, 3, seed=0)
    with pytest.raises(InputError):
        protocols.label_list(names, labels, 0, seed=0)
