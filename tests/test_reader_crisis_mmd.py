"""CrisisMMD: the real tables, quotation marks, URLs, and every kind of damage by file and line."""

import os
import re
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from datamodules.errors import InputError
from datamodules.image_text.readers.assembly import Draft
from datamodules.image_text.readers.crisis_mmd import (
    HUMANITARIAN,
    SPLIT,
    TASKS,
    CrisisEvents,
    CrisisMMD,
    tidy,
)

LABELS = ["label", "label_text", "label_image", "label_text_image"]
HEADER = ["event_name", "tweet_id", "image_id", "tweet_text", "image", *LABELS]
REAL = pytest.mark.skipif("SKELFED_REALDATA" not in os.environ, reason="real data not given")


def row(number: int, text="help https://t.co/abc", label="vehicle_damage", event="hurricane_irma", image=None) -> list:
    image = image or f"data_image/{event}/1_9_2017/{number}_0.jpg"
    return [event, str(number), f"{number}_0", text, image, "not_humanitarian", "not_humanitarian", label, "Negative"]


def write(folder: Path, side: str, rows: list, header=HEADER) -> None:
    text = "".join("\t".join(line) + "\n" for line in [header, *rows])
    (folder / f"task_humanitarian_text_img_{side}.tsv").write_text(text)


def picture(root: Path, rows: list) -> None:
    for fields in rows:
        path = root / fields[4]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (int(fields[1]), 0, 0)).save(path)


@pytest.fixture(params=[("", ""), ("crisismmd_datasplit_all", "CrisisMMD_v2.0")])
def raw(tmp_path, request):
    """A raw folder with the lists and the images where users have them."""
    lists, images = (tmp_path / "raw" / name for name in request.param)
    lists.mkdir(parents=True, exist_ok=True)
    for side, numbers in {"train": (1, 2), "dev": (3,), "test": (4,)}.items():
        rows = [row(number) for number in numbers]
        write(lists, side, rows)
        picture(images, rows)
    return tmp_path / "raw"


def lists_of(raw: Path) -> Path:
    return next(raw.rglob("task_humanitarian_text_img_train.tsv")).parent


def test_label_of_the_image_event_and_tweet_without_urls(raw):
    corpus = CrisisMMD().read(raw)
    assert [len(side) for side in (corpus.train, corpus.test, corpus.further["dev"])] == [2, 1, 1]
    sample = corpus.train[0]
    assert (sample.id, sample.text, sample.group) == ("1_0", "help", "hurricane_irma")
    assert corpus.options[sample.label] == sample.answer == "vehicle_damage" and len(corpus.options) == 8
    assert sample.image.is_file() and corpus.rejected == []


def test_quotation_marks_open_nothing(raw):
    texts = ['"we need help', 'he said: "no"', "'", '""""']
    rows = [row(number, text) for number, text in enumerate(texts, 10)]
    picture(next(raw.rglob("data_image")).parent, rows)
    write(lists_of(raw), "train", rows)
    assert [sample.text for sample in CrisisMMD().read(raw).train] == texts


@pytest.mark.parametrize(
    ("tweet", "told"),
    [
        ("RT @x: see https://t.co/a1B2 #irma http://t.co/x", "RT @x: see #irma"),
        ("https://t.co/only", ""),
        ("two  blanks\u00a0and https://…", "two blanks and"),
        ("no url: http or HTTPS", "no url: http or HTTPS"),
    ],
)
def test_urls(tweet, told):
    assert tidy(tweet) == told


def test_a_tweet_of_nothing_but_a_url_has_no_text(raw):
    write(lists_of(raw), "train", [row(1, "https://t.co/x"), row(2)])
    assert [sample.text for sample in CrisisMMD().read(raw).train] == [None, "help"]


