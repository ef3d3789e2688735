"""easy-VQA: pictures of one coloured shape, 13 answers. `answers.txt`, `{train,test}/questions.json` and `images/`.

A question is `[question, answer, image number]`. Three quarters are answered by yes or no, most of which the wording
alone gives away, so open and closed questions are to be told apart (`Sample.closed`).
"""

from dataclasses import dataclass
from pathlib import Path

from datamodules.errors import InputError
from datamodules.image_text.readers.assembly import Draft, Identity, assemble
from datamodules.image_text.readers.lists import MAX_BYTES, MAX_TEXT, folder_with, json_value, one_of
from datamodules.image_text.sample import Corpus, Sample
from datamodules.readers import MalformedFile
from datamodules.readers.files import read_bytes

SIDES = ("train", "test")
INNER = ("data", "easy_vqa/data")
CLOSED = ("yes", "no")
KINDS = {"all": (True, False), "open": (False,), "closed": (True,)}
OFFICIAL = {"all": (38_575, 9673), "open": (10_168, 2537), "closed": (28_407, 7136)}


@dataclass(frozen=True)
class EasyVQA:
    """questions: one of KINDS; options are the answers that such questions have.

    held_out: so many of the last training images, with their questions, are the further set `validation`.
    missing_images: `readers.assembly.assemble`.
    """

    questions: str = "all"
    held_out: int = 0
    missing_images: str = "reject"

    def read(self, raw: Path, cache: Path | None = None) -> Corpus:
        """Train, test and perhaps validation. Raises InputError."""
        if self.questions not in KINDS:
            raise InputError(f"easy-VQA: expected questions of {', '.join(KINDS)}, found {self.questions!r}")
        names = ["answers.txt", *(f"{side}/questions.json" for side in SIDES)]
        folder = folder_with(Path(raw), names, INNER, "easy-VQA")
        told = read_bytes(folder / "answers.txt", MAX_BYTES).decode("utf-8", "replace").split()
        options = tuple(answer for answer in told if (answer in CLOSED) in KINDS[self.questions])
        draft = Draft()
        for side in SIDES:
            for sample in self._side(folder / side, side, told, options):
                draft.add(side, sample)
        if self.held_out:
            self._hold_out(draft)
        identity = Identity("easy_vqa", "easy-VQA", "classification", options)
        sides, whole = {"train": "train", "test": "test"}, None if self.held_out else OFFICIAL[self.questions]
        return assemble(identity, folder, draft, self.missing_images, cache, **sides, official=whole)

    def _side(self, folder: Path, side: str, answers: list[str], options: tuple[str, ...]) -> list[Sample]:
        path, samples = folder / "questions.json", []
        rows = json_value(path)
        if not isinstance(rows, list):
            raise MalformedFile(path, None, f"expected a JSON list, found {type(rows).__name__}")
        for number, row in enumerate(rows, 1):
            item = f"item {number}: "
            asked, answer, image = _checked(path, item, row)
            one_of(answer, answers, "an answer", (path, None, item))
            if answer in options:
                picture = folder / "images" / f"{image}.png"
                label, closed = options.index(answer), answer in CLOSED
                samples.append(Sample(f"{side}{number}", picture, asked, answer, label, str(image), closed))
        return samples

    def _hold_out(self, draft: Draft) -> None:
        train = draft.sides["train"]
        images = list(dict.fromkeys(sample.group for sample in train))
        if not 0 < self.held_out < len(images):
            raise InputError(f"easy-VQA: expected held_out below {len(images)} images, found {self.held_out}")
        kept = set(images[: -self.held_out])
        draft.sides["train"] = [sample for sample in train if sample.group in kept]
        draft.sides["validation"] = [sample for sample in train if sample.group not in kept]


def _checked(path: Path, item: str, row) -> tuple[str, str, int]:
    """A row of question, answer and image number. Raises MalformedFile."""
    kinds = [type(value) for value in row] if isinstance(row, list) else []
    if kinds != [str, str, int] or len(row[0]) > MAX_TEXT or row[2] < 0:
        raise MalformedFile(path, None, f"{item}expected [question, answer, image number], found {str(row)[:60]}")
    return row[0].strip(), row[1], row[2]
