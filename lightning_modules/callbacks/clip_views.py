"""Clips as training sees them, for the eye: as they are, augmented, attacked."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch

from datamodules.batch import SkeletonBatch
from datamodules.skeleton import SkeletonDataModule
from lightning_modules.base import SkeletonModule

Draw = Callable[[Mapping[str, np.ndarray], Path], None]


class ClipViews(pl.Callback):
    """Every `every` epochs a GIF of the first training clips goes to the loggers that show videos, to W&B.

    draw: writes views (C, T, V, M) by name to a path. folder: where the files are kept. clips: how many.
    It leaves the module in train mode and draws nothing from torch's generators: the views are those of the step
    after the epoch's last, a function of the place alone.
    """

    def __init__(self, every: int, draw: Draw, folder: Path, clips: int = 2):
        self.every, self.draw, self.folder, self.clips = every, draw, folder, clips

    def on_train_epoch_end(self, trainer: pl.Trainer, module: SkeletonModule) -> None:  # type: ignore[override]
        done = trainer.current_epoch + 1
        showing = [logger for logger in trainer.loggers if hasattr(logger, "log_video")]
        if not showing or not trainer.is_global_zero or (done % self.every and done != trainer.max_epochs):
            return
        data: SkeletonDataModule = trainer.datamodule  # type: ignore[attr-defined]
        (batch,) = data.in_order(data.rows["train"][: min(self.clips, data.eval_batch_size)])
        views = views_of(module, SkeletonBatch(*(part.to(module.device) for part in batch)))
        for number, name in enumerate(data.store.index.names[batch.ids.numpy()]):
            path = self.folder / f"{name}-epoch{done}.gif"
            self.draw({title: view[number].cpu().numpy() for title, view in views.items()}, path)
            for logger in showing:
                logger.log_video(f"clips/{number}", [str(path)], step=trainer.global_step - 1, caption=[str(name)])


def views_of(module: SkeletonModule, batch: SkeletonBatch) -> dict[str, torch.Tensor]:
    """(N, C, T, V, M) by name; the module is in train mode before and after."""
    with torch.no_grad():
        views = {f"augmented: {name}": view for name, view in module.augmented(batch).items()}
        module.eval()
        views = {"clip": module.shown(batch)} | views
        views |= {f"attacked: {name}": twin for name, twin in module.attacked_twins(batch).items()}
        module.train()
    return views
