"""Att-Aug: a few sign-like steps that lead a clip away from its pseudo-label while it still looks the same."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from datamodules.errors import InputError
from datamodules.topology import TOPOLOGIES
from lightning_modules.losses.perceptual import PERCEPTUAL

# 1e-8 / sqrt(1 - .999): where the first step of Adam in its old form, which the released code uses, has its epsilon.
EPSILON = 3.16e-7


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Batch norm normalises as its mode says, by the batch in training, but remembers nothing of it."""
    layers = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and m.training]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def per_body(gradient: Tensor) -> Tensor:
    """Gradient (N, C, T, V, M) divided by its L2 norm over axes and joints, per clip, frame and body; 0 stays 0."""
    norm = gradient.square().sum(dim=(1, 3), keepdim=True).sqrt()
    return gradient / norm.clamp(min=torch.finfo(gradient.dtype).tiny)


@dataclass(frozen=True)
class Attack:
    """x <- x - step_size g / (|g| + eps), g = -away per_body(d CE) + look per_body(d perceptual) (methods §3.2, SMART).

    CE is that of the attacked clip to the pseudo-label, the perceptual term compares it with the clip before any step.
    topology: name of the skeleton; perceptual: a key of `PERCEPTUAL`. Published: one step of 1e-4, .6 and .4. With
    one step the perceptual gradient is exactly 0, so that it acts from the second on.
    """

    topology: str
    steps: int = 1
    step_size: float = 1e-4
    away: float = 0.6
    look: float = 0.4
    perceptual: str = "acc_bone"

    def __post_init__(self):
        if self.perceptual not in PERCEPTUAL:
            known = ", ".join(PERCEPTUAL)
            raise InputError(f"expected a perceptual term of {known}, found {self.perceptual!r}: choose one")

    def __call__(
        self,
        x: Tensor,
        classify: Callable[[Tensor], Tensor],
        network: nn.Module,
        labels: Tensor | Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """x (N, C, T, V, M) -> the attacked clips, without gradient.

        classify: clips -> (N, L) logits, by `network`, which is left as it was: parameters, their gradients and flags,
        batch-norm statistics. labels: (N,) pseudo-labels, or a function that gives them when the attack's first pass is
        done; None takes them from that pass itself.
        """
        reference = x.detach()
        attacked = reference
        with frozen_statistics(network), torch.enable_grad():
            for _ in range(self.steps):
                clip = attacked.clone().requires_grad_()
                logits = classify(clip)
                if labels is None:
                    labels = logits.detach().argmax(1)
                elif callable(labels):
                    labels = labels()
                attacked = attacked - self.step_size * self._direction(clip, reference, logits, labels)
        return attacked

    def _direction(self, clip: Tensor, reference: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        look = PERCEPTUAL[self.perceptual](clip, reference, TOPOLOGIES[self.topology])
        # Of the input alone: no parameter may receive a gradient here.
        (away,) = torch.autograd.grad(F.cross_entropy(logits, labels), clip)
        (close,) = torch.autograd.grad(look, clip)
        g = self.look * per_body(close) - self.away * per_body(away)
        return g / (g.abs() + EPSILON)
