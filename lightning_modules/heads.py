"""What stands on a backbone: the projection head of the contrastive losses and the pooling of features."""

from torch import Tensor, nn
from torch.nn import functional

from datamodules.precision import in_float32


def linear(in_features: int, out_features: int) -> nn.Linear:
    """Linear layer, weight xavier_normal, bias 0 (methods §4.1)."""
    layer = nn.Linear(in_features, out_features)
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def projection_head(width: int) -> nn.Sequential:
    """Linear, ReLU, Linear, widths unchanged (methods §4.1, §5.1)."""
    return nn.Sequential(linear(width, width), nn.ReLU(), linear(width, width))


@in_float32
def unit(vectors: Tensor) -> Tensor:
    """(N, C) vectors divided by their lengths."""
    return functional.normalize(vectors, dim=1)


def pool(features: Tensor, bodies: int) -> Tensor:
    """(N * M, C, T, V) backbone features with M = bodies folded after the sample -> (N, C), the mean over the rest."""
    return features.unflatten(0, (-1, bodies)).mean(dim=(1, 3, 4))
