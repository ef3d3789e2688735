"""Convolutions as DSTA-Net, SIIA and PPA use them: biased, He-initialised, kept in size by padding."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.copies import CountedBatchNorm2d


def leaky_(x: Tensor) -> Tensor:
    """LeakyReLU with the slope of the published code, .1, in place.

    Where a stage ends in LeakyReLU(skip + BN conv x), sum and rectifier act in place of the normalised convolution,
    which no gradient needs: the numbers are the same, and a new tensor costs more than they do.
    """
    return F.leaky_relu(x, 0.1, inplace=True)


class Pointwise(nn.Conv2d):
    """1x1 convolution over (B, C, L, V): nn.Conv2d's parameters and numbers, on the CPU as a product of matrices.

    There a convolution first brings rows and weights into an order of its own, which for 1x1 costs as much as it
    saves, in the gradient of wide rows twice as much.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, L, V) -> (B, C', L, V)"""
        if x.device.type != "cpu" or self.bias is None:
            return super().forward(x)
        weight = self.weight.flatten(1).expand(len(x), -1, -1)
        return torch.baddbmm(self.bias[:, None], weight, x.flatten(2)).unflatten(2, x.shape[2:])


def conv(in_channels: int, out_channels: int, kernel=(1, 1), stride=(1, 1)) -> nn.Conv2d:
    """Convolution over (B, C, L, V), weight kaiming_normal fan_out, bias as PyTorch draws it (methods §4.1)."""
    padding = (kernel[0] // 2, kernel[1] // 2)
    layer = nn.Conv2d(in_channels, out_channels, kernel, stride, padding)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    return layer


def conv_bn(in_channels: int, out_channels: int, kernel=(1, 1), stride=(1, 1)) -> nn.Sequential:
    """`conv` and batch normalisation."""
    return nn.Sequential(conv(in_channels, out_channels, kernel, stride), CountedBatchNorm2d(out_channels))
