"""Who holds which sample: partitions of a training set into clients, and the manifest that describes one.

Every partition is a small class with `split(columns)`: columns name, for all samples in file order, their labels,
cameras, performers, events...; the result is one array of sample rows a client.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from datamodules.errors import InputError

Columns = Mapping[str, Sequence]


class Partition(Protocol):
    """A way to share samples out among clients."""

    def split(self, columns: Columns) -> list[np.ndarray]:
        """Rows of the samples that each client holds."""


def column(columns: Columns, name: str) -> np.ndarray:
    """One column as an array. Raises InputError where the data set has none of that name."""
    if name not in columns:
        raise InputError(f"partition: expected a column '{name}', found {sorted(columns)}; name one of these")
    return np.asarray(columns[name])


def length(columns: Columns) -> int:
    """Number of samples."""
    return len(next(iter(columns.values())))


@dataclass(frozen=True)
class Dirichlet:
    """The published heterogeneous partition (FedMLLM, aligned scenario; its released generator, draw by draw).

    Per label, in the order of first appearance, one Dirichlet draw shares its samples out: counts are truncated, an
    empty count takes one sample from client 0, the remainder goes to the last client, and the samples are cut in file
    order. At the end each client's list is shuffled.

    at_least_one: labels of which every client must get a sample: "every" (Hateful Memes) or "first" (CrisisMMD).
    shuffle: shuffle each client's list (Hateful Memes); CrisisMMD's stay label by label in file order.
    """

    alpha: float
    clients: int
    seed: int = 42
    attribute: str = "labels"
    at_least_one: str = "every"
    shuffle: bool = True

    def __post_init__(self):
        if self.alpha <= 0 or self.clients < 1:
            found = f"alpha {self.alpha} with {self.clients} clients"
            raise InputError(f"partition: expected alpha above 0 and at least one client, found {found}; change them")
        if self.at_least_one not in ("every", "first"):
            raise InputError(f"partition: expected at_least_one 'every' or 'first', found '{self.at_least_one}'")

    def split(self, columns: Columns) -> list[np.ndarray]:
        """Rows of each client. Raises InputError where a client would be left without the samples it must get."""
        labels = column(columns, self.attribute)
        # The published draws come from numpy's and Python's global generators, seeded; local ones draw the same.
        shares, order = np.random.RandomState(self.seed), random.Random(self.seed)
        pieces: list[list[int]] = [[] for _ in range(self.clients)]
        for number, label in enumerate(dict.fromkeys(labels.tolist())):
            rows = np.flatnonzero(labels == label)
            counts = self._counts(shares.dirichlet([self.alpha] * self.clients), len(rows), label, first=number == 0)
            for piece, part in zip(pieces, np.split(rows, np.cumsum(counts)[:-1]), strict=True):
                piece.extend(part.tolist())
        if self.shuffle:
            for piece in pieces:
                order.shuffle(piece)
        return [np.array(piece, dtype=np.int64) for piece in pieces]

    def _counts(self, shares: np.ndarray, samples: int, label, first: bool) -> np.ndarray:
        counts = (shares * samples).astype(np.int64)
        if first or self.at_least_one == "every":
            empty = counts == 0
            counts[empty] = 1
            counts[0] -= empty.sum()
            if counts.min() < 1:
                raise InputError(
                    f"partition: expected a sample of label {label!r} for each of {self.clients} clients, found "
                    f"{counts.min()} left for client {counts.argmin()} of {samples}; raise alpha or take fewer clients"
                )
        counts[-1] += samples - counts.sum()
        return counts


@dataclass(frozen=True)
class IID:
    """Equal random pieces, sizes one apart at most (FedMLLM's medical data: seed 41).

    within: a column; the samples of each of its values are then shared out by themselves, the seed taken afresh.
    """

    clients: int
    seed: int = 41
    within: str | None = None

    def split(self, columns: Columns) -> list[np.ndarray]:
        """Rows of each client. Raises InputError with more clients than samples."""
        if self.within is None:
            return self._share(np.arange(length(columns)))
        values = column(columns, self.within)
        shared = [self._share(np.flatnonzero(values == value)) for value in np.unique(values)]
        return [np.concatenate(pieces) for pieces in zip(*shared, strict=True)]

    def _share(self, samples: np.ndarray) -> list[np.ndarray]:
        if not 1 <= self.clients <= len(samples):
            raise InputError(f"partition: expected 1 to {len(samples)} clients, one sample each, found {self.clients}")
        rows = samples.tolist()
        random.Random(self.seed).shuffle(rows)
        return [piece.astype(np.int64) for piece in np.array_split(rows, self.clients)]


@dataclass(frozen=True)
class Pooled:
    """One client that holds everything in file order: centralised training without a special case."""

    def split(self, columns: Columns) -> list[np.ndarray]:
        return [np.arange(length(columns))]


@dataclass(frozen=True)
class Sites:
    """Whoever holds data is a client with all of it: each site reads its own and nobody else's (`federated.sites`)."""

    def split(self, columns: Columns) -> list[np.ndarray]:
        """All the samples of this one site, in file order."""
        return [np.arange(length(columns))]


@dataclass(frozen=True)
class ByAttribute:
    """One client a distinct value, values sorted: by camera, performer, event."""

    attribute: str

    def split(self, columns: Columns) -> list[np.ndarray]:
        values = column(columns, self.attribute)
        return [np.flatnonzero(values == value) for value in np.unique(values)]


def manifest(partition: Partition, pieces: list[np.ndarray], labels: Sequence) -> dict:
    """What a reader needs to know of a partition, as plain values.

    skew: mean over clients of the total variation distance (0 to 1) between a client's label distribution and that of
    all the samples; digest: SHA-256 of the lists, order included.
    """
    values, codes = np.unique(np.asarray(labels), return_inverse=True)
    counts = np.stack([np.bincount(codes[piece], minlength=len(values)) for piece in pieces])
    overall = counts.sum(0) / counts.sum()
    distances = np.abs(counts / counts.sum(1, keepdims=True).clip(1) - overall).sum(1) / 2
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(np.int64(len(piece)).tobytes() + piece.astype("<i8").tobytes())
    return {
        "kind": type(partition).__name__,
        "settings": dict(vars(partition)),
        "sizes": [len(piece) for piece in pieces],
        "labels": [str(value) for value in values],
        "label_counts": counts.tolist(),
        "skew": float(distances.mean()),
        "digest": digest.hexdigest(),
    }
