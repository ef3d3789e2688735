"""A skeleton method as a federation: clips shared out by camera, performer or share, measured by nearest neighbours."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from datamodules.batch import SkeletonBatch
from datamodules.errors import InputError
from datamodules.partition import manifest
from datamodules.prepared import make_data
from datamodules.store import durable
from federated.data import ClientData, PartitionedData
from federated.orchestrator import Metrics, Orchestrator
from federated.sites import at_sites
from federated.state import State
from federated.strategies.base import Strategy
from lightning_modules.base import SkeletonModule
from lightning_modules.evaluation.embedding import Embedding, embed
from lightning_modules.evaluation.knn import nearest_other, neighbours
from lightning_modules.schedules import Constant
from tracking import identity
from tracking.build import build

COLUMNS = ("labels", "performers", "cameras", "setups", "replications")


class Skeletons:
    """Any method of train.py that trains on clips alone, on prepared data (`Workload`)."""

    base_model = described = ""
    rejected = None
    tested = ("test",)

    def __init__(self, config: DictConfig):
        self._config = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
        self.data = make_data(config, partial=at_sites(self._config))
        self.fingerprint, self.miniature, self.counts = self.data.fingerprint, self.data.miniature, self.data.counts
        manifest = self.data.store.manifest
        self.schema = identity.digest([manifest[name] for name in ("format", "dataset", "topology", "recipe")])

    @cached_property
    def _split(self) -> tuple[list[np.ndarray], dict]:
        """Each client's positions among the training clips, and the manifest of that."""
        index, rows = self.data.store.index, self.data.rows["train"]
        columns = {name: getattr(index, name)[rows] for name in COLUMNS}
        known = {name: values for name, values in columns.items() if (values >= 0).all()}
        rule = build(self._config["federated"]["partition"])
        pieces = rule.split(known)
        return pieces, manifest(rule, pieces, columns["labels"])

    @property
    def manifest(self) -> dict[str, Any]:
        return self._split[1]

    @cached_property
    def clients(self) -> ClientData:
        """Raises InputError for a method that needs labelled batches beside the clips."""
        data = self.data
        if data.labelled is not None:
            told = "federation: expected a method that trains on clips alone, found labelled=...; choose another"
            raise InputError(told)
        clips = data.clips(data.rows["train"])
        drop_last = self._config["federated"]["drop_last"]
        options = {"collate": as_it_is, "drop_last": drop_last, "num_workers": data.num_workers}
        return PartitionedData(clips, self._split[0], data.batch_size, **options)

    @property
    def rate(self) -> Callable[[int, int], float]:
        """The method's own schedule, read at the epoch at which a round begins."""
        schedule, epochs = build(self._config["method"]["schedule"]), self._config["federated"]["epochs"]
        return lambda number, rounds: schedule(number * epochs)

    def module(self) -> SkeletonModule:
        pl.seed_everything(self._config["seed"], verbose=False)
        # A client's fit begins at epoch 0 every round; only the server knows how far training has come.
        return build(self._config["method"], schedule=Constant())

    def evaluate(self, module: SkeletonModule) -> Metrics:
        """Cosine 1-NN accuracy in per cent on frozen embeddings of all clips, as protocol=knn measures it.

        Without training clips (a server of sites), or where they are private clients', each test clip's nearest among
        the others, which is another measure and bears another name: they may be of the same performer.
        """
        test = self._embedded(module, "test")
        if self._clients_clips_are_private or not self.counts["train"]:
            nearest = nearest_other(test.vectors, "cosine")
            return {"test/knn1_leave_one_out": _agreement(test.labels[nearest], test.labels)}
        train = self._embedded(module, "train")
        nearest = neighbours(train.vectors, test.vectors, 1, "cosine")[:, 0]
        return {"test/knn1": _agreement(train.labels[nearest], test.labels)}

    @property
    def _clients_clips_are_private(self) -> bool:
        """Neighbours among them would be released without noise. A server of sites has training clips of its own."""
        return self._config["federated"]["privacy"] is not None and not at_sites(self._config)

    def _embedded(self, module: SkeletonModule, side: str) -> Embedding:
        return embed(module.eval().embed, self.data.ordered(side), module.device, f"k-NN, {side}")

    def row(self, strategy: Strategy, clients: int) -> dict[str, str]:
        by = self._config["federated"]["by"]
        setting = f"{type(strategy).__name__}, {clients} clients by {by}"
        return {"method": self._config["name"], "setting": setting}

    def samples(self) -> list[dict[str, Any]]:
        return []

    def save(self, folder: Path, orchestrator: Orchestrator, models: dict[str, State]) -> None:
        """Write every model as a checkpoint for `eval.py checkpoint=<file>`."""
        for name, state in models.items():
            orchestrator.adapter.load(state)
            weights = {key: tensor.cpu() for key, tensor in orchestrator.module.state_dict().items()}
            half_written = folder / "model.writing"
            with durable(half_written) as file:
                torch.save({"state_dict": weights}, file)
            half_written.replace(folder / f"{name.replace(' ', '_')}.ckpt")

    def saved(self, folder: Path) -> dict[str, str]:
        return {path.stem: str(path) for path in sorted(folder.glob("*.ckpt"))}


def _agreement(found: Tensor, wanted: Tensor) -> float:
    """Per cent of labels (N,) that are the same."""
    return 100 * (found == wanted).float().mean().item()


def as_it_is(batch: SkeletonBatch) -> SkeletonBatch:
    """The clips come as a batch already."""
    return batch
