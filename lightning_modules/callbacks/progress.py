"""Progress: rich bars in a terminal, one line an epoch where the output is a file or a pipe."""

import sys
import time
from collections.abc import Iterable
from typing import Any, TypeVar

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.utilities import rank_zero_only
from rich.progress import track

Item = TypeVar("Item")


def shown(items: Iterable[Item], title: str) -> Iterable[Item]:
    """The items, with a bar that vanishes at the end if the output is a terminal and this the first process."""
    bar = sys.stdout.isatty() and rank_zero_only.rank == 0  # type: ignore[attr-defined]
    return track(items, description=title, transient=True) if bar else items


class Clock:
    """How far training has come since `start`."""

    def start(self, trainer: pl.Trainer) -> None:
        self._began, self._first = time.monotonic(), trainer.current_epoch

    def told(self, trainer: pl.Trainer) -> dict[str, str]:
        """At an epoch's end, what was logged in it by its short name, and the seconds left."""
        done = trainer.current_epoch + 1
        left = (time.monotonic() - self._began) / (done - self._first) * ((trainer.max_epochs or 0) - done)
        metrics = {name.split("/")[-1]: f"{float(value):.3f}" for name, value in trainer.callback_metrics.items()}
        return metrics | {"left": f"{left:.0f} s"}


class EpochLines(pl.Callback):
    """Prints epoch, logged metrics and the time left, at most once every `seconds`, the last epoch always."""

    def __init__(self, title: str, seconds: float = 10.0):
        self.title, self.seconds = title, seconds
        self._clock, self._printed = Clock(), 0.0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._clock.start(trainer)
        self._printed = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        now, done, total = time.monotonic(), trainer.current_epoch + 1, trainer.max_epochs or 0
        if not trainer.is_global_zero or (now - self._printed < self.seconds and done < total):
            return
        self._printed = now
        told = self._clock.told(trainer)
        left = told.pop("left")
        metrics = "  ".join(f"{name} {value}" for name, value in told.items())
        print(f"{self.title}: epoch {done}/{total}  {metrics}  {left} left", flush=True)


class EpochBars(RichProgressBar):
    """A bar an epoch, and beside it what the last epoch logged and the time left to the end of training."""

    def __init__(self, title: str):
        super().__init__(leave=False)
        self._title, self._clock = title, Clock()
        self._told: dict[str, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._clock.start(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._told = self._clock.told(trainer)
        super().on_train_epoch_end(trainer, pl_module)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Of the last epoch."""
        return self._told

    def _get_train_description(self, current_epoch: int) -> str:
        return f"{self._title}: epoch {current_epoch + 1}/{self.trainer.max_epochs}"


def progress(title: str) -> pl.Callback:
    """The progress display for where we run."""
    return EpochBars(title) if sys.stdout.isatty() else EpochLines(title)
