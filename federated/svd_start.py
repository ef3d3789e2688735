"""One-shot's common start: LoRA factors from the singular vectors of the frozen weight (YOCO, shared start)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from datamodules.errors import InputError
from federated.adapter import canonical
from federated.state import State

FACTORS = ("both", "B")


@dataclass(frozen=True)
class SVDStart:
    """Starts every linear LoRA pair at the rank-r SVD of its frozen weight W ~ U S V^T: B = U sqrt(S), A = sqrt(S) V^T.

    factors: "both" (the paper), or "B": A keeps PEFT's random start (as released).
    correct_base: subtract the start's product from W, so that training begins at the model as it was: with B and A
    non-zero W + s B A is another function, and with a random A (as released) an arbitrary one. False: W stays as it is
    (as released; the paper does not say). A quantised W cannot take the correction.
    """

    factors: str = "both"
    correct_base: bool = True

    def __post_init__(self):
        if self.factors not in FACTORS:
            raise InputError(f"SVD start: expected factors {' or '.join(FACTORS)}, found {self.factors!r}")

    def __call__(self, module: nn.Module) -> State:
        """Change the module in place; the factors whose product was subtracted, by canonical name ({}: none).

        An export needs them: the frozen model that a user loads has not been corrected. Raises InputError where there
        is no LoRA pair, r exceeds a weight's rank, or a quantised weight is to be corrected.
        """
        taken: State = {}
        for name, layer, adapter in lora_layers(module):
            a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
            base = layer.get_base_layer()
            start_b, start_a = factors(dequantize_module_weight(base).detach(), len(a), name)
            with torch.no_grad():
                b.copy_(start_b)
                if self.factors == "both":
                    a.copy_(start_a)
                if self.correct_base:
                    _subtract(base, layer.scaling[adapter] * (b.float() @ a.float()), name)
                    taken |= {f"{name}.lora_A.weight": a.clone().cpu(), f"{name}.lora_B.weight": b.clone().cpu()}
        return taken


def lora_layers(module: nn.Module) -> Iterator[tuple[str, LoraLayer, str]]:
    """Canonical name, layer and adapter of every linear LoRA pair. Raises InputError where there is none."""
    found = False
    for name, part in module.named_modules():
        if isinstance(part, LoraLayer) and part.lora_A:
            found = True
            yield canonical(name), part, next(iter(part.lora_A))
    if not found:
        raise InputError("expected LoRA pairs, found none: configure the model's LoRA")


def factors(weight: Tensor, rank: int, name: str) -> tuple[Tensor, Tensor]:
    """(out, in) weight -> U sqrt(S) (out, rank) and sqrt(S) V^T (rank, in), float32."""
    if rank > min(weight.shape):
        raise InputError(f"SVD start: expected a rank of at most {min(weight.shape)} for {name}, found {rank}")
    u, s, v = torch.linalg.svd(weight.float(), full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]


def _subtract(base: nn.Module, product: Tensor, name: str) -> None:
    if not base.weight.is_floating_point():
        found = f"expected a floating weight to correct in {name}, found it quantised"
        raise InputError(f"SVD start: {found}; use quantization none or correct_base=false")
    base.weight.sub_(product.to(base.weight.dtype))
