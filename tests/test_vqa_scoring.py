"""The published answer parser, normaliser and metrics."""

import json
from pathlib import Path

import pytest

from datamodules.errors import InputError
from datamodules.image_text.sample import Sample
from lightning_modules.mllm.scoring import (
    area_under_curve,
    normalise_answer,
    option_metrics,
    parse_option,
    vqa_accuracy,
)
from lightning_modules.mllm.text_floor import text_floor

GOLDEN = json.loads((Path(__file__).parent / "golden" / "vqa_normalisation.json").read_text())


@pytest.mark.parametrize("case", GOLDEN, ids=[case["answer"].strip() for case in GOLDEN])
def test_normaliser_equals_the_published_one(case):
    assert normalise_answer(case["answer"]) == case["normalised"]


@pytest.mark.parametrize(
    ("answer", "normalised"),
    [
        ("1,000 left/right", "1000 leftright"),  # digit-comma-digit deletes every other mark, too
        ("left/right -", "left right"),  # each mark is judged by itself
        ("ab-,c,d", "ab c d"),  # and in the answer as it came: the blank for the hyphen does not count for the comma
        ("3.5. mm.", "3.5 mm"),
        ("couldntve couldnt've hed've oclock im", "couldntve couldn't've he'd've o'clock im"),
        ("\tnone of\nthe above", "0 of above"),
        ("", ""),
    ],
)
def test_normaliser_rule_by_rule(answer, normalised):
    assert normalise_answer(answer) == normalised


@pytest.mark.parametrize(
    ("answer", "options", "option"),
    [
        ("(B) hateful", 2, 1),
        ("Answer: B", 2, 1),
        ("answer B", 2, 1),
        ("Based on the picture it is harmless, so (A)", 2, 1),
        ("C", 2, None),
        ("no idea", 2, None),
        ("", 2, None),
        ("Is it? A", 2, 0),
    ],
)
def test_parser_takes_the_first_capital_option_anywhere(answer, options, option):
    assert parse_option(answer, options) == option


def test_crisis_options_run_to_h():
    assert parse_option("H", 8, letters="ABCDEFGH") == 7
    assert parse_option("Here: B", 8, letters="ABCDEFGH") == 7
    assert parse_option("Here: B", 8) == 1


def test_unparsable_answers_become_class_two():
    metrics = option_metrics([1, 0, None, 1], [1, 0, 0, 0], options=2)
    assert metrics["accuracy"] == 0.5 and metrics["unparsable"] == 1
    # Ranks: the positive (1) is above one 0, level with one 1 and below the 2: (1 + .5 + 0) / 3.
    assert metrics["auc_hard"] == pytest.approx(0.5)
    # F1 of class 0: precision 1, recall 1/3 -> .5; of class 1: precision 1/2, recall 1 -> 2/3.
    assert metrics["macro_f1"] == pytest.approx((0.5 + 2 / 3) / 2)


def test_macro_f1_of_eight_classes_counts_class_two_as_one_of_them():
    metrics = option_metrics([0, None, 5], [0, 2, 1], options=8)
    assert metrics["macro_f1"] == pytest.approx((1 + 0 + 1 + 0) / 4) and "auc_hard" not in metrics


def test_auc_of_probabilities():
    assert area_under_curve([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9]) == 0.75
    with pytest.raises(InputError, match=r"labels 0 and 1, found \[1\]"):
        area_under_curve([1, 1], [0.2, 0.3])


def test_vqa_accuracy_by_kind_of_question():
    answers, targets = ["Yes.", "the left lung", "two"], ["yes", "Left lung", "three"]
    found = vqa_accuracy(answers, targets, [True, False, False])
    assert found == {"open": 0.5, "closed": 1.0, "overall": pytest.approx(2 / 3)}
    assert vqa_accuracy(answers[:1], targets[:1], [True]) == {"closed": 1.0, "overall": 1.0}


def questions(*rows, closed=(True, False)) -> list[Sample]:
    """Samples of (text, answer); those answered by yes or no are closed[0], the others closed[1]."""
    kinds = [closed[0] if answer in ("yes", "no") else closed[1] for _, answer in rows]
    return [
        Sample(str(number), None, text, answer, None, closed=kind)
        for number, ((text, answer), kind) in enumerate(zip(rows, kinds, strict=True))
    ]


def test_the_floor_is_the_commonest_training_answer_to_each_text():
    shapes = [("shape?", "square"), ("shape?", "circle"), ("shape?", "square")]
    train = questions(*shapes, ("red?", "no"), ("red?", "no"), ("red?", "yes"), ("blue?", "yes"))
    test = questions(("shape?", "Square."), ("shape?", "circle"), ("red?", "no"), ("blue?", "yes"), ("red?", "yes"))
    assert text_floor(train, test) == {"open": 0.5, "closed": pytest.approx(2 / 3), "overall": pytest.approx(3 / 5)}


def test_a_text_that_was_never_trained_on_gets_the_commonest_answer_and_a_tie_the_first():
    train = questions(("a", "left"), ("a", "right"), ("b", "no"), ("c", "no"), ("d", "no"))
    assert text_floor(train, questions(("new", "no"))) == {"closed": 1.0, "overall": 1.0}
    assert text_floor(train, questions(("a", "left")))["open"] == 1
    assert text_floor(train, questions(("a", "right")))["open"] == 0


def test_without_training_samples_or_kinds_of_questions_there_is_no_floor():
    known, unknown = questions(("a", "no")), questions(("a", "no"), closed=(None, None))
    assert text_floor([], known) == text_floor(known, []) == text_floor(known, unknown) == {}
