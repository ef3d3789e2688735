"""One-shot: the plain mean of models trained to the end, once."""

from dataclasses import dataclass
from typing import ClassVar

from federated.state import State
from federated.strategies.base import Strategy


@dataclass(frozen=True)
class OneShot(Strategy):
    """theta = mean of theta_k, clients alike (YOCO's row Mean); meant for one round with all clients."""

    weighted: ClassVar[bool] = False

    def step(self, parameters: State, mean: State, memory: State) -> tuple[State, State]:
        """The mean itself; nothing is remembered."""
        return mean, {}
