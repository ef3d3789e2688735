"""SCD-Net: spatiotemporal clues disentanglement network (Wu et al., AAAI 2024; methods §6.1), A2MC's parent."""

from torch import Tensor, nn

from datamodules.batch import SkeletonBatch
from datamodules.transforms.views import CroppedView
from lightning_modules.contrast.cross_level import contrast_terms, cross_level
from lightning_modules.contrast.queue import Queue
from lightning_modules.encoders.hierarchical import LEVELS, HierarchicalEncoder
from lightning_modules.hierarchical_contrast import HierarchicalContrast, handed
from lightning_modules.schedules import Schedule


class SCDNet(HierarchicalContrast):
    """Four InfoNCE terms across levels against first-in first-out queues of keys, one a level."""

    def __init__(
        self,
        encoder: HierarchicalEncoder,
        view: CroppedView,
        optimizer,
        schedule: Schedule,
        seed: int,
        dim: int = 128,
        memory_size: int = 8192,
        momentum: float = 0.999,
        temperature: float = 0.2,
    ):
        super().__init__(encoder, view, optimizer, schedule, seed, dim, memory_size, momentum, temperature)
        self.queues = nn.ModuleDict({level: Queue(dim, memory_size) for level in LEVELS})

    def objective(self, batch: SkeletonBatch) -> dict[str, Tensor]:
        """The four terms by pair of levels; the keys are handed on to the queues."""
        clips, others = self.views(batch)
        keys = self.encoders.keys(others)
        memory = {level: queue.keys for level, queue in self.queues.items()}
        pairs = cross_level(self.encoders.query(clips), keys, memory)
        return contrast_terms(pairs, self.temperature) | handed("key", keys)

    def after_step(self, outputs: dict[str, Tensor]) -> None:
        """The keys of every level join its queue, and the key encoder follows."""
        for level, keys in self.gathered_levels(outputs, "key").items():
            self.queues[level].push(keys)
        self.encoders.follow()
