"""What stays in float32 where a trainer computes in half: coordinates, similarities, losses and softmaxes."""

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

HALF = (torch.bfloat16, torch.float16)
P = ParamSpec("P")
R = TypeVar("R")


def in_float32(function: Callable[P, R]) -> Callable[P, R]:
    """The function with half-precision arguments as float32 and without autocast; wider ones stay as they are.

    For coordinates, and for whatever takes an exponential of similarities: bfloat16 has not three digits, and a
    temperature of .07 takes one of them.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        device = given[0].device.type if given else "cpu"
        mixed = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        if not mixed and all(leaf.dtype not in HALF for leaf in given):
            return function(*args, **kwargs)
        args, kwargs = tree_map(_wide, (args, kwargs))
        with torch.autocast(device, enabled=False) if mixed else nullcontext():
            return function(*args, **kwargs)

    return run


def _wide(leaf: Any) -> Any:
    return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype in HALF else leaf
