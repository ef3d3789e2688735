"""Hateful Memes: `train.jsonl`, `dev_seen.jsonl`, `test_seen.jsonl` and `img/`.

A line is `{"id", "img": "img/42953.png", "label": 0 or 1, "text"}`; the published training set has 8,500 of them, the
test set (test_seen) 1,000.
"""

from dataclasses import dataclass
from pathlib import Path

from datamodules.image_text.readers.assembly import Draft, Identity, assemble
from datamodules.image_text.readers.lists import folder_with, json_lines, one_of, text_of, within
from datamodules.image_text.sample import Corpus, Sample

OPTIONS = ("not-hateful", "hateful")
SIDES = ("train", "dev_seen", "test_seen")
OFFICIAL = (8500, 1000)  # train, test_seen
IDENTITY = Identity("hateful_memes", "Hateful Memes", "classification", OPTIONS)


@dataclass(frozen=True)
class HatefulMemes:
    """missing_images: "reject" or "text_only" (`readers.assembly.assemble`)."""

    missing_images: str = "reject"

    def read(self, raw: Path, cache: Path | None = None) -> Corpus:
        """Train, test (test_seen) and, as a further set, dev_seen. Raises InputError."""
        raw = folder_with(raw, [f"{side}.jsonl" for side in SIDES], ["hateful_memes", "data"], IDENTITY.title)
        draft = Draft()
        for side in SIDES:
            path = raw / f"{side}.jsonl"
            for number, row in json_lines(path):
                where = (path, number, "")
                label = one_of(row.get("label"), (0, 1), "a label", where)
                name = text_of(row, "img", where)
                text = text_of(row, "text", where)
                sample = Sample(text_of(row, "id", where), within(raw, name), text or None, OPTIONS[label], label)
                draft.add(side, sample, name)
        sides = {"train": "train", "test": "test_seen"}
        return assemble(IDENTITY, raw, draft, self.missing_images, cache, **sides, official=OFFICIAL)