def test_windows_line_ends_and_a_byte_order_mark(raw):
    path = lists_of(raw) / "task_humanitarian_text_img_train.tsv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert len(CrisisMMD().read(raw).train) == 2


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([row(1)[:-1]], r"train\.tsv:2: expected 9 fields, found 8"),
        ([row(1), [*row(2), "more"]], r"train\.tsv:3: expected 9 fields, found 10"),
        ([row(1, label="flood")], r"train\.tsv:2: expected label_image of affected_individuals, .*, found 'flood'"),
    ],
)
def test_damage_is_named(raw, rows, told):
    write(lists_of(raw), "train", rows)
    with pytest.raises(InputError, match=told):
        CrisisMMD().read(raw)


def test_a_list_of_nothing_but_its_header_is_a_side_that_is_elsewhere(raw):
    write(lists_of(raw), "train", [])
    corpus = CrisisMMD().read(raw)
    assert not corpus.train and corpus.test


def test_missing_columns_files_and_tasks(raw):
    write(lists_of(raw), "dev", [], header=[name for name in HEADER if name != "label_image"])
    with pytest.raises(InputError, match=r"dev\.tsv:1: expected the column label_image, found event_name"):
        CrisisMMD().read(raw)
    (lists_of(raw) / "task_humanitarian_text_img_dev.tsv").unlink()
    with pytest.raises(InputError, match=r"found no task_humanitarian_text_img_dev\.tsv"):
        CrisisMMD().read(raw)
    with pytest.raises(InputError, match="task of humanitarian, informative, found 'damage'"):
        CrisisMMD(task="damage").read(raw)


def test_images_that_are_missing_or_outside(raw):
    rows = [row(1), row(7), row(8, image="../../x.jpg")]
    write(lists_of(raw), "train", rows)
    corpus = CrisisMMD().read(raw)
    assert len(corpus.train) == 1 and len(corpus.rejected) == 2
    assert len(CrisisMMD(missing_images="text_only").read(raw).train) == 2


def test_events_held_out(tmp_path):
    columns = ["tweet_id", "image_id", "text_info", "image_human", "tweet_text", "image_path"]
    (tmp_path / "annotations").mkdir()
    for number, event in enumerate(("flood", "fire", "quake")):
        image = f"data_image/{event}/1.jpg"
        (tmp_path / image).parent.mkdir(parents=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / image)
        lines = ["\t".join(columns), "\t".join(["1", "1_0", "informative", "vehicle_damage", 'a "tweet', image])]
        (tmp_path / "annotations" / f"{event}_final_data.tsv").write_text("\n".join(lines))
    corpus = CrisisEvents(["quake"]).read(tmp_path)
    assert [sample.group for sample in corpus.train] == ["fire", "flood"]
    assert [sample.group for sample in corpus.test] == ["quake"]
    with pytest.raises(InputError, match="expected events of fire, flood, quake to hold out, found 'storm'"):
        CrisisEvents(["storm"]).read(tmp_path)


@REAL
def test_the_real_annotations():
    raw = Path(os.environ["SKELFED_REALDATA"]) / "crisis-mmd"
    corpus = CrisisEvents(("mexico_earthquake",), missing_images="text_only").read(raw)
    assert Counter(sample.group for sample in corpus.train + corpus.test) == {
        "california_wildfires": 1589,
        "iraq_iran_earthquake": 597,
        "mexico_earthquake": 1380,
    }
    wildfires = Counter(sample.answer for sample in corpus.train if sample.group == "california_wildfires")
    assert wildfires["infrastructure_and_utility_damage"] == 545 and wildfires["vehicle_damage"] == 57
    assert set(wildfires) == set(HUMANITARIAN)
    assert not any(re.search("https?:", sample.text or "") for sample in corpus.train + corpus.test)


@REAL
def test_the_real_split_table():
    raw, draft = Path(os.environ["SKELFED_REALDATA"]) / "crisis-mmd", Draft()
    SPLIT.samples(raw / "task_informative_text_img_dev.tsv", raw, TASKS["informative"], "event_name", "dev", draft)
    samples = draft.sides["dev"]
    assert len(samples) == 2237 and len({sample.group for sample in samples}) == 7
    assert sum('"' in sample.text for sample in samples) > 30
