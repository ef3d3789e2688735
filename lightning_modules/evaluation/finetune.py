"""Training the whole network on labels: full fine-tuning, semi-supervised fractions, and supervised from scratch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl

from datamodules.errors import InputError
from datamodules.skeleton import SkeletonDataModule
from lightning_modules.callbacks.history import History
from lightning_modules.classifier import Classifier
from lightning_modules.evaluation.embedding import embed
from lightning_modules.evaluation.linear import LinearProbe
from lightning_modules.evaluation.measured import Measured, top1
from lightning_modules.evaluation.subject import Subject
from lightning_modules.fitting import fit
from lightning_modules.schedules import Schedule


@dataclass(frozen=True)
class FineTune:
    """Fresh linear layer on the subject's backbone, both trained with cross-entropy on a share of the labels.

    fraction: share of the training labels.
    drop_last: leave out the last, smaller batch of an epoch, as published; False where labels are few.
    optimizer: partial. test_every: epochs between looks at the test side (for the best test epoch, the field's habit).
    Coordinates have no network to tune: their row is `coordinates_probe` on the same labels.
    """

    fraction: float
    epochs: int
    optimizer: Callable[..., Any]
    schedule: Schedule
    seed: int
    batch_size: int
    drop_last: bool
    coordinates_probe: LinearProbe
    test_every: int = 1

    def measure(self, subject: Subject) -> Measured:
        """Top-1 accuracy `top1` in percent after the last epoch and at the best one; `labels` used."""
        if self.epochs % self.test_every:
            raise InputError(
                f"the last epoch must be tested: {self.epochs} epochs do not divide by test_every={self.test_every}"
            )
        if subject.make_backbone is None:
            return self.coordinates_probe.measure(subject)
        pl.seed_everything(self.seed, verbose=False)
        classifier = Classifier(subject.make_backbone(), subject.num_classes, self.optimizer, self.schedule, self.seed)
        batches = {"batch_size": self.batch_size, "drop_last": self.drop_last}
        data = subject.make_data(**batches, fraction=self.fraction, labelled=None, tested=True)
        history = self._fit(classifier, data, subject)
        logits = classifier.eval().to(subject.device).logits
        scores = embed(logits, data.ordered("test"), subject.device, f"scores: {subject.name}")
        labels = len(data.label_rows(self.fraction))
        metrics, best = {"top1": top1(scores), "labels": labels}, {"top1": history.best("test/top1")}
        return Measured(metrics, best, scores, history.curves())

    def _fit(self, classifier: Classifier, data: SkeletonDataModule, subject: Subject) -> History:
        trainer = subject.trainer | {"max_epochs": self.epochs, "check_val_every_n_epoch": self.test_every}
        title = f"fine-tuning on {100 * self.fraction:g} % of the labels: {subject.name}"
        return fit(classifier, data, subject.work, trainer, self.seed, title)
