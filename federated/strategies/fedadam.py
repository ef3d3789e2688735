"""FedAdam: exponential mean of the squares."""

from dataclasses import dataclass
from typing import ClassVar

from federated.state import State
from federated.strategies.base import Strategy, ascend, change, last_v, momentum, remember


@dataclass(frozen=True)
class FedAdam(Strategy):
    """v = beta2 v + (1 - beta2) m^2 from tau^2, m of the plain mean (FedMLLM, server rules).

    m^2 stands where the textbook has Delta^2, as released.
    """

    eta: float = 1e-3
    tau: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.99

    weighted: ClassVar[bool] = False

    def step(self, parameters: State, mean: State, memory: State) -> tuple[State, State]:
        """As `Strategy.step`; remembers m and v."""
        m = momentum(change(parameters, mean), memory, self.beta1)
        v = {
            name: self.beta2 * last + (1 - self.beta2) * m[name] ** 2
            for name, last in last_v(parameters, memory, self.tau).items()
        }
        return ascend(parameters, m, v, self.eta, self.tau), remember(m=m, v=v)
