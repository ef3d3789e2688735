"""Evaluate a run: `python eval.py experiment=ntu60/sds_cl_xsub protocol=knn`, with the settings given to train.py.

Beside the trained network always stand the same network at random initialisation and the coordinates without one.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from datamodules.errors import InputError
from datamodules.prepared import make_data
from lightning_modules.base import SkeletonModule
from lightning_modules.evaluation.embedding import COORDINATE_FRAMES
from lightning_modules.evaluation.subject import Subject
from lightning_modules.fitting import weights_digest
from tracking import identity, records
from tracking.build import build
from tracking.doors import door
from train import Run, announce, plain, set_aside, share, store_labels


def subjects(config: DictConfig, run: Run, checkpoint: Path) -> list[Subject]:
    """The rows of an evaluation."""
    sources: dict[str, tuple[str, Callable[[], SkeletonModule] | None]] = {
        "": (weights_digest(checkpoint), partial(run.trained, checkpoint)),
        "random initialisation": (f"random {run.key}", run.module),
        "coordinates": (f"{COORDINATE_FRAMES} frames of coordinates", None),
    }
    return [
        Subject(
            name=name,
            key=f"{identity.RESULTS_VERSION} {key}",
            folder=run.folder / "evaluation" / (name or "trained").replace(" ", "_"),
            work=run.folder / "evaluation",
            data=run.data,
            num_classes=run.config["data"]["num_classes"],
            trainer=run.config["trainer"],
            make_data=partial(make_data, config),
            make_backbone=make,
        )
        for name, (key, make) in sources.items()
    ]


def measure(config: DictConfig, run: Run, subject: Subject) -> records.Record:
    """One subject under one protocol: found among the records, or measured and recorded."""
    folder = Path(config.paths.records)
    kind = config.protocol.name
    labels = store_labels(run, config.protocol.fraction) if "fraction" in config.protocol else ""
    # Not the whole configuration: another rate of fine-tuning does not make other neighbours.
    own = {name: plain(config)[name] for name in ("name", "data", "protocol", "trainer", "seed")}
    key = identity.run_key(own, run.data.fingerprint + labels, subject.key)
    found = records.find(folder, key=key, kind=kind, variant=subject.name)
    if found and not config.fresh:
        return found[0]
    # Under the key of this very result: other settings must not resume what these began.
    work = run.folder / "evaluation" / f"{kind}-{key[:12]}"
    started = time.monotonic()
    result = build(config.protocol.measure).measure(replace(subject, work=work))
    best = {"top1": result.pop("best")} if "best" in result else {}
    record = run.record(
        kind=kind,
        key=key,
        metrics=result,
        best=best,
        variant=subject.name,
        setting=setting(config),
        parents=[] if config.checkpoint else [run.key],
        seconds=time.monotonic() - started,
    )
    records.write(record, folder)
    return record


def setting(config: DictConfig) -> str:
    """What tells apart results of one protocol."""
    return share(config.protocol.fraction) if "fraction" in config.protocol else ""


@door("eval", expected=(InputError,), conf=Path(__file__).parent / "conf")
def main(config: DictConfig) -> dict:
    """Measure every subject under `config.protocol`; returns the headline of each."""
    if config.trainer.devices != 1:
        raise InputError(
            f"evaluation runs on one device, found trainer.devices={config.trainer.devices}: leave trainer=ddp out, "
            "the number of devices is no part of a run's settings"
        )
    run = Run.of(config)
    announce(run)
    checkpoint = Path(config.checkpoint) if config.checkpoint else run.checkpoint
    if not checkpoint.is_file():
        raise InputError(f"expected a checkpoint {checkpoint}, found none: run python train.py with the same settings")
    if not config.checkpoint and not run.finished:
        raise InputError(
            f"training of {run.folder} is not finished: run python train.py with the same settings, it resumes"
        )
    if config.fresh:
        set_aside(run.folder / "evaluation")
    results = {}
    for subject in subjects(config, run, checkpoint):
        record = measure(config, run, subject)
        value = record.metrics[config.protocol.headline]
        results[subject.name or "trained"] = value
        best = f"  (best test epoch {record.best['top1']:.1f})" if record.best else ""
        print(
            f"{config.protocol.name}, {setting(config)}  {subject.name or config.name}: {value:.1f} %{best}", flush=True
        )
    return results


if __name__ == "__main__":
    main()
