"""Small stand-ins: a store of random clips that a test can afford, and a method with the simplest of encoders."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.batch import SkeletonBatch
from datamodules.skeleton import SkeletonDataModule
from datamodules.store import StoreIndex, read_manifest, write_store
from datamodules.transforms.temporal import SampleFrames
from lightning_modules.base import SkeletonModule
from lightning_modules.losses.nt_xent import nt_xent
from lightning_modules.schedules import StepDecay


def write_toy_stores(folder: Path, clips: int = 48, classes: int = 3, seed: int = 0) -> Path:
    """A raw and a `dsta` store of random NTU clips; the class shifts the first axis, performers and cameras vary."""
    rng = np.random.default_rng(seed)
    labels = np.arange(clips) % classes
    frames, bodies = rng.integers(6, 15, clips), rng.integers(1, 3, clips)
    data = [
        rng.normal(size=(t, m, 25, 3)).astype(np.float32) + np.array([label, 0, 0], dtype=np.float32)
        for t, m, label in zip(frames, bodies, labels, strict=True)
    ]
    sizes = np.array([clip.size for clip in data])
    index = StoreIndex(
        names=np.array([f"clip{row:04d}" for row in range(clips)]),
        offsets=np.cumsum(sizes) - sizes,
        frames=frames,
        bodies=bodies,
        labels=labels,
        performers=np.where(np.arange(clips) // classes % 3 < 2, 1, 3),  # 1 trains, 3 tests in ntu60_xsub
        cameras=np.arange(clips) % 3 + 1,
        setups=np.ones(clips, dtype=np.int64),
        replications=np.ones(clips, dtype=np.int64),
    )
    facts = {"dataset": "toy", "miniature": True, "topology": "ntu25", "axes": 3}
    ids = [np.zeros(t * m, dtype=np.int64) for t, m in zip(frames, bodies, strict=True)]
    flat = [clip.ravel() for clip in data]
    write_store(folder / "raw", index, flat, ids, facts | {"recipe": None, "raw_digest": None})
    digest = read_manifest(folder / "raw")["digest"]
    write_store(folder / "dsta", index, flat, None, facts | {"recipe": "dsta", "raw_digest": digest})
    return folder


def toy_data(folder: Path, **kwargs) -> SkeletonDataModule:
    """Cross-subject batches of the toy store."""
    return SkeletonDataModule(folder, "dsta", "ntu60_xsub", **({"batch_size": 8, "seed": 3} | kwargs))


class ToyMethod(SkeletonModule):
    """Two random samplings of a clip are each other's positive; the encoder is a linear layer with dropout."""

    feature_width = 16

    def __init__(self, seed: int = 3, lr: float = 0.1):
        super().__init__(partial(torch.optim.SGD, lr=lr, momentum=0.9), StepDecay((2,)), seed)
        self.sampling = SampleFrames(4, 20)
        self.encoder = nn.Sequential(nn.Linear(3 * 4 * 25 * 2, 16), nn.Dropout(0.2))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def _view(self, batch: SkeletonBatch, view: int) -> Tensor:
        drawn = self.draw(self.sampling, len(batch.labels), view) if self.training else None
        return self.encoder(self.sampling.apply(batch.joints, drawn, batch.num_frames).flatten(1))

    def objective(self, batch: SkeletonBatch) -> dict[str, Tensor]:
        first, second = self._view(batch, 0), self._view(batch, 1)
        return {"contrast": nt_xent(first, second, 0.2), "keys": second}

    def features(self, batch: SkeletonBatch) -> Tensor:
        return self._view(batch, 0)[:, None]

    def after_step(self, outputs: dict[str, Tensor]) -> None:
        assert not outputs["keys"].requires_grad
        self.steps += 1
