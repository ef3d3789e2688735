"""Train a method: `python train.py experiment=ntu60/sds_cl_xsub`; launched again it finds the result or resumes."""

import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from datamodules.alone import alone_in
from datamodules.errors import InputError
from datamodules.prepared import make_data
from datamodules.skeleton import SkeletonDataModule
from lightning_modules.base import SkeletonModule
from lightning_modules.callbacks.clip_views import ClipViews
from lightning_modules.callbacks.online_knn import OnlineKNN
from lightning_modules.callbacks.vitals import Vitals
from lightning_modules.fitting import CHECKPOINT, epochs_done, fit, load_weights
from tracking import identity, loggers, memory, pictures, processes, records
from tracking.build import build
from tracking.doors import door

# What evaluation adds to the configuration, and what only watches: neither changes what is trained.
NOT_TRAINED = ("protocol", "fuse", "target", "finetune", "linear", "scale", "knn_every", "clips_every")


@dataclass(frozen=True)
class Run:
    """One training run, whether or not it has been made: its settings, data, key and folder."""

    config: dict[str, Any]
    data: SkeletonDataModule
    key: str
    folder: Path

    @classmethod
    def of(cls, config: DictConfig) -> "Run":
        """The run that these settings describe."""
        data = make_data(config)
        trained = OmegaConf.masked_copy(config, [str(name) for name in config if name not in NOT_TRAINED])
        key = identity.run_key(trained, data.fingerprint)
        return cls(plain(config), data, key, Path(config.paths.runs) / f"{config.data.name}-{config.name}-{key[:12]}")

    @property
    def finished(self) -> bool:
        """Whether the last epoch has been trained."""
        return epochs_done(self.checkpoint) >= self.config["trainer"]["max_epochs"]

    @property
    def checkpoint(self) -> Path:
        """Where the last epoch stands."""
        return self.folder / CHECKPOINT

    def module(self) -> SkeletonModule:
        """The method as it starts; its weights are a function of the seed."""
        pl.seed_everything(self.config["seed"], verbose=False)
        return build(self.config["method"])

    def trained(self, checkpoint: Path) -> SkeletonModule:
        """The method with the weights of a file, ours or the authors'; raises InputError for one that does not fit."""
        module = self.module()
        load_weights(module, checkpoint)
        return module

    def record(self, **facts) -> records.Record:
        """A record of a result on this run's data, to which `facts` adds what was measured."""
        return record_of(self.config, self.data, **facts)


def record_of(config: dict[str, Any], data: SkeletonDataModule, **facts) -> records.Record:
    """A record of a result on `data`; config: plain, with the facts of these data under `data`."""
    title = config["data"]["title"]
    return records.Record(
        experiment=f"{config['data']['name']}/{config['name']}",
        config={name: value for name, value in config.items() if name not in identity.LOCATIONS},
        data={
            "name": titled(title, data),
            "fingerprint": data.fingerprint,
            "miniature": data.miniature,
            "split": data.split,
            "counts": data.counts,
        },
        seeds={"seed": config["seed"]},
        **({"method": config["name"]} | facts),
    )


def titled(title: str, data: SkeletonDataModule) -> str:
    """The name of a data set as it is printed: a miniature is never called by the real one's."""
    return f"miniature, not {title}" if data.miniature else title


