"""Client-side terms of the loss, added as exact gradients before the optimiser's step.

A term is a function of the trained parameters alone, so its gradient does not depend on the batch: added once an
optimiser step, after accumulation and reduction and before clipping, it equals the term inside the loss.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor

from datamodules.errors import InputError
from federated.adapter import Adapter

Tensors = Mapping[str, Tensor]


class Term(Protocol):
    """An addition to a client's loss; it is logged under `name`."""

    name: ClassVar[str]

    def value(self, parameters: Tensors, anchor: Tensors, progress: float) -> Tensor:
        """The weighted term; anchor: what the round began from, progress: from 0 to 1 over the client's steps."""


# What families call their stack of layers.
LAYER = re.compile(r"(?:^|\.)(?:layers|layer|blocks|h)\.(\d+)(?:\.|$)")


def layer_of(name: str) -> int | None:
    """The number of the layer that a parameter lies in (`layers.<n>.`), None outside the layers.

    The released code takes the first integer of a name, which is the same number in the language model, where a
    projector's `linear_1` and `mlp.0` would be layers 1 and 0.
    """
    found = LAYER.search(name)
    return None if found is None else int(found.group(1))


@dataclass(frozen=True)
class FedProx:
    """(mu / 2) weight sum ||theta_j - theta_j^global||^2 over the regularised parameters (FedMLLM, local loss).

    skip: share of the layers left out at either end. Base: weight 1, skip 0. Adaptive: weight .1, skip 1/7, the
    middle layers only: 4...23 of 28 as published, relative to the depth found in the trained parameters' names (the
    released code holds 27 fixed).
    unnumbered: also parameters outside the layers (embeddings, projector); the released code leaves them out.
    """

    mu: float = 0.01
    weight: float = 1.0
    skip: float = 0.0
    unnumbered: bool = True

    name: ClassVar[str] = "fedprox"

    def regularised(self, names: Iterable[str]) -> list[str]:
        """Which of the trained parameters the term holds back.

        Raises InputError where only those of layers count and none of the names holds a layer's number.
        """
        layers = {name: layer_of(name) for name in names}
        if not self.unnumbered and layers and not any(layer is not None for layer in layers.values()):
            found = f"expected trained parameters named `layers.<number>.`, found '{min(layers)}' and none so named"
            raise InputError(f"FedProx: {found}; set unnumbered=true and skip=0")
        depth = 1 + max((layer for layer in layers.values() if layer is not None), default=0)
        ends = round(self.skip * depth)
        middle = range(ends, depth - ends)
        return [name for name, layer in layers.items() if (self.unnumbered if layer is None else layer in middle)]

    def value(self, parameters: Tensors, anchor: Tensors, progress: float) -> Tensor:
        """() half of mu x weight times the squared distance from the anchor."""
        apart = [(parameters[name] - anchor[name]).square().sum() for name in self.regularised(parameters)]
        return 0.5 * self.mu * self.weight * sum(apart, start=torch.zeros(()))


@dataclass(frozen=True)
class SignAgreement:
    """||tanh(gamma B) - sign(B_0)|| / (||sign(B_0)|| + 1e-6), summed over the LoRA factors B (YOCO, local loss).

    B_0 is what the round began from, common to all clients; gamma rises linearly from 1 to gamma_end (released: 200).
    """

    gamma_end: float = 200.0

    name: ClassVar[str] = "sign_agreement"

    def value(self, parameters: Tensors, anchor: Tensors, progress: float) -> Tensor:
        """() sum over the factors B, each between 0 and about 2."""
        gamma = 1 + (self.gamma_end - 1) * progress
        total = torch.zeros(())
        for name in (name for name in parameters if ".lora_B" in name):
            signs = anchor[name].sign()
            total = total + ((gamma * parameters[name]).tanh() - signs).norm() / (signs.norm() + 1e-6)
        return total


@dataclass(frozen=True)
class Sparsity:
    """weight sum |A| over the LoRA factors A (YOCO, local loss: lambda, between 1e-4 and 1e-1 by setting)."""

    weight: float = 1e-4

    name: ClassVar[str] = "sparsity"

    def value(self, parameters: Tensors, anchor: Tensors, progress: float) -> Tensor:
        """() weighted sum of absolute values."""
        sizes = (parameters[name].abs().sum() for name in parameters if ".lora_A" in name)
        return self.weight * sum(sizes, start=torch.zeros(()))


@dataclass(frozen=True)
class Orthogonality:
    """weight ||A A^T - I||_F^2 over the LoRA factors A (r, in), the weight falling by a cosine from `begin` to `end`.

    YOCO's released branch has it in place of the paper's sparsity. A^T A - I would differ by the constant in - r alone.
    """

    begin: float = 0.1
    end: float = 0.01

    name: ClassVar[str] = "orthogonality"

    def value(self, parameters: Tensors, anchor: Tensors, progress: float) -> Tensor:
        """() weighted sum over the factors A at this progress, 0 to 1, of the fit."""
        weight = self.end + 0.5 * (self.begin - self.end) * (1 + math.cos(math.pi * progress))
        factors = [parameters[name] for name in parameters if ".lora_A" in name]
        apart = ((a @ a.T - torch.eye(len(a), dtype=a.dtype, device=a.device)).square().sum() for a in factors)
        return weight * sum(apart, start=torch.zeros(()))


class TermGradients(pl.Callback):
    """Adds the terms' gradients to those of the loss and logs their values as `train/<name>`, means over the steps."""

    def __init__(self, terms: list[Term], adapter: Adapter):
        self._terms, self._adapter = terms, adapter
        self._anchor: dict[str, Tensor] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep what the round began from."""
        self._anchor = {name: tensor.detach().clone() for name, tensor in self._adapter.parameters().items()}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        """Add each term's gradient to what this optimiser moves, and log its value."""
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        parameters = {name: p for name, p in self._adapter.parameters().items() if id(p) in own}
        steps = trainer.estimated_stepping_batches
        progress = min(1.0, trainer.global_step / (steps - 1)) if 1 < steps < math.inf else 0.0
        for term in self._terms:
            with torch.enable_grad():
                value = term.value(parameters, self._anchor, progress)
            if value.requires_grad:
                self._add(list(parameters.values()), value)
            pl_module.log(f"train/{term.name}", value.detach(), on_step=False, on_epoch=True, batch_size=1)

    @staticmethod
    def _add(parameters: list[Tensor], value: Tensor) -> None:
        for parameter, extra in zip(parameters, torch.autograd.grad(value, parameters, allow_unused=True), strict=True):
            if extra is not None:
                parameter.grad = extra if parameter.grad is None else parameter.grad + extra
