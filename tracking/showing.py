"""A finished measurement in W&B: its numbers, its curves and pictures of what stands beside its record."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

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
    """Plain values of the rows as a table, and their images under the other values; to loggers that show such."""
    plain = [{name: value for name, value in row.items() if name != "image"} for row in rows]
    pictured = [(row["image"], told) for row, told in zip(rows, plain, strict=True) if row["image"] is not None]
    for sink in sinks if rows else ():
        if hasattr(sink, "log_table"):
            sink.log_table("samples", columns=list(plain[0]), data=[list(row.values()) for row in plain], step=step)
        if hasattr(sink, "log_image") and pictured:
            captions = ["\n".join(f"{name}: {value}" for name, value in told.items()) for _, told in pictured]
            sink.log_image("pictures", [image for image, _ in pictured], step=step, caption=captions)
        sink.save()
