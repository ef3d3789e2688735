"""Evaluate a run: `python eval.py experiment=ntu60/sds_cl_xsub protocol=knn`, with the settings given to train.py.

Beside the trained network stand the same network untrained and the coordinates without one. Any protocol can be
measured on another data set of the same skeleton (`data@target=...`, transfer) and on streams trained apart whose
scores are added (`fuse=three_streams`).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from datamodules.errors import InputError
from datamodules.prepared import make_data
from datamodules.skeleton import SkeletonDataModule
from lightning_modules.base import SkeletonModule
from lightning_modules.evaluation.embedding import COORDINATE_FRAMES, Embedding, load, save
from lightning_modules.evaluation.fusion import fused
from lightning_modules.evaluation.measured import confusion, top1
from lightning_modules.evaluation.subject import Subject
from lightning_modules.fitting import is_released, weights_digest
from tracking import artefacts, identity, loggers, memory, records, showing
from tracking.build import build
from tracking.doors import door
from train import Run, announce, plain, record_of, set_aside, share, store_labels, stream, titled

# Parts of a protocol that say which rows are measured, not how.
NOT_MEASURED = ("rows", "untrained", "settings")
Row = tuple[records.Record, Embedding]


@dataclass(frozen=True)
class Evaluation:
    """One protocol on one run.

    on: the settings of the data that it is measured on: the run's own or, for transfer, the target's. data: these data.
    folder: where embeddings and what fine-tuning needs to resume are kept.
    """

    config: DictConfig
    on: DictConfig
    run: Run
    data: SkeletonDataModule
    checkpoint: Path
    folder: Path

    @classmethod
    def of(cls, config: DictConfig) -> "Evaluation":
        """Checked; raises InputError where the run is not finished, or does not go with the protocol or the target."""
        protocol = config.protocol
        if protocol.settings and OmegaConf.select(config, protocol.settings) is None:
            raise InputError(
                f"{config.name} has no settings `{protocol.settings}`, which protocol={protocol.name} reads: a method "
                "that learns from labels in one stage gives this row by python train.py labelled.fraction=..."
            )
        run, on = Run.of(config), on_target(config)
        folder = run.folder / "evaluation"
        if on is config:
            data = run.data
        else:
            data, folder = make_data(on, labelled=None, tested=False), folder / f"on_{on.data.name}"
            run = replace(run, config=run.config | {"method": network_on(on, config.data.num_classes)})
        checkpoint = Path(config.checkpoint) if config.checkpoint else run.checkpoint
        if "trained" in protocol.rows:
            check_trained(run, checkpoint)
        return cls(config, on, run, data, checkpoint, folder)

    @property
    def kind(self) -> str:
        """Under which kind its records stand."""
        return self.config.protocol.name if self.on is self.config else "transfer"

    @property
    def setting(self) -> str:
        """What tells apart results of one kind, but for the stream."""
        parts = []
        if "fraction" in self.config.protocol:
            parts.append(share(self.config.protocol.fraction))
        if self.run.data.labelled is not None:
            parts.append(f"network trained with {share(self.run.data.labelled.fraction)}")
        if self.on is not self.config:
            source = titled(self.run.config["data"]["title"], self.run.data)
            parts = [self.config.protocol.name, *parts, f"pre-trained on {source}, {self.run.data.split}"]
        return ", ".join(parts)

    def record(self, more: dict[str, Any] | None = None, **facts) -> records.Record:
        """A record of what is measured here; more: what the configuration in it says besides."""
        config = {name: value for name, value in self.run.config.items() if name != "target"}
        if self.on is not self.config:
            config |= {"data": plain(self.on)["data"], "pretrained_on": self.run.config["data"]}
        return record_of(config | (more or {}), self.data, kind=self.kind, **facts)

    def key(self, subject: Subject) -> str:
        """Identity of one subject's result.

        Not of the whole configuration: another rate of fine-tuning does not make other neighbours.
        """
        protocol = {name: value for name, value in plain(self.config)["protocol"].items() if name not in NOT_MEASURED}
        own = {name: self.run.config[name] for name in ("name", "trainer", "seed")}
        fraction = protocol.get("fraction")
        labels = "" if fraction is None else identity.digest(self.data.label_names(fraction))
        return identity.run_key(
            own | {"data": plain(self.on)["data"], "protocol": protocol}, self.data.fingerprint + labels, subject.key
        )


def check_trained(run: Run, checkpoint: Path) -> None:
    """Raises InputError unless the checkpoint is there and, if it is the run's own, the run has come to its end."""
    if not checkpoint.is_file():
        raise InputError(f"expected a checkpoint {checkpoint}, found none: run python train.py with the same settings")
    if checkpoint == run.checkpoint and not run.finished:
        raise InputError(
            f"training of {run.folder} is not finished: run python train.py with the same settings, it resumes"
        )


