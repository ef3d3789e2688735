"""How training fares, for whoever watches it: learning rate, size of the gradient, clips a second."""

import time
from typing import Any

import pytorch_lightning as pl
import torch


class Vitals(pl.Callback):
    """Sends `train/lr`, `train/gradient_norm` (L2 over all parameters, mean over the epoch's steps, before any
    clipping) and `train/clips_per_second` to the loggers at the end of every epoch.

    To the loggers alone: they are no result, and the speed differs from run to run.
    """

    def __init__(self) -> None:
        self._norms: list[torch.Tensor] = []
        self._rate = self._began = 0.0
        self._clips = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._norms, self._clips, self._began = [], 0, time.monotonic()

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Any) -> None:
        norms = [p.grad.detach().norm() for p in module.parameters() if p.grad is not None]
        self._norms.append(torch.stack(norms).norm())  # no .item(): it would wait for the device at every step
        self._rate = optimizer.param_groups[0]["lr"]  # here: at the end of the epoch it is the next one's already

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._clips += module.clips_in(batch) * trainer.world_size

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        measured = {
            "train/lr": self._rate,
            "train/gradient_norm": torch.stack(self._norms).mean().item(),
            "train/clips_per_second": self._clips / (time.monotonic() - self._began),
        }
        for logger in trainer.loggers:
            logger.log_metrics(measured, step=trainer.global_step - 1)
