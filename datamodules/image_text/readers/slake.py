"""SLAKE: `test.json` and `imgs/xmlab0/source.jpg`. Here it is a test set alone, its English questions."""

from dataclasses import dataclass
from pathlib import Path

from datamodules.image_text.readers.assembly import Draft, Identity, assemble
from datamodules.image_text.readers.lists import folder_with, json_rows, text_of
from datamodules.image_text.readers.questions import question
from datamodules.image_text.sample import Corpus

IDENTITY = Identity("slake", "SLAKE", "generation")
LIST, IMAGES, LANGUAGE = "test.json", "imgs", "en"


@dataclass(frozen=True)
class SLAKE:
    """missing_images: `readers.assembly.assemble`. Samples are grouped by the place in the body."""

    missing_images: str = "reject"

    def read(self, raw: Path, cache: Path | None = None) -> Corpus:
        """Test alone. Raises InputError."""
        return assemble(IDENTITY, Path(raw), draft(raw), self.missing_images, cache, test="test")


def draft(raw: Path) -> Draft:
    """The English test questions as listed, before images are looked at. Raises InputError."""
    folder, found = folder_with(Path(raw), [LIST], [], IDENTITY.title), Draft()
    path = folder / LIST
    for number, row in enumerate(json_rows(path), 1):
        where = (path, None, f"item {number}: ")
        if text_of(row, "q_lang", where) == LANGUAGE:
            renamed = row | {"image_name": text_of(row, "img_name", where)}
            found.add("test", *question(renamed, number, path, folder / IMAGES, "qid", "location"))
    return found
