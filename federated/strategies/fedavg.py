"""FedAvg: the clients' sample-weighted mean."""

from dataclasses import dataclass

from federated.state import State
from federated.strategies.base import Strategy


@dataclass(frozen=True)
class FedAvg(Strategy):
    """theta = sum_k (n_k / n) theta_k (McMahan et al. 2017), as FedMLLM publishes it.

    FedMLLM's released branch adds the old global state to every tensor after the first; that fault is not offered.
    """

    def step(self, parameters: State, mean: State, memory: State) -> tuple[State, State]:
        """The mean itself; nothing is remembered."""
        return mean, {}
