"""Batch normalisation over the global batch, on any device.

Torch's SyncBatchNorm refuses the CPU, and its conversion cannot take a layer whose weights are buffers (a key encoder).
"""

import torch
import torch.distributed as dist
from pytorch_lightning.plugins import LayerSync
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from datamodules.errors import InputError


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    """(C,) values, shaped to meet (N, C, ...)."""
    return values.view(1, -1, *[1] * (like.ndim - 2))


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) by statistics of all processes; the caller applies weight and bias.

    forward gives also the (C,) mean and biased variance and the number of values behind them, for the running ones.
    """

    @staticmethod
    def forward(ctx, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        over = [0, *range(2, x.ndim)]
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        # Two passes, as a difference of mean squares would lose the digits of a large mean.
        sums = torch.cat([wide.sum(over), wide.new_tensor([wide.numel() // wide.shape[1]])])
        dist.all_reduce(sums)
        mean, count = sums[:-1] / sums[-1], sums[-1]
        var = (wide - _per_channel(mean, x)).square().sum(over)
        dist.all_reduce(var)
        var /= count
        ctx.save_for_backward(x, mean, (var + eps).rsqrt(), count)
        ctx.mark_non_differentiable(mean, var, count)
        return functional.batch_norm(x, mean, var, eps=eps), mean, var, count

    @staticmethod
    def backward(ctx, slope: Tensor, *_: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        x, mean, inverse, count = ctx.saved_tensors
        over = [0, *range(2, x.ndim)]
        wide = slope.to(mean.dtype)
        normal = (x.to(mean.dtype) - _per_channel(mean, x)) * _per_channel(inverse, x)
        sums = torch.stack([wide.sum(over), (wide * normal).sum(over)])
        # The statistics belong to the losses of all processes: their slopes add up.
        dist.all_reduce(sums)
        level, along = (_per_channel(part, x) for part in sums / count)
        return (_per_channel(inverse, x) * (wide - level - normal * along)).to(slope.dtype), None


class Synced(_BatchNorm):
    """What a batch-norm layer becomes while several processes train it: same tensors, statistics of them all.

    In eval mode it is the layer it was. Raises InputError for one value per channel, as torch refuses it.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any of (N, C), (N, C, L), (N, C, H, W), (N, C, D, H, W)."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        normal, mean, var, count = _Normalise.apply(input, self.eps)
        if input.numel() <= input.shape[1] and count <= 1:  # the first asks no device to wait
            found = f"found one of shape {tuple(input.shape)}"
            raise InputError(
                f"batch norm: expected more than one value per channel in training, {found}: take larger batches"
            )
        if self.track_running_stats:
            self._remember(mean, var * count / (count - 1))
        if self.weight is None:
            return normal
        scaled = torch.addcmul(_per_channel(self.bias, input), normal, _per_channel(self.weight, input))
        return scaled.to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(var.to(self.running_var.dtype), share)


class SyncedStatistics(LayerSync):
    """Lightning plugin: batch-norm layers see the global batch while a fit lasts.

    A layer changes its class and nothing else, so names, weights and checkpoints stay what they are.
    """

    def __init__(self) -> None:
        self._classes: dict[_BatchNorm, type] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        for layer in model.modules():
            if isinstance(layer, _BatchNorm):
                self._classes[layer] = type(layer)
                layer.__class__ = Synced
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        for layer, own in self._classes.items():
            layer.__class__ = own
        self._classes.clear()
        return model
