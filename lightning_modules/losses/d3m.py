"""D3M, the dual distributional divergence loss of AimCLR (Guo et al., AAAI 2022; methods §6.3)."""

from torch import Tensor

from datamodules.precision import in_float32


@in_float32
def d3m(normal: Tensor, extreme: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the extreme query's distribution over key and memory with the normal query's, mean over queries.

    normal, extreme: (N, 1 + K) similarities with the key and the memory, softmax at `temperature`. The normal
    distribution is the target: no gradient flows into it. Smallest, its entropy, where the two are equal.
    """
    target = (normal.detach() / temperature).softmax(dim=1)
    return -(target * (extreme / temperature).log_softmax(dim=1)).sum(1).mean()
