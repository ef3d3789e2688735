"""What each of two processes does in tests/test_ddp.py; started by torchrun, or alone for what one process computes."""

import os
import sys
from functools import partial
from pathlib import Path

import goldens_psp
import goldens_sds_cl
import numpy as np
import pytorch_lightning as pl
import torch
import toys_mllm
from goldens import read
from torch.utils.data import DataLoader
from toys import ToyMethod, toy_data
from toys_a2mc import RELEASED, a2mc, scd_net
from toys_clr import aim_clr, skeleton_clr

from datamodules.errors import InputError
from datamodules.skeleton import Labelled
from datamodules.transforms.spatial import Tilt
from federated.adapter import Adapter
from federated.client import Client, ClientTask
from federated.data import PartitionedData
from federated.device import ALONE, Team
from federated.terms import FedProx
from lightning_modules.callbacks.history import History
from lightning_modules.callbacks.online_knn import OnlineKNN
from lightning_modules.encoders.dsta import DSTANet
from lightning_modules.fitting import fit
from lightning_modules.mllm.loading import Lora
from lightning_modules.released_checkpoints import SDS_CL, translate
from lightning_modules.schedules import Constant
from lightning_modules.sds_cl import SDSCL


def sds_cl() -> SDSCL:
    """Augmented, with the golden's weights and a small rate: else frozen batch norms magnify rounding."""
    encoder = DSTANet("ntu25", goldens_sds_cl.LAYERS, subsets=2, num_frames=8)
    augmented = [Tilt(probability=1.0)]
    module = SDSCL(encoder, partial(torch.optim.SGD, lr=1e-6, momentum=0.9), Constant(), 3, 0.07, 20, augmented)
    module.load_state_dict(translate(goldens_sds_cl.released_state(read("sds_cl")), module, SDS_CL))
    return module


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


def train_mllm(folder: Path, rank: int = 0, world: int = 1, **options) -> dict:
    """Gradients of every step and log of the LLM in `folder`: two steps of four answers, of 2 to 6 tokens each.

    Of two processes one has the pictures, then the other.
    """
    module = toys_mllm.module(folder, lora=Lora(dropout=0.0)).double()
    gradients, history = Gradients(), History()
    batches = []
    for order in ([0, 2, 1, 3], [3, 1, 2, 0]):
        rows = order[rank * 4 // world : (rank + 1) * 4 // world]
        prompts, images, answers = (
            [part[row] for row in rows] for part in (toys_mllm.PROMPTS, toys_mllm.images(), toys_mllm.ANSWERS)
        )
        batch = module.encoder(prompts, images, answers)
        vision = {name: x.double() if x.is_floating_point() else x for name, x in batch.vision.items()}
        batches.append(batch._replace(vision=vision))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=[gradients, history], **quiet, **options)
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return {"gradients": gradients.steps, "epochs": history.epochs}


class Spoilt:
    """A client-side term that makes every gradient NaN."""

    name = "spoilt"

    def value(self, parameters, anchor, progress) -> torch.Tensor:
        return torch.nan * torch.stack([parameter.sum() for parameter in parameters.values()]).sum()


# What else one client may be asked to do: settings of its trainer, its model and its terms.
DOUBLE = {"precision": "64-true"}
CLIENTS: dict[str, tuple[dict, dict, list]] = {
    "plain": (DOUBLE, {}, []),
    "accumulated": (DOUBLE | {"accumulate_grad_batches": 3}, {}, []),
    "clipped": (DOUBLE | {"gradient_clip_val": 1e-3}, {}, []),
    "checkpointed": (DOUBLE, {"gradient_checkpointing": True}, []),
    "projector": (DOUBLE, {"also_train": ("projector",)}, []),
    "FedProx": (DOUBLE, {}, [FedProx(mu=10.0)]),
    "bf16-mixed": ({"precision": "bf16-mixed"}, {}, []),
    "spoilt": (DOUBLE, {}, [Spoilt()]),
}


def client(name: str, folder: Path, team: Team = ALONE, breaks_down: bool = False) -> Client:
    """A client of the LLM in `folder`: twelve memes, two with a picture, two epochs of three batches of four.

    At least one batch shows no picture at all.
    """
    options, model, terms = CLIENTS[name]
    module = toys_mllm.module(folder, lora=Lora(dropout=0.0), **model)
    if options["precision"] == "64-true":
        module.double()
    else:  # AdamW's first steps go by the sign of numbers that rounding makes positive or negative
        module._optimizer = partial(torch.optim.SGD, lr=0.1)
    if breaks_down:
        module.training_step = broken_step
    pictures = [*toys_mllm.images()[:3], *[None] * 9]
    memes = list(zip(toys_mllm.PROMPTS * 3, pictures, toys_mllm.ANSWERS * 3, strict=True))
    data = PartitionedData(memes, [np.arange(12)], 4, lambda rows: module.encoder(*map(list, zip(*rows, strict=True))))
    return Client(module, Adapter(module), data, terms, "cpu", options={"max_epochs": 2} | options, team=team)


def broken_step(batch, batch_idx) -> None:
    raise RuntimeError("no memory left")


def run_client(name: str, folder: Path, team: Team = ALONE) -> dict:
    """State, metrics and failure of a client that a server sends its first state, to each process another one.

    As it would with the noise of differential privacy; the first process's counts.
    """
    made = client(name, folder, team)
    state = {key: tensor + team.rank for key, tensor in made._adapter.extract().items()}
    outcome = vars(made.run(ClientTask(0, 0, state, 1.0, 7)))
    return {key: outcome.get(key) for key in ("state", "metrics", "steps", "error")}


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
    rank = int(os.environ["RANK"])
    more = {"use_distributed_sampler": False, **two}
    results["mllm"] = train_mllm(out / "llava", rank, 2, **more)
    results |= {f"client {name}": run_client(name, out / "llava", Team(rank, 2)) for name in CLIENTS}
    train("a2mc", stores, out / "resumed", True, **two, max_epochs=1)
    return results | {"resumed": train("a2mc", stores, out / "resumed", True, **two)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    stores, out = Path(sys.argv[1]), Path(sys.argv[2])
    if sys.argv[3:] == ["break a client"]:
        rank = int(os.environ["RANK"])
        made = client("plain", out / "llava", Team(rank, 2), breaks_down=rank == 1)
        made.run(ClientTask(0, 0, made._adapter.extract(), 1.0, 7))
    elif len(sys.argv) > 3:
        hooks = [BreakDown(int(sys.argv[3].removeprefix("fail=")))]
        trainer = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "max_epochs": 3}
        fit(ToyMethod(), toy_data(stores), out, trainer, 3, "toy", callbacks=hooks)
    else:
        torch.save(both(stores, out), out / f"rank{os.environ['RANK']}.pt")
