"""What the methods with a momentum encoder share: two views, a memory of negatives no larger than the data set."""

from torch import Tensor, nn

from datamodules.batch import SkeletonBatch
from datamodules.errors import InputError
from datamodules.transforms.views import CroppedView, ResizedView
from lightning_modules.base import SkeletonModule
from lightning_modules.contrast.momentum import MomentumEncoder
from lightning_modules.schedules import Schedule

QUERY_VIEW, KEY_VIEW = 0, 1


class MomentumContrast(SkeletonModule):
    """Base of the methods after MoCo.

    network: gives queries, and as its slow copy keys; view: how a clip becomes an input; memory_size: K negatives;
    momentum: of the copy.
    """

    def __init__(
        self,
        network: nn.Module,
        view: CroppedView | ResizedView,
        optimizer,
        schedule: Schedule,
        seed: int,
        memory_size: int,
        momentum: float,
        temperature: float,
    ):
        super().__init__(optimizer, schedule, seed)
        self.view, self.memory_size, self.temperature = view, memory_size, temperature
        self.encoders = MomentumEncoder(network, momentum)

    def seen(self, view: CroppedView | ResizedView, batch: SkeletonBatch, number: int) -> Tensor:
        """(N, C, T, V, M) of every clip under the augmentations that draw `number` of this step gives `view`."""
        return view.apply(batch.joints, self.draw(view, len(batch.joints), number), batch.num_frames)

    def views(self, batch: SkeletonBatch) -> tuple[Tensor, Tensor]:
        """Two augmented views (N, C, T, V, M) of every clip, for query and key."""
        return self.seen(self.view, batch, QUERY_VIEW), self.seen(self.view, batch, KEY_VIEW)

    def shown(self, batch: SkeletonBatch) -> Tensor:
        """The clips at the frames of the view, without augmentation."""
        return self.view.figure(batch.joints, batch.num_frames)

    def augmented(self, batch: SkeletonBatch) -> dict[str, Tensor]:
        """The views of query and key."""
        query, key = self.views(batch)
        return {"query": query, "key": key}

    def gathered(self, rows: Tensor) -> Tensor:
        """(N of all processes, ...) rows, without gradient."""
        return rows if self.place.world == 1 else self.all_gather(rows).flatten(0, 1)

    def on_train_start(self) -> None:
        """Raises InputError if the memory holds more keys than there are clips: it would hold some of them twice."""
        clips = len(self.trainer.train_dataloader.dataset)
        if self.memory_size > clips:
            raise InputError(
                f"expected at least as many training clips as the memory has slots, {self.memory_size}, found {clips}; "
                f"set memory_size to at most {clips}"
            )
