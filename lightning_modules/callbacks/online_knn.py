"""Nearest-neighbour accuracy while pre-training: whether the representation improves, before any probe is trained."""

import pytorch_lightning as pl
import torch
from torch import Tensor

from datamodules.batch import SkeletonBatch
from datamodules.randomness import generator
from datamodules.skeleton import SkeletonDataModule
from lightning_modules.base import SkeletonModule
from lightning_modules.evaluation.collapse import effective_rank, spread
from lightning_modules.evaluation.embedding import Embedding, embed, gathered
from lightning_modules.evaluation.knn import neighbours


class OnlineKNN(pl.Callback):
    """Logs `test/knn1` (cosine 1-NN, percent) every `every` epochs on at most `clips` clips of each side.

    Of the test side's embedding it also logs what falls when the representation collapses: `embedding/effective_rank`
    and `embedding/spread`. The clips are a fixed draw by `seed`, of which each process embeds its share; labels serve
    this display only. It leaves the module in train mode and draws nothing from torch's generators, so a run with it
    equals one without it.
    """

    def __init__(self, every: int = 5, clips: int = 2000, seed: int = 1):
        self.every, self.clips, self.seed = every, clips, seed

    def on_train_epoch_end(self, trainer: pl.Trainer, module: SkeletonModule) -> None:  # type: ignore[override]
        done = trainer.current_epoch + 1
        if done % self.every and done != trainer.max_epochs:
            return
        module.eval()
        train, test = (self._embed(trainer, module, side) for side in ("train", "test"))
        module.train()
        module.log("embedding/effective_rank", effective_rank(test.vectors))
        module.log("embedding/spread", spread(test.vectors))
        nearest = neighbours(train.vectors, test.vectors, 1, "cosine")[:, 0]
        module.log("test/knn1", 100 * (train.labels[nearest] == test.labels).float().mean().to(module.device))

    def _embed(self, trainer: pl.Trainer, module: SkeletonModule, side: str) -> Embedding:
        data: SkeletonDataModule = trainer.datamodule  # type: ignore[attr-defined]
        rows = data.rows[side]
        if len(rows) > self.clips:
            rows = rows[
                torch.randperm(len(rows), generator=generator(self.seed, 0))[: self.clips].sort().values.numpy()
            ]
        cast = trainer.strategy.precision_plugin.convert_input  # clips are float32, the module may not be

        def function(batch: SkeletonBatch) -> Tensor:
            return module.embed(cast(batch))

        own = embed(function, data.in_order(rows), module.device, f"online k-NN, {side}")
        return own if trainer.world_size == 1 else gathered(own, module.device)
