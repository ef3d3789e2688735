"""MoCo's momentum encoder: a copy of the query encoder that follows it slowly and gives the keys."""

import copy

import torch
from torch import Tensor, nn


def as_buffers(module: nn.Module) -> nn.Module:
    """The module with its parameters turned into buffers: saved, moved and exchanged with it, but never trained."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach())
    return module


class MomentumEncoder(nn.Module):
    """`query`, trained, and `key`, its copy: key <- momentum key + (1 - momentum) query, for parameters only.

    The key's batch-norm statistics are its own, from the keys it has seen.
    """

    def __init__(self, query: nn.Module, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.query = query
        self.key = as_buffers(copy.deepcopy(query))

    @torch.no_grad()
    def keys(self, x: Tensor):
        """What the key encoder gives for x, without gradient."""
        return self.key(x)

    def follow(self) -> None:
        """Move every parameter of the key a step towards the query's."""
        self._approach(1 - self.momentum)

    def reset(self) -> None:
        """Make the key's parameters equal to the query's."""
        self._approach(1.0)

    @torch.no_grad()
    def _approach(self, share: float) -> None:
        for name, parameter in self.query.named_parameters():
            self.key.get_buffer(name).lerp_(parameter, share)
