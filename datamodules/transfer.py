"""Small tensors from the CPU to the device that computes, without a wait."""

from typing import Any

import torch
from torch.utils._pytree import tree_map_only


def sent(values: Any, device: torch.device) -> Any:
    """The tensors of `values`, one or a container of such, on `device`.

    CUDA takes memory that is not pinned into a buffer of its own before the call returns, so that the source may go at
    once; what uses the tensors there comes after them in the stream.
    """
    return tree_map_only(torch.Tensor, lambda x: x.to(device, non_blocking=True), values)
