"""FedAvgM: server momentum on the sample-weighted change."""

from dataclasses import dataclass

from federated.state import State
from federated.strategies.base import Strategy, change, momentum, remember


@dataclass(frozen=True)
class FedAvgM(Strategy):
    """m = beta m + (1 - beta) Delta, m = Delta at the first round; theta = theta + m (FedMLLM, server rules)."""

    beta: float = 0.9

    def step(self, parameters: State, mean: State, memory: State) -> tuple[State, State]:
        """As `Strategy.step`; remembers m."""
        m = momentum(change(parameters, mean), memory, self.beta)
        return {name: parameters[name] + m[name] for name in m}, remember(m=m)
