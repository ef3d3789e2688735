"""What every server rule is: a pure step from the clients' mean to the next global parameters."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch

from federated.state import State


@dataclass(frozen=True)
class Strategy:
    """A server rule.

    weighted: whether the clients' mean counts each by its samples (FedAvg, FedAvgM) or all alike (the adaptive rules,
    as released).
    """

    weighted: ClassVar[bool] = True

    def personal(self, names: Iterable[str]) -> frozenset[str]:
        """Names that each client has for itself and nobody averages; none by default.

        The server holds them between rounds and saves them with the client's model; client-level privacy refuses them.
        """
        return frozenset()

    def step(self, parameters: State, mean: State, memory: State) -> tuple[State, State]:
        """The next global parameters and the rule's next memory (m and v), nothing changed in place.

        parameters: global theta, float64; mean: the clients' mean of the same tensors, float64;
        memory: what the last step returned, {} before the first.
        """
        raise NotImplementedError


def change(parameters: State, mean: State) -> State:
    """Delta = mean of the clients' theta_k - theta."""
    return {name: mean[name] - parameters[name] for name in parameters}


def momentum(delta: State, memory: State, beta: float) -> State:
    """m = Delta at the first step, beta m + (1 - beta) Delta later."""
    if not memory:
        return delta
    return {name: beta * memory[f"m/{name}"] + (1 - beta) * delta[name] for name in delta}


def last_v(parameters: State, memory: State, tau: float) -> State:
    """v of the last step; tau squared before the first."""
    if not memory:
        return {name: torch.full_like(tensor, tau**2) for name, tensor in parameters.items()}
    return {name: memory[f"v/{name}"] for name in parameters}


def ascend(parameters: State, m: State, v: State, eta: float, tau: float) -> State:
    """theta + eta m / (sqrt(v) + tau), without bias correction: m points from theta to the clients."""
    return {name: parameters[name] + eta * m[name] / (v[name].sqrt() + tau) for name in parameters}


def remember(**moments: State) -> State:
    """Moments as one flat memory, `m/<name>` and `v/<name>`."""
    return {f"{kind}/{name}": tensor for kind, state in moments.items() for name, tensor in state.items()}
