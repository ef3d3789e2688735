"""How far the mean of LoRA products is from the product of the means: averages of A and of B are not that of BA."""

from collections.abc import Collection

import torch
from torch import Tensor

from federated.state import State, num_bytes

# What is kept of a round's clients for their gap; with more there is none. The factors of 32 clients at rank 8 on
# q, k, v, o of a model of 7 billion parameters fit.
MOST_BYTES = 1 << 30


def pairs(names: Collection[str]) -> list[tuple[str, str]]:
    """(A, B) names of every linear LoRA pair among canonical names."""
    found = [(name, name.replace("lora_A", "lora_B")) for name in names if name.endswith("lora_A.weight")]
    return [(a, b) for a, b in found if b in names]


def factors_of(state: State) -> State:
    """The tensors of all linear LoRA pairs of a state."""
    linear = [pair for pair in pairs(state) if state[pair[0]].ndim == 2]
    return {name: state[name] for pair in linear for name in pair}


class LoraGap:
    """The gap ||mean(BA) - mean(B) mean(A)|| / ||mean(BA)|| of a round, Frobenius over all pairs.

    Keeps the clients' factors, not their products: (K + 1) r columns stand for a matrix (out, in), and what is computed
    is exact but for rounding.
    """

    def __init__(self) -> None:
        self._factors: list[State] = []
        self._weights: list[float] = []

    @staticmethod
    def bytes_for(state: State, clients: int) -> int:
        """What is kept of so many clients that send states like this one; 0 without a pair."""
        return clients * num_bytes(factors_of(state))

    def add(self, state: State, weight: float) -> None:
        """Take in what a client sends, with its weight in the mean."""
        self._factors.append(factors_of(state))
        self._weights.append(weight)

    def of(self, mean: State) -> float | None:
        """mean: of the states taken in, by their weights. None without a pair; 0 where every product is zero."""
        if not self._factors or not self._factors[0]:
            return None
        norms = torch.stack([self._norms(a, b, mean) for a, b in pairs(self._factors[0])]).square().sum(0).sqrt()
        apart, size = norms.tolist()
        return apart / size if size > 0 else 0.0

    def _norms(self, a: str, b: str, mean: State) -> Tensor:
        """(2,) of one pair: ||mean(BA) - mean(B) mean(A)|| and ||mean(BA)||.

        mean(BA) = [w_1 B_1, ..., w_K B_K] [A_1; ...; A_K]; the difference has -mean(B) and mean(A) beside these.
        """
        total, weighted = sum(self._weights), zip(self._factors, self._weights, strict=True)
        outer = [state[b].double() * (weight / total) for state, weight in weighted]
        inner = [state[a].double().T for state in self._factors]
        left, right = _narrow([*outer, -mean[b].double()]), _narrow([*inner, mean[a].double().T])
        own = sum(state[a].shape[0] for state in self._factors)
        return torch.stack([(left @ right.T).norm(), (left[:, :own] @ right[:, :own].T).norm()])


def _narrow(columns: list[Tensor]) -> Tensor:
    """Columns (n, c) side by side with as few rows as keep all norms of their combinations: R of QR where c < n."""
    matrix = torch.cat(columns, dim=1)
    return matrix if matrix.shape[1] >= matrix.shape[0] else torch.linalg.qr(matrix, mode="r").R
