"""Writes a miniature of CrisisMMD v2.0 in its file format: picture and tweet each tell half of the class.

The colour family of the thing in the picture leaves two classes, the wording of the tweet says which of them. Every
disaster has a mix of classes of its own, so that clients by event differ.
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from datamodules.errors import InputError
from datamodules.image_text.readers.crisis_mmd import HUMANITARIAN
from datamodules.miniature import scenes_images
from datamodules.miniature.folder import BANNER, fill

EVENTS = (
    "california_wildfires", "hurricane_harvey", "hurricane_irma", "hurricane_maria", "iraq_iran_earthquake",
    "mexico_earthquake", "srilanka_floods",
)  # fmt: skip
FAMILIES = (("red", "orange"), ("green", "teal"), ("blue", "purple"), ("black", "gray"))
TWEETS = (
    ("we need water and food", '"please send help" she says', "who can bring blankets", "many people wait for help"),
    ("look at this road", "photos from this morning", 'RT @news: "it is all gone"', "this is what we saw today"),
)
HEADER = (
    "event_name", "tweet_id", "image_id", "tweet_text", "image", "label", "label_text", "label_image",
    "label_text_image",
)  # fmt: skip
LISTS = "crisismmd_datasplit_all"
OTHER_TEXT_LABEL = 0.25  # share of tweets whose own label is another than the image's, as it happens in the real set
MIX = 2.0  # of the Dirichlet draw of an event's classes: the smaller, the more events differ


def write_crises(
    folder: Path, seed: int = 0, events: Sequence[str] = EVENTS, train: int = 1600, dev: int = 160, test: int = 400
) -> dict:
    """Write crisismmd_datasplit_all/task_humanitarian_text_img_*.tsv and data_image/; same arguments, same bytes.

    train, dev, test: tweets; train has one more, whose image is missing. Returns banner, dataset, seed and sizes.
    Raises InputError for a size below the number of classes or without an event.
    """
    sizes = {"train": train, "dev": dev, "test": test}
    if min(sizes.values()) < len(HUMANITARIAN) or not events:
        raise InputError(f"crises: expected events and {len(HUMANITARIAN)} tweets or more a side, found {sizes}")
    report = {"banner": BANNER.format("CrisisMMD"), "dataset": "crisis_mmd", "seed": seed, **sizes}
    mixes = np.random.default_rng([seed, 0]).dirichlet([MIX] * len(HUMANITARIAN), len(events))

    def files() -> Iterator[tuple[str, bytes]]:
        for side, (name, size) in enumerate(sizes.items(), 1):
            rng = np.random.default_rng([seed, side])
            lines: list[tuple[str, ...]] = [HEADER]
            for number in range(size):
                event = int(rng.integers(len(events)))
                # The first eight are one of each class, so that no class is without a sample.
                label = number if number < len(HUMANITARIAN) else int(rng.choice(len(HUMANITARIAN), p=mixes[event]))
                lines.append(_line(rng, events[event], label, 900_000 * side + number))
                yield lines[-1][4], _jpeg(rng, label)
            if name == "train":
                lines.append(_line(rng, events[0], 0, 999_999))  # its image was not downloaded
            text = "".join("\t".join(line) + "\n" for line in lines)
            yield f"{LISTS}/task_humanitarian_text_img_{name}.tsv", text.encode()

    sources = [Path(__file__), Path(scenes_images.__file__)]
    fill(Path(folder), report | {"events": list(events)}, sources, files)
    return report


def _line(rng: np.random.Generator, event: str, label: int, number: int) -> tuple[str, ...]:
    """A row of the table, in the order of HEADER."""
    tweet, name = f"{917791044158 * 10**6 + number}", HUMANITARIAN[label]
    text = f"{rng.choice(TWEETS[label % 2])} https://t.co/{rng.integers(16**8):08x}"
    own = name if rng.random() > OTHER_TEXT_LABEL else HUMANITARIAN[(label + 3) % len(HUMANITARIAN)]
    agree = "Positive" if own == name else "Negative"
    image = f"data_image/{event}/{1 + number % 28}_10_2017/{tweet}_0.jpg"
    return event, tweet, f"{tweet}_0", text, image, own, own, name, agree


def _jpeg(rng: np.random.Generator, label: int) -> bytes:
    family = FAMILIES[label // 2]
    thing = scenes_images.draw_thing(rng, colour=family[rng.integers(len(family))])
    file = io.BytesIO()
    scenes_images.render(thing, rng).save(file, "JPEG", quality=95)
    return file.getvalue()
