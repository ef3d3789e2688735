"""Train a method as a federation: `python federate.py experiment=federated/sds_cl_by_camera`.

Launched again it finds the result or goes on after the last complete round, as train.py does after the last epoch.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger

from datamodules.batch import SkeletonBatch
from datamodules.errors import InputError
from datamodules.partition import manifest
from datamodules.store import durable
from federated.adapter import Adapter
from federated.client import Client
from federated.curves import curves
from federated.data import PartitionedData
from federated.engines.in_process import InProcess
from federated.ledger import Ledger
from federated.orchestrator import FederatedResult, Metrics, Orchestrator
from federated.schedule import AllClients, SampleClients
from federated.state import State
from lightning_modules.base import SkeletonModule
from lightning_modules.evaluation.embedding import embed
from lightning_modules.evaluation.knn import neighbours
from lightning_modules.schedules import Constant
from tracking import identity, loggers, memory, records
from tracking.build import build
from tracking.doors import door
from train import Run, announce, set_aside

DEVICES = {"auto": "auto", "cpu": "cpu", "gpu": "cuda:0", "cuda": "cuda:0"}
COLUMNS = ("labels", "performers", "cameras", "setups", "replications")


def partition(run: Run) -> tuple[list[np.ndarray], dict]:
    """Each client's positions among the training clips, and the manifest of that."""
    index, rows = run.data.store.index, run.data.rows["train"]
    columns = {name: getattr(index, name)[rows] for name in COLUMNS}
    known = {name: values for name, values in columns.items() if (values >= 0).all()}
    rule = build(run.config["federated"]["partition"])
    pieces = rule.split(known)
    return pieces, manifest(rule, pieces, columns["labels"])


def federation(run: Run, pieces: list[np.ndarray]) -> Orchestrator:
    """The round loop of these settings, its ledger in the run's folder."""
    settings = run.config["federated"]
    if settings["rounds"] < 0 or settings["epochs"] < 1:
        found = f"{settings['rounds']} rounds of {settings['epochs']} epochs"
        raise InputError(f"federation: expected rounds of 0 or more and epochs of 1 or more, found {found}")
    pl.seed_everything(run.config["seed"], verbose=False)
    # A client's fit begins at epoch 0 every round; only the server knows how far training has come.
    module = build(run.config["method"], schedule=Constant())
    adapter = Adapter(module, carry=settings["carry"], local_buffers=settings["local_buffers"])
    per_round = settings["per_round"]
    return Orchestrator(
        module,
        adapter,
        InProcess(client(run, module, adapter, pieces)),
        build(settings["strategy"]),
        clients=len(pieces),
        rounds=settings["rounds"],
        seed=run.config["seed"],
        sample=AllClients() if per_round is None else SampleClients(per_round),
        rate=method_rate(run),
        evaluate=partial(knn1, run),
        evaluate_every=run.config["knn_every"],
        max_failed=settings["max_failed"],
        ledger=Ledger(run.folder / "ledger.safetensors", run.key),
    )


def client(run: Run, module: SkeletonModule, adapter: Adapter, pieces: list[np.ndarray]) -> Client:
    """Any client: batches of its clips, and a trainer on one device."""
    if run.data.labelled is not None:
        raise InputError("federation: expected a method that trains on clips alone, found labelled=...; choose another")
    settings, trainer = run.config["federated"], dict(run.config["trainer"])
    accelerator = trainer.pop("accelerator", "auto")
    if accelerator not in DEVICES:
        raise InputError(f"federation: expected trainer.accelerator of {', '.join(DEVICES)}, found {accelerator!r}")
    if trainer.get("devices") == 1:
        del trainer["devices"]  # any other number is the client's to refuse
    clips = run.data.clips(run.data.rows["train"])
    options = {"collate": as_it_is, "drop_last": settings["drop_last"], "num_workers": run.data.num_workers}
    return Client(
        module,
        adapter,
        PartitionedData(clips, pieces, run.data.batch_size, **options),
        terms=build(settings["terms"]),
        device=DEVICES[accelerator],
        time_limit=settings["time_limit"],
        options=trainer | {"max_epochs": settings["epochs"]},
    )


def as_it_is(batch: SkeletonBatch) -> SkeletonBatch:
    """The clips come as a batch already."""
    return batch


def method_rate(run: Run) -> Callable[[int, int], float]:
    """The method's own schedule, read at the epoch at which a round begins."""
    schedule, epochs = build(run.config["method"]["schedule"]), run.config["federated"]["epochs"]
    return lambda number, rounds: schedule(number * epochs)


def knn1(run: Run, module: SkeletonModule) -> Metrics:
    """Cosine 1-NN accuracy in per cent on frozen embeddings of all clips, as protocol=knn measures it."""
    function = module.eval().embed
    train, test = (
        embed(function, run.data.ordered(side), module.device, f"k-NN, {side}") for side in ("train", "test")
    )
    nearest = neighbours(train.vectors, test.vectors, 1, "cosine")[:, 0]
    return {"test/knn1": 100 * (train.labels[nearest] == test.labels).float().mean().item()}


