"""The DataModule: order as a function of the seed, shares of ranks, labels, fingerprints."""

import numpy as np
import pytest
import torch
from toys import toy_data, write_toy_stores

from datamodules.batch import collate
from datamodules.errors import InputError
from datamodules.skeleton import EpochSampler, Labelled, SkeletonDataModule
from datamodules.store import store_folder


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return write_toy_stores(tmp_path_factory.mktemp("stores"))


def test_collate_is_the_one_transpose():
    rng = np.random.default_rng(0)
    clips = [rng.normal(size=(5, 1, 25, 3)).astype(np.float32), rng.normal(size=(3, 3, 25, 3)).astype(np.float32)]
    batch = collate(clips, np.array([4, 2]), np.array([7, 9]), max_bodies=2)
    assert batch.joints.shape == (2, 3, 5, 25, 2)
    assert batch.num_frames.tolist() == [5, 3] and batch.labels.tolist() == [4, 2] and batch.ids.tolist() == [7, 9]
    assert batch.joints[1, 2, 1, 13, 1].item() == clips[1][1, 1, 13, 2]
    assert not batch.joints[0, ..., 1].any() and not batch.joints[1, :, 3:].any()


def test_an_epoch_is_a_permutation_of_seed_and_epoch():
    sampler = EpochSampler(n=10, batch_size=4, seed=1, drop_last=False)
    first = list(sampler)
    assert sorted(first) == list(range(10)) and list(sampler) == first
    sampler.set_epoch(1)
    assert sorted(sampler) == list(range(10)) and list(sampler) != first
    assert list(EpochSampler(n=10, batch_size=4, seed=2, drop_last=False)) != first


def test_dropped_last_batch_and_fixed_number_of_steps():
    assert len(list(EpochSampler(n=10, batch_size=4, seed=1))) == len(EpochSampler(n=10, batch_size=4, seed=1)) == 8
    drawn = list(EpochSampler(n=10, batch_size=4, seed=1, steps=6))
    assert (
        len(drawn) == 24
        and sorted(drawn[:10]) == sorted(drawn[10:20]) == list(range(10))
        and drawn[:10] != drawn[10:20]
    )


@pytest.mark.parametrize("n", [16, 11])
def test_ranks_share_each_global_batch(n):
    whole = EpochSampler(n=n, batch_size=4, seed=1)
    ranks = [list(EpochSampler(n=n, batch_size=4, seed=1, rank=rank, world=2)) for rank in range(2)]
    batches = np.array(list(whole)).reshape(-1, 4)
    shares = np.stack([np.array(rank).reshape(-1, 2) for rank in ranks], axis=1).reshape(-1, 4)
    assert (batches == shares).all()


def test_workers_change_nothing(stores):
    def epoch(workers):
        return list(toy_data(stores, num_workers=workers).train_dataloader())

    for alone, helped in zip(epoch(0), epoch(2), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))


def test_ordered_sides_are_apart_and_complete(stores):
    data = toy_data(stores, eval_batch_size=5)
    sides = {side: torch.cat([batch.ids for batch in data.ordered(side)]).tolist() for side in ("train", "test")}
    assert sides["train"] == data.rows["train"].tolist() and sides["test"] == data.rows["test"].tolist()
    assert not set(sides["train"]) & set(sides["test"]) and sum(map(len, sides.values())) == 48
    assert data.counts == {"train": 33, "test": 15} and data.miniature


def test_labelled_and_unlabelled_go_together(stores):
    data = toy_data(stores, labelled=Labelled(fraction=0.2, batch_size=3, steps=5))
    batches = [batch for batch, _, _ in data.train_dataloader()]
    assert len(batches) == 5
    known = set(data.label_rows(0.2).tolist())
    for batch in batches:
        assert set(batch["labelled"].ids.tolist()) <= known and (batch["labelled"].labels >= 0).all()
        assert (batch["unlabelled"].labels == -1).all() and len(batch["unlabelled"].labels) == 8


def test_fractions_are_balanced_and_depend_on_the_seed(stores):
    data = toy_data(stores)
    rows = data.label_rows(0.2)
    assert np.bincount(data.store.index.labels[rows]).tolist() == [2, 2, 2] and set(rows) <= set(data.rows["train"])
    assert not np.array_equal(rows, toy_data(stores, seed=4).label_rows(0.2))


def test_fingerprint_follows_content_and_split(stores, tmp_path):
    data = toy_data(stores)
    assert data.fingerprint == toy_data(stores, seed=9, batch_size=4).fingerprint
    other = write_toy_stores(tmp_path / "other", seed=1)
    assert data.fingerprint != toy_data(other).fingerprint
    assert data.fingerprint != SkeletonDataModule(stores, "dsta", "ntu60_xview", batch_size=8, seed=3).fingerprint


def test_every_raw_folder_has_its_own_stores(tmp_path):
    places = {store_folder("s", "ntu60", raw) for raw in ("miniature", tmp_path / "a", tmp_path / "b")}
    assert len(places) == 3
    assert store_folder("s", "ntu60", tmp_path / "a" / ".." / "a") == store_folder("s", "ntu60", tmp_path / "a")


def test_too_few_clips_for_a_batch_is_said(stores):
    with pytest.raises(InputError, match="fewer than one batch of 64"):
        toy_data(stores, batch_size=64).train_dataloader()
