"""Mixed precision: what a trainer computes in half, and what stays in float32: losses and softmaxes."""

import functools
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
P = ParamSpec("P")
R = TypeVar("R")


def in_float32(function: Callable[P, R]) -> Callable[P, R]:
    """The function with half-precision arguments as float32 and without autocast; wider ones stay as they are.

    For whatever takes an exponential of similarities: at temperature .07 the three digits of bfloat16 are none.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        device = given[0].device.type if given else "cpu"
        mixed = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        if not mixed and all(leaf.dtype not in HALF.values() for leaf in given):
            return function(*args, **kwargs)
        args, kwargs = tree_map(_wide, (args, kwargs))
        with torch.autocast(device, enabled=False) if mixed else nullcontext():
            return function(*args, **kwargs)

    return run


def _wide(leaf: Any) -> Any:
    return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype in HALF.values() else leaf


def autocast(trainer: Mapping[str, Any], device: torch.device) -> torch.autocast:
    """What a Lightning trainer with these options computes under, for passes that no trainer makes."""
    half = HALF.get(trainer.get("precision", ""))
    return torch.autocast(device.type, half, enabled=half is not None)
