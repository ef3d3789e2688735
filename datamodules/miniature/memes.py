"""Writes a miniature of Hateful Memes in its file format: a label that neither the picture nor the caption tells alone.

Memes come in fours: two captions on each of two pictures. Which pairs are harmful, the rule says; in every four each
caption and each picture, pixel by pixel, is harmful once and harmless once. So whoever looks at one modality alone,
however well, has the accuracy of chance by construction.
"""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.errors import InputError
from datamodules.miniature import scenes_images
from datamodules.miniature.folder import BANNER, fill

FOUR = 4
WARM, COOL = ("red", "orange", "yellow", "brown"), ("blue", "teal", "green", "purple")
# Two groups of captions: harmless on a warm and on a cool thing.
FOR_WARM = ("look who came to dinner", "my boss on monday", "born to be loud", "this one runs the town")
FOR_COOL = ("happy holidays to all", "nobody asked you", "guess what i found", "keep calm and carry on")
NAMING = ("welcome to the {} family", "one {} too many", "all my friends are {}", "never trust a {}")

# A rule draws two captions and two kinds of pictures (shape, colour; None: any): caption and picture of the same place
# are harmless together, of different places harmful.
Kind = tuple[str | None, str | None]
Rule = Callable[[np.random.Generator], tuple[tuple[str, str], tuple[Kind, Kind]]]


def _warmth(rng: np.random.Generator) -> tuple[tuple[str, str], tuple[Kind, Kind]]:
    captions = str(rng.choice(FOR_WARM)), str(rng.choice(FOR_COOL))
    return captions, ((None, str(rng.choice(WARM))), (None, str(rng.choice(COOL))))


def _shape(rng: np.random.Generator) -> tuple[tuple[str, str], tuple[Kind, Kind]]:
    one, other = map(str, rng.choice(scenes_images.SHAPES, 2, replace=False))
    naming = str(rng.choice(NAMING))
    return (naming.format(one), naming.format(other)), ((one, None), (other, None))


def _colour(rng: np.random.Generator) -> tuple[tuple[str, str], tuple[Kind, Kind]]:
    one, other = map(str, rng.choice(list(scenes_images.COLOURS), 2, replace=False))
    naming = str(rng.choice(NAMING))
    return (naming.format(one), naming.format(other)), ((None, one), (None, other))


# warmth: a caption of one group is harmful on the other group's colours. shape, colour: a caption that names another
# shape or colour than the picture shows is harmful.
RULES: dict[str, Rule] = {"warmth": _warmth, "shape": _shape, "colour": _colour}


def write_memes(
    folder: Path, seed: int = 0, rule: str = "warmth", train: int = 2000, dev: int = 200, test: int = 400
) -> dict:
    """Write train.jsonl, dev_seen.jsonl, test_seen.jsonl and img/; the same arguments give the same bytes.

    rule: one of RULES. train, dev, test: memes, multiples of four; train has two more, whose images are missing and
    cut short. Returns banner, dataset, seed, rule and sizes. Raises InputError for other rules or sizes.
    """
    sizes = {"train": train, "dev_seen": dev, "test_seen": test}
    if rule not in RULES:
        raise InputError(f"memes: expected a rule of {', '.join(RULES)}, found {rule!r}")
    for name, size in sizes.items():
        if size < FOUR or size % FOUR:
            raise InputError(f"memes: expected a multiple of {FOUR} for {name}, found {size}")
    report = {
        "banner": BANNER.format("Hateful Memes"), "dataset": "hateful_memes", "seed": seed, "rule": rule, **sizes,
    }  # fmt: skip

    def files() -> Iterator[tuple[str, bytes]]:
        numbers = iter(np.random.default_rng([seed, 0]).permutation(np.arange(10_000, 10_002 + sum(sizes.values()))))
        for side, (name, size) in enumerate(sizes.items(), 1):
            rng = np.random.default_rng([seed, side])
            memes = [meme for _ in range(size // FOUR) for meme in _four(rng, RULES[rule])]
            lines = []
            for place in rng.permutation(size):
                caption, label, image = memes[place]
                lines.append(line := _line(int(next(numbers)), label, caption))
                yield line["img"], image
            if name == "train":
                missing, cut = (_line(int(next(numbers)), 0, FOR_WARM[0]) for _ in range(2))
                lines += [missing, cut]
                yield cut["img"], memes[0][2][:100]
            yield f"{name}.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines).encode()

    fill(Path(folder), report, [Path(__file__), Path(scenes_images.__file__)], files)
    return report


def _line(number: int, label: int, caption: str) -> dict:
    return {"id": number, "img": f"img/{number:05}.png", "label": label, "text": caption}


def _four(rng: np.random.Generator, rule: Rule) -> Iterator[tuple[str, int, bytes]]:
    """Caption, label and image of the four memes of two captions and two pictures."""
    captions, kinds = rule(rng)
    pictures = [png(scenes_images.render(scenes_images.draw_thing(rng, *kind), rng)) for kind in kinds]
    for place, caption in enumerate(captions):
        for kind, picture in enumerate(pictures):
            yield caption, int(place != kind), picture


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()
