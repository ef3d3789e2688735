"""One way to train: a Lightning Trainer that resumes from the run's last epoch and replays the next one exactly."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar

from lightning_modules.callbacks.history import History
from lightning_modules.callbacks.progress import progress
from lightning_modules.callbacks.step_seed import StepSeed

CHECKPOINT = "last.ckpt"
# What Lightning says of things that are meant to be so here.
EXPECTED = (".*does not have many workers.*", ".*no `validation_step`.*", ".*exists and is not empty.*", ".*LeafSpec.*")


def fit(
    module: pl.LightningModule,
    datamodule: pl.LightningDataModule,
    folder: Path,
    trainer: dict,
    seed: int,
    title: str,
    loggers: list | bool = False,
    callbacks: Sequence[pl.Callback] = (),
) -> History:
    """Train until `trainer["max_epochs"]`, writing `folder/last.ckpt` after every epoch (atomically, weights included).

    If that file exists the run continues after the epoch it holds; on the CPU the result is bitwise that of an
    uninterrupted run, because order, augmentations and dropout are functions of (seed, epoch, step).
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in EXPECTED:
        warnings.filterwarnings("ignore", message=message)
    history, bar = History(), progress(title)
    checkpoint = ModelCheckpoint(
        dirpath=folder, filename="last", every_n_epochs=1, save_on_train_epoch_end=True, enable_version_counter=False
    )
    # History comes before the checkpoint, so that the file holds the epoch it describes.
    hooks = [*callbacks, bar, StepSeed(seed), history, checkpoint]
    runner = pl.Trainer(
        **trainer,
        logger=loggers,
        callbacks=hooks,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=isinstance(bar, RichProgressBar),
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    resume = folder / CHECKPOINT
    runner.fit(module, datamodule=datamodule, ckpt_path=resume if resume.exists() else None, weights_only=True)
    return history
