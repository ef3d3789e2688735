"""Local: every client keeps its own state; nothing is exchanged."""

from collections.abc import Iterable
from dataclasses import dataclass

from federated.state import State
from federated.strategies.base import Strategy


@dataclass(frozen=True)
class Local(Strategy):
    """The Local row: each client trains alone, the row is the mean over the single-client models."""

    def personal(self, names: Iterable[str]) -> frozenset[str]:
        """All names."""
        return frozenset(names)

    def step(self, parameters: State, mean: State, memory: State) -> tuple[State, State]:
        """What is there: nobody shares anything."""
        return parameters, {}
