"""Linear probe on frozen embeddings: embedding once makes it exact, because the encoder is in eval mode."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from datamodules.randomness import generator
from lightning_modules.callbacks.progress import shown
from lightning_modules.evaluation.embedding import Embedding
from lightning_modules.evaluation.measured import Measured, top1
from lightning_modules.evaluation.subject import Subject
from lightning_modules.schedules import Schedule


def standardise(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Zero mean and unit variance by the training clips; constant features stay 0."""
    mean, spread = train.mean(0), train.std(0, correction=0)
    scale = torch.where(spread > 1e-6 * spread.max().clamp(min=1e-12), 1 / spread, 0)
    return (train - mean) * scale, (test - mean) * scale


@dataclass(frozen=True)
class LinearProbe:
    """One fully connected layer (N(0, .01), bias 0) trained by SGD with cross-entropy, in mini-batches.

    standardised: features are standardised first, so that one learning rate serves encoders of any scale; False is
    the published setting of A2MC and SCD-Net. schedule: factor on `lr` by epoch. fraction: share of the labels.
    The headline is the last epoch; the best test epoch stands beside it, as the field reports it.
    """

    epochs: int
    lr: float
    batch_size: int
    schedule: Schedule
    momentum: float = 0.9
    weight_decay: float = 0.0
    standardised: bool = True
    fraction: float = 1.0
    seed: int = 1

    def measure(self, subject: Subject) -> Measured:
        """Top-1 accuracy `top1` in percent after the last epoch and at the best one; `labels` used."""
        train = subject.embedding("train").select(subject.label_rows(self.fraction))
        accuracies, scores = self.fit(train, subject.embedding("test"), subject.num_classes)
        metrics, best = {"top1": accuracies[-1], "labels": len(train.labels)}, {"top1": max(accuracies)}
        return Measured(metrics, best, scores, {"test/top1": list(enumerate(accuracies, 1))})

    def fit(self, train: Embedding, test: Embedding, num_classes: int) -> tuple[list[float], Embedding]:
        """Test top-1 in percent after each epoch, and the test clips' scores after the last."""
        inputs, tests = train.vectors, test.vectors
        if self.standardised:
            inputs, tests = standardise(inputs, tests)
        source = generator(self.seed, 0)
        layer = nn.Linear(inputs.shape[1], num_classes)
        with torch.no_grad():
            layer.weight.normal_(0, 0.01, generator=source)
            layer.bias.zero_()
        optimizer = torch.optim.SGD(layer.parameters(), self.lr, self.momentum, weight_decay=self.weight_decay)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule)
        accuracies = []
        for _ in shown(range(self.epochs), "linear probe"):
            for rows in torch.randperm(len(inputs), generator=source).split(self.batch_size):
                optimizer.zero_grad()
                functional.cross_entropy(layer(inputs[rows]), train.labels[rows]).backward()
                optimizer.step()
            scheduler.step()
            with torch.no_grad():
                scores = replace(test, vectors=layer(tests))
            accuracies.append(top1(scores))
        return accuracies, scores
