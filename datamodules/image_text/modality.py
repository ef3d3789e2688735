"""Which modality each sample of each client keeps: the four scenarios of FedMLLM, draw by draw as released.

Every scenario is a small class with `masks(sizes)`: sizes are the clients' sample counts in client order; the result
is one bool array (samples, 2) a client, its columns image and text, its rows in the partition's order.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from datamodules.errors import InputError


class Scenario(Protocol):
    """A way in which modalities are missing."""

    def masks(self, sizes: Sequence[int]) -> list[np.ndarray]:
        """(samples, 2) bool of each client: whether the image and the text are kept."""


def _check_rate(rate: float) -> None:
    if not 0 <= rate <= 1:
        raise InputError(f"modality: expected a rate between 0 and 1, found {rate}; give a share, not per cent")


def _whole_client(size: int, image: bool, text: bool) -> np.ndarray:
    return np.tile(np.array([image, text]), (size, 1))


@dataclass(frozen=True)
class Aligned:
    """Every sample has both modalities."""

    def masks(self, sizes: Sequence[int]) -> list[np.ndarray]:
        return [_whole_client(size, True, True) for size in sizes]


@dataclass(frozen=True)
class Missing:
    """Image and text of each sample dropped independently with probability `rate`; both may vanish."""

    rate: float
    seed: int = 42

    def __post_init__(self):
        _check_rate(self.rate)

    def masks(self, sizes: Sequence[int]) -> list[np.ndarray]:
        draws = random.Random(self.seed)
        kept = []
        for size in sizes:
            text_then_image = np.array([draws.random() for _ in range(2 * size)]).reshape(size, 2)
            kept.append((text_then_image < 1 - self.rate)[:, ::-1].copy())
        return kept


@dataclass(frozen=True)
class CrossModal:
    """`image_clients` clients, drawn, hold only images, the others only texts."""

    image_clients: int
    seed: int = 42

    def masks(self, sizes: Sequence[int]) -> list[np.ndarray]:
        """Raises InputError with more image clients than clients."""
        if not 0 <= self.image_clients <= len(sizes):
            raise InputError(f"modality: expected 0 to {len(sizes)} image clients, found {self.image_clients}")
        chosen = set(random.Random(self.seed).sample(range(len(sizes)), self.image_clients))
        return [_whole_client(size, client in chosen, client not in chosen) for client, size in enumerate(sizes)]


@dataclass(frozen=True)
class Hybrid:
    """A client keeps each modality with probability 1 - rate; where it lost both, one at random comes back.

    comes_back: "sample" draws it for each sample (Hateful Memes, CrisisMMD), "client" once for the client (medical).
    The medical generator as released is not reproducible; here it draws from the same seeded generators.
    """

    rate: float
    seed: int = 42
    comes_back: str = "sample"

    def __post_init__(self):
        _check_rate(self.rate)
        if self.comes_back not in ("sample", "client"):
            raise InputError(f"modality: expected comes_back 'sample' or 'client', found '{self.comes_back}'")

    def masks(self, sizes: Sequence[int]) -> list[np.ndarray]:
        """For each client (n_k, 2) bool: whether a sample keeps its image, its text."""
        # Two generators on purpose: the published draws come from numpy's for clients and from Python's for samples.
        clients, samples = np.random.RandomState(self.seed), random.Random(self.seed)
        kept = []
        for size in sizes:
            image, text = clients.rand(2) <= 1 - self.rate
            if image or text:
                kept.append(_whole_client(size, image, text))
                continue
            draws = np.array([samples.random() for _ in range(size if self.comes_back == "sample" else 1)])
            image_rows = np.broadcast_to(draws < 0.5, size)
            kept.append(np.stack([image_rows, ~image_rows], axis=1))
        return kept
