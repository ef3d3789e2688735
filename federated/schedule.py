"""By round: which clients take part, and the factor on their learning rate."""

import math
import random
from dataclasses import dataclass

from datamodules.errors import InputError


@dataclass(frozen=True)
class SampleClients:
    """`per_round` clients drawn without replacement by a generator seeded with the round, ids sorted (FedMLLM)."""

    per_round: int

    def __call__(self, round_number: int, clients: int) -> list[int]:
        """Raises InputError with fewer clients than are to be drawn."""
        if not 1 <= self.per_round <= clients:
            raise InputError(f"federation: expected 1 to {clients} clients a round, found {self.per_round}")
        return sorted(random.Random(round_number).sample(range(clients), self.per_round))


@dataclass(frozen=True)
class AllClients:
    """Every client, every round."""

    def __call__(self, round_number: int, clients: int) -> list[int]:
        return list(range(clients))


@dataclass(frozen=True)
class ConstantRate:
    """The client's own rate in every round."""

    def __call__(self, round_number: int, rounds: int) -> float:
        return 1.0


@dataclass(frozen=True)
class CosineRate:
    """Linear warm-up over w = warmup * rounds, then a cosine to 0 at the last round's end (FedMLLM).

    released: as w is below 1 for fewer than 100 rounds, the released formula (r + 1) / w trains round 0 above the
    configured rate (twice at 50 rounds); without it the factor stops at 1.
    """

    warmup: float = 0.01
    released: bool = False

    def __call__(self, round_number: int, rounds: int) -> float:
        warmup = self.warmup * rounds
        if round_number < warmup:
            factor = (round_number + 1) / warmup
            return factor if self.released else min(1.0, factor)
        return 0.5 * (1 + math.cos(math.pi * (round_number - warmup) / (rounds - warmup)))
