"""What travels between server and clients: tensors by canonical name."""

from collections.abc import Iterable

from torch import Tensor

State = dict[str, Tensor]


def num_bytes(state: State) -> int:
    """Bytes of all tensors, as they would cross a network without compression."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def distance(left: State, right: State, names: Iterable[str]) -> float:
    """L2 norm of the difference of the tensors called `names`, summed in float64."""
    squares = [(left[name].double() - right[name].double()).square().sum().item() for name in names]
    return float(sum(squares)) ** 0.5
