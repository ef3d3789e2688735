"""A corpus from its raw folder, or from its miniature, which is written first."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from datamodules.errors import InputError
from datamodules.image_text.sample import Corpus
from datamodules.miniature import crises, memes, questions
from datamodules.store import MINIATURE, store_folder

# What configurations may name as a corpus's miniature.
WRITERS = (memes.write_memes, crises.write_crises, questions.write_medical, questions.write_easy_vqa)


class Reader(Protocol):
    """Of one raw format."""

    def read(self, raw: Path, cache: Path | None = None) -> Corpus:
        """The corpus in `raw`; cache: a file of what is known of its images."""


def read_corpus(reader: Reader, miniature: Callable[..., Any] | None, stores: Path, name: str, raw: str) -> Corpus:
    """The corpus `name` of the folder `raw` ("miniature": its miniature, written below `stores` by `miniature`).

    What was learnt of the images is kept below `stores`. Raises InputError as the reader does, and for a corpus
    without a miniature.
    """
    folder = store_folder(stores, name, raw)
    found = Path(raw).expanduser()
    if raw in MINIATURE:
        if miniature is None:
            raise InputError(f"{name}: expected raw=folder, found none, and it has no miniature: give the folder")
        found = folder / "raw_files"
        miniature(folder=found)
    corpus = reader.read(found, folder / "images.json")
    if corpus.miniature:
        print(f"{corpus.name}: miniature, not {corpus.title}: made-up images and texts in its file format")
    return corpus


def counts_of(corpus: Corpus) -> dict[str, int]:
    """Samples by side: "train", "test" and the further sets."""
    further = {side: len(samples) for side, samples in corpus.further.items()}
    return {"train": len(corpus.train), "test": len(corpus.test), **further}


def rejections(corpus: Corpus) -> str:
    """How many files or samples were left out, and the first with its reason."""
    first = f" (first {': '.join(corpus.rejected[0])})" if corpus.rejected else ""
    return f"{len(corpus.rejected)} rejected{first}"


def verdict(corpus: Corpus) -> str:
    """Whether training and test samples are as many as the whole set has; of a miniature nothing is to be said."""
    if corpus.miniature:
        return ""
    if corpus.official is None:
        return "; unverified: no official numbers are known"
    if (len(corpus.train), len(corpus.test)) == corpus.official:
        return "; the official numbers"
    return f"; not the whole set, which has {corpus.official[0]} train and {corpus.official[1]} test"


def told(corpus: Corpus) -> str:
    """One line: what a corpus holds, what was rejected, whether that is the whole set."""
    counts = counts_of(corpus).items()
    shown = [f"{number} {side}" for side, number in counts if number or side in ("train", "test")]
    return f"{corpus.name}: {', '.join([*shown, rejections(corpus)])}{verdict(corpus)}"
