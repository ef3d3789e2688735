"""What each of two processes does in tests/test_ddp.py; started by torchrun, or alone for what one process computes."""

import os
import sys
from functools import partial
from pathlib import Path

import goldens_psp
import goldens_sds_cl
import pytorch_lightning as pl
import torch
from goldens import read
from toys import ToyMethod, toy_data
from toys_a2mc import RELEASED, a2mc, scd_net
from toys_clr import aim_clr, skeleton_clr

from datamodules.errors import InputError
from datamodules.skeleton import Labelled
from lightning_modules.callbacks.online_knn import OnlineKNN
from lightning_modules.encoders.dsta import DSTANet
from lightning_modules.fitting import fit
from lightning_modules.schedules import Constant
from lightning_modules.sds_cl import SDSCL


def sds_cl() -> SDSCL:
    torch.manual_seed(1)
    encoder = DSTANet("ntu25", goldens_sds_cl.LAYERS, subsets=2, num_frames=8)
    return SDSCL(encoder, partial(torch.optim.SGD, lr=1e-3, momentum=0.9), Constant(), seed=3, longest=20)


LABELLED = Labelled(fraction=0.5, batch_size=6, steps=2)
METHODS = {
    "sds_cl": (sds_cl, {}),
    "psp": (lambda: goldens_psp.build(read("psp"), seed=3, lr=1e-3), {"labelled": LABELLED, "tested": True}),
    "a2mc": (a2mc, {}),
    "a2mc_released": (partial(a2mc, RELEASED), {}),
    "scd_net": (scd_net, {}),
    "skeleton_clr": (skeleton_clr, {}),
    "aim_clr": (aim_clr, {}),
}


class Gradients(pl.Callback):
    """Keeps the gradients of every optimiser step, as the optimiser sees them."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        self.steps.append({name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None})


class FrozenStatistics(pl.Callback):
    """Batch norm in eval mode."""

    def on_train_batch_start(self, trainer, module, *_) -> None:
        for layer in module.modules():
            if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
                layer.eval()


def train(name: str, stores: Path, folder: Path, frozen: bool, **options) -> dict:
    """State, gradients of every step and log after two epochs in float64, augmentation on, dropout 0."""
    make, data = METHODS[name]
    module, gradients = make(), Gradients()
    settings = {"accelerator": "cpu", "devices": 1, "max_epochs": 2, "precision": "64-true"} | options
    watch = [gradients, OnlineKNN(every=1, clips=15), *([FrozenStatistics()] if frozen else [])]
    history = fit(module, toy_data(stores, **data), folder, settings, 3, name, callbacks=watch)
    return {"state": module.state_dict(), "gradients": gradients.steps, "epochs": history.epochs}


class BreakDown(pl.Callback):
    """An error of one process in the second epoch."""

    def __init__(self, rank: int):
        self.rank = rank

    def on_train_epoch_start(self, trainer, module) -> None:
        if trainer.current_epoch == 1 and trainer.global_rank == self.rank:
            raise InputError(f"process {self.rank} breaks down")


def both(stores: Path, out: Path) -> dict:
    """All methods, with batch norm frozen or not, and one interrupted after its first epoch."""
    two = {"strategy": "ddp", "devices": 2}
    results = {
        f"{name} {frozen}": train(name, stores, out / f"{name}-{frozen}", frozen, **two)
        for name in METHODS
        for frozen in (False, True)
    }
    train("a2mc", stores, out / "resumed", True, **two, max_epochs=1)
    return results | {"resumed": train("a2mc", stores, out / "resumed", True, **two)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    stores, out = Path(sys.argv[1]), Path(sys.argv[2])
    if len(sys.argv) > 3:
        hooks = [BreakDown(int(sys.argv[3].removeprefix("fail=")))]
        trainer = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "max_epochs": 3}
        fit(ToyMethod(), toy_data(stores), out, trainer, 3, "toy", callbacks=hooks)
    else:
        torch.save(both(stores, out), out / f"rank{os.environ['RANK']}.pt")
