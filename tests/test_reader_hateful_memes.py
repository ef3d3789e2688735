"""Hateful Memes: the real lists, and every kind of damage by file and line."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from datamodules.errors import InputError
from datamodules.image_text.readers.hateful_memes import HatefulMemes
from datamodules.miniature.folder import MARK
from datamodules.partition import Dirichlet


def row(number: int, **changes) -> dict:
    return {"id": number, "img": f"img/{number:05}.png", "label": number % 2, "text": f"caption {number}"} | changes


@pytest.fixture
def raw(tmp_path):
    """A raw folder of ten memes."""
    folder = tmp_path / "raw"
    (folder / "img").mkdir(parents=True)
    for side, numbers in {"train": range(6), "dev_seen": (6, 7), "test_seen": (8, 9)}.items():
        write(folder, side, [row(number) for number in numbers])
        for number in numbers:
            Image.new("RGB", (4, 4), (20 * number, 0, 0)).save(folder / "img" / f"{number:05}.png")
    return folder


def write(folder: Path, side: str, rows: list) -> None:
    lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
    (folder / f"{side}.jsonl").write_text("\n".join(lines) + "\n")


def test_a_whole_set(raw):
    corpus = HatefulMemes().read(raw)
    assert (len(corpus.train), len(corpus.test), len(corpus.further["dev_seen"])) == (6, 2, 2)
    assert corpus.rejected == [] and not corpus.miniature and corpus.options == ("not-hateful", "hateful")
    sample = corpus.train[3]
    assert (sample.id, sample.text, sample.answer, sample.label) == ("3", "caption 3", "hateful", 1)
    assert sample.image == raw / "img" / "00003.png"


def test_a_miniature_stays_one_wherever_it_lies(raw):
    (raw / MARK).write_text("{}")
    assert HatefulMemes().read(raw).miniature


def test_missing_and_broken_images_are_counted_and_left_out(raw):
    (raw / "img" / "00001.png").unlink()
    (raw / "img" / "00002.png").write_bytes(b"broken")
    corpus = HatefulMemes().read(raw)
    assert [sample.id for sample in corpus.train] == ["0", "3", "4", "5"]
    assert [name for name, _ in corpus.rejected] == ["img/00001.png", "img/00002.png"]


def test_where_every_image_is_missing_the_way_to_the_texts_is_named(raw):
    write(raw, "train", [row(1, img="img/none.png")])
    with pytest.raises(
        InputError, match=r"complete it or take the texts alone, corpus\.reader\.missing_images=text_only"
    ):
        HatefulMemes().read(raw)
    write(raw, "train", [row(1, text="", img="img/none.png")])
    with pytest.raises(InputError, match=r"is missing\); complete it$"):
        HatefulMemes().read(raw)


def test_or_they_become_texts_alone(raw):
    (raw / "img" / "00001.png").unlink()
    corpus = HatefulMemes(missing_images="text_only").read(raw)
    assert [sample.id for sample in corpus.train if sample.image is None] == ["1"]
    assert len(corpus.train) == 6 and [reason for _, reason in corpus.rejected] == ["is missing, its text is kept"]


def test_an_id_that_comes_again_gets_a_number(raw):
    write(raw, "train", [row(1), row(1, text="other"), row(2), row(1)])
    assert [sample.id for sample in HatefulMemes().read(raw).train] == ["1", "1#2", "2", "1#3"]


def test_two_samples_may_share_an_image(raw):
    write(raw, "train", [row(0), row(1, img="img/00000.png")])
    assert len(HatefulMemes().read(raw).train) == 2
    (raw / "img" / "00000.png").unlink()
    with pytest.raises(InputError, match="expected train samples"):
        HatefulMemes().read(raw)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png", "img/../../secret.png", "..\\x.png", "C:/x.png"])
@pytest.mark.parametrize("missing_images", ["reject", "text_only"])
def test_names_that_leave_the_raw_folder_are_refused(raw, name, missing_images):
    Image.new("RGB", (4, 4)).save(raw.parent / "secret.png")
    write(raw, "train", [row(0), row(1, img=name)])
    corpus = HatefulMemes(missing_images).read(raw)
    assert [sample.id for sample in corpus.train] == ["0"]
    assert corpus.rejected[0][0] == "1" and "outside the raw folder" in corpus.rejected[0][1]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"id": 1, "img"', r"train\.jsonl:2: is not JSON"),
        ("[1, 2]", r"train\.jsonl:2: expected a JSON object"),
        (row(1, label=2), r"train\.jsonl:2: expected a label of 0, 1, found 2"),
        (row(1, label=True), "expected a label of 0, 1, found True"),
        (row(1, label="1"), "expected a label of 0, 1, found '1'"),
        ({"id": 1, "img": "img/1.png", "text": "x"}, "expected a label of 0, 1, found nothing"),
        ({"id": 1, "label": 1, "text": "x"}, "expected text under 'img', found nothing"),
        (row(1, text=None), "expected text under 'text', found nothing"),
        (row(1, text="x" * 20_001), "'text' has 20001 characters"),
        (row(1, id=[1]), r"expected text under 'id', found \[1\]"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_damage_is_named(raw, line, told):
    write(raw, "train", [row(0), line])
    with pytest.raises(InputError, match=told):
        HatefulMemes().read(raw)


def test_what_is_not_there_is_named(raw, tmp_path):
    with pytest.raises(InputError, match="found nothing of that name"):
        HatefulMemes().read(tmp_path / "absent")
    (raw / "test_seen.jsonl").unlink()
    with pytest.raises(InputError, match=r"found no test_seen\.jsonl"):
        HatefulMemes().read(raw)
    (raw / "test_seen.jsonl").write_bytes(b'{"id": 8}\n\xff\xfe')
    with pytest.raises(InputError, match=r"test_seen\.jsonl:2: is not UTF-8 text"):
        HatefulMemes().read(raw)


def test_an_unknown_treatment_is_told(raw):
    with pytest.raises(InputError, match="missing_images of reject, text_only, found 'ignore'"):
        HatefulMemes("ignore").read(raw)


def test_no_side_at_all_is_told(raw):
    write(raw, "test_seen", [])
    assert not HatefulMemes().read(raw).test
    write(raw, "train", [])
    with pytest.raises(InputError, match="expected train samples in .*no row at all"):
        HatefulMemes().read(raw)


def fingerprints(raw: Path) -> str:
    return HatefulMemes().read(raw).fingerprint


def test_the_fingerprint_is_of_content_not_of_place(raw, tmp_path):
    before = fingerprints(raw)
    assert fingerprints(Path(shutil.copytree(raw, tmp_path / "elsewhere"))) == before
    (raw / "README").write_text("not read")
    assert fingerprints(raw) == before
    found = {before}
    Image.new("RGB", (4, 4), (1, 2, 3)).save(raw / "img" / "00000.png")
    found.add(fingerprints(raw))
    for changes in ({"text": "other"}, {"label": 1}, {"id": 77}):
        write(raw, "train", [row(0, **changes), *[row(number) for number in range(1, 6)]])
        found.add(fingerprints(raw))
    write(raw, "train", [row(number) for number in (1, 0, 2, 3, 4, 5)])
    found.add(fingerprints(raw))
    assert len(found) == 6


@pytest.mark.skipif("SKELFED_REALDATA" not in os.environ, reason="real data not given")
def test_the_real_lists():
    folder = Path(os.environ["SKELFED_REALDATA"]) / "hateful-memes"
    with pytest.raises(InputError, match=r"expected train samples .*10000 rejected, first img/\d+\.png: is missing"):
        HatefulMemes().read(folder)
    corpus = HatefulMemes("text_only").read(folder)
    assert (len(corpus.train), len(corpus.test), len(corpus.rejected)) == (8500, 1000, 10_000)
    assert corpus.official == (8500, 1000)
    pieces = Dirichlet(0.5, 10).split({"labels": [sample.label for sample in corpus.train]})
    assert [len(piece) for piece in pieces] == [523, 1433, 173, 30, 1014, 3, 4285, 123, 507, 409]
