"""Records with every kind of figure, small enough to be read."""

import math

from tracking.records import Record

DATA = {
    "name": "miniature, not NTU RGB+D 60",
    "fingerprint": "e" * 64,
    "miniature": True,
    "split": "ntu60_xsub",
    "counts": {"train": 300, "test": 300},
}
BONES = [[0, 1], [2, 1], [3, 1]]


def record(kind: str = "train", seed: int = 1, **changes) -> Record:
    values = {
        "kind": kind,
        "key": f"{seed:064d}",
        "experiment": "ntu60/sds_cl",
        "method": "sds_cl",
        "metrics": {"top1": 50.0 + seed},
        "config": {"seed": seed, "data": {"name": "ntu60"}},
        "data": DATA,
        "seeds": {"seed": seed},
        "seconds": 10.0,
        "versions": {"python": "3.11"},
        "commit": "c" * 40,
        "command": "python train.py",
    }
    return Record(**(values | changes))


def train_record(seed: int = 1, **changes) -> Record:
    curves = {
        "train/loss": [[epoch, 3 / epoch + seed / 10] for epoch in range(1, 9)],
        "test/knn1": [[epoch, 30 + epoch * seed] for epoch in (2, 4, 6, 8)],
    }
    return record(seed=seed, **({"curves": curves, "cost": {"peak_memory": 1.5e9}} | changes))


def federated_record(clients: int = 3, **changes) -> Record:
    curves = {f"train/loss @ client {n}": [[r, n + 1 / r] for r in range(1, 5)] for n in range(clients)}
    metrics = {"test/knn1": 40.0, "bytes_up": 2e9, "bytes_down": 3e9}
    values = {
        "curves": curves | {"test/knn1": [[2, 30.0], [4, 40.0]]},
        "metrics": metrics,
        "cost": {"peak_memory": 1e9},
    }
    return record("federated", **(values | changes))


def confusion(classes: int = 3) -> dict:
    return {"matrix": [[10 if row == column else row for column in range(classes)] for row in range(classes)]}


def points(number: int = 40, name: str = "clip") -> dict:
    xy = [[math.cos(n), math.sin(n * 1.7)] for n in range(number)]
    names = [f"{name} {n}" for n in range(number)]
    return {"method": "t-SNE", "xy": xy, "labels": [n % 10 for n in range(number)], "names": names, "of": 300}


def clip(frames: int = 8, title: str = "clip one") -> dict:
    """Four joints, of which the last one waves."""
    joints = [[[[0, 0, 0], [0, 0, 500], [300, 0, 500], [300, 0, 500 + 60 * t]]] for t in range(frames)]
    return {"title": title, "joints": joints}


def samples(title: str = "clip one", note: str = "Label 3.") -> dict:
    maps = [
        {"name": "spatial, intra", "over": "joints", "values": [[[0.1, 0.2, 0.3, 0.9]] * 4]},
        {"name": "temporal, intra", "over": "frames", "values": [[[0.5, 0.1], [0.2, 0.7]]]},
    ]
    shift = [[[[1, 0, -1]] * 4]] * 8
    twins = [{"name": "weak", "unit": 0.1, "enlarge": 1000, "shift": shift}]
    one = clip(title=title) | {"note": note, "maps": maps, "twins": twins, "neighbours": [clip(5, "near, label 3")]}
    return {
        "bones": BONES,
        "joints": ["a", "b", "c", "d"],
        "up": 2,
        "upward": 1,
        "clips": [one, one | {"title": "two"}],
    }


def everything() -> tuple[list[Record], dict[str, dict]]:
    """Records, and parts by record id."""
    knn, inspected = record("knn", metrics={"k1": 40.0}), record("inspect", metrics={"effective_rank": 3.0})
    records = [train_record(1), train_record(2), federated_record(), knn, inspected]
    return records, {knn.id: {"confusion": confusion()}, inspected.id: {"points": points(), "samples": samples()}}
