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
