"""What travels between server and clients: tensors by canonical name."""

from torch import Tensor

State = dict[str, Tensor]


def num_bytes(state: State) -> int:
    """Bytes of all tensors, as they would cross a network without compression."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())
