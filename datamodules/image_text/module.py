"""One DataModule for every image-text set: who holds which sample, which modality it keeps, and batches of that."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules import partition as partitions
from datamodules.errors import InputError
from datamodules.image_text.batch import Encode, ImageTextBatch
from datamodules.image_text.images import Pictures
from datamodules.image_text.modality import Scenario
from datamodules.image_text.prompts import Prompts
from datamodules.image_text.sample import Corpus, Sample
from datamodules.partition import Partition
from datamodules.skeleton import EpochSampler

# What is shown of a test sample: (image, text). The published tables show both, whatever was trained on.
CONDITIONS = {"both": (True, True), "image only": (True, False), "text only": (False, True), "neither": (False, False)}


class Asked(Dataset):
    """Samples as a model meets them, fetched and encoded a whole batch at a time.

    shown: (N, 2) bool, whether a sample's image and text are shown. answers: whether the batch holds the answers.
    """

    def __init__(
        self, data: "ImageTextDataModule", samples: Sequence[Sample], shown: np.ndarray, answers: bool, encode: Encode
    ):
        self.samples, self.shown, self.answers, self.encode = samples, shown, answers, encode
        self.prompts, self.options, self.pictures = data.prompts, data.corpus.options, data.pictures

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, positions: list[int]) -> ImageTextBatch:
        samples = [self.samples[position] for position in positions]
        shown = [self.shown[position] for position in positions]
        asked = [
            self.prompts.ask(sample.text if text else None, self.options)
            for sample, (_, text) in zip(samples, shown, strict=True)
        ]
        images = [
            self.pictures(sample.image) if image and sample.image is not None else None
            for sample, (image, _) in zip(samples, shown, strict=True)
        ]
        answers = [self.prompts.answer_of(sample, self.options) for sample in samples] if self.answers else None
        classes = [-1 if sample.label is None else sample.label for sample in samples]
        batch = self.encode(asked, images, answers)
        return batch._replace(ids=tuple(sample.id for sample in samples), classes=torch.tensor(classes))


class ImageTextDataModule(pl.LightningDataModule):
    """Batches of one image-text corpus, shared out among clients (`federated.data.ClientData`).

    partition, scenario: who holds which training sample, and which modality it keeps. paired: a corpus of image-text
    pairs and of texts alone (VQA-RAD and flash cards): a client without images holds only the texts, one without texts
    only the pairs, whole; nothing is stripped. pooled: one client that holds what all clients hold, as they hold it.
    batch_size: global; it must divide by the world size. eval_batch_size: it changes no result. drop_last: leave out
    the last, smaller training batch. memory: bytes of decoded images to keep. partial: whether the corpus may lack its
    training or its test side, as at a site of a federation and at its server.
    Raises InputError for an empty client or test set and for a wording that does not suit the corpus.
    """

    def __init__(
        self,
        corpus: Corpus,
        prompts: Prompts,
        partition: Partition,
        scenario: Scenario,
        encode: Encode,
        batch_size: int,
        seed: int,
        eval_batch_size: int = 64,
        num_workers: int = 0,
        paired: bool = False,
        pooled: bool = False,
        drop_last: bool = False,
        memory: int = 512 << 20,
        partial: bool = False,
    ):
        super().__init__()
        prompts.check(corpus.options)
        self.corpus, self.prompts, self.encode, self.seed = corpus, prompts, encode, seed
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.partition, self.scenario, self.paired, self.pooled = partition, scenario, paired, pooled
        self.drop_last = drop_last
        self.pictures = Pictures(memory)
        self._pieces = partition.split(columns(corpus.train))
        self._masks = scenario.masks([len(piece) for piece in self._pieces])
        self._held = [self._holding(*held) for held in zip(self._pieces, self._masks, strict=True)]
        if pooled:
            rows, shown = zip(*self._held, strict=True)
            self._held = [(np.concatenate(rows), np.concatenate(shown))]
        if not partial:
            self._check_sides()

    def _check_sides(self) -> None:
        if not self.corpus.test:
            raise InputError(f"{self.corpus.title}: expected test samples, found none; complete the folder")
        for client, (rows, _) in enumerate(self._held):
            if len(rows) == 0:
                raise InputError(f"federation: expected samples for client {client}, found none; change the partition")

    def _holding(self, rows: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of one client and what they show, (n, 2)."""
        if not self.paired:
            return rows, mask
        pictured = np.array([self.corpus.train[row].image is not None for row in rows], dtype=bool)
        kept = np.where(pictured, mask[:, 0], mask[:, 1])
        return rows[kept], np.ones((kept.sum(), 2), dtype=bool)

    @property
    def miniature(self) -> bool:
        return self.corpus.miniature

    @property
    def clients(self) -> int:
        return len(self._held)

    @property
    def sides(self) -> tuple[str, ...]:
        """Names of the test sets: "test" and the corpus's further ones."""
        return ("test", *self.corpus.further)

    @property
    def counts(self) -> dict[str, int]:
        """Training samples that a client holds, and samples of each test set."""
        held = sum(len(rows) for rows, _ in self._held)
        return {"train": held} | {side: len(self.samples(side)) for side in self.sides}

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the corpus, who holds what, and what it shows."""
        digest = hashlib.sha256(self.corpus.fingerprint.encode())
        for rows, shown in self._held:
            digest.update(rows.astype("<i8").tobytes() + np.packbits(shown).tobytes())
        return digest.hexdigest()

    def samples(self, side: str) -> Sequence[Sample]:
        """Samples of "train", "test" or a further set, in the order of `ordered`."""
        sides = {"train": self.corpus.train, "test": self.corpus.test, **self.corpus.further}
        if side not in sides:
            raise InputError(f"{self.corpus.title}: expected a set of {', '.join(sides)}, found {side!r}")
        return sides[side]

    def check_classes(self, side: str) -> None:
        """Raises InputError for a set of one class where there are two to tell apart: it has no ROC curve."""
        samples, options = self.samples(side), self.corpus.options
        found = {sample.label for sample in samples}
        if len(options) == 2 and len(found) == 1:
            told = f"expected samples of {' and '.join(options)} in the set {side!r}, found {len(samples)} of one class"
            raise InputError(f"{self.corpus.title}: {told}; complete the folder or leave it out of `tested`")

    def manifest(self) -> dict:
        """Who holds what, as plain values: the partition's manifest, the scenario, and by client how many samples show
        both modalities, the image only, the text only, neither."""
        told = partitions.manifest(self.partition, self._pieces, skew_labels(self.corpus.train))
        masks = hashlib.sha256(b"".join(np.packbits(mask).tobytes() for mask in self._masks)).hexdigest()
        return told | {
            "corpus": self.corpus.name,
            "miniature": self.miniature,
            "fingerprint": self.corpus.fingerprint,
            "scenario": {"kind": type(self.scenario).__name__, "settings": dict(vars(self.scenario))},
            "masks_digest": masks,
            "paired": self.paired,
            "pooled": self.pooled,
            "held": [len(rows) for rows, _ in self._held],
            "shown": [self._shown_counts(rows, shown) for rows, shown in self._held],
        }

    def _shown_counts(self, rows: np.ndarray, shown: np.ndarray) -> dict[str, int]:
        there = np.array([[s.image is not None, s.text is not None] for s in map(self.corpus.train.__getitem__, rows)])
        seen = shown & there
        return {name: int((seen == condition).all(1).sum()) for name, condition in CONDITIONS.items()}

    def num_samples(self, client: int) -> int:
        return len(self._held[client][0])

    def train_dataloader(self, client: int | None = None, seed: int | None = None) -> DataLoader:
        """Batches with answers in an order of (seed, epoch): one client's, or without `client` all clients' together.

        seed: the client's for this round; without it that of the run.
        """
        if client is None:
            rows, shown = (np.concatenate(parts) for parts in zip(*self._held, strict=True))
        else:
            rows, shown = self._held[client]
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer is not None else (1, 0)
        if self.batch_size % world:
            raise InputError(
                f"a global batch of {self.batch_size} does not divide by {world} processes: choose a multiple"
            )
        asked = Asked(self, [self.corpus.train[row] for row in rows], shown, True, self.encode)
        seed = self.seed if seed is None else seed
        sampler = EpochSampler(len(asked), self.batch_size, seed, drop_last=self.drop_last, rank=rank, world=world)
        return self._loader(asked, self.batch_size // world, sampler=sampler)

    def ordered(self, side: str, condition: str = "both", answers: bool = False) -> DataLoader:
        """Every sample of a side once, in file order, showing what `condition` says.

        answers: whether the batches hold the answers; for scoring and generation they end with the prompt.
        """
        samples = self.samples(side)
        shown = np.tile(_condition(condition), (len(samples), 1))
        return self._loader(Asked(self, samples, shown, answers, self.encode), self.eval_batch_size)

    def distinct(self, side: str, condition: str) -> tuple[DataLoader, list[int]]:
        """What `ordered` shows, every pair of image and text once: where neither is shown all samples ask the same.

        Returns batches of the samples that are the first to ask, and for every sample of the side which of them it is.
        """
        image, text = _condition(condition)
        samples = self.samples(side)
        asked = [(s.image if image else None, s.text if text else None) for s in samples]
        first: dict[tuple[Path | None, str | None], Sample] = {}
        for question, sample in zip(asked, samples, strict=True):
            first.setdefault(question, sample)
        order = {question: place for place, question in enumerate(first)}
        shown = np.tile((image, text), (len(first), 1))
        loader = self._loader(Asked(self, list(first.values()), shown, False, self.encode), self.eval_batch_size)
        return loader, [order[question] for question in asked]

    def _loader(self, asked: Asked, batch_size: int, **options: Any) -> DataLoader:
        workers = self.num_workers
        return DataLoader(
            asked, batch_size, num_workers=workers, collate_fn=_as_is, persistent_workers=workers > 0, **options
        )


def columns(samples: Sequence[Sample]) -> Mapping[str, Sequence]:
    """What a partition may go by: `ids`, `groups`, `images`, `pictured`, and `labels` of a classification."""
    named: dict[str, Sequence] = {
        "ids": [sample.id for sample in samples],
        "groups": [sample.group for sample in samples],
        "images": ["" if sample.image is None else sample.image.name for sample in samples],
        "pictured": [sample.image is not None for sample in samples],
    }
    if all(sample.label is not None for sample in samples):
        named["labels"] = [sample.label for sample in samples]
    return named


def skew_labels(samples: Sequence[Sample]) -> Sequence:
    """What the skew of a partition is measured by: the class, or of open questions the group."""
    return columns(samples).get("labels", [sample.group for sample in samples])


def _condition(name: str) -> tuple[bool, bool]:
    """Whether image and text are shown; raises InputError for a name that is none."""
    if name not in CONDITIONS:
        raise InputError(f"modality: expected a condition of {', '.join(CONDITIONS)}, found {name!r}")
    return CONDITIONS[name]


def _as_is(batch: Any) -> Any:
    """`Asked` already answers with a batch."""
    return batch
