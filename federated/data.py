"""A training set shared out among clients."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from datamodules.errors import InputError


class ClientData(Protocol):
    """What a client trains on."""

    def num_samples(self, client: int) -> int:
        """Samples that a client holds."""

    def train_dataloader(self, client: int, seed: int) -> DataLoader:
        """Batches of one client; their order is a function of the seed."""


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
