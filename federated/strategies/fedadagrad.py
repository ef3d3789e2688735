"""FedAdagrad: squared changes add up."""

from dataclasses import dataclass
from typing import ClassVar

from federated.state import State
from federated.strategies.base import Strategy, ascend, change, last_v, remember


@dataclass(frozen=True)
class FedAdagrad(Strategy):
    """v = v + Delta^2 from tau^2, Delta the clients' plain mean, no momentum (FedMLLM, server rules)."""

    eta: float = 1e-3
    tau: float = 1e-3

    weighted: ClassVar[bool] = False

    def step(self, parameters: State, mean: State, memory: State) -> tuple[State, State]:
        """As `Strategy.step`; remembers v."""
        delta = change(parameters, mean)
        v = {name: last + delta[name] ** 2 for name, last in last_v(parameters, memory, self.tau).items()}
        return ascend(parameters, delta, v, self.eta, self.tau), remember(v=v)
