"""A finished measurement in W&B: its numbers, its curves and pictures of what stands beside its record."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import wandb
from PIL import Image
from pytorch_lightning.loggers import Logger

from tracking import pictures
from tracking.records import Record

PICTURES = {"confusion": pictures.confusion, "points": pictures.points}


def tell(sinks: Sequence[Logger], record: Record, parts: Mapping[str, Any]) -> None:
    """Log the curves by epoch, and after the last epoch the metrics (`best/...`: of the best test epoch), cost and
    pictures; pictures only to loggers that show them."""
    by_epoch: dict[int, dict[str, float]] = defaultdict(dict)
    for name, curve in record.curves.items():
        for epoch, value in curve:
            by_epoch[int(epoch)][name] = value
    last = max(by_epoch, default=0) + 1
    best = {f"best/{name}": value for name, value in record.best.items()}
    by_epoch[last] = record.metrics | best | record.cost | {"seconds": record.seconds}
    for sink in sinks:
        for epoch in sorted(by_epoch):
            sink.log_metrics(by_epoch[epoch], step=epoch)
        if hasattr(sink, "log_image"):
            for name in PICTURES.keys() & parts.keys():
                sink.log_image(name, [PICTURES[name](parts[name])], step=last)
        sink.save()


def samples(sinks: Sequence[Logger], rows: Sequence[Mapping[str, Any]], step: int) -> None:
    """Rows of plain values and images as a table; only to loggers that show tables."""
    if not rows:
        return
    data = [[wandb.Image(value) if isinstance(value, Image.Image) else value for value in row.values()] for row in rows]
    for sink in sinks:
        if hasattr(sink, "log_table"):
            sink.log_table("samples", columns=list(rows[0]), data=data, step=step)
            sink.save()
