"""How far the mean of LoRA products is from the product of the means: averages of A and of B are not that of BA."""

from collections.abc import Collection

import torch

from federated.state import State

PRODUCT = "BA/"


def pairs(names: Collection[str]) -> list[tuple[str, str]]:
    """(A, B) names of every linear LoRA pair among canonical names."""
    found = [(name, name.replace("lora_A", "lora_B")) for name in names if name.endswith("lora_A.weight")]
    return [(a, b) for a, b in found if b in names]


def with_products(state: State) -> State:
    """`state` and, for every pair, B A in float64 as one tensor more, to be averaged with the rest.

    Costs one (out, in) matrix a pair, whatever the number of clients.
    """
    linear = [(a, b) for a, b in pairs(state) if state[a].ndim == 2]
    return state | {PRODUCT + a: state[b].double() @ state[a].double() for a, b in linear}


def without_products(mean: State) -> tuple[State, float | None]:
    """The mean without the products, and the gap ||mean(BA) - mean(B) mean(A)|| / ||mean(BA)|| over all pairs.

    None without a pair; 0 where every product is zero.
    """
    plain = {name: tensor for name, tensor in mean.items() if not name.startswith(PRODUCT)}
    averaged = {name.removeprefix(PRODUCT): tensor for name, tensor in mean.items() if name not in plain}
    if not averaged:
        return plain, None
    partner = dict(pairs(plain))
    apart = torch.stack([(product - plain[partner[a]] @ plain[a]).norm() for a, product in averaged.items()]).norm()
    size = torch.stack([product.norm() for product in averaged.values()]).norm()
    return plain, (apart / size).item() if size > 0 else 0.0