def client_loss(record: dict) -> Metrics:
    """Mean loss of a round's clients by their samples; empty where none came back."""
    back = [outcome for outcome in record["outcomes"] if "error" not in outcome]
    samples = sum(outcome["num_samples"] for outcome in back)
    total = sum(outcome["num_samples"] * outcome["metrics"]["train/loss"] for outcome in back)
    return {"train/loss": total / samples} if back else {}


@dataclass
class Watch:
    """Called with each round as it is committed: one line, and the loggers."""

    title: str
    rounds: int
    sinks: list[Logger]
    began: float = field(default_factory=time.monotonic)
    seen: int = 0

    def __call__(self, record: dict) -> None:
        self.seen += 1
        done = record["round"] + 1
        left = (time.monotonic() - self.began) / self.seen * (self.rounds - done)
        failed = [outcome for outcome in record["outcomes"] if "error" in outcome]
        measured = client_loss(record) | record["metrics"]
        shown = "".join(f"  {name.split('/')[-1]} {value:.3f}" for name, value in measured.items())
        chosen = " ".join(str(outcome["client"]) for outcome in record["outcomes"])
        why = "".join(f" (client {outcome['client']}: {outcome['error']})" for outcome in failed)
        line = f"clients {chosen}{shown}  failed {len(failed)}{why}  {left:.0f} s left"
        print(f"{self.title}: round {done}/{self.rounds}  {line}", flush=True)
        for sink in self.sinks:
            sink.log_metrics(measured | {"failed": len(failed)}, step=record["round"])
            sink.save()


def checkpoints(run: Run) -> dict[str, str]:
    """Path of each saved model by name: `global`, or one a client where clients keep tensors of their own."""
    return {path.stem: str(path) for path in sorted(run.folder.glob("*.ckpt"))}


def save(run: Run, orchestrator: Orchestrator, models: dict[str, State]) -> None:
    """Write every model as a checkpoint for `eval.py checkpoint=<file>`, whole or not at all."""
    for name, state in models.items():
        orchestrator.adapter.load(state)
        weights = {key: tensor.cpu() for key, tensor in orchestrator.module.state_dict().items()}
        half_written = run.folder / "model.writing"
        with durable(half_written) as file:
            torch.save({"state_dict": weights}, file)
        half_written.replace(run.folder / f"{name.replace(' ', '_')}.ckpt")


def summary(result: FederatedResult, described: dict) -> Metrics:
    """The record's metrics: what was exchanged, and the models after the last round."""
    return {
        "rounds": len(result.records),
        "clients": len(described["sizes"]),
        "skew": described["skew"],
        "bytes_up": sum(record["bytes_up"] for record in result.records),
        "bytes_down": sum(record["bytes_down"] for record in result.records),
        **(client_loss(result.records[-1]) if result.records else {}),
        **result.metrics,
    }


@door("federate", expected=(InputError,), conf=Path(__file__).parent / "conf")
def main(config: DictConfig) -> dict:
    """Run all rounds; returns the record's metrics, the run's key and folder, and the checkpoints of its models."""
    run = Run.of(config)
    announce(run)
    found = records.find(Path(config.paths.records), key=run.key, kind="federated")
    if found and checkpoints(run) and not config.fresh:
        print(f"found: {run.folder} (fresh=true runs again)")
        return told(run, found[0])
    pieces, described = partition(run)
    orchestrator = federation(run, pieces)
    if config.fresh:
        set_aside(run.folder)
    print(f"{len(pieces)} clients by {config.federated.by}: {described['sizes']} clips, skew {described['skew']:.2f}")
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "partition.json").write_text(json.dumps(described, indent=1) + "\n")
    memory.reset_peak()
    result = rounds(run, orchestrator)
    save(run, orchestrator, result.models)
    record = run.record(
        kind="federated",
        key=run.key,
        metrics=summary(result, described),
        setting=f"{type(orchestrator.strategy).__name__}, {len(pieces)} clients by {config.federated.by}",
        curves=curves(result.records),
        cost=memory.peak(),
        seconds=sum(record["seconds"] for record in result.records),
    )
    print(f"federated: {run.folder}, record {records.write(record, Path(config.paths.records))}")
    return told(run, record)


def rounds(run: Run, orchestrator: Orchestrator) -> FederatedResult:
    """Run or resume the federation under the loggers."""
    config, name = run.config, f"{run.config['name']} on {run.config['data']['name']}"
    with loggers.make(
        run.folder,
        key=run.key,
        experiment=f"{config['data']['name']}/{config['name']}",
        job_type="federated",
        tags=[config["name"], config["data"]["name"], config["data"]["split"]],
        config=identity.stripped(config),
        **config["logger"],
    ) as sinks:
        return orchestrator.run(Watch(name, orchestrator.rounds, sinks))


def told(run: Run, record: records.Record) -> dict:
    """What the door returns."""
    return {"key": run.key, "folder": str(run.folder), "checkpoint": checkpoints(run), **record.metrics}


if __name__ == "__main__":
    main()
