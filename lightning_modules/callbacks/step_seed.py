"""Torch's own random numbers (dropout) as a function of epoch and step."""

from typing import Any

import pytorch_lightning as pl
import torch

from datamodules.randomness import generator


class StepSeed(pl.Callback):
    """Seeds torch from (seed, epoch, step, rank) before every training step.

    A run resumed from the last epoch's checkpoint therefore replays the next one with the numbers of the
    uninterrupted run, with no generator state to store, and whoever else draws from torch (a loader making its
    iterator, a callback) changes nothing. Augmentations are drawn by `SkeletonModule.draw`.
    """

    _STREAM = 2**31  # apart from the views of `SkeletonModule.draw`

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        key = (self.seed, trainer.current_epoch, batch_idx, self._STREAM, trainer.global_rank)
        torch.manual_seed(generator(*key).initial_seed())
