"""A small LightningModule and a federation of it, for the tests of federated/."""

from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import TensorDataset

from federated.adapter import Adapter
from federated.client import Client
from federated.data import PartitionedData
from federated.engines.in_process import InProcess
from federated.orchestrator import Orchestrator
from federated.strategies.fedavg import FedAvg

torch.set_num_threads(1)  # on a busy machine two threads wait for each other ten times longer than they work


class Toy(pl.LightningModule):
    """Two layers with batch norm and dropout, a cosine over the fit's steps, momentum: everything that could leak."""

    def __init__(self, dropout: float = 0.2, optimizer=torch.optim.SGD, **options):
        super().__init__()
        torch.manual_seed(5)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))
        self._optimizer = optimizer
        self._options = options or {"lr": 0.1, "momentum": 0.9}

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.log("train/loss", loss, on_epoch=True, on_step=False)
        return loss

    def configure_optimizers(self):
        optimizer = self._optimizer([p for p in self.parameters() if p.requires_grad], **self._options)
        steps = int(self.trainer.estimated_stepping_batches)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


def dataset(samples: int = 60) -> TensorDataset:
    source = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 4, generator=source)
    return TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())


def shares(clients: int, samples: int = 60) -> list[np.ndarray]:
    """Unequal pieces: the first client holds the most."""
    cuts = np.linspace(0, 1, clients + 1)[1:-1] ** 0.7 * samples
    return np.split(np.arange(samples), cuts.astype(int))


def accuracy(module: Toy) -> dict[str, float]:
    x, y = dataset().tensors
    module.eval()
    with torch.no_grad():
        return {"accuracy": (module.net(x).argmax(1) == y).float().mean().item()}


def federation(module=None, pieces=None, terms=(), adapter=None, data=None, client=None, **options) -> Orchestrator:
    """An orchestrator on the toy; `client` holds further arguments of Client, `options` those of Orchestrator."""
    module = Toy() if module is None else module
    pieces = shares(4) if pieces is None else pieces
    adapter = Adapter(module) if adapter is None else adapter
    data = PartitionedData(dataset(), pieces, batch_size=8) if data is None else data
    engine = InProcess(Client(module, adapter, data, terms, device="cpu", **(client or {})))
    options = {"strategy": FedAvg(), "rounds": 1, "seed": 3, "engine": engine} | options
    return Orchestrator(module, adapter, clients=len(pieces), **options)


def elsewhere(folder: Path) -> list[str]:
    """The same run with nothing to be found: locations are no part of its key."""
    return [f"paths.runs={folder}/runs", f"paths.records={folder}/records"]


def same(left, right) -> bool:
    """Whether two states are the same bytes."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
