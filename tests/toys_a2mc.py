"""A2MC and SCD-Net on the smallest of encoders, clips for them, and a training step by hand."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from datamodules.batch import SkeletonBatch
from datamodules.topology import TOPOLOGIES
from datamodules.transforms.views import CroppedView
from lightning_modules.a2mc import A2MC
from lightning_modules.contrast.attack import Attack
from lightning_modules.contrast.cross_level import PAIRS
from lightning_modules.contrast.mixer import LinearMixer, SoftmaxMixer
from lightning_modules.scd_net import SCDNet
from lightning_modules.schedules import Constant

BODIES = 2
TERMS = [f"{source}_{target}" for source, target in PAIRS]
RELEASED = {
    "attacks": lambda topology: [Attack(topology)],
    "mixer": lambda _: LinearMixer(),
    "learnt_head": lambda _: False,
    "label_pass": lambda _: True,
    "aliased_bank": lambda _: True,
}
OURS = {
    "attacks": lambda topology: [Attack(topology, 1, 1e-3), Attack(topology, 2, 1e-3)],
    "mixer": lambda _: SoftmaxMixer(),
}


class TwoBranches(nn.Module):
    """What the methods ask of an encoder: two branches, batch norm, dropout."""

    token_width = 8

    def __init__(self, joints: int, dropout: float):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(dropout)
        self.temporal, self.spatial = (nn.Linear(3 * 16 * joints * BODIES, self.token_width) for _ in range(2))

    def tokens(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.norm(x.flatten(3)).tanh().flatten(1)
        return x, x

    def pooled(self, temporal: torch.Tensor, spatial: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        dropped = self.drop(temporal)
        return self.temporal(dropped), self.spatial(dropped)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.pooled(*self.tokens(x))


def parts(topology: str, stream: str = "joint", dropout: float = 0.0) -> dict:
    return {
        "encoder": TwoBranches(TOPOLOGIES[topology].num_joints, dropout),
        "view": CroppedView(topology, stream, frames=16),
        "optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        "schedule": Constant(),
        "seed": 3,
        "dim": 6,
        "memory_size": 10,
    }


def a2mc(preset: dict = OURS, topology: str = "ntu25", stream: str = "joint", dropout: float = 0.0, **settings) -> A2MC:
    torch.manual_seed(1)
    switches = {name: make(topology) for name, make in preset.items()}
    return A2MC(**({"labels": 5} | parts(topology, stream, dropout) | switches | settings))


def scd_net(topology: str = "ntu25", **settings) -> SCDNet:
    torch.manual_seed(1)
    return SCDNet(**(parts(topology) | settings))


def clips(n: int = 4, frames: int = 30, joints: int = 25, seed: int = 0) -> SkeletonBatch:
    source = torch.Generator().manual_seed(seed)
    return SkeletonBatch(
        joints=torch.randn(n, 3, frames, joints, BODIES, generator=source),
        num_frames=torch.randint(10, frames + 1, (n,), generator=source),
        labels=torch.full((n,), -1),
        ids=torch.arange(n),
    )


def step(module, optimizer, batch: SkeletonBatch, number: int) -> dict[str, torch.Tensor]:
    """One training step by hand, at step `number`, as the base class does it."""
    torch.manual_seed(number)
    module.train().place.step = number
    outputs = module.objective(batch)
    optimizer.zero_grad()
    torch.stack([value for value in outputs.values() if value.ndim == 0]).sum().backward()
    optimizer.step()
    with torch.no_grad():
        module.after_step({name: value.detach() for name, value in outputs.items() if value.ndim})
    return outputs


def train(module, steps: range, n: int = 4):
    optimizer = module.configure_optimizers()["optimizer"]
    for number in steps:
        step(module, optimizer, clips(n, seed=number), number)
    return optimizer


def full(module: A2MC) -> A2MC:
    """With banks that hold unit keys and are past their warm-up."""
    for bank in module.banks.values():
        bank.weight.copy_(F.normalize(torch.randn(bank.weight.shape), dim=0))
    module.filled.fill_(module.memory_size)
    return module


def terms_of(outputs: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, value in outputs.items() if value.ndim == 0]
