"""Writes miniatures of the question sets in their file formats: VQA-RAD, SLAKE, medical flash cards, easy-VQA.

The pictures show one coloured shape; neither the question nor the picture alone gives the answer away, but for what an
answer's frequency tells.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datamodules.errors import InputError
from datamodules.image_text.readers import slake, vqa_rad
from datamodules.miniature import scenes_images
from datamodules.miniature.folder import BANNER, fill
from datamodules.miniature.memes import png
from datamodules.miniature.scenes_images import COLOURS, SHAPES, Thing

ORGANS = ("HEAD", "CHEST", "ABD")
CARDS = "medical_meadow_wikidoc_medical_flashcards.json"
# About what is asked -> its wordings in VQA-RAD and, unseen in training, in SLAKE.
ASKED = {
    "colour": (("what colour has the finding ?", "which colour is the finding ?"), "name the colour of the object ."),
    "shape": (("what shape has the finding ?", "which shape is the finding ?"), "name the shape of the object ."),
    "where": (("where is the finding ?", "in which corner is the finding ?"), "name the corner of the object ."),
    "is colour": (("is the finding {} ?", "does the finding look {} ?"), "would you call the object {} ?"),
    "is shape": (("is the finding a {} ?", "does it look like a {} ?"), "would you call the object a {} ?"),
}
EASY_SHAPES, EASY_COLOURS = SHAPES[:3], ("red", "green", "blue", "black", "gray", "teal", "brown", "yellow")


def write_medical(
    folder: Path, seed: int = 0, images: int = 400, test_images: int = 100, slake_images: int = 100, cards: int = 800
) -> dict:
    """Write vqa_rad/, slake/ and flash_cards/; the same arguments give the same bytes.

    Every image of VQA-RAD and SLAKE has a question of each kind of ASKED. Returns banner, dataset, seed and sizes.
    Raises InputError for sizes below one.
    """
    sizes = {"images": images, "test_images": test_images, "slake_images": slake_images, "cards": cards}
    report = _report("VQA-RAD, SLAKE and MedAlpaca's flash cards", "medical", seed, sizes)

    def files() -> Iterator[tuple[str, bytes]]:
        rows: list[dict] = []
        for place in range(images + test_images):
            rng, prefix = np.random.default_rng([seed, 1, place]), "test_" if place >= images else ""
            thing, name = scenes_images.draw_thing(rng), f"synpic{20_000 + place}.jpg"
            rows += _rad_rows(rng, thing, name, prefix, 10 * place)
            yield f"vqa_rad/{vqa_rad.PUBLIC_IMAGES}/{name}", _jpeg(rng, thing)
        yield f"vqa_rad/{vqa_rad.PUBLIC}", json.dumps(rows, indent=1).encode()
        rows = []
        for place in range(slake_images):
            rng, name = np.random.default_rng([seed, 2, place]), f"xmlab{place}/source.jpg"
            thing = scenes_images.draw_thing(rng)
            rows += _slake_rows(rng, thing, name, 10 * place)
            yield f"slake/{slake.IMAGES}/{name}", _jpeg(rng, thing)
        yield f"slake/{slake.LIST}", json.dumps(rows, indent=1).encode()
        rng = np.random.default_rng([seed, 3])
        yield f"flash_cards/{CARDS}", json.dumps([_card(rng) for _ in range(cards)], indent=1).encode()

    sources = [Path(__file__), Path(scenes_images.__file__)]
    fill(Path(folder), report, sources, files)
    return report


def write_easy_vqa(folder: Path, seed: int = 0, images: int = 400, test_images: int = 100) -> dict:
    """Write answers.txt and {train,test}/; the same arguments give the same bytes. Ten questions an image.

    Returns banner, dataset, seed and sizes. Raises InputError for sizes below one.
    """
    sizes = {"images": images, "test_images": test_images}
    report = _report("easy-VQA", "easy_vqa", seed, sizes)

    def files() -> Iterator[tuple[str, bytes]]:
        yield "answers.txt", "\n".join((*EASY_SHAPES, *EASY_COLOURS, "yes", "no")).encode()
        for number, (side, size) in enumerate((("train", images), ("test", test_images))):
            rows: list[list] = []
            for place in range(size):
                rng = np.random.default_rng([seed, number, place])
                thing = scenes_images.draw_thing(rng, str(rng.choice(EASY_SHAPES)), str(rng.choice(EASY_COLOURS)))
                rows += [[*pair, place] for pair in _easy_questions(rng, thing)]
                yield f"{side}/images/{place}.png", png(scenes_images.render(thing, rng))
            yield f"{side}/questions.json", json.dumps(rows).encode()

    sources = [Path(__file__), Path(scenes_images.__file__)]
    fill(Path(folder), report, sources, files)
    return report


def _report(title: str, dataset: str, seed: int, sizes: dict[str, int]) -> dict:
    if min(sizes.values()) < 1:
        raise InputError(f"{dataset}: expected sizes of 1 or more, found {sizes}")
    return {"banner": BANNER.format(title), "dataset": dataset, "seed": seed, **sizes}


def _answers(rng: np.random.Generator, thing: Thing) -> Iterator[tuple[str, str, str]]:
    """Kind, what fills its wording, and answer; yes and no equally often."""
    yield "colour", "", thing.colour
    yield "shape", "", thing.shape
    yield "where", "", thing.quadrant
    for kind, true, known in (("is colour", thing.colour, list(COLOURS)), ("is shape", thing.shape, list(SHAPES))):
        other = str(rng.choice([name for name in known if name != true]))
        yield (kind, true, "yes") if rng.random() < 0.5 else (kind, other, "no")


def _rad_rows(rng: np.random.Generator, thing: Thing, name: str, prefix: str, first: int) -> Iterator[dict]:
    organ = str(rng.choice(ORGANS))
    for number, (kind, filled, answer) in enumerate(_answers(rng, thing)):
        phrase = int(rng.integers(2))
        closed = kind.startswith("is ")
        yield {
            "qid": first + number,
            "phrase_type": prefix + ("freeform", "para")[phrase],
            "image_name": name,
            "image_organ": organ,
            "question": ASKED[kind][0][phrase].format(filled),
            "question_type": kind.split()[-1].upper(),
            "answer": answer,
            "answer_type": "CLOSED " if closed and first % 500 == 0 else ("OPEN", "CLOSED")[closed],
        }
    if not prefix:  # framed questions, which the published training set leaves out
        yield {
            "qid": first + 9, "phrase_type": "frame", "image_name": name, "image_organ": organ, "question": "colour ?",
            "question_type": "COLOUR", "answer": thing.colour, "answer_type": "OPEN",
        }  # fmt: skip


def _slake_rows(rng: np.random.Generator, thing: Thing, name: str, first: int) -> Iterator[dict]:
    for number, (kind, filled, answer) in enumerate(_answers(rng, thing)):
        row = {
            "img_name": name, "q_lang": "en", "question": ASKED[kind][1].format(filled), "answer": answer,
            "qid": first + number, "answer_type": ("OPEN", "CLOSED")[kind.startswith("is ")], "location": "Abdomen",
        }  # fmt: skip
        yield row
        yield row | {"q_lang": "zh", "question": "?", "qid": first + number + 5}


def _card(rng: np.random.Generator) -> dict[str, str]:
    """A card on the words that the pictures' answers are made of."""
    colours, shapes = list(COLOURS), list(SHAPES)
    kind, word = (("colour", rng.choice(colours)), ("shape", rng.choice(shapes)))[rng.integers(2)]
    asked, answer = [
        (f"is {word} a colour or a shape ?", str(kind)),
        (f"is {word} a colour ?", "yes" if kind == "colour" else "no"),
        (f"is {word} a shape ?", "yes" if kind == "shape" else "no"),
    ][rng.integers(3)]
    return {"instruction": "Answer this question truthfully", "input": asked, "output": answer}


def _easy_questions(rng: np.random.Generator, thing: Thing) -> Iterator[tuple[str, str]]:
    yield "what is the color of the shape?", thing.colour
    yield f"what color is the {thing.shape}?", thing.colour
    yield "what shape is in the image?", thing.shape
    yield f"what is the {thing.colour} shape?", thing.shape
    for wording in ("is there a {} shape?", "does the image not contain a {} shape?", "is a {} shape present?"):
        yield _yes_or_no(rng, wording, thing.colour, EASY_COLOURS)
    for wording in ("is there a {}?", "is there not a {} in the image?", "does the image contain a {}?"):
        yield _yes_or_no(rng, wording, thing.shape, EASY_SHAPES)


def _yes_or_no(rng: np.random.Generator, wording: str, true: str, known: tuple[str, ...]) -> tuple[str, str]:
    """A word drawn from all known ones, as in the real set: most are not there, and a blind answer knows that."""
    word = str(rng.choice(known))
    return wording.format(word), "yes" if (word == true) != (" not " in wording) else "no"


def _jpeg(rng: np.random.Generator, thing: Thing) -> bytes:
    file = io.BytesIO()
    scenes_images.render(thing, rng).save(file, "JPEG", quality=95)
    return file.getvalue()
