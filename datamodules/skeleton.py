"""One DataModule for every skeleton set: a derived store, a protocol, and batches in an order set by the seed."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.utilities import CombinedLoader
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules import protocols
from datamodules.batch import SkeletonBatch, collate
from datamodules.errors import InputError
from datamodules.store import SkeletonStore, open_derived


class Clips(Dataset):
    """Rows of a store, fetched a whole batch at a time."""

    def __init__(self, store: SkeletonStore, rows: np.ndarray, labels: np.ndarray, max_bodies: int):
        self.store, self.rows, self.labels, self.max_bodies = store, rows, labels, max_bodies

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, positions: list[int]) -> SkeletonBatch:
        rows = self.rows[positions]
        return collate([self.store.clip(row) for row in rows], self.labels[rows], rows, self.max_bodies)


@dataclass
class EpochSampler(Sampler):
    """Positions 0..n-1 in an order that is a function of (seed, stream, epoch), a rank's share of each global batch.

    steps: number of global batches an epoch; without it one pass over the n positions, the last, partial batch left
    out if `drop_last`. With more steps than a pass holds, further permutations follow.
    """

    n: int
    batch_size: int
    seed: int
    stream: int = 0
    steps: int | None = None
    drop_last: bool = True
    rank: int = 0
    world: int = 1
    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before every epoch."""
        self.epoch = epoch

    def _length(self) -> int:
        if self.steps is not None:
            return self.steps * self.batch_size
        return self.n // self.batch_size * self.batch_size if self.drop_last else self.n

    def __len__(self) -> int:
        return self._length() // self.world

    def __iter__(self) -> Iterator[int]:
        length = self._length()
        passes = -(-length // self.n)
        order = np.concatenate(
            [
                np.random.default_rng((self.seed, self.stream, self.epoch, turn)).permutation(self.n)
                for turn in range(passes)
            ]
        )[:length]
        share = self.batch_size // self.world
        for start in range(0, length, self.batch_size):
            own = start + self.rank * share
            yield from order[own : min(own + share, length)].tolist()


@dataclass(frozen=True)
class Labelled:
    """The labelled side of a one-stage semi-supervised method: clips a class, global batch, steps of an epoch."""

    fraction: float
    batch_size: int
    steps: int


class SkeletonDataModule(pl.LightningDataModule):
    """Batches of one skeleton set, prepared by `prepare.py`.

    folder: prepared data of one raw folder, holding a store a recipe.
    recipe, split: which derived store, and which protocol of `datamodules.protocols`.
    batch_size: global; it must divide by the world size. eval_batch_size: a device's, it changes no result.
    fraction: share of the training labels (1 = all): `train_dataloader` then yields only labelled clips.
    labelled: for methods that train on labelled and unlabelled clips together; batches are then dicts
    {"labelled", "unlabelled"}, labels of the unlabelled are -1.
    tested: whether training looks at the test side (`val_dataloader`), for the accuracy of each epoch.
    partial: whether the set may lack a side, as at a site of a federation, which holds no test clips.
    """

    def __init__(
        self,
        folder: str | Path,
        recipe: str,
        split: str,
        batch_size: int,
        seed: int,
        eval_batch_size: int = 64,
        num_workers: int = 0,
        max_bodies: int = 2,
        fraction: float = 1.0,
        drop_last: bool = True,
        labelled: Labelled | None = None,
        tested: bool = False,
        partial: bool = False,
    ):
        super().__init__()
        self.store = open_derived(folder, recipe)
        self.split, self.seed, self.max_bodies = split, seed, max_bodies
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.fraction, self.drop_last, self.labelled, self.tested = fraction, drop_last, labelled, tested
        self.rows = protocols.split(self.store.index, split)
        for side, rows in self.rows.items():
            if len(rows) == 0 and not partial:
                raise InputError(
                    f"split {split} leaves no {side} clip of {folder}: choose a split made for this data set"
                )

    @property
    def miniature(self) -> bool:
        return bool(self.store.manifest["miniature"])

    @property
    def counts(self) -> dict[str, int]:
        return {side: len(rows) for side, rows in self.rows.items()}

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the store's content, the clips of each side of the split and, for one stage, the label list."""
        digest = hashlib.sha256(self.store.digest.encode())
        for side in sorted(self.rows):
            digest.update(side.encode() + np.ascontiguousarray(self.rows[side]).tobytes())
        if self.labelled is not None:
            digest.update("\n".join(self.label_names(self.labelled.fraction)).encode())
        return digest.hexdigest()

    def label_names(self, fraction: float) -> list[str]:
        """Names of the training clips whose label may be used: the list that is stored beside a result."""
        return self.store.index.names[self.label_rows(fraction)].tolist()

    def label_rows(self, fraction: float) -> np.ndarray:
        """Training rows whose label may be used: all of them, or a balanced draw by seed."""
        rows = self.rows["train"]
        if fraction >= 1:
            return rows
        labels = self.store.index.labels[rows]
        names = self.store.index.names[rows]
        per_class = protocols.per_class_count(self.split, fraction, labels)
        return rows[protocols.label_list(names, labels, per_class, self.seed)]

    def clips(self, rows: np.ndarray, hidden: bool = False) -> Clips:
        """A data set over store rows; `hidden` replaces every label by -1."""
        labels = self.store.index.labels
        return Clips(self.store, rows, np.full_like(labels, -1) if hidden else labels, self.max_bodies)

    def train_dataloader(self):
        """Shuffled batches of the training side."""
        if self.labelled is None:
            return self._shuffled(self.clips(self.label_rows(self.fraction)), self.batch_size)
        known = self.clips(self.label_rows(self.labelled.fraction))
        everything = self.clips(self.rows["train"], hidden=True)
        steps = self.labelled.steps
        return CombinedLoader(
            {
                "labelled": self._shuffled(known, self.labelled.batch_size, stream=1, steps=steps),
                "unlabelled": self._shuffled(everything, self.batch_size, stream=2, steps=steps),
            },
            mode="min_size",
        )

    def val_dataloader(self):
        """The test side in order if `tested`, else nothing."""
        return self.ordered("test") if self.tested else []

    def ordered(self, side: str) -> DataLoader:
        """Every clip of "train" or "test" once, in store order, for embedding and scoring."""
        return self.in_order(self.rows[side])

    def in_order(self, rows: np.ndarray) -> DataLoader:
        """The given store rows once, in that order; of several processes that train, each takes every n-th.

        Raises InputError if one of them would go without.
        """
        rank, world = self._place()
        if len(rows) < world:
            raise InputError(f"{len(rows)} clips are fewer than {world} processes: lower trainer.devices")
        return DataLoader(
            self.clips(rows[rank::world]), self.eval_batch_size, num_workers=self.num_workers, collate_fn=_as_is
        )

    def _place(self) -> tuple[int, int]:
        """Rank and number of the processes that train together."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _shuffled(self, clips: Clips, batch_size: int, stream: int = 0, steps: int | None = None) -> DataLoader:
        rank, world = self._place()
        if batch_size % world:
            raise InputError(f"a global batch of {batch_size} does not divide by {world} processes: choose a multiple")
        if steps is None and self.drop_last and len(clips) < batch_size:
            raise InputError(f"{len(clips)} training clips are fewer than one batch of {batch_size}: lower batch_size")
        sampler = EpochSampler(len(clips), batch_size, self.seed, stream, steps, self.drop_last, rank, world)
        return DataLoader(
            clips,
            batch_size // world,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=_as_is,
            persistent_workers=self.num_workers > 0,
        )


def _as_is(batch: Any) -> Any:
    """`Clips` already answers with a batch."""
    return batch
