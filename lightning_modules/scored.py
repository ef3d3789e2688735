"""The accuracy on the test side after each epoch, for modules that classify while they train."""

from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from datamodules.batch import SkeletonBatch
from lightning_modules.base import SkeletonModule


class ScoredModule(SkeletonModule):
    """A SkeletonModule with `logits`; it logs `test/top1`, in percent, where the DataModule gives a test side.

    A subclass sets `accuracy` and defines `logits`.
    """

    accuracy: MulticlassAccuracy

    def logits(self, batch: SkeletonBatch) -> Tensor:
        """(N, classes) scores before the softmax."""
        raise NotImplementedError(f"{type(self).__name__} gives no scores")

    def validation_step(self, batch: SkeletonBatch, batch_idx: int) -> None:
        """Count the right answers of a batch of the test side."""
        self.accuracy.update(self.logits(batch), batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Log `test/top1`."""
        self.log("test/top1", 100 * self.accuracy.compute())
        self.accuracy.reset()
