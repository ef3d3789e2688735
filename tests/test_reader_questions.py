"""VQA-RAD, SLAKE, flash cards, the medical task and easy-VQA: real sets, and every kind of damage by file and item."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from datamodules.errors import InputError
from datamodules.image_text.readers.easy_vqa import EasyVQA
from datamodules.image_text.readers.flash_cards import FlashCards
from datamodules.image_text.readers.medical import Medical
from datamodules.image_text.readers.slake import SLAKE
from datamodules.image_text.readers.vqa_rad import PUBLIC, PUBLIC_IMAGES, VQARAD
from lightning_modules.mllm.text_floor import text_floor

REAL = pytest.mark.skipif("SKELFED_REALDATA" not in os.environ, reason="real data not given")


def rad(number: int, phrase="freeform", **changes) -> dict:
    row = {
        "qid": number,
        "phrase_type": phrase,
        "image_name": "a.jpg",
        "image_organ": "CHEST",
        "question": f" question {number}? ",
        "answer": "Yes",
        "answer_type": "CLOSED",
    }
    return row | changes


def write(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


@pytest.fixture
def vqa_rad(tmp_path):
    """The two lists with a row of every kind."""
    train = [rad(1), rad(2, "para", answer=3, answer_type="OPEN"), rad(3, "frame")]
    test = [rad(4, answer_type="CLOSED "), rad(5, "test_para", answer_type="open"), rad(6, "frame")]
    write(tmp_path / "rad" / "trainset.json", train)
    write(tmp_path / "rad" / "testset.json", test)
    picture(tmp_path / "rad" / "images" / "a.jpg")
    return tmp_path / "rad"


def test_vqa_rad_split_lists(vqa_rad):
    corpus = VQARAD().read(vqa_rad)
    assert [sample.id for sample in corpus.train] == ["1", "2"] and [sample.id for sample in corpus.test] == ["4", "5"]
    first, second = corpus.train
    assert (first.text, first.answer, first.closed, first.label, first.group) == (
        "question 1?",
        "Yes",
        True,
        None,
        "CHEST",
    )
    assert second.answer == "3" and second.closed is False
    assert [sample.closed for sample in corpus.test] == [True, False]
    assert corpus.task == "generation" and corpus.options == ()


def test_vqa_rad_public_list(tmp_path):
    rows = [rad(1), rad(2, "para"), rad(3, "test_freeform"), rad(4, "test_para"), rad(5, "frame")]
    write(tmp_path / PUBLIC, rows)
    picture(tmp_path / PUBLIC_IMAGES / "a.jpg")
    corpus = VQARAD().read(tmp_path)
    assert [sample.id for sample in corpus.train] == ["1", "2"] and [sample.id for sample in corpus.test] == ["3", "4"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([rad(1), rad(2, answer_type="MAYBE")], r"trainset\.json: item 2: expected answer_type of OPEN, CLOSED"),
        ([rad(1, question=None)], "item 1: expected text under 'question', found nothing"),
        ([rad(1, answer="  ")], "item 1: expected text under 'answer', found none"),
        ([rad(1), "row"], "item 2: expected a JSON object, found str"),
        ({"rows": []}, "expected a JSON list, found dict"),
        ("[\n{]", r"trainset\.json:2: is not JSON"),
        ([{key: value for key, value in rad(1).items() if key != "phrase_type"}], "under 'phrase_type', found nothing"),
    ],
)
def test_vqa_rad_damage_is_named(vqa_rad, content, told):
    write(vqa_rad / "trainset.json", content)
    with pytest.raises(InputError, match=told):
        VQARAD().read(vqa_rad)


def test_a_list_without_a_training_question_is_a_side_that_is_elsewhere(vqa_rad):
    write(vqa_rad / "trainset.json", [rad(1, "frame")])
    corpus = VQARAD().read(vqa_rad)
    assert not corpus.train and corpus.test


def test_vqa_rad_images(vqa_rad):
    write(vqa_rad / "trainset.json", [rad(1), rad(2, image_name="b.jpg"), rad(3, image_name="../a.jpg")])
    corpus = VQARAD().read(vqa_rad)
    assert [sample.id for sample in corpus.train] == ["1"]
    assert sorted(name for name, _ in corpus.rejected) == ["3", "images/b.jpg"]
    (vqa_rad / "testset.json").unlink()
    with pytest.raises(InputError, match=r"found no testset\.json"):
        VQARAD().read(vqa_rad)


def slake_rows() -> list:
    row = {
        "img_name": "xmlab1/source.jpg",
        "question": "q",
        "answer": "Lung",
        "answer_type": "OPEN",
        "location": "Lung",
    }
    return [row | {"qid": 1, "q_lang": "en"}, row | {"qid": 2, "q_lang": "zh"}]


def test_slake_is_its_english_test_questions(tmp_path):
    write(tmp_path / "test.json", slake_rows())
    picture(tmp_path / "imgs" / "xmlab1" / "source.jpg")
    corpus = SLAKE().read(tmp_path)
    assert corpus.train == [] and [sample.id for sample in corpus.test] == ["1"]
    assert (corpus.test[0].answer, corpus.test[0].closed) == ("Lung", False)
    write(tmp_path / "test.json", [{"qid": 1, "q_lang": "en"}])
    with pytest.raises(InputError, match="item 1: expected text under 'img_name'"):
        SLAKE().read(tmp_path)


CARD = {"instruction": "Answer this question truthfully", "input": "What?", "output": "That."}


def test_flash_cards_are_texts_alone(tmp_path):
    write(tmp_path / "medical_meadow_wikidoc_medical_flashcards.json", [CARD, CARD | {"output": " "}])
    corpus = FlashCards().read(tmp_path)
    assert corpus.test == [] and corpus.rejected == [("card2", "has no question or no answer")]
    assert (corpus.train[0].text, corpus.train[0].answer, corpus.train[0].image) == ("What?", "That.", None)
    write(tmp_path / "medical_meadow_wikidoc_medical_flashcards.json", [{"input": "What?"}])
    with pytest.raises(InputError, match="item 1: expected text under 'output'"):
        FlashCards().read(tmp_path)


@pytest.fixture
def medical(tmp_path, vqa_rad):
    vqa_rad.rename(tmp_path / "vqa_rad")
    write(tmp_path / "slake" / "test.json", slake_rows())
    picture(tmp_path / "slake" / "imgs" / "xmlab1" / "source.jpg")
    write(tmp_path / "flash_cards" / "medical_flashcards.json", [CARD] * 3)
    return tmp_path


def test_the_medical_task(medical):
    corpus = Medical().read(medical)
    assert [sample.image is not None for sample in corpus.train] == [True] * 2 + [False] * 3
    assert len(corpus.test) == 2 and len(corpus.further["slake"]) == 1 and corpus.rejected == []
    (medical / "flash_cards" / "medical_flashcards.json").unlink()
    with pytest.raises(InputError, match=r"the cards \*flashcards\*\.json"):
        Medical().read(medical)


@pytest.fixture
def easy(tmp_path):
    (tmp_path / "answers.txt").write_text("circle\nred\nyes\nno")
    rows = [["what shape?", "circle", 0], ["is it red?", "yes", 0], ["what color?", "red", 1], ["is it blue?", "no", 2]]
    for side in ("train", "test"):
        write(tmp_path / side / "questions.json", rows)
        for number in range(3):
            picture(tmp_path / side / "images" / f"{number}.png")
    return tmp_path


def test_easy_vqa_kinds_of_questions(easy):
    whole, opened, closed = (EasyVQA(kind).read(easy) for kind in ("all", "open", "closed"))
    assert [len(corpus.train) for corpus in (whole, opened, closed)] == [4, 2, 2]
    assert (opened.options, closed.options) == (("circle", "red"), ("yes", "no"))
    for corpus in (whole, opened, closed):
        assert all(corpus.options[sample.label] == sample.answer for sample in corpus.train + corpus.test)
    assert [sample.closed for sample in whole.train] == [False, True, False, True]
    assert len({corpus.fingerprint for corpus in (whole, opened, closed)}) == 3


def test_easy_vqa_holds_out_whole_images(easy):
    corpus = EasyVQA(held_out=2).read(easy)
    assert [sample.group for sample in corpus.train] == ["0", "0"]
    assert [sample.group for sample in corpus.further["validation"]] == ["1", "2"]
    for number in (3, -1):
        with pytest.raises(InputError, match="expected held_out below 3 images"):
            EasyVQA(held_out=number).read(easy)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([["what?", "circle", "0"]], "item 1: expected .question, answer, image number."),
        ([["what?", "circle", True]], "item 1: expected .question"),
        ([["what?", "circle", -1]], "item 1: expected .question"),
        ([["what?", "circle", 0], ["what?", 3, 0]], "item 2: expected .question"),
        ([["what?", "square", 0]], "item 1: expected an answer of circle, red, yes, no, found 'square'"),
        ({}, "expected a JSON list, found dict"),
        ("[[", "is not JSON"),
    ],
)
def test_easy_vqa_damage_is_named(easy, content, told):
    write(easy / "train" / "questions.json", content)
    with pytest.raises(InputError, match=told):
        EasyVQA().read(easy)


def test_easy_vqa_kinds_are_checked(easy):
    with pytest.raises(InputError, match="questions of all, open, closed, found 'yes'"):
        EasyVQA("yes").read(easy)


@REAL
def test_the_real_vqa_rad():
    corpus = VQARAD("text_only").read(Path(os.environ["SKELFED_REALDATA"]) / "vqa-rad")
    assert (len(corpus.train), len(corpus.test)) == (1797, 451) == corpus.official
    assert Counter(sample.closed for sample in corpus.test) == {True: 272, False: 179}
    assert {sample.group for sample in corpus.train} == {"HEAD", "CHEST", "ABD"}


@REAL
def test_the_real_easy_vqa():
    corpus = EasyVQA("open", held_out=400).read(Path(os.environ["SKELFED_REALDATA"]) / "easy-vqa")
    assert corpus.rejected == [] and len(corpus.options) == 11
    assert len(corpus.train) + len(corpus.further["validation"]) == 38_575 - 28_407
    assert len(corpus.test) == 9673 - 7136 and corpus.official is None
    whole = EasyVQA("open").read(Path(os.environ["SKELFED_REALDATA"]) / "easy-vqa")
    assert (len(whole.train), len(whole.test)) == whole.official


@REAL
def test_what_the_text_of_the_real_easy_vqa_tells():
    """The floor beside which docs/fedmllm.md sets every result: the commonest training answer to each question."""
    corpus = EasyVQA().read(Path(os.environ["SKELFED_REALDATA"]) / "easy-vqa")
    answers: dict[str, Counter] = {}
    for sample in corpus.train:
        answers.setdefault(sample.text, Counter())[sample.answer] += 1

    def right(samples) -> str:
        hits = [answers[s.text].most_common(1)[0][0] == s.answer for s in samples]
        return f"{100 * sum(hits) / len(hits):.1f}"

    parts = corpus.test, [s for s in corpus.test if not s.closed], [s for s in corpus.test if s.closed]
    assert [right(part) for part in parts] == ["67.0", "23.3", "82.5"]
    floor = text_floor(corpus.train, corpus.test)
    assert [f"{100 * floor[name]:.1f}" for name in ("overall", "open", "closed")] == ["67.0", "23.3", "82.5"]
    page = (Path(__file__).parents[1] / "docs" / "fedmllm.md").read_text()
    assert "| text alone, the commonest training answer to each question | 67.0 | 23.3 | 82.5 | |" in page
