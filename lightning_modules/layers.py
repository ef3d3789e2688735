"""Convolutions as DSTA-Net, SIIA and PPA use them: biased, He-initialised, kept in size by padding."""

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.copies import CountedBatchNorm2d


def leaky(x: Tensor) -> Tensor:
    """LeakyReLU with the slope of the published code, .1."""
    return F.leaky_relu(x, 0.1)


def conv(in_channels: int, out_channels: int, kernel=(1, 1), stride=(1, 1)) -> nn.Conv2d:
    """Convolution over (B, C, L, V), weight kaiming_normal fan_out, bias as PyTorch draws it (methods §4.1)."""
    padding = (kernel[0] // 2, kernel[1] // 2)
    layer = nn.Conv2d(in_channels, out_channels, kernel, stride, padding)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    return layer


def conv_bn(in_channels: int, out_channels: int, kernel=(1, 1), stride=(1, 1)) -> nn.Sequential:
    """`conv` and batch normalisation."""
    return nn.Sequential(conv(in_channels, out_channels, kernel, stride), CountedBatchNorm2d(out_channels))
