"""One device for every client, where the module is moved once and stays; or a device each of several processes."""

import functools
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities import registry
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from datamodules.errors import InputError
from lightning_modules.synced_norm import SyncedStatistics

# Lightning asks anew for every trainer what is installed, which takes longer than all else that makes a trainer.
registry.entry_points = functools.cache(registry.entry_points)  # type: ignore[assignment]
PATIENCE = timedelta(hours=2)  # that processes wait for one of them, which may be reading a corpus


@dataclass(frozen=True)
class Team:
    """The processes of one machine that train each client together, and which of them this is."""

    rank: int = 0
    world: int = 1

    def meet(self, device: str) -> None:
        """Connect the processes, as Lightning would; they stay so."""
        if self.world == 1 or torch.distributed.is_initialized():
            return
        if device == "cpu" or not torch.cuda.is_available():
            torch.distributed.init_process_group("gloo", timeout=PATIENCE)
        else:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            torch.distributed.init_process_group("nccl", timeout=PATIENCE)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The block in the first process, then in the others: they find the files that it has written."""
        if self.rank > 0:
            torch.distributed.barrier()
        yield
        if self.rank == 0 and self.world > 1:
            torch.distributed.barrier()


ALONE = Team()


class ResidentDevice(SingleDeviceStrategy):
    """Lightning's single device, but the module is not carried back to the CPU after each fit."""

    def teardown(self) -> None:
        self.precision_plugin.teardown()


class ResidentTeam(DDPStrategy):
    """Lightning's DDP, but the module stays on its device, and its frozen weights are not sent round before each fit.

    Every process has read the same ones, and a write, even of what is there, would count as a change
    (`Adapter.check_frozen`). What is exchanged `SameStart` makes equal.
    """

    def __init__(self, **options: Any):
        super().__init__(init_sync=False, **options)

    def teardown(self) -> None:
        self.model = self.lightning_module
        if self._layer_sync and self.model is not None:
            self.model = self._layer_sync.revert(self.model)
        self.precision_plugin.teardown()


class SameStart(pl.Callback):
    """All processes of a team begin from the first one's exchanged tensors, by name.

    They differ where the server draws what no seed tells, the noise of differential privacy.
    """

    def __init__(self, exchanged: Callable[[], Mapping[str, Tensor]]):
        self._exchanged = exchanged

    @torch.no_grad()
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for tensor in self._exchanged().values():
            torch.distributed.broadcast(tensor.data, 0)


def check_options(options: dict) -> None:
    """Raises InputError where options of Lightning's Trainer would take a client off its one quiet device."""
    fixed = {"accelerator", "devices", "strategy", "num_nodes", "logger", "callbacks", "enable_checkpointing"}
    if taken := sorted(fixed & options.keys()):
        found = ", ".join(taken)
        raise InputError(f"federation: expected trainer options without {found}: a client has one device and no logger")


def trainer(
    device: str, callbacks: list[pl.Callback], team: Team = ALONE, unused: bool = False, **options
) -> pl.Trainer:
    """A short-lived trainer that logs, saves and prints nothing.

    device: a torch device ("cpu", "cuda:0"), or "auto": the first GPU if there is one. team: the processes that train
    together, each on a device of its own; unused: whether a batch may leave out parameters that are trained.
    options: other arguments of Lightning's Trainer.
    """
    place = torch.device(("cuda:0" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    where: dict[str, Any]
    if team.world > 1:
        strategy = ResidentTeam(find_unused_parameters=unused)
        where = {"devices": team.world, "strategy": strategy, "plugins": SyncedStatistics()}
    else:
        where = {"devices": 1 if place.type == "cpu" else [place.index or 0], "strategy": ResidentDevice(place)}
    return pl.Trainer(
        callbacks=callbacks,
        accelerator=place.type,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **where,
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
            if part.training != training:  # setting an attribute of a module takes long
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
