"""Group normalisation in the place of batch normalisation: no statistics of other clips, none kept between batches.

A federation with client-level privacy needs it: running statistics tell of a client's clips and get no noise.
"""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from datamodules.errors import InputError


def by_groups(network: nn.Module, groups: int) -> None:
    """Put GroupNorm of so many groups, with their affine weights, where `network` has batch norms.

    Raises InputError for a width that `groups` does not divide, or where a group would be one number of a vector, which
    normalised is 0 whatever it was.
    """
    for part in list(network.modules()):
        for name, layer in part.named_children():
            if isinstance(layer, _BatchNorm):
                setattr(part, name, _grouped(layer, groups))


def _grouped(layer: _BatchNorm, groups: int) -> nn.GroupNorm:
    width = layer.num_features
    if groups < 1 or width % groups:
        raise InputError(f"norm_groups: expected a number that divides every width, found {groups} for {width}")
    if groups == width and isinstance(layer, nn.BatchNorm1d):
        found = f"found {groups} for {width} numbers a vector, which would all become 0"
        raise InputError(f"norm_groups: expected fewer groups than a BatchNorm1d has features, {found}; take fewer")
    grouped = nn.GroupNorm(groups, width, layer.eps, layer.affine)
    grouped.weight, grouped.bias = layer.weight, layer.bias
    return grouped
