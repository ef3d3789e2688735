"""SkeletonCLR and AimCLR with a small ST-GCN."""

from functools import partial

import torch
import torch.nn.functional as F

from datamodules.batch import SkeletonBatch
from datamodules.transforms.views import ResizedView
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


def with_near_keys(module: SkeletonCLR) -> SkeletonCLR:
    """In float64, with a queue of keys like those of clips: untrained ones lie together, far from random directions."""
    module = module.double().eval()
    clip = torch.randn(1, 3, FRAMES, 25, BODIES, dtype=torch.float64)
    key = module.encoders.key(clip)
    module.queue.keys.copy_(F.normalize(key.T + 0.2 * torch.randn_like(module.queue.keys), dim=0))
    return module


def double(batch: SkeletonBatch) -> SkeletonBatch:
    return batch._replace(joints=batch.joints.double())
