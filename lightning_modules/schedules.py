"""Learning-rate schedules: the factor on the configured rate, by epoch."""

import math
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


@dataclass(frozen=True)
class WarmedCosine:
    """Within one fit, by step: linear warm-up over a share of the steps, then a cosine from 1 to `lowest` (FedMLLM: 1 %
    and 0). With lowest 1 the rate stays.

    The warm-up is rounded down: a client of fewer than 100 steps has none. released: it is rounded up and begins at
    rate 0, which idles the first step of every client in every round, the only one of the smallest.
    """

    warmup: float = 0.01
    lowest: float = 0.0
    released: bool = False

    def __call__(self, step: int, steps: int) -> float:
        rising = math.ceil(self.warmup * steps) if self.released else int(self.warmup * steps)
        if step < rising:
            return step / rising if self.released else (step + 1) / (rising + 1)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, steps - rising))))
        return self.lowest + (1 - self.lowest) * cosine
