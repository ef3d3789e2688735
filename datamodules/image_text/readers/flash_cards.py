"""MedAlpaca's medical flash cards: one JSON list of `{"instruction", "input", "output"}`, texts alone, for training."""

from dataclasses import dataclass
from pathlib import Path

from datamodules.image_text.readers.assembly import Draft, Identity, assemble
from datamodules.image_text.readers.lists import json_rows, text_of
from datamodules.image_text.sample import Corpus, Sample
from datamodules.readers.files import candidates

IDENTITY = Identity("flash_cards", "medical flash cards", "generation")
PATTERN = "*flashcards*.json"  # medical_meadow_wikidoc_medical_flashcards.json


@dataclass(frozen=True)
class FlashCards:
    """Questions (`input`) and answers (`output`); the instruction is the same on every card and is not used."""

    def read(self, raw: Path, cache: Path | None = None) -> Corpus:
        """Training samples alone. Raises InputError."""
        return assemble(IDENTITY, Path(raw), draft(raw), "reject", cache, train="train")


def draft(raw: Path) -> Draft:
    """The cards; one without question or answer is rejected. Raises InputError."""
    path, found = candidates(Path(raw), PATTERN, f"the cards {PATTERN}")[0], Draft()
    for number, row in enumerate(json_rows(path), 1):
        where = (path, None, f"item {number}: ")
        asked, answer = text_of(row, "input", where), text_of(row, "output", where)
        if asked and answer:
            found.add("train", Sample(f"card{number}", None, asked, answer, None, "cards"))
        else:
            found.rejected.append((f"card{number}", "has no question or no answer"))
    return found
