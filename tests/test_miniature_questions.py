"""The crisis and question miniatures: read by the real readers, and answered by neither modality alone."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from datamodules.errors import InputError
from datamodules.image_text.readers.crisis_mmd import CrisisMMD
from datamodules.image_text.readers.easy_vqa import EasyVQA
from datamodules.image_text.readers.medical import Medical
from datamodules.miniature.crises import FAMILIES, TWEETS, write_crises
from datamodules.miniature.questions import write_easy_vqa, write_medical
from datamodules.miniature.scenes_images import COLOURS
from datamodules.partition import IID, ByAttribute, manifest


def best_accuracy(samples, key) -> float:
    """Of whoever knows, for every value of the key, which answer it has most often, in this very set."""
    counts = defaultdict(Counter)
    for sample in samples:
        counts[key(sample)][sample.answer] += 1
    return sum(max(count.values()) for count in counts.values()) / len(samples)


def colour_of(path, names) -> str:
    """The paint nearest to the pixel that differs most from the ground at the corner."""
    pixels = np.asarray(Image.open(path).convert("RGB"), dtype=float).reshape(-1, 3)
    thing = pixels[np.abs(pixels - pixels[0]).sum(1).argmax()]
    return min(names, key=lambda name: np.abs(np.mean(COLOURS[name], axis=0) - thing).sum())


@pytest.fixture(scope="module")
def crises(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crises") / "raw"
    report = write_crises(folder, train=240, dev=8, test=16)
    assert report["banner"] == "miniature, not CrisisMMD"
    return CrisisMMD().read(folder)


def test_picture_and_tweet_each_tell_half_of_the_class(crises):
    assert crises.miniature and len(crises.train) == 240
    assert [reason for _, reason in crises.rejected] == ["is missing"]
    assert {sample.answer for sample in crises.train} == set(crises.options)
    for sample in crises.train:
        assert sample.text in TWEETS[sample.label % 2]
    known = [colour for family in FAMILIES for colour in family]
    right = [colour_of(sample.image, known) in FAMILIES[sample.label // 2] for sample in crises.train]
    assert sum(right) >= 0.95 * 240
    by_tweet, by_picture = (best_accuracy(crises.train, key) for key in (lambda s: s.text, lambda s: s.label // 2))
    assert by_tweet < 0.45 and by_picture < 0.75


def test_events_differ(crises):
    groups, labels = [sample.group for sample in crises.train], [sample.label for sample in crises.train]
    by_event = ByAttribute("groups").split({"groups": groups})
    assert len(by_event) == 7
    even = IID(7).split({"labels": labels})
    assert manifest(ByAttribute("groups"), by_event, labels)["skew"] > manifest(IID(7), even, labels)["skew"]


@pytest.fixture(scope="module")
def medical(tmp_path_factory):
    folder = tmp_path_factory.mktemp("medical") / "raw"
    write_medical(folder, images=60, test_images=10, slake_images=10, cards=30)
    return Medical().read(folder)


def test_the_medical_miniature_is_read_by_the_real_readers(medical):
    assert medical.miniature and medical.rejected == []
    assert Counter(sample.image is None for sample in medical.train) == {False: 300, True: 30}
    assert (len(medical.test), len(medical.further["slake"])) == (50, 50)
    closed = [sample.answer for sample in medical.train if sample.closed]
    assert set(closed) == {"yes", "no"} and 0.35 < closed.count("yes") / len(closed) < 0.65


def test_slake_asks_in_words_that_training_does_not_have(medical):
    trained = {sample.text for sample in medical.train}
    assert not trained & {sample.text for sample in medical.further["slake"]}


def test_the_answer_is_in_the_picture(medical):
    asked = [sample for sample in medical.train if sample.image is not None and "colour" in sample.text]
    right = [colour_of(sample.image, list(COLOURS)) == sample.answer for sample in asked]
    assert len(asked) == 60 and sum(right) >= 50
    opened = [sample for sample in medical.train if sample.closed is False]
    assert best_accuracy(opened, lambda sample: sample.text) < 0.4


def test_the_easy_vqa_miniature(tmp_path):
    write_easy_vqa(tmp_path / "raw", images=60, test_images=5)
    corpus = EasyVQA().read(tmp_path / "raw")
    assert corpus.miniature and (len(corpus.train), len(corpus.test)) == (600, 50)
    opened, closed = ([s for s in corpus.train if s.closed is kind] for kind in (False, True))
    assert best_accuracy(opened, lambda sample: sample.text) < 0.6 < best_accuracy(closed, lambda sample: sample.text)
    assert len(corpus.options) == 13


@pytest.mark.parametrize("write", [write_medical, write_easy_vqa, write_crises])
def test_the_same_arguments_give_the_same_bytes(tmp_path, write):
    small = {"train": 8, "dev": 8, "test": 8} if write is write_crises else {"images": 3, "test_images": 2}
    for name in ("one", "same"):
        write(tmp_path / name, **small)
    write(tmp_path / "other", seed=1, **small)
    one, same, other = (
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in ("one", "same", "other")
    )
    assert one == same != other


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: write_medical(folder, cards=0), "sizes of 1 or more"),
        (lambda folder: write_easy_vqa(folder, images=0), "sizes of 1 or more"),
        (lambda folder: write_crises(folder, train=7), "8 tweets or more a side"),
        (lambda folder: write_crises(folder, events=()), "expected events"),
    ],
)
def test_mistakes_are_told(tmp_path, make, told):
    with pytest.raises(InputError, match=told):
        make(tmp_path / "raw")
