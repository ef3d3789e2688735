"""A training set shared out among clients."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from datamodules.errors import InputError


class ClientData(Protocol):
    """What a client trains on."""

    def num_samples(self, client: int) -> int:
        """Samples that a client holds."""

    def train_dataloader(self, client: int, seed: int) -> DataLoader:
        """Batches of one client; their order is a function of the seed."""


@dataclass(frozen=True)
class OwnRows(Sampler):
    """One process's rows of every batch of `batches`, in the order of the ranks.

    Raises InputError for a batch that does not divide: processes would weigh its samples differently.
    """

    batches: Iterable[list[int]]
    rank: int
    world: int

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            share, rest = divmod(len(batch), self.world)
            if rest:
                found = f"found one of {len(batch)} for {self.world} processes"
                raise InputError(f"federation: expected batches that divide, {found}: set federated.drop_last=true")
            yield batch[self.rank * share : (self.rank + 1) * share]

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    @property
    def sampler(self) -> Any:
        """What gives the rows: Lightning tells it the epoch."""
        return getattr(self.batches, "sampler", None)


def own_share(loader: DataLoader, rank: int, world: int) -> DataLoader:
    """The loader of one of several processes that train on the batches of `loader` together."""
    return DataLoader(
        loader.dataset,
        batch_sampler=OwnRows(loader.batch_sampler, rank, world),  # type: ignore[arg-type]
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
        generator=loader.generator,  # from which the loader, too, draws before the sampler does
    )


class PartitionedData:
    """A map-style data set and the rows of each client (`datamodules.partition`).

    batch_size: samples a step; drop_last: leave out a last smaller batch. Raises InputError for an empty client.
    """

    def __init__(
        self,
        dataset: Dataset,
        pieces: Sequence[np.ndarray],
        batch_size: int,
        collate: Callable | None = None,
        drop_last: bool = False,
        num_workers: int = 0,
    ):
        for client, piece in enumerate(pieces):
            if len(piece) == 0:
                raise InputError(f"federation: expected samples for client {client}, found none; change the partition")
        self._dataset, self._pieces = dataset, pieces
        self._options: dict[str, Any] = {
            "batch_size": batch_size,
            "collate_fn": collate,
            "drop_last": drop_last,
            "num_workers": num_workers,
        }

    def num_samples(self, client: int) -> int:
        return len(self._pieces[client])

    def train_dataloader(self, client: int, seed: int) -> DataLoader:
        rows = Subset(self._dataset, self._pieces[client].tolist())
        return DataLoader(rows, shuffle=True, generator=torch.Generator().manual_seed(seed), **self._options)
