"""FedMLLM's medical task: VQA-RAD (images with questions) and flash cards (texts alone) to train on, VQA-RAD and,
never seen in training, SLAKE to test on.
"""

from dataclasses import dataclass
from pathlib import Path

from datamodules.image_text.readers import flash_cards, slake, vqa_rad
from datamodules.image_text.readers.assembly import Draft, Identity, assemble
from datamodules.image_text.sample import Corpus

IDENTITY = Identity("medical", "VQA-RAD, flash cards and SLAKE", "generation")


@dataclass(frozen=True)
class Medical:
    """vqa_rad, flash_cards, slake: folders below the raw one, as their own readers want them.

    missing_images: `readers.assembly.assemble`.
    """

    vqa_rad: str = "vqa_rad"
    flash_cards: str = "flash_cards"
    slake: str = "slake"
    missing_images: str = "reject"

    def read(self, raw: Path, cache: Path | None = None) -> Corpus:
        """Train: questions, then cards; test: VQA-RAD's; further set: slake. Raises InputError."""
        raw = Path(raw)
        asked, cards = vqa_rad.draft(raw / self.vqa_rad), flash_cards.draft(raw / self.flash_cards)
        unseen = slake.draft(raw / self.slake)
        sides = {
            "train": asked.sides.get("train", []) + cards.sides.get("train", []),
            "test": asked.sides.get("test", []),
            "slake": unseen.sides.get("test", []),
        }
        whole = Draft(sides, asked.rejected + cards.rejected + unseen.rejected)
        return assemble(IDENTITY, raw, whole, self.missing_images, cache, train="train", test="test")
