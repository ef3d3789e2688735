"""SkeletonCLR and AimCLR with a small ST-GCN."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from datamodules.batch import SkeletonBatch
from datamodules.transforms.views import ExtremeView, ResizedView
from lightning_modules.aim_clr import AimCLR
from lightning_modules.encoders.st_gcn import STGCN
from lightning_modules.schedules import Constant
from lightning_modules.skeleton_clr import SkeletonCLR

BODIES = 2
FRAMES = 12


def parts(topology: str, stream: str, dropout: float) -> dict:
    return {
        "encoder": STGCN(topology, width=4, out_channels=8, dropout=dropout),
        "view": ResizedView(topology, stream, FRAMES),
        "optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        "schedule": Constant(),
        "seed": 3,
        "dim": 6,
        "memory_size": 10,
    }


def skeleton_clr(topology: str = "ntu25", stream: str = "joint", dropout: float = 0.0, **settings) -> SkeletonCLR:
    torch.manual_seed(1)
    return SkeletonCLR(**(parts(topology, stream, dropout) | settings))


def aim_clr(topology: str = "ntu25", stream: str = "joint", dropout: float = 0.0, **settings) -> AimCLR:
    """Its mining begins at epoch 1."""
    torch.manual_seed(1)
    extreme = ExtremeView(topology, BODIES, stream, FRAMES)
    return AimCLR(**(parts(topology, stream, dropout) | {"extreme": extreme, "mine_from": 1} | settings))


def with_near_keys(module):
    """In float64 and eval mode, with weights that tell clips apart, and a queue of keys that lie near those of clips.

    As it starts, with N(0, .02) and no statistics yet, the network gives every clip nearly the same vector.
    """
    module = module.double().eval()
    for layer in module.encoders.query.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    module.encoders.reset()
    keys = module.encoders.key(torch.randn(10, 3, FRAMES, 25, BODIES, dtype=torch.float64))
    module.queue.keys.copy_(F.normalize(keys.T + 0.1 * torch.randn_like(keys.T), dim=0))
    return module


def double(batch: SkeletonBatch) -> SkeletonBatch:
    return batch._replace(joints=batch.joints.double())
