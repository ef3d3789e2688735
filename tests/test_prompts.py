"""Wordings: what is asked with and without text, and templates that cannot ask."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from datamodules.errors import InputError
from datamodules.image_text.prompts import Prompts
from datamodules.image_text.readers import crisis_mmd, hateful_memes
from datamodules.image_text.sample import Sample
from tracking.build import build

CONF = Path(__file__).parents[1] / "conf"
WORDINGS = sorted(f"{path.parent.name}/{path.stem}" for path in CONF.glob("prompt/*/*.yaml"))
OPTIONS = {
    "hateful_memes": hateful_memes.OPTIONS,
    "crisis_mmd": crisis_mmd.HUMANITARIAN,
    "medical": (),
    "easy_vqa": ("circle", "red", "yes", "no"),
}

LETTERS = Prompts(
    preamble="Judge.",
    text="Caption: {text}",
    question="Which? {options}",
    option="({letter}) {name}",
    answer="{letter}",
    between=", ",
)


def shipped(wording: str) -> Prompts:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build(compose("prepare", [f"+prompt={wording}"]).prompt)


def test_parts_are_left_out_not_left_empty():
    assert LETTERS.ask("hello", ("no", "yes")) == "Judge.\nCaption: hello\nWhich? (A) no, (B) yes"
    assert LETTERS.ask(None, ("no", "yes")) == "Judge.\nWhich? (A) no, (B) yes"


def test_braces_of_a_text_stay():
    assert "{options} {0} }{" in LETTERS.ask("{options} {0} }{", ("no", "yes"))


def test_answers():
    sample = Sample("1", None, "x", "yes", 1)
    assert LETTERS.answers(("no", "yes")) == ["A", "B"] and LETTERS.answer_of(sample, ("no", "yes")) == "B"
    named = Prompts(text="{text}", question="?", answer="{name}", names=("safe", "bad"))
    assert named.answer_of(sample, ("no", "yes")) == "bad" and not named.lettered and LETTERS.lettered
    opened = Prompts(text="{text}", question="")
    assert opened.answer_of(Sample("1", None, "x", "the {left} lung", None)) == "the {left} lung"
    assert opened.ask(None) == ""


@pytest.mark.parametrize("wording", WORDINGS)
def test_shipped_wordings_ask_for_their_corpus(wording):
    prompts, options = shipped(wording), OPTIONS[wording.split("/")[0]]
    prompts.check(options)
    assert prompts.source.startswith("own wording")
    whole, without = prompts.ask("TEXT", options), prompts.ask(None, options)
    assert "TEXT" in whole and "None" not in without and without
    for asked in (whole, without):
        assert asked == asked.strip() and "{" not in asked and "\n\n" not in asked and "  " not in asked
    if prompts.lettered:
        names = [name.split("_")[0].split("-")[0] for name in options]
        assert all(f"({'ABCDEFGH'[number]}) {name}" in without for number, name in enumerate(names))


@pytest.mark.parametrize("wording", [name for name in WORDINGS if name.endswith("agnostic")])
def test_agnostic_wordings_differ_and_bind_the_model_to_no_modality(wording):
    agnostic, base = shipped(wording), shipped(wording.replace("agnostic", "base").replace("short_base", "short"))
    options = OPTIONS[wording.split("/")[0]]
    assert agnostic.ask("x", options) != base.ask("x", options)
    assert agnostic.answers(options) == base.answers(options)
    told = agnostic.ask(None, options).lower()
    assert not {"picture", "image", "photo", "caption", "tweet", "together"} & set(told.replace(",", " ").split())


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"text": "Caption"}, r"expected \{text\} in its part 'text'"),
        ({"preamble": "{text}"}, r"preamble takes no field, found \{text\}"),
        ({"question": "{option}"}, r"question takes \{options\}, found \{option\}"),
        ({"question": "{}"}, r"question takes \{options\}, found \{\}"),
        ({"text": "{text} {"}, "text is no template"),
        ({"answer": "{text}"}, r"answer takes \{letter\}, \{name\}, \{answer\}"),
        ({"text": "{text.__class__}"}, r"text takes \{text\}, found \{text.__class__\}"),
    ],
)
def test_templates_that_cannot_be_filled(parts, told):
    with pytest.raises(InputError, match=told):
        Prompts(**({"text": "{text}", "question": "?"} | parts))


@pytest.mark.parametrize(
    ("parts", "options", "told"),
    [
        ({}, ("a", "b"), "letter.* or .*name.* for options"),
        ({"answer": "{letter}"}, (), "for open questions"),
        ({"answer": "{name}", "names": ["one"]}, ("a", "b"), "expected 2 names of options, found 1"),
        ({"answer": "{name}", "names": ["one", "one"]}, ("a", "b"), "an answer for each option"),
        ({"answer": "{letter}"}, tuple(map(str, range(27))), "an answer for each option"),
    ],
)
def test_wordings_that_do_not_suit_a_corpus(parts, options, told):
    with pytest.raises(InputError, match=told):
        Prompts(**({"text": "{text}", "question": "?"} | parts)).check(options)
