"""What the log said after each epoch, kept in the checkpoint so that a resumed run still knows its best epoch."""

import math

import pytorch_lightning as pl

from datamodules.errors import InputError


class History(pl.Callback):
    """`epochs`: one dict of scalar metrics an epoch. A loss that is not finite ends the run in one line."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # Lightning keeps what was logged in earlier epochs: an epoch would repeat numbers that it has not measured.
        trainer.callback_metrics.clear()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if not math.isfinite(metrics.get("train/loss", 0.0)):
            raise InputError(
                f"the loss became {metrics['train/loss']} in epoch {trainer.current_epoch}: lower the learning rate"
            )
        self.epochs.append({"epoch": trainer.current_epoch} | metrics)

    def state_dict(self) -> dict:
        return {"epochs": list(self.epochs)}

    def load_state_dict(self, state_dict: dict) -> None:
        self.epochs = list(state_dict["epochs"])

    def last(self) -> dict[str, float]:
        """Metrics of the last epoch."""
        return self.epochs[-1] if self.epochs else {}

    def curves(self) -> dict[str, list[list[float]]]:
        """Metric -> [[epoch, value], ...] where it was measured, counted from 1, without what is not finite."""
        names = dict.fromkeys(name for epoch in self.epochs for name in epoch if name != "epoch")
        return {
            name: [[e["epoch"] + 1, e[name]] for e in self.epochs if name in e and math.isfinite(e[name])]
            for name in names
        }

    def best(self, name: str) -> float:
        """Largest value that `name` reached in any epoch: the field's habit, never our headline."""
        return max(epoch[name] for epoch in self.epochs if name in epoch)
