"""Heads that name a clip's pseudo-label for the attack: the released one, never trained, and one that learns."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.precision import in_float32
from lightning_modules.contrast.momentum import as_buffers
from lightning_modules.encoders.hierarchical import Projected


@in_float32
def balanced_codes(similarity: Tensor, sharpness: float = 0.05, iterations: int = 3) -> Tensor:
    """Soft assignment of clips to labels that uses every label equally often (SwAV, Sinkhorn-Knopp).

    similarity: (N, L) cosines of clips and prototypes. Returns (N, L), rows of sum 1. In the log domain, where a sharp
    assignment cannot overflow.
    """
    codes = similarity / sharpness
    for _ in range(iterations):
        codes = codes.log_softmax(dim=0).log_softmax(dim=1)
    return codes.exp()


class RandomHead(nn.Module):
    """Released: a random linear layer on [v_t, v_s] that nothing trains, so that its labels mean nothing."""

    def __init__(self, features: int, labels: int):
        super().__init__()
        self.fc = as_buffers(nn.Linear(features, labels))

    def forward(self, clips: Projected) -> Tensor:
        """(N, labels) logits."""
        return self.fc(clips.features)

    def loss_terms(self, query: Projected, scores: Tensor, first: int) -> dict[str, Tensor]:
        """None: it does not learn."""
        return {}


class PrototypeHead(nn.Module):
    """Our reading: cluster prototypes on z_i, learnt online by swapped prediction (Caron et al., NeurIPS 2020).

    The code of the key view, balanced over the batch, is what the query view has to predict. Features are detached, so
    that the head learns from the encoder and does not train it: only the attack's aim depends on this head.
    """

    def __init__(self, dim: int, labels: int, temperature: float = 0.1):
        super().__init__()
        self.temperature = temperature
        self.prototypes = nn.Parameter(F.normalize(torch.randn(labels, dim), dim=1))

    @in_float32
    def forward(self, clips: Projected) -> Tensor:
        """(N, labels) logits, cosine / temperature."""
        return F.linear(clips.instance, F.normalize(self.prototypes, dim=1)) / self.temperature

    @in_float32
    def loss_terms(self, query: Projected, scores: Tensor, first: int) -> dict[str, Tensor]:
        """Cross-entropy of the query's logits with the key's codes.

        scores: (N of all processes, labels) logits of the keys; first: row of this process's first clip in them.
        """
        codes = balanced_codes(scores.detach() * self.temperature)[first : first + len(query.instance)]
        logits = self(Projected(*(part.detach() for part in query)))
        return {"head": F.cross_entropy(logits, codes)}
