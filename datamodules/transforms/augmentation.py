"""What every augmentation of clips of one length (N, C, T, V, M) shares: each clip has its own numbers and luck."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.precision import in_float32


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
    def apply(self, joints: Tensor, drawn: dict[str, Tensor], owned: bool = False) -> Tensor:
        """joints (N, C, T, V, M), changed where `applied`; in place if they are `owned`, which spares a copy."""
        rows = drawn["applied"].nonzero()[:, 0]  # where the numbers were drawn, on the CPU: no wait for a GPU
        if len(rows) == 0:
            return joints
        numbers = {name: value[rows].to(joints.device) for name, value in drawn.items()}
        if len(rows) == len(joints):
            return self.change(joints, numbers)
        rows = rows.to(joints.device)
        changed = self.change(joints.index_select(0, rows), numbers)
        return (joints if owned else joints.clone()).index_copy_(0, rows, changed)


@dataclass(frozen=True)
class Compose:
    """Augmentations one after the other."""

    augmentations: Sequence[Augmentation]

    def draw(self, n: int, generator: torch.Generator) -> tuple[dict[str, Tensor], ...]:
        """What each augmentation draws."""
        return tuple(augmentation.draw(n, generator) for augmentation in self.augmentations)

    def apply(self, joints: Tensor, drawn: tuple[dict[str, Tensor], ...]) -> Tensor:
        given = joints
        for augmentation, numbers in zip(self.augmentations, drawn, strict=True):
            joints = augmentation.apply(joints, numbers, owned=joints is not given)
        return joints
