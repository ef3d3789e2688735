"""Where a step would wait for the device it computes on, counted on the CPU."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

aten = torch.ops.aten
# What a GPU has to answer before the process can go on: numbers, or the shape of a result.
ANSWERED = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.bincount.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.repeat_interleave.Tensor,
    aten._unique2.default,
    aten.unique_dim.default,
}
BROUGHT = {Tensor.cpu, Tensor.tolist, Tensor.numpy}


class Waits(TorchDispatchMode):
    """Within it `there` are the tensors that would be on the device: those given, and what is computed of them.

    asked: number of waits for what is computed there. sent: number of tensors that go there one by one and are waited
    for, all but those that are sent `non_blocking`.
    """

    def __init__(self, *given: Any):
        super().__init__()
        self.there = WeakTensorKeyDictionary()
        self.asked, self.sent = 0, 0
        self.moves = Moves(self)
        self.hold(given)

    def __enter__(self):
        self.moves.__enter__()
        return super().__enter__()

    def __exit__(self, *raised: Any):
        super().__exit__(*raised)
        self.moves.__exit__(*raised)

    def hold(self, values: Any) -> None:
        """These are on the device from now on."""
        for x in tree_leaves(values):
            if isinstance(x, Tensor):
                self.there[x] = True

    def holds(self, values: Any) -> bool:
        return any(isinstance(x, Tensor) and x in self.there for x in tree_leaves(values))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if self.holds((args, kwargs)):
            chosen = function in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)
            masks = chosen and any(x is not None and x.dtype == torch.bool for x in args[1])
            self.asked += function in ANSWERED or masks
            self.hold(out)
        return out


class Moves(TorchFunctionMode):
    """What the CPU, where all is in one place, does not tell an operation of: `to` and `cpu`."""

    def __init__(self, waits: Waits):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out, waits = function(*args, **kwargs), self.waits
        if function in BROUGHT and waits.holds(args):
            waits.asked += 1
            if function is Tensor.cpu:
                out = out.clone()
                del waits.there[out]
        towards = any(isinstance(x, torch.device) for x in (*args[1:], *kwargs.values()))
        if function is Tensor.to and towards and not waits.holds(args[:1]):
            waits.sent += not kwargs.get("non_blocking", False)
            out = out.clone()
            waits.hold(out)
        return out
