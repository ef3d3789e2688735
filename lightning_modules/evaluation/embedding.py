"""Each split is embedded once, into a file; every frozen protocol reads it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from datamodules.batch import SkeletonBatch
from datamodules.transforms.temporal import SampleFrames
from lightning_modules.callbacks.progress import shown

COORDINATE_FRAMES = 32


@dataclass(frozen=True)
class Embedding:
    """vectors (N, D) float32, features or scores; labels (N,); ids (N,) rows of the store, in the store's order."""

    vectors: Tensor
    labels: Tensor
    ids: Tensor

    def select(self, rows: Tensor) -> "Embedding":
        """The clips whose store row is among `rows`."""
        keep = torch.isin(self.ids, rows)
        return Embedding(self.vectors[keep], self.labels[keep], self.ids[keep])


@torch.no_grad()
def embed(
    function: Callable[[SkeletonBatch], Tensor], loader: Iterable[SkeletonBatch], device: torch.device, title: str
) -> Embedding:
    """Apply `function` (batch -> (N, D)) to every batch of an ordered loader, with progress."""
    parts = []
    for batch in shown(loader, title):
        vectors = function(SkeletonBatch(*(part.to(device) for part in batch)))
        parts.append((vectors.float().cpu(), batch.labels, batch.ids))
    return Embedding(*(torch.cat(column) for column in zip(*parts, strict=True)))


def gathered(own: Embedding, device: torch.device) -> Embedding:
    """The shares of all processes, of whatever size, in the store's order; device: where the processes can meet."""
    columns = (gather_all_tensors(getattr(own, column.name).to(device)) for column in fields(Embedding))
    whole = Embedding(*(torch.cat(parts).cpu() for parts in columns))
    order = whole.ids.argsort()
    return Embedding(whole.vectors[order], whole.labels[order], whole.ids[order])


def coordinates(batch: SkeletonBatch, frames: int = COORDINATE_FRAMES) -> Tensor:
    """(N, C * frames * V * M) normalised coordinates at evenly spaced frames: the baseline without a network."""
    return SampleFrames(frames).apply(batch.joints, None, batch.num_frames).flatten(1)


def save(path: Path, key: str, embedding: Embedding) -> None:
    """Write the embedding under `key`, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(
        {field.name: getattr(embedding, field.name).contiguous() for field in fields(Embedding)}, partial, {"key": key}
    )
    partial.replace(path)


def load(path: Path, key: str) -> Embedding | None:
    """The embedding written under `key`, None if there is none or the file is of another key."""
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get("key") != key:
            return None
        return Embedding(*(file.get_tensor(field.name) for field in fields(Embedding)))


def cached(path: Path, key: str, compute: Callable[[], Embedding]) -> Embedding:
    """Read the embedding written under `key`, or compute and write it."""
    found = load(path, key)
    if found is None:
        found = compute()
        save(path, key, found)
    return found
