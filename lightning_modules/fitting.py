"""One way to train: a Lightning Trainer that resumes from the run's last epoch and replays the next one exactly."""

import hashlib
import logging
import signal
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from datamodules.errors import InputError
from lightning_modules.base import SkeletonModule
from lightning_modules.callbacks.history import History
from lightning_modules.callbacks.progress import progress
from lightning_modules.callbacks.step_seed import StepSeed
from lightning_modules.released_checkpoints import translate
from lightning_modules.synced_norm import SyncedStatistics

CHECKPOINT = "last.ckpt"
# What Lightning says of things that are meant to be so here.
EXPECTED = (
    ".*does not have many workers.*",
    ".*no `validation_step`.*",
    ".*exists and is not empty.*",
    ".*LeafSpec.*",
    ".*recommended to use `self.log.*sync_dist=True.*",  # of values that all processes hold alike
    ".*nn.functional.all_gather is deprecated.*",  # Lightning calls it
)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint as Lightning writes it, on the CPU; raises InputError if it is none or damaged."""
    content = _read(path)
    if not isinstance(content, dict) or "state_dict" not in content:
        raise InputError(f"{path} holds no state_dict: expected a checkpoint written by train.py")
    return content


def _read(path: Path) -> Any:
    """What a file of tensors holds; nothing else is unpickled."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unzipper and unpickler meet
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} cannot be read as a checkpoint ({reason}): remove it and train again") from error


def is_released(path: Path) -> bool:
    """Whether a file holds a bare state dict, as the authors' code writes it, in the place of a checkpoint of ours."""
    content = _read(path)
    bare = isinstance(content, dict) and "state_dict" not in content
    return bare and all(isinstance(value, torch.Tensor) for value in content.values())


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint of ours or in a file of the authors' code; raises InputError for anything else."""
    return _read(path) if is_released(path) else read_checkpoint(path)["state_dict"]


def load_weights(module: SkeletonModule, path: Path) -> None:
    """Fill `module` from a checkpoint of ours or, where its method has published weights, a file of the authors' code.

    Raises InputError for a file that is neither, and names what does not fit.
    """
    weights, kind = read_weights(path), type(module).__name__
    if is_released(path):
        if module.released is None:
            read = "expected a checkpoint written by train.py, found a bare state dict"
            raise InputError(f"{path}: {read}: {kind} has no table of released names")
        weights = translate(weights, module, module.released)
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path} does not fit {kind} as configured: {reason}") from error


def epochs_done(path: Path) -> int:
    """Epochs behind the checkpoint `path`, 0 if there is none."""
    return read_checkpoint(path)["epoch"] + 1 if path.exists() else 0


def weights_digest(path: Path) -> str:
    """SHA-256 over the weights of a checkpoint: the file also holds paths and times, which are no part of them."""
    digest = hashlib.sha256()
    for name, value in sorted(read_weights(path).items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def fit(
    module: pl.LightningModule,
    datamodule: pl.LightningDataModule,
    folder: Path,
    trainer: dict,
    seed: int,
    title: str,
    loggers: list | bool = False,
    callbacks: Sequence[pl.Callback] = (),
    resume: bool = True,
) -> History:
    """Train until `trainer["max_epochs"]`, writing `folder/last.ckpt` after every epoch (atomically, weights included).

    If that file exists the run continues after the epoch it holds, unless `resume` is False; on the CPU the result is
    bitwise that of an uninterrupted run, because order, augmentations and dropout are functions of (seed, epoch, step).
    Several processes compute what one would: each takes its rows of the global batch, batch norm sees all of them.
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
    try:
        runner = pl.Trainer(
            **trainer,
            logger=loggers,
            callbacks=hooks,
            plugins=SyncedStatistics(),  # does nothing where one process trains
            use_distributed_sampler=False,
            enable_model_summary=False,
            enable_progress_bar=isinstance(bar, RichProgressBar),
            num_sanity_val_steps=0,
            log_every_n_steps=1,
        )
    except (MisconfigurationException, ValueError) as error:
        raise InputError(f"these trainer settings cannot hold here: {' '.join(str(error).split())}") from error
    last = folder / CHECKPOINT
    begin = last if resume and last.exists() else None
    if begin is not None:
        read_checkpoint(begin)
    if trainer.get("precision") == "64-true":
        module.double()  # Lightning would do so after it has read the checkpoint, and half of the digits were lost
    try:
        runner.fit(module, datamodule=datamodule, ckpt_path=begin, weights_only=True)
    except BaseException:
        end_siblings(runner)
        raise
    return history


def end_siblings(runner: pl.Trainer) -> None:
    """End the processes that this one started for the fit: they would wait for ever for one that has failed."""
    for process in getattr(runner.strategy.launcher, "procs", ()):
        process.send_signal(signal.SIGKILL)
