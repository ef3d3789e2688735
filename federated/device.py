"""One device for every client: the module is moved there once and stays."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import SingleDeviceStrategy

from datamodules.errors import InputError


class ResidentDevice(SingleDeviceStrategy):
    """Lightning's single device, but the module is not carried back to the CPU after each fit."""

    def teardown(self) -> None:
        self.precision_plugin.teardown()


def check_options(options: dict) -> None:
    """Raises InputError where options of Lightning's Trainer would take a client off its one quiet device."""
    fixed = {"accelerator", "devices", "strategy", "num_nodes", "logger", "callbacks", "enable_checkpointing"}
    if taken := sorted(fixed & options.keys()):
        found = ", ".join(taken)
        raise InputError(f"federation: expected trainer options without {found}: a client has one device and no logger")


def trainer(device: str, callbacks: list[pl.Callback], **options) -> pl.Trainer:
    """A short-lived trainer that logs, saves and prints nothing.

    device: a torch device ("cpu", "cuda:0"), or "auto": the first GPU if there is one. options: other arguments of
    Lightning's Trainer.
    """
    place = torch.device(("cuda:0" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    return pl.Trainer(
        callbacks=callbacks,
        accelerator=place.type,
        devices=1 if place.type == "cpu" else [place.index or 0],
        strategy=ResidentDevice(place),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


@contextmanager
def kept_modes(module: torch.nn.Module) -> Iterator[None]:
    """Give every part its train or eval mode back: Lightning fits in the mode it finds, so an evaluation would leak."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning's greetings and its advice on loader workers are for one long run, not for thousands of short ones."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pytorch_lightning")
            yield
    finally:
        logger.setLevel(level)
