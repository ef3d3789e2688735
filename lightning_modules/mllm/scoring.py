"""Answers of a multimodal LLM -> numbers: the published parser, the published normaliser, the published metrics."""

import re
from collections.abc import Sequence

from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from datamodules.errors import InputError

UNPARSABLE = 2  # the class that the published evaluation gives an answer without a valid option

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(DIGITS)}
ARTICLES = {"a", "an", "the"}
CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:at] + word[at + 1 :] for at, letter in enumerate(word) if letter == "'"]


# The public VQA evaluation lists each contraction with one apostrophe forgotten.
RESTORED = {forgotten: word for word in CONTRACTIONS.split() for forgotten in _without_one_apostrophe(word)}


def parse_option(answer: str, options: int, letters: str = "ABCDEFG") -> int | None:
    """The option of a generated answer, counted from 0; None where it names none of the `options`.

    The published rule: delete `answer` and `Answer`, take the first capital among `letters` (A-H for CrisisMMD)
    anywhere, so that `Based on ...` is a B.
    """
    found = re.search(f"[{letters}]", re.sub("[aA]nswer", "", answer))
    option = letters.index(found.group()) if found else options
    return option if option < options else None


def normalise_answer(answer: str) -> str:
    """The VQA normaliser (FedMLLM's rule-based medical scores): punctuation, numbers, articles, contractions, x-ray."""
    told = answer.replace("\n", " ").replace("\t", " ").strip()
    thousands = re.search(r"\d,\d", told) is not None
    cleaned = told
    for mark in PUNCTUATION:
        beside_blank = f"{mark} " in told or f" {mark}" in told
        cleaned = cleaned.replace(mark, "" if beside_blank or thousands else " ")
    cleaned = re.sub(r"\.(?!\d)", "", cleaned)
    words = [NUMBERS.get(word, word) for word in cleaned.lower().split()]
    kept = [RESTORED.get(word, word) for word in words if word not in ARTICLES]
    return " ".join(kept).replace("x ray", "xray")


def option_metrics(answers: Sequence[int | None], labels: Sequence[int], options: int) -> dict[str, float]:
    """Accuracy, macro-F1 and the count of unparsable answers; with two options also AUC, all from hard answers.

    answers: as `parse_option` gives them; an unparsable one counts as class 2, as published. Macro-F1 is the mean over
    the classes that occur among labels or answers.
    Raises InputError where two options are asked for and the labels hold one class alone.
    """
    hard = [UNPARSABLE if answer is None else answer for answer in answers]
    classes = [label for label in range(options) if label in {*hard, *labels}]
    metrics = {
        "accuracy": float(accuracy_score(labels, hard)),
        "macro_f1": float(f1_score(labels, hard, labels=classes, average="macro", zero_division=0)),
        "unparsable": float(sum(answer is None for answer in answers)),
    }
    return metrics | ({"auc_hard": area_under_curve(labels, hard)} if options == 2 else {})


def area_under_curve(labels: Sequence[int], scores: Sequence[float]) -> float:
    """AUC of scores for class 1: hard answers (as published) or option probabilities.

    Raises InputError unless both classes occur.
    """
    if set(labels) != {0, 1}:
        raise InputError(
            f"AUC: expected labels 0 and 1, found {sorted(set(labels))}; evaluate on a set that holds both"
        )
    return float(roc_auc_score(labels, scores))


def vqa_accuracy(answers: Sequence[str], targets: Sequence[str], closed: Sequence[bool]) -> dict[str, float]:
    """Share of answers equal to their target after normalisation: `open`, `closed` (those that occur) and `overall`.

    closed: whether a question is answered by yes or no or from a list (VQA-RAD's answer_type, stripped, is CLOSED).
    """
    hits = [normalise_answer(a) == normalise_answer(t) for a, t in zip(answers, targets, strict=True)]
    groups = {
        "open": [hit for hit, kind in zip(hits, closed, strict=True) if not kind],
        "closed": [hit for hit, kind in zip(hits, closed, strict=True) if kind],
        "overall": hits,
    }
    return {name: sum(group) / len(group) for name, group in groups.items() if group}
