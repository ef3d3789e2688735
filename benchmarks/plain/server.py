"""A federation's server as first written down: all updates kept, then averaged; a model for every client."""

import copy

import torch
from torch import nn

from federated.state import State


def mean(states: list[State], weights: list[float]) -> State:
    """Weighted mean of states that are all there, in float64."""
    total = sum(weights)
    return {
        name: torch.stack([state[name].double() * weight for state, weight in zip(states, weights, strict=True)]).sum(0)
        / total
        for name in states[0]
    }


def model_of_client(module: nn.Module, trained: dict[str, str], state: State) -> nn.Module:
    """A model of its own for a client; trained: canonical name -> name in the module."""
    own = copy.deepcopy(module)
    parameters = dict(own.named_parameters())
    with torch.no_grad():
        for name, tensor in state.items():
            parameters[trained[name]].copy_(tensor)
    return own
