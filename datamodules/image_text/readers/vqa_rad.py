"""VQA-RAD: questions on radiology images, in either form of its distribution.

One list `VQA_RAD Dataset Public.json` with `VQA_RAD Image Folder/`, or the lists `trainset.json` and `testset.json`
with `images/`. As published: train = free-form and paraphrased questions (1,797), test = the free-form and paraphrased
ones set aside for it (451); what is framed from other questions is not used.
"""

from dataclasses import dataclass
from pathlib import Path

from datamodules.image_text.readers.assembly import Draft, Identity, assemble
from datamodules.image_text.readers.lists import folder_with, json_rows, text_of
from datamodules.image_text.readers.questions import question
from datamodules.image_text.sample import Corpus

IDENTITY = Identity("vqa_rad", "VQA-RAD", "generation")
PUBLIC, PUBLIC_IMAGES = "VQA_RAD Dataset Public.json", "VQA_RAD Image Folder"
OFFICIAL = (1797, 451)
LISTS, IMAGES = {"train": "trainset.json", "test": "testset.json"}, "images"
# phrase_type -> side; a split list says the side by its name and needs no prefix.
PUBLIC_SIDES = {"freeform": "train", "para": "train", "test_freeform": "test", "test_para": "test"}
PHRASES = {"train": ("freeform", "para"), "test": ("freeform", "para", "test_freeform", "test_para")}


@dataclass(frozen=True)
class VQARAD:
    """missing_images: `readers.assembly.assemble`. Samples are grouped by the organ of the image."""

    missing_images: str = "reject"

    def read(self, raw: Path, cache: Path | None = None) -> Corpus:
        """Train and test. Raises InputError."""
        sides = {"train": "train", "test": "test"}
        return assemble(IDENTITY, Path(raw), draft(raw), self.missing_images, cache, **sides, official=OFFICIAL)


def draft(raw: Path) -> Draft:
    """The questions as listed, before images are looked at. Raises InputError."""
    raw = Path(raw)
    found = Draft()
    if (raw / PUBLIC).is_file():
        _add(found, raw / PUBLIC, raw / PUBLIC_IMAGES, PUBLIC_SIDES)
        return found
    folder = folder_with(raw, list(LISTS.values()), [], f"VQA-RAD without {PUBLIC}")
    for side, name in LISTS.items():
        _add(found, folder / name, folder / IMAGES, dict.fromkeys(PHRASES[side], side))
    return found


def _add(found: Draft, path: Path, images: Path, sides: dict[str, str]) -> None:
    for number, row in enumerate(json_rows(path), 1):
        side = sides.get(text_of(row, "phrase_type", (path, None, f"item {number}: ")))
        if side is not None:
            found.add(side, *question(row, number, path, images, "qid", "image_organ"))