def plain(config: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain containers."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True, throw_on_missing=True))


def announce(data: SkeletonDataModule, title: str) -> None:
    """Say it wherever numbers are made: a miniature is not the data set of this title."""
    if data.miniature and processes.rank() == 0:
        print(f"*** miniature, not {title}: these numbers say nothing about the real data set ***")


@door("train", expected=(InputError,), conf=Path(__file__).parent / "conf")
def main(config: DictConfig) -> dict:
    """Train until the last epoch; returns the record's metrics, the run's key and its folder."""
    check_processes(config)
    run = Run.of(config)
    announce(run.data, config.data.title)
    with held(run):
        return train(run, config)


def held(run: Run) -> AbstractContextManager[None]:
    """The run's folder for this launch alone: another one waits, and finds the result or resumes.

    Of several processes the first holds it for all. Where torchrun or SLURM started them it does not wait: the others
    have looked for a result and a checkpoint meanwhile, and would be on another way than the first. Raises InputError.
    """
    if processes.rank() > 0:
        return nullcontext()
    together = processes.started_together() or run.config["trainer"].get("num_nodes", 1) != 1
    return alone_in(run.folder, wait=not together)


def train(run: Run, config: DictConfig) -> dict:
    """What the door does where nobody else is at work on the run."""
    first = processes.rank() == 0  # of several processes one looks after the files
    found = records.find(Path(config.paths.records), key=run.key, kind="train")
    if found and run.finished and not config.fresh:
        if first:
            print(f"found: {run.folder} (fresh=true runs again)")
        return {"key": run.key, "folder": str(run.folder), **found[0].metrics}
    if config.fresh and first:
        set_aside(run.folder)
    if run.data.labelled is not None and first:
        store_labels(run.data, run.data.labelled.fraction, run.folder)
    started = time.monotonic()
    memory.reset_peak()
    title = f"{config.name} on {config.data.name}"
    with loggers.make(
        run.folder,
        key=run.key,
        experiment=f"{config.data.name}/{config.name}",
        job_type="pretrain" if run.data.labelled is None else "semi",
        tags=list(filter(None, [config.name, config.data.name, config.data.split, stream(run.config)])),
        config=identity.stripped(run.config),
        **config.logger,
    ) as sinks:
        trainer, again = run.config["trainer"], not config.fresh
        history = fit(run.module(), run.data, run.folder, trainer, config.seed, title, sinks, watching(run), again)
    best = {name: history.best(name) for name in history.last() if name.startswith("test/")}
    record = run.record(
        kind="train",
        key=run.key,
        metrics=history.last(),
        best=best,
        curves=history.curves(),
        cost=memory.peak(),
        setting=stream(run.config),
        seconds=time.monotonic() - started,
    )
    if first:
        store(run, record)
    return {"key": run.key, "folder": str(run.folder), **record.metrics}


def watching(run: Run) -> list[pl.Callback]:
    """What only watches the training."""
    config, topology = run.config, run.data.store.topology
    hooks: list[pl.Callback] = [Vitals()]
    if config["knn_every"]:
        hooks.append(OnlineKNN(config["knn_every"], seed=config["seed"]))
    if config["clips_every"]:
        draw = partial(pictures.clips, bones=topology.bones, up=topology.up[0], upward=topology.up[1])
        hooks.append(ClipViews(config["clips_every"], draw, run.folder / "clips"))
    return hooks


def store(run: Run, record: records.Record) -> None:
    """Write what a finished training run gives to record."""
    folder = Path(run.config["paths"]["records"])
    if run.data.labelled is not None:  # before the other, whose presence says that all is done
        records.write(labelled_result(run, run.data.labelled.fraction, record), folder)
    print(f"trained: {run.folder}, record {records.write(record, folder)}")


def check_processes(config: DictConfig) -> None:
    """Raises InputError for jobs of several processes in one sweep that runs all its jobs in this process.

    Lightning starts the other processes by this very command line: each would be the whole sweep again.
    """
    several = processes.device_count(config.trainer.devices) != 1 or config.trainer.get("num_nodes", 1) != 1
    sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if several and sweep and not processes.started_together():
        found = f"trainer.devices={config.trainer.devices} in a sweep whose jobs share one process"
        raise InputError(f"expected one device, found {found}: add hydra/launcher=processes")


def labelled_result(run: Run, fraction: float, trained: records.Record) -> records.Record:
    """The accuracy of a one-stage semi-supervised method, as a row beside fine-tuning on the same share of labels."""
    return run.record(
        kind="semi" if fraction < 1 else "finetune",
        key=run.key,
        metrics={"top1": trained.metrics["test/top1"], "labels": len(run.data.label_rows(fraction))},
        best={"top1": trained.best["test/top1"]},
        setting=share(fraction),
        parents=[run.key],
        seconds=trained.seconds,
    )


def store_labels(data: SkeletonDataModule, fraction: float, folder: Path) -> None:
    """Write the names of the clips whose labels are used."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"labels-{fraction:g}.txt").write_text("".join(f"{name}\n" for name in data.label_names(fraction)))


def share(fraction: float) -> str:
    """How a share of the labels is written in records and tables."""
    return f"{100 * fraction:g} % of the labels"


def stream(config: Mapping[str, Any]) -> str:
    """How a method of one stream says which; nothing for the joints, which a table means where it says nothing."""
    chosen = config.get("stream", "joint")
    return "" if chosen == "joint" else f"{chosen} stream"


def set_aside(folder: Path) -> None:
    """Keep what `fresh=true` replaces in a folder beside, until the next time; the folder stays, a launch holds it."""
    if folder.is_dir() and any(folder.iterdir()):
        previous = folder.with_name(f"{folder.name}.previous")
        shutil.rmtree(previous, ignore_errors=True)
        previous.mkdir()
        for path in list(folder.iterdir()):
            path.rename(previous / path.name)


if __name__ == "__main__":
    main()
