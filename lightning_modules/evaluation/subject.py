"""What an evaluation is of: a trained network, the same network untrained, or the coordinates without a network."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from datamodules.batch import SkeletonBatch
from datamodules.skeleton import SkeletonDataModule
from lightning_modules.base import SkeletonModule
from lightning_modules.evaluation.embedding import Embedding, cached, coordinates, embed


@dataclass(frozen=True)
class Subject:
    """One row of a table of results.

    name: what the row is called, empty for the trained network.
    key: identity of the weights, under which embeddings are cached.
    folder: where its embeddings are kept. work: where one measurement may keep what it needs to resume.
    data: the split to embed. make_data: the same split with other arguments, for training on labels.
    trainer: options of a Lightning Trainer for that.
    make_backbone: a fresh network with the subject's weights, None where there is no network.
    """

    name: str
    key: str
    folder: Path
    work: Path
    data: SkeletonDataModule
    num_classes: int
    trainer: dict
    make_data: Callable[..., SkeletonDataModule]
    make_backbone: Callable[[], SkeletonModule] | None = None

    def embedding(self, side: str) -> Embedding:
        """The "train" or "test" side, embedded once and then read from its file."""
        path = self.folder / f"{self.data.split}-{side}.safetensors"
        return cached(path, f"{self.key}-{self.data.fingerprint}-{side}", lambda: self._embed(side))

    def label_rows(self, fraction: float) -> Tensor:
        """Store rows of the training clips whose labels may be used."""
        return torch.from_numpy(self.data.label_rows(fraction))

    @property
    def device(self) -> torch.device:
        """Where it is embedded and scored."""
        on_gpu = self.trainer.get("accelerator") != "cpu" and torch.cuda.is_available()
        return torch.device("cuda" if on_gpu else "cpu")

    def _embed(self, side: str) -> Embedding:
        function: Callable[[SkeletonBatch], Tensor] = coordinates
        if self.make_backbone is not None:
            function = self.make_backbone().eval().to(self.device).embed
        # In float32 whatever the training's precision: once is cheap, bfloat16 features move results by half a point.
        return embed(function, self.data.ordered(side), self.device, f"embedding {side}: {self.name}")
