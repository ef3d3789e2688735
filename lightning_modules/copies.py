"""Rows of a batch that are alike are computed once and counted as often as they occur.

In most NTU classes the second body is absent: all zeros, so that in every layer of a network on folded bodies the
absent bodies of a batch are one and the same row. One of them with its multiplicity gives the features, batch
statistics and gradients of all of them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_map

from datamodules.transfer import sent


class CountedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose rows may stand for several: with `copies` (B,) the batch statistics are those of all copies.

    Without `copies`, and in eval mode, it is nn.BatchNorm2d to the bit.
    """

    copies: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.copies is None or not self.training:
            return super().forward(x)
        y, mean, variance = _Normalise.apply(x, self.weight, self.bias, self.copies, self.eps)
        if self.track_running_stats:
            self._follow(mean, variance, self.copies.sum() * x[0, 0].numel())
        return y

    def _follow(self, mean: Tensor, variance: Tensor, numbers: Tensor) -> None:
        """Move the running statistics as nn.BatchNorm2d does, with the unbiased variance of all copies."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            step = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, step)
            self.running_var.lerp_(variance * numbers / (numbers - 1), step)


class _Normalise(torch.autograd.Function):
    """weight (x - mean) / sqrt(variance + eps) + bias by the statistics of all copies of rows x (B, C, H, W).

    forward gives also the (C,) mean and biased variance. In passes over memory, which is what batch norm costs: four
    where autograd of this equation takes some twenty.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor, copies: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        share = (copies / copies.sum() / x[0, 0].numel())[:, None]
        wide = _wide(x)
        mean = (share * wide.sum((2, 3))).sum(0)  # no product of matrices, which autocast would round
        # Two passes: exact where E[x^2] - E[x]^2 would cancel.
        centred = wide - mean[:, None, None]
        variance = (share * torch.linalg.vector_norm(centred, dim=(2, 3)).square()).sum(0)
        scale = weight * (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, variance, share)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        y = torch.addcmul(bias[:, None, None], centred, scale[:, None, None], out=centred)
        return y.to(x.dtype), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx, slope: Tensor, *_: Tensor):  # type: ignore[override]
        """A row's slope is that of all its copies together, so that of x its statistics take `copies` shares."""
        x, weight, mean, variance, share = ctx.saved_tensors
        wide = _wide(x)
        fixed = torch.ops.aten.native_batch_norm_backward  # of batch norm in eval mode, whose statistics are given
        statistics = weight, mean, variance, None, None, False, ctx.eps
        of_x, of_weight, of_bias = fixed(_wide(slope), wide, *statistics, [True, True, True])
        inverse = (variance + ctx.eps).rsqrt()
        along = weight * inverse.square() * of_weight
        level = weight * inverse * of_bias - along * mean
        shares = share[:, :, None, None]
        of_x.addcmul_(wide, shares * along[:, None, None], value=-1).sub_(shares * level[:, None, None])
        return of_x.to(x.dtype), of_weight, of_bias, None, None


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class Rows(NamedTuple):
    """Which rows of a batch (B, ...) are computed.

    kept: (K,) positions of one row of each kind. copies: (K,) how many rows each stands for. place: (B,) which of the
    kept rows a row of the batch equals.
    """

    kept: Tensor
    copies: Tensor
    place: Tensor


def once(network: nn.Module, function: Callable[..., Any], rows: Rows | None, *inputs: Tensor) -> Any:
    """function(*inputs), each kind of row computed once and its result handed to all rows of the kind.

    function: a part of `network` of whose outputs (a tensor or containers of such, (B, ...) like the inputs) every
    row depends on that row alone, but for batch statistics. rows: None, or a network that cannot count: all rows.
    """
    if rows is None or not countable(network):
        return function(*inputs)
    with counted(network, rows.copies):
        outputs = function(*(x.index_select(0, rows.kept) for x in inputs))
    return tree_map(lambda output: output.index_select(0, rows.place), outputs)


@contextmanager
def counted(network: nn.Module, copies: Tensor) -> Iterator[None]:
    """Within it, the batch norms of `network` count row k of what they see `copies[k]` times."""
    norms = [module for module in network.modules() if isinstance(module, CountedBatchNorm2d)]
    for norm in norms:
        norm.copies = copies
    try:
        yield
    finally:
        for norm in norms:
            norm.copies = None


def alike(*inputs: Tensor, slots: int = 1) -> Rows | None:
    """The all-zero rows of inputs (B, ...), zero in every one of them, as one row for each of the `slots`.

    Row r is in slot r % slots: where bodies of a clip differ by their place (a batch norm over them all), an absent
    first is no absent second. None where nothing would be saved, and for inputs that ask for a gradient: there every
    row gets its own. Waits for the inputs once, since how many rows are left is a shape: all else is told on the CPU.
    """
    if any(x.requires_grad for x in inputs):
        return None
    empty = torch.stack([~x.flatten(1).any(1) for x in inputs]).all(0).cpu()
    slot = torch.arange(len(empty)) % slots
    zeros = torch.bincount(slot[empty], minlength=slots)
    kinds = (zeros > 0).nonzero()[:, 0]
    if int(zeros.sum()) <= len(kinds):
        return None
    present = (~empty).nonzero()[:, 0]
    first = (empty & (slot == kinds[:, None])).int().argmax(1)
    kind_of = len(present) + (zeros > 0).cumsum(0) - 1
    place = torch.where(empty, kind_of[slot], (~empty).cumsum(0) - 1)
    wide = torch.promote_types(inputs[0].dtype, torch.float32)  # halves do not count beyond some hundreds
    copies = torch.cat([torch.ones(len(present), dtype=wide), zeros[kinds].to(wide)])
    return Rows(*sent((torch.cat([present, first]), copies, place), inputs[0].device))


def countable(network: nn.Module) -> bool:
    """Whether every batch norm of `network` can count: those that see other processes cannot."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return all(isinstance(norm, CountedBatchNorm2d) for norm in norms)
