"""How tensors travel between server and clients: exactly, in bfloat16, or in eight bits.

Only trained parameters are squeezed. Buffers (a variance must not become negative) and what stays with a client travel
as they are. A client answers with its change of what it received, so that what is rounded off is a share of the change
and not of the weights, and the server's own state is never rounded.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.errors import InputError
from federated.state import State

SCALE = "/scale"


@dataclass(frozen=True)
class Exact:
    """States travel bit by bit, the client's whole."""

    def pack(self, state: State, names: Collection[str]) -> State:
        """What is sent instead of `state`, whose trained parameters are `names`."""
        return state

    def unpack(self, packed: State, like: State) -> State:
        """The state that `pack` was given, as far as it can be told; like: tensors of its shapes and types.

        Raises InputError for what no `pack` gives.
        """
        return packed

    def answer(self, state: State, begin: State, names: Collection[str]) -> State:
        """What a client sends that received `begin` and has come to `state`."""
        return state

    def result(self, packed: State, sent: State) -> State:
        """The client's state, of its answer and the unrounded state that was sent. Raises InputError as `unpack`."""
        return packed


class Squeezed(Exact):
    """Base of the transports that round."""

    def squeezed(self, name: str, tensor: Tensor) -> State:
        """What travels of a tensor: itself, rounded, and whatever undoes that, by names that begin with its own."""
        raise NotImplementedError

    def restored(self, name: str, packed: State, like: Tensor) -> Tensor:
        """The tensor that `squeezed` rounded, in the shape and type of `like`."""
        raise NotImplementedError

    def pack(self, state: State, names: Collection[str]) -> State:
        """The state with the tensors `names` rounded."""
        packed: State = {}
        for name, tensor in state.items():
            packed |= self.squeezed(name, tensor) if name in names else {name: tensor}
        return packed

    def unpack(self, packed: State, like: State) -> State:
        """The state with what travelled rounded restored; raises InputError for what no `pack` gives."""
        restored = dict(packed)
        for name in rounded(packed, like):
            restored[name] = self.restored(name, packed, like[name])
            restored.pop(name + SCALE, None)
        return restored

    def answer(self, state: State, begin: State, names: Collection[str]) -> State:
        """Changes of the tensors `names`, rounded, and the other tensors as they are."""
        moved = {name: state[name] - begin[name] if name in names else state[name] for name in state}
        return self.pack(moved, names)

    def result(self, packed: State, sent: State) -> State:
        """The unrounded state that was sent plus the changes; raises InputError as `unpack` does."""
        moved = self.unpack(packed, sent)
        return moved | {name: sent[name] + moved[name] for name in rounded(packed, sent)}


@dataclass(frozen=True)
class Bfloat16(Squeezed):
    """Half of the bytes; a number is at most 1/256 of itself away."""

    def squeezed(self, name: str, tensor: Tensor) -> State:
        """The tensor in bfloat16."""
        return {name: tensor.bfloat16()}

    def restored(self, name: str, packed: State, like: Tensor) -> Tensor:
        """The tensor in the type of `like`; raises InputError for another shape or type."""
        _expect(name, packed, torch.bfloat16, like)
        return packed[name].to(like.dtype)


@dataclass(frozen=True)
class Int8(Squeezed):
    """A quarter of the bytes and a scale a row; a number is at most 1/254 of its row's largest away.

    A row is what the first axis counts; a vector is one row. Steps are of row maximum / 127, to the nearest.
    """

    def squeezed(self, name: str, tensor: Tensor) -> State:
        """The tensor in int8 and, by its name + SCALE, a float32 scale a row."""
        rows = tensor.reshape(_rows(tensor), -1).float()
        scale = rows.abs().amax(1, keepdim=True) / 127
        steps = torch.where(scale > 0, rows / scale, 0).round()
        return {name: steps.to(torch.int8).reshape(tensor.shape), name + SCALE: scale[:, 0].contiguous()}

    def restored(self, name: str, packed: State, like: Tensor) -> Tensor:
        """Rows times their scales; raises InputError for another shape or type, or without a scale a row."""
        _expect(name, packed, torch.int8, like)
        scale = packed.get(name + SCALE)
        if scale is None or scale.shape != (_rows(like),) or scale.dtype != torch.float32:
            found = "none" if scale is None else f"{tuple(scale.shape)} {scale.dtype}"
            raise InputError(f"federation: expected {_rows(like)} float32 scales of '{name}', found {found}")
        rows = packed[name].reshape(_rows(like), -1).to(like.dtype)
        return (rows * scale[:, None].to(like.dtype)).reshape(like.shape)


def rounded(packed: State, like: State) -> list[str]:
    """Names that travel in another type than they have."""
    return [name for name in packed if name in like and packed[name].dtype != like[name].dtype]


def _rows(tensor: Tensor) -> int:
    return tensor.shape[0] if tensor.ndim > 1 else 1


def _expect(name: str, packed: State, dtype: torch.dtype, like: Tensor) -> None:
    found = packed[name]
    if found.dtype != dtype or found.shape != like.shape:
        told = f"expected '{name}' as {tuple(like.shape)} {dtype}, found {tuple(found.shape)} {found.dtype}"
        raise InputError(f"federation: {told}; set the same federated.transport everywhere")


TRANSPORTS: dict[str, Exact] = {"exact": Exact(), "bf16": Bfloat16(), "int8": Int8()}


def transport(name: str) -> Exact:
    """The transport called `name`; raises InputError for an unknown one."""
    if name not in TRANSPORTS:
        raise InputError(f"federated.transport: expected one of {', '.join(TRANSPORTS)}, found {name!r}")
    return TRANSPORTS[name]
