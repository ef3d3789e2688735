"""One-shot's common start: LoRA factors from the singular vectors of the frozen weight (YOCO, shared start)."""

from dataclasses import dataclass
from typing import Any, cast

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
        for pair in lora_pairs(module):
            start_b, start_a = factors(dequantize_module_weight(pair.base).detach(), len(pair.a), pair.name)
            with torch.no_grad():
                pair.b.copy_(start_b)
                if self.factors == "both":
                    pair.a.copy_(start_a)
                if self.correct_base:
                    _subtract(pair)
                    taken[f"{pair.name}.lora_A.weight"] = pair.a.detach().to("cpu", copy=True)
                    taken[f"{pair.name}.lora_B.weight"] = pair.b.detach().to("cpu", copy=True)
        return taken


@dataclass(frozen=True)
class Pair:
    """A linear layer and its live LoRA factors: W + scaling B A, A (r, in), B (out, r); `name` is canonical."""

    name: str
    base: Any
    a: Tensor
    b: Tensor
    scaling: float


def lora_pairs(module: nn.Module) -> list[Pair]:
    """Every linear LoRA pair of a module. Raises InputError where there is none."""
    found = []
    for name, part in module.named_modules():
        if isinstance(part, LoraLayer) and part.lora_A:
            adapter = next(iter(part.lora_A))
            a, b = (cast(Any, factors[adapter]).weight for factors in (part.lora_A, part.lora_B))
            found.append(Pair(canonical(name), part.get_base_layer(), a, b, part.scaling[adapter]))
    if not found:
        raise InputError("expected LoRA pairs, found none: configure the model's LoRA")
    return found


def factors(weight: Tensor, rank: int, name: str) -> tuple[Tensor, Tensor]:
    """(out, in) weight -> U sqrt(S) (out, rank) and sqrt(S) V^T (rank, in), float32."""
    if rank > min(weight.shape):
        raise InputError(f"SVD start: expected a rank of at most {min(weight.shape)} for {name}, found {rank}")
    u, s, v = torch.linalg.svd(weight.float(), full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]


def _subtract(pair: Pair) -> None:
    weight = pair.base.weight
    if not weight.is_floating_point():
        found = f"expected a floating weight to correct in {pair.name}, found it quantised"
        raise InputError(f"SVD start: {found}; use quantization none or correct_base=false")
    weight.sub_((pair.scaling * (pair.b.float() @ pair.a.float())).to(weight.dtype))
