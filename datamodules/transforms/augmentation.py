"""What every augmentation of clips of one length (N, C, T, V, M) shares: each clip has its own numbers and luck."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.precision import in_float32
from datamodules.transfer import sent

BITS = {4: torch.int32, 8: torch.int64}  # whole numbers as wide as a coordinate


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Changes each clip with `probability`; subclasses say by which numbers (`numbers`) and how (`change`)."""

    probability: float = 0.5

    def numbers(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """What is drawn for n clips, each tensor (n, ...): every clip has numbers of its own."""
        raise NotImplementedError

    def change(self, joints: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """joints (N, C, T, V, M), all changed by the numbers drawn for them; the given ones stay as they are."""
        raise NotImplementedError

    def draw(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`applied` (n,) bool and the augmentation's own numbers, drawn whether or not they will be used."""
        applied = torch.rand(n, generator=generator) < self.probability
        return {"applied": applied} | self.numbers(n, generator)

    @in_float32
    def apply(self, joints: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """joints (N, C, T, V, M), changed where `applied`; the given ones stay as they are."""
        return self.applied(joints, drawn, owned=False)

    def applied(self, joints: Tensor, drawn: dict[str, Tensor], owned: bool) -> Tensor:
        """What `apply` gives of joints no narrower than float32; in place if they are `owned`, which spares a copy."""
        rows = drawn["applied"].nonzero()[:, 0]  # where the numbers were drawn, on the CPU: no wait for a GPU
        if len(rows) == 0:
            return joints
        numbers = sent({name: value[rows] for name, value in drawn.items()}, joints.device)
        if len(rows) == len(joints):
            return self.change(joints, numbers)
        rows = sent(rows, joints.device)
        changed = self.change(joints.index_select(0, rows), numbers)
        return _put(joints if owned else joints.clone(), rows, changed)


def _put(joints: Tensor, rows: Tensor, changed: Tensor) -> Tensor:
    """Clips `rows` of joints become `changed`, in place."""
    wide = 16 // joints.element_size()
    if joints.requires_grad or changed.requires_grad or joints[0].numel() % wide or not joints.is_contiguous():
        return joints.index_copy_(0, rows, changed)
    # Number by number that takes three times as long as in pieces of 16 bytes.
    pieces, given = (whole.reshape(len(whole), -1).view(torch.complex128) for whole in (joints, changed))
    pieces.index_copy_(0, rows, given)
    return joints


@dataclass(frozen=True, kw_only=True)
class Mask(Augmentation):
    """Zeros some numbers of each clip; subclasses say which (`hidden`)."""

    def hidden(self, joints: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """Where joints (N, C, T, V, M) become 0: bool, (N, C, T, V * M) or 1 along an axis that does not matter."""
        raise NotImplementedError

    def change(self, joints: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """joints (N, C, T, V, M) with zeros where they are hidden."""
        return torch.where(self.hidden(joints, drawn), 0, joints.flatten(3)).view_as(joints)

    def applied(self, joints: Tensor, drawn: dict[str, Tensor], owned: bool) -> Tensor:
        """As `Augmentation.applied`; owned joints lose the hidden numbers in place."""
        if not owned or joints.requires_grad or not joints.is_contiguous():
            return super().applied(joints, drawn, owned)
        drawn = sent(drawn, joints.device)
        hidden = self.hidden(joints, drawn) & drawn["applied"][:, None, None, None]
        # One pass in place, a fifth of the time of choosing rows, masking and putting them back: no bit is left.
        bits = BITS[joints.element_size()]
        joints.flatten(3).view(bits).bitwise_and_(torch.where(hidden, 0, -1).to(bits))
        return joints


@dataclass(frozen=True)
class Compose:
    """Augmentations one after the other."""

    augmentations: Sequence[Augmentation]

    def draw(self, n: int, generator: torch.Generator) -> tuple[dict[str, Tensor], ...]:
        """What each augmentation draws."""
        return tuple(augmentation.draw(n, generator) for augmentation in self.augmentations)

    @in_float32
    def apply(self, joints: Tensor, drawn: tuple[dict[str, Tensor], ...], owned: bool = False) -> Tensor:
        """joints after all of them; the given ones may be changed if they are `owned`: nobody else holds them."""
        given = joints
        for augmentation, numbers in zip(self.augmentations, drawn, strict=True):
            joints = augmentation.applied(joints, numbers, owned=owned or joints is not given)
        return joints
