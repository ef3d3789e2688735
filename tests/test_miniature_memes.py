"""The meme miniature: one modality is chance, both together are the label."""

import hashlib
import os
from collections import Counter, defaultdict
from itertools import pairwise

import pytest
from PIL import Image

from datamodules.errors import InputError
from datamodules.image_text.readers.hateful_memes import HatefulMemes
from datamodules.miniature import scenes_images
from datamodules.miniature.memes import COOL, FOR_COOL, FOR_WARM, RULES, WARM, write_memes

SMALL = {"train": 80, "dev": 8, "test": 40}


@pytest.fixture(scope="module", params=RULES)
def corpus(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "memes"
    report = write_memes(folder, rule=request.param, **SMALL)
    assert report["banner"] == "miniature, not Hateful Memes"
    return HatefulMemes().read(folder)


def test_the_reader_takes_it_and_rejects_what_is_broken(corpus):
    assert corpus.miniature
    assert [len(side) for side in (corpus.train, corpus.further["dev_seen"], corpus.test)] == list(SMALL.values())
    assert sorted(reason.split(":")[0] for _, reason in corpus.rejected) == ["is missing", "is no whole image"]


def best_accuracy(samples, key) -> float:
    """Of whoever knows, for every value of the key, which label it has more often, in this very set."""
    counts = defaultdict(Counter)
    for sample in samples:
        counts[key(sample)][sample.label] += 1
    return sum(max(count.values()) for count in counts.values()) / len(samples)


def test_one_modality_is_chance_and_both_are_the_label(corpus):
    pixels = {sample.image: hashlib.sha256(Image.open(sample.image).tobytes()).digest() for sample in corpus.train}
    assert best_accuracy(corpus.train, lambda sample: sample.text) == 0.5
    assert best_accuracy(corpus.train, lambda sample: pixels[sample.image]) == 0.5
    assert best_accuracy(corpus.train, lambda sample: (sample.text, pixels[sample.image])) == 1.0


def test_memes_are_shuffled_and_ids_tell_nothing(corpus):
    labels = [sample.label for sample in corpus.train]
    changes = sum(one != other for one, other in pairwise(labels))
    assert 20 < changes < 60
    ranks = sorted(range(80), key=lambda place: corpus.train[place].id)
    assert 10 < sum(labels[place] for place in ranks[:40]) < 30


def nearest_colour(path) -> str:
    """The colour of the thing: the paint nearest to the pixels that differ most from the ground at the corner."""
    image = Image.open(path)
    pixels = list(image.get_flattened_data() if hasattr(image, "get_flattened_data") else image.getdata())
    ground = pixels[0]
    thing = max(pixels, key=lambda pixel: sum(abs(a - b) for a, b in zip(pixel, ground, strict=True)))
    middles = {
        name: [(a + b) / 2 for a, b in zip(low, high, strict=True)]
        for name, (low, high) in scenes_images.COLOURS.items()
        if name in WARM + COOL
    }
    return min(middles, key=lambda name: sum((a - b) ** 2 for a, b in zip(thing, middles[name], strict=True)))


def test_warmth_and_caption_group_give_the_label(tmp_path):
    write_memes(tmp_path / "memes", **SMALL)
    samples = HatefulMemes().read(tmp_path / "memes").train
    assert {sample.text for sample in samples} == set(FOR_WARM + FOR_COOL)
    right = [
        sample.label == ((nearest_colour(sample.image) in WARM) != (sample.text in FOR_WARM)) for sample in samples
    ]
    assert sum(right) >= 76


def contents(folder) -> dict:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    for name in ("one", "same"):
        write_memes(tmp_path / name, **SMALL)
    write_memes(tmp_path / "other", seed=1, **SMALL)
    assert contents(tmp_path / "one") == contents(tmp_path / "same") != contents(tmp_path / "other")
    before = (tmp_path / "one").stat().st_ino
    write_memes(tmp_path / "one", **SMALL)
    assert (tmp_path / "one").stat().st_ino == before
    next((tmp_path / "one" / "img").iterdir()).unlink()
    write_memes(tmp_path / "one", **SMALL)
    assert contents(tmp_path / "one") == contents(tmp_path / "same")


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="found other files"):
        write_memes(tmp_path, **SMALL)
    assert os.listdir(tmp_path) == ["mine.txt"]


@pytest.mark.parametrize(
    ("settings", "told"), [({"rule": "size"}, "rule of warmth, shape, colour"), ({"test": 6}, "multiple of 4 for test")]
)
def test_mistakes_are_told(tmp_path, settings, told):
    with pytest.raises(InputError, match=told):
        write_memes(tmp_path / "memes", **SMALL | settings)
