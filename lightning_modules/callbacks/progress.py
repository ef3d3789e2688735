"""Progress: rich bars in a terminal, one line an epoch where the output is a file or a pipe."""

import sys
import time
from collections.abc import Iterable
from typing import TypeVar

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.utilities import rank_zero_only
from rich.progress import track

Item = TypeVar("Item")


def shown(items: Iterable[Item], title: str) -> Iterable[Item]:
    """The items, with a bar that vanishes at the end if the output is a terminal and this the first process."""
    bar = sys.stdout.isatty() and rank_zero_only.rank == 0  # type: ignore[attr-defined]
    return track(items, description=title, transient=True) if bar else items


class EpochLines(pl.Callback):
    """Prints epoch, logged metrics and the time left, at most once every `seconds`, the last epoch always."""

    def __init__(self, title: str, seconds: float = 10.0):
        self.title, self.seconds = title, seconds
        self._start = self._printed = 0.0
        self._first = 0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._start = self._printed = time.monotonic()
        self._first = trainer.current_epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        now, done, total = time.monotonic(), trainer.current_epoch + 1, trainer.max_epochs or 0
        if not trainer.is_global_zero or (now - self._printed < self.seconds and done < total):
            return
        self._printed = now
        left = (now - self._start) / (done - self._first) * (total - done)
        metrics = "  ".join(
            f"{name.split('/')[-1]} {float(value):.3f}" for name, value in trainer.callback_metrics.items()
        )
        print(f"{self.title}: epoch {done}/{total}  {metrics}  {left:.0f} s left", flush=True)


def progress(title: str) -> pl.Callback:
    """The progress display for where we run."""
    return RichProgressBar(leave=False) if sys.stdout.isatty() else EpochLines(title)
