"""Learning-rate schedules: the factor on the configured rate, by epoch."""

from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class StepDecay:
    """Linear warm-up over `warmup` epochs, then `factor` at every milestone passed.

    SDS-CL and PSP: (e + 1) / 5 for e < 5, then x .1 at their milestones; A2MC and SCD-Net: no warm-up.
    """

    milestones: tuple[int, ...] = ()
    factor: float = 0.1
    warmup: int = 0

    def __call__(self, epoch: int) -> float:
        if epoch < self.warmup:
            return (epoch + 1) / self.warmup
        return self.factor ** sum(epoch >= milestone for milestone in self.milestones)


@dataclass(frozen=True)
class Constant:
    """The configured rate throughout."""

    def __call__(self, epoch: int) -> float:
        return 1.0
