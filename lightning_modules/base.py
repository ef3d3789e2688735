"""What every skeleton method shares: the training step, optimiser and schedule from the configuration, logged names.

A method says what its loss terms are and how it embeds; the plumbing is here, once.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, final

import pytorch_lightning as pl
import torch
from torch import Tensor

from datamodules.batch import SkeletonBatch
from datamodules.randomness import generator, take_rows
from lightning_modules.released_checkpoints import ReleasedNames
from lightning_modules.schedules import Schedule


class Attention(NamedTuple):
    """Maps to look at: values (N, M, P, P), means over the heads of |map|, query first; over: what P counts."""

    over: Literal["joints", "frames"]
    values: Tensor


@dataclass
class Place:
    """Where a run stands: what a random draw depends on besides the seed."""

    epoch: int = 0
    step: int = 0
    rank: int = 0
    world: int = 1


class SkeletonModule(pl.LightningModule):
    """Base of the skeleton methods.

    optimizer: called with the parameters to train, gives the optimiser (a partial from the configuration).
    schedule: factor on the learning rate by epoch.
    seed: first part of the key of every random draw (see `draw`).

    A method implements

    - `objective(batch)`: named tensors, without side effects. Those of dimension 0 are the loss terms, already
      weighted, and the loss is their sum; the others are handed, detached, to `after_step`.
    - `features(batch)`: (N, S, D), S parallel streams of the clip (1 for most methods), differentiable, and D as
      `feature_width`. `embed` concatenates the streams, a classifier adds its scores over them.
    - `shown`, `augmented`, `attention` and `attacked_twins` where there is something to show of a clip.
    - `after_step(outputs)` where it keeps state (bank, key encoder): without gradient, once an optimiser step, with
      the outputs of the last batch of the step.
    """

    feature_width: int
    released: ClassVar[ReleasedNames | None] = None  # how the authors' code names the weights, where we can read it

    def __init__(self, optimizer, schedule: Schedule, seed: int):
        super().__init__()
        self._optimizer, self._schedule, self.seed = optimizer, schedule, seed
        self.place = Place()
        self._outputs: dict[str, Tensor] = {}

    def objective(self, batch: Any) -> dict[str, Tensor]:
        """Loss terms by name, and what `after_step` needs; without side effects."""
        raise NotImplementedError(f"{type(self).__name__} trains on no objective")

    def features(self, batch: SkeletonBatch) -> Tensor:
        """(N, S, D) features of S parallel streams of the clips."""
        raise NotImplementedError(f"{type(self).__name__} gives no features")

    def embed(self, batch: SkeletonBatch) -> Tensor:
        """(N, S * D) embedding of the clips, for probes and neighbours."""
        return self.features(batch).flatten(1)

    def shown(self, batch: SkeletonBatch) -> Tensor:
        """(N, C, T, V, M) joints at the frames that the network reads in evaluation; by default the clips."""
        return batch.joints

    def augmented(self, batch: SkeletonBatch) -> dict[str, Tensor]:
        """Views (N, C, T, V, M) of the clips by name, as training would draw them at this epoch and step."""
        return {}

    def attention(self, batch: SkeletonBatch) -> dict[str, Attention]:
        """Attention maps of the clips by name, in evaluation; of a method that has none, none."""
        return {}

    def attacked_twins(self, batch: SkeletonBatch) -> dict[str, Tensor]:
        """Attacked copies of `shown` by the name of the attack; of a method that does not attack, none."""
        return {}

    def after_step(self, outputs: dict[str, Tensor]) -> None:
        """Update what is not learnt by gradient; nothing by default."""

    def draw(self, transform, n: int, view: int) -> Any:
        """This rank's rows of what `transform` draws for the global batch of n clips a rank (design contract 3).

        view: a number of its own for every draw of a step, so that no two share their random numbers.
        """
        place = self.place
        source = generator(self.seed, place.epoch, place.step, view)
        drawn = transform.draw(n * place.world, source)
        return take_rows(drawn, slice(place.rank * n, (place.rank + 1) * n))

    def clips_in(self, batch: Any) -> int:
        """How many clips a batch holds, the weight of its loss in the epoch's mean."""
        return len(batch.labels)

    @final
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The sum of the terms, each logged under its name."""
        place, trainer = self.place, self.trainer
        place.epoch, place.step = trainer.current_epoch, batch_idx
        place.rank, place.world = trainer.global_rank, trainer.world_size
        outputs = self.objective(batch)
        terms = {name: value for name, value in outputs.items() if value.ndim == 0}
        loss = torch.stack(list(terms.values())).sum()
        self._outputs = {name: value.detach() for name, value in outputs.items() if value.ndim > 0}
        logged = {f"train/{name}": value.detach() for name, value in (terms | {"loss": loss}).items()}
        self.log_dict(logged, on_step=False, on_epoch=True, batch_size=self.clips_in(batch), sync_dist=True)
        return loss

    @final
    def optimizer_step(self, *args, **kwargs) -> None:
        """The step, then what the method does after one."""
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():
            self.after_step(self._outputs)
        self._outputs = {}

    def configure_optimizers(self):
        """The configured optimiser over what is trained, its rate by epochs."""
        optimizer = self._optimizer([p for p in self.parameters() if p.requires_grad])
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}
