"""A method's backbone with one fresh linear layer, trained on labels: fine-tuning, semi-supervised, supervised rows."""

from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy

from datamodules.batch import SkeletonBatch
from lightning_modules.base import SkeletonModule
from lightning_modules.schedules import Schedule
from lightning_modules.scored import ScoredModule


class Classifier(ScoredModule):
    """Cross-entropy on the scores summed over the backbone's streams (SDS-CL: fc(y_joint) + fc(y_motion), one fc).

    backbone: gives `features` (N, S, D) and `feature_width` D; its heads for pre-training are left out of training
    because no gradient reaches them.
    The layer starts xavier-normal with bias 0, as SDS-CL's.
    """

    def __init__(self, backbone: SkeletonModule, num_classes: int, optimizer, schedule: Schedule, seed: int):
        super().__init__(optimizer, schedule, seed)
        self.backbone = backbone
        backbone.place = self.place  # its draws follow this module's epochs and steps
        self.fc = nn.Linear(backbone.feature_width, num_classes)
        nn.init.xavier_normal_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")

    def logits(self, batch: SkeletonBatch) -> Tensor:
        """(N, classes) scores before the softmax."""
        return self.fc(self.backbone.features(batch)).sum(1)

    def features(self, batch: SkeletonBatch) -> Tensor:
        """Those of the backbone."""
        return self.backbone.features(batch)

    def objective(self, batch: SkeletonBatch) -> dict[str, Tensor]:
        """Cross-entropy of the labels."""
        return {"cross_entropy": functional.cross_entropy(self.logits(batch), batch.labels)}

    def configure_optimizers(self):
        """Fine-tuning trains the backbone, too."""
        self.backbone.requires_grad_(True)
        return super().configure_optimizers()