def on_target(config: DictConfig) -> DictConfig:
    """The settings with the data of `data@target=...`, fed to the network as its own data were; `config` if none given.

    Raises InputError for a target with another skeleton.
    """
    target = OmegaConf.select(config, "target")
    if target is None:
        return config
    if target.data.topology != config.data.topology:
        raise InputError(
            f"transfer keeps the skeleton: expected a target with {config.data.topology} as {config.data.name} has, "
            f"found {target.data.name} with {target.data.topology}: choose another target"
        )
    on = config.copy()
    with open_dict(on):
        on.data = OmegaConf.merge(target.data, {"recipe": config.data.recipe, "max_bodies": config.data.max_bodies})
        on.raw = target.raw
    return on


def network_on(on: DictConfig, num_classes: int) -> dict[str, Any]:
    """The method's settings on a target: they follow its data (the longest clip), but for the width of a classifier."""
    wide = OmegaConf.merge(on, {"data": {"num_classes": num_classes}})
    return plain(wide)["method"]  # type: ignore[arg-type]


def subjects(evaluation: Evaluation) -> list[Subject]:
    """The rows of an evaluation. Raises InputError for a row that is none."""
    run, protocol = evaluation.run, evaluation.config.protocol
    names = {"trained": "", "untrained": protocol.untrained, "coordinates": "coordinates"}
    keys: dict[str, Callable[[], str]] = {
        "trained": partial(weights_digest, evaluation.checkpoint),
        "untrained": lambda: f"random {run.key}",
        "coordinates": lambda: f"{COORDINATE_FRAMES} frames of coordinates",
    }
    networks: dict[str, Callable[[], SkeletonModule] | None] = {
        "trained": partial(run.trained, evaluation.checkpoint),
        "untrained": run.module,
        "coordinates": None,
    }
    if unknown := set(protocol.rows) - set(names):
        raise InputError(f"protocol.rows: expected some of {', '.join(names)}, found {', '.join(sorted(unknown))}")
    return [
        Subject(
            name=names[row],
            key=f"{identity.RESULTS_VERSION} {keys[row]()}",
            folder=evaluation.folder / row,
            work=evaluation.folder,
            data=evaluation.data,
            num_classes=evaluation.on.data.num_classes,
            trainer=run.config["trainer"],
            make_data=partial(make_data, evaluation.on),
            make_backbone=networks[row],
        )
        for row in names
        if row in protocol.rows
    ]


def measure(evaluation: Evaluation, subject: Subject) -> Row:
    """One subject under the protocol: found, record and scores, or measured and written."""
    config = evaluation.config
    folder, key = Path(config.paths.records), evaluation.key(subject)
    for found in records.find(folder, key=key, kind=evaluation.kind, variant=subject.name):
        scores = load(scores_of(found, folder), key)
        if scores is not None and not config.fresh:
            return found, scores
    # Under the key of this very result: other settings must not resume what these began.
    work = evaluation.folder / f"{config.protocol.name}-{key[:12]}"
    started = time.monotonic()
    memory.reset_peak()
    result = build(config.protocol.measure).measure(replace(subject, work=work))
    record = evaluation.record(
        key=key,
        metrics=result.metrics,
        best=result.best,
        curves=dict(result.curves),
        cost=memory.peak(),
        variant=subject.name,
        setting=", ".join(
            filter(None, [evaluation.setting, whose(evaluation, subject), stream(evaluation.run.config)])
        ),
        parents=[] if config.checkpoint else [evaluation.run.key],
        seconds=time.monotonic() - started,
    )
    save(scores_of(record, folder), key, result.scores)
    # A protocol with parts of its own shows those.
    artefacts.write(record, folder, result.parts or {"confusion": {"matrix": confusion(result.scores)}})
    records.write(record, folder)
    if config.logger.mode != "disabled":
        watched(evaluation, record, work)
    return record, result.scores


def whose(evaluation: Evaluation, subject: Subject) -> str:
    """What tells the authors' own weights from a run of ours; the other rows are the same beside either."""
    trained = subject.name == "" and bool(evaluation.config.checkpoint)
    return "the authors' weights" if trained and is_released(evaluation.checkpoint) else ""


