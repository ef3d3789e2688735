"""What is exchanged: a module's trained parameters and floating buffers <-> tensors by canonical name."""

import re
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from datamodules.errors import InputError
from federated.state import State


class NotFiniteError(InputError):
    """A tensor holds NaN or infinity."""


def canonical(name: str) -> str:
    """A parameter's name without PEFT's adapter name, a local matter: `lora_A.default.weight` -> `lora_A.weight`."""
    return re.sub(r"\b(lora_[AB])\.[^.]+(\.(?:weight|bias))$|\b(lora_embedding_[AB])\.[^.]+$", r"\1\2\3", name)


def _check_finite(state: State) -> None:
    # Float64 sums carry every NaN and infinity ten times faster than a look at each number; they only raise suspicion.
    sums = [tensor.sum(dtype=torch.float64) for tensor in state.values()]
    if not sums or torch.stack(sums).isfinite().all():
        return
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise NotFiniteError(f"federation: expected finite numbers in '{name}', found NaN or infinity")


class Adapter:
    """Reads and writes the exchanged tensors of one resident module, in place.

    carry: beginnings of names of parameters that are not trained by gradient but change in training (a key encoder);
    they are exchanged as buffers are.
    local_buffers: floating buffers (batch-norm statistics) stay with their client instead of being averaged.

    trained, carried, buffers (carried among them), names: canonical names, sorted. Raises InputError where nothing
    is trained or `carry` names nothing.
    """

    def __init__(
        self,
        module: nn.Module,
        carry: Sequence[str] = (),
        local_buffers: bool = False,
    ):
        self.module = module
        parameters = dict(module.named_parameters())
        buffers = self._persistent_buffers()
        trained = [name for name, tensor in parameters.items() if tensor.requires_grad]
        carried = [name for name in parameters if name.startswith(tuple(carry)) and name not in trained]
        floating = [name for name, tensor in buffers.items() if tensor.is_floating_point()]
        self._check_choice(trained, carried, carry)
        exchanged = trained + carried + floating
        # The owner and its attribute, not the tensor: moving a module to a device replaces its buffers.
        self._owner = {canonical(name): self._locate(name) for name in exchanged}
        if len(self._owner) < len(exchanged):
            raise InputError("federation: expected one LoRA adapter a layer, found several; merge or remove the others")
        self.names = sorted(self._owner)
        self.trained = frozenset(map(canonical, trained))
        self.carried = frozenset(map(canonical, carried))
        self.buffers = self.carried | frozenset(map(canonical, floating))
        self.local = frozenset(map(canonical, floating)) if local_buffers else frozenset()
        self._frozen = {name: self._locate(name) for name in parameters if name not in {*trained, *carried}}
        # Integer buffers (counters, queue pointers) cannot be averaged: every client starts with the first ones.
        self._counters = {name: t.clone() for name, t in buffers.items() if not t.is_floating_point()}
        self._spec = {name: (tensor.shape, tensor.dtype) for name, tensor in self.live().items()}
        self._versions: dict[str, tuple[int, int]] = {}

    def extract(self) -> State:
        """Copies of the exchanged tensors on the CPU, in the order of their names."""
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in self.live().items()}

    def load(self, state: State) -> None:
        """Make the module continue from `state`: a client switch. Raises InputError as `validate` does."""
        self.validate(state)
        with torch.no_grad():
            for name, tensor in self.live().items():
                tensor.copy_(state[name])
            for name, counter in self._counters.items():
                self.module.get_buffer(name).copy_(counter)
        self._versions = self._frozen_versions()

    def check_frozen(self) -> None:
        """Raises InputError if a parameter that is neither trained nor carried was changed since `load`.

        Such a change would leak from one client into the next, and no ledger would hold it. Torch counts in-place
        changes of a tensor, so this costs nothing; a tensor replaced by another (moved between devices) is passed over.
        """
        for name, (identity, version) in self._frozen_versions().items():
            before, changes = self._versions.get(name, (identity, version))
            if before == identity and changes != version:
                raise InputError(
                    f"federation: expected the frozen parameter '{name}' to stay as it was, found it changed in "
                    "training; name its beginning in the adapter's `carry`"
                )

    def parameters(self) -> dict[str, Tensor]:
        """The live trained parameters by canonical name."""
        return {name: tensor for name, tensor in self.live().items() if name in self.trained}

    def validate(self, state: State, names: Collection[str] | None = None) -> None:
        """Raises InputError unless `state` holds exactly `names` (None: all), of their shapes and types and finite."""
        expected = set(self.names if names is None else names)
        if missing := sorted(expected - set(state)):
            raise InputError(f"federation: expected tensor '{missing[0]}', found it missing ({len(missing)} in all)")
        if strange := sorted(set(state) - expected):
            told = f"federation: expected no tensor '{strange[0]}' ({len(strange)} too many)"
            raise InputError(f"{told}; train the same model everywhere")
        for name in sorted(expected):
            found, (shape, dtype) = state[name], self._spec[name]
            if found.shape != shape or found.dtype != dtype:
                raise InputError(
                    f"federation: expected '{name}' as {tuple(shape)} {dtype}, found {tuple(found.shape)} "
                    f"{found.dtype}; train the same model everywhere"
                )
        _check_finite(state)

    def _locate(self, name: str) -> tuple[nn.Module, str]:
        path, _, attribute = name.rpartition(".")
        return self.module.get_submodule(path), attribute

    def live(self) -> State:
        """The exchanged tensors themselves, by name."""
        return {name: getattr(*self._owner[name]) for name in self.names}

    def _persistent_buffers(self) -> State:
        saved = self.module.state_dict().keys()
        return {name: tensor for name, tensor in self.module.named_buffers() if name in saved}

    def _frozen_versions(self) -> dict[str, tuple[int, int]]:
        tensors = {name: getattr(*place) for name, place in self._frozen.items()}
        return {name: (id(tensor), tensor._version) for name, tensor in tensors.items()}

    @staticmethod
    def _check_choice(trained: list[str], carried: list[str], carry: Sequence[str]) -> None:
        if not trained:
            raise InputError("federation: expected parameters that require gradients, found none; unfreeze some")
        for beginning in carry:
            if not any(name.startswith(beginning) for name in carried):
                raise InputError(f"federation: expected frozen parameters that begin with '{beginning}', found none")
