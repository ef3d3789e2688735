"""What every image-text reader answers with: samples, and the corpus that holds them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

TASKS = ("classification", "generation")


@dataclass(frozen=True)
class Sample:
    """One image with its text and the answer wanted.

    image: the file, None for a sample without one. text: the text modality that may be missing: caption, tweet or
    question. answer: target text. label: class index, None for open generation. group: event or subject, for
    partitions. closed: whether a question is answered by yes or no or from a list; None where there is no such kind.
    """

    id: str
    image: Path | None
    text: str | None
    answer: str
    label: int | None
    group: str = ""
    closed: bool | None = None


@dataclass(frozen=True)
class Corpus:
    """One image-text set as read from its raw folder.

    task: one of TASKS. options: class names by index, () for open generation. further: more test sets by name (SLAKE
    beside VQA-RAD). rejected: (file or id, reason) of whatever was left out. miniature: whether it is made up.
    fingerprint: SHA-256 over what was read: ids, texts, labels and image bytes. official: samples to train and to test
    on that the whole set has, None where no official numbers are known.
    """

    name: str
    title: str
    task: str
    options: tuple[str, ...]
    train: list[Sample]
    test: list[Sample]
    fingerprint: str
    miniature: bool
    further: Mapping[str, list[Sample]] = field(default_factory=dict)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    official: tuple[int, int] | None = None