def watched(evaluation: Evaluation, record: records.Record, work: Path) -> None:
    """The result as a run of its own in W&B."""
    config = evaluation.config
    streams = str(record.config.get("stream", ""))
    tags = [record.method, config.data.name, record.data["split"], record.kind, streams, record.variant, record.setting]
    with loggers.make(
        work,
        key=record.key,
        experiment=record.experiment,
        job_type=record.kind,
        tags=list(filter(None, tags)),
        config=identity.stripped(record.config),
        **config.logger,
    ) as sinks:
        showing.tell(sinks, record, artefacts.read(record, Path(config.paths.records)))


def scores_of(record: records.Record, folder: Path) -> Path:
    """Where the scores behind a record are kept."""
    return artefacts.folder_of(record, folder) / "scores.safetensors"


def evaluate(config: DictConfig) -> tuple[Evaluation, dict[str, Row]]:
    """Every row of one evaluation, by its name."""
    evaluation = Evaluation.of(config)
    announce(evaluation.run.data, config.data.title)
    if evaluation.on is not config:
        announce(evaluation.data, evaluation.on.data.title)
    if config.fresh:
        set_aside(evaluation.folder)
    if "fraction" in config.protocol:
        beside = evaluation.folder if evaluation.kind == "transfer" else evaluation.run.folder
        store_labels(evaluation.data, config.protocol.fraction, beside)
    rows = {}
    for subject in subjects(evaluation):
        rows[subject.name] = row = measure(evaluation, subject)
        show(config, row[0])
    return evaluation, rows


def evaluate_fused(config: DictConfig) -> dict[str, Row]:
    """The rows of streams trained apart, their scores added with the weights `config.fuse`.

    Scores that are there are read, not computed again. Raises InputError for a method without single streams.
    """
    if "stream" not in config:
        raise InputError(f"{config.name} has no single streams to fuse, it reads several at once: leave fuse out")
    if config.checkpoint:
        raise InputError("fuse reads one run a stream, trained by train.py with stream=...: leave checkpoint out")
    weights: dict[str, float] = plain(config)["fuse"]
    parts = [evaluate(one_stream(config, name)) for name in weights]
    evaluation = parts[0][0]
    rows = {}
    for name in parts[0][1]:
        of_name = [row[name] for _, row in parts]
        scores = fused(dict(zip(weights, (scores for _, scores in of_name), strict=True)), weights)
        keys = [record.key for record, _ in of_name]
        record = evaluation.record(
            {"fuse": weights, "stream": ", ".join(weights)},
            key=identity.run_key({"fuse": weights}, evaluation.data.fingerprint, " ".join(keys)),
            metrics={config.protocol.headline: top1(scores)},
            variant=", ".join(filter(None, [f"{len(weights)} streams", name])),
            setting=evaluation.setting,
            parents=keys,
            seconds=sum(record.seconds for record, _ in of_name),
        )
        artefacts.write(record, Path(config.paths.records), {"confusion": {"matrix": confusion(scores)}})
        records.write(record, Path(config.paths.records))
        if config.logger.mode != "disabled":
            watched(evaluation, record, evaluation.folder / f"fused-{record.key[:12]}")
        rows[record.variant] = record, scores
        show(config, record)
    return rows


def one_stream(config: DictConfig, name: str) -> DictConfig:
    """The settings of the same evaluation of one stream alone; coordinates have no streams."""
    alone = config.copy()
    with open_dict(alone):
        del alone.fuse
        alone.stream, alone.protocol.rows = name, [row for row in config.protocol.rows if row != "coordinates"]
    return alone


def show(config: DictConfig, record: records.Record) -> None:
    """One line on the screen."""
    value = record.metrics[config.protocol.headline]
    best = f"  (best test epoch {record.best['top1']:.1f})" if record.best else ""
    what = ", ".join(filter(None, [record.kind, record.setting]))
    print(f"{what}  {record.variant or config.name}: {value:.1f} %{best}", flush=True)


@door("eval", expected=(InputError,), conf=Path(__file__).parent / "conf")
def main(config: DictConfig) -> dict[str, Any]:
    """Measure every row under `config.protocol`; returns the headline of each."""
    if config.trainer.devices != 1:
        raise InputError(
            f"evaluation runs on one device, found trainer.devices={config.trainer.devices}: leave trainer=ddp out, "
            "the number of devices is no part of a run's settings"
        )
    rows = evaluate_fused(config) if config.get("fuse") else evaluate(config)[1]
    print(f"records: {config.paths.records}; python report.py name={config.data.name} shows them")
    return {name or "trained": record.metrics[config.protocol.headline] for name, (record, _) in rows.items()}


if __name__ == "__main__":
    main()
