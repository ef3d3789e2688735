"""The tiny base: packed rows equal rows alone, the same recipe gives the same bytes, and it learns."""

import json

import numpy as np
import pytest
import torch
from toys_mllm import SIZE

from datamodules.image_text.batch import IGNORED
from datamodules.miniature import picture_questions
from datamodules.miniature.picture_questions import QUESTIONS, ask_all, vocabulary_texts
from datamodules.miniature.scenes_images import COLOURS, QUADRANTS, SHAPES, SIZES, Thing, draw_thing
from lightning_modules.mllm import tiny_base as base
from lightning_modules.mllm import tiny_model
from lightning_modules.mllm.families.tiny import Tiny
from lightning_modules.mllm.tiny_base import Album, Recipe
from lightning_modules.mllm.tiny_model import Size

SMALL = Size(side=64, patch=16, vision_width=16, vision_layers=1, width=16, layers=1, heads=2, vocabulary=640)
QUICK = Recipe(pictures=40, size=SMALL, vision_steps=3, steps=3, batch=4, vision_batch=4)


def test_every_word_of_an_answer_is_one_token():
    words = tiny_model.tokenizer(vocabulary_texts(), Size().vocabulary)
    said = [*COLOURS, *SHAPES, *SIZES, *" ".join(QUADRANTS).split(), "yes", "no", "true", "false"]
    assert all(len(words(f" {word}").input_ids) == 1 for word in said)
    assert words.decode(words("any Word, even Ünknown!").input_ids) == "any Word, even Ünknown!"


def test_questions_have_the_answers_that_the_thing_gives():
    thing, rng = Thing("star", "teal", 10, 50, 7), np.random.default_rng(0)
    asked = [question for _ in range(40) for question in ask_all(thing, rng)]
    assert {kind for kind, _, _ in asked} == set(QUESTIONS)
    for kind, prompt, answer in asked:
        own = any(word in prompt.split() for word in ("star", "teal"))
        expected = {
            "describe": "a small teal star at the bottom left",
            "place": "bottom left",
            "colour": "teal",
            "shape": "star",
            "size": "small",
            "statement": "true" if own else "false",
            "doubt": "yes" if own != ("not" in prompt.split()) else "no",
            "line": "yes" if own else "no",
        }[kind]
        assert answer == expected
    claims = [answer for kind, _, answer in asked if kind in ("statement", "doubt", "line")]
    assert 0.35 < sum(answer in ("yes", "true") for answer in claims) / len(claims) < 0.65


def test_packed_rows_equal_each_question_alone():
    words = tiny_model.tokenizer(vocabulary_texts(), SMALL.vocabulary)
    model = tiny_model.model(words, SMALL, 0).eval()
    album = Album.drawn(2, 5)
    asked = [ask_all(thing, np.random.default_rng(1)) for thing in album.things]
    asked[1] = asked[1][:5]
    packed = base.pack(asked, words, SMALL)
    with torch.no_grad():
        together, tokens = base.answer_logits(model, album.pixels(torch.arange(2)), packed)
        alone, told = [], []
        for row, questions in enumerate(asked):
            for _, prompt, answer in questions:
                text = [words.image_token_id] * 16 + words(prompt).input_ids
                tail = [*words(f" {answer}").input_ids, words.eos_token_id]
                logits = model(torch.tensor([text + tail]), pixel_values=album.pixels(torch.tensor([row]))).logits[0]
                alone.append(logits[len(text) - 1 : -1])
                told += tail
    assert tokens.tolist() == told
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-5, rtol=1e-4)
    assert (packed.kinds >= 0).eq(packed.labels != IGNORED).all()


def test_pixels_are_those_of_the_processor():
    words = tiny_model.tokenizer(["x"], 300)
    album = Album.drawn(1, 2)
    from PIL import Image

    picture = Image.fromarray(album.pictures[0].numpy())
    given = tiny_model.processor(words, SMALL)(text=["<image>"], images=[picture], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(album.pixels(torch.tensor([0])), given, atol=1e-6, rtol=0)


def test_a_recipe_gives_the_same_bytes_and_is_trained_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(base, "HELD_OUT", 20)
    one, other = (base.tiny_base(QUICK, tmp_path / name) for name in "ab")
    assert one.name == other.name
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert capsys.readouterr().out.count("right on pictures held out") == 2
    family = Tiny(cache=str(tmp_path / "a"), recipe=QUICK)
    assert family.folder() == str(one) and not capsys.readouterr().out
    assert family.fingerprint() == Tiny(source=str(other)).fingerprint()
    told = json.loads((one / "trained.json").read_text())
    assert set(told["answer_accuracy"]) == set(QUESTIONS) and told["recipe"]["pictures"] == 40
    assert [path.name for path in (tmp_path / "a").iterdir()] == [one.name]


def test_another_recipe_or_version_is_another_folder(monkeypatch):
    assert Recipe(seed=1).key != Recipe().key != Recipe(size=SMALL).key
    before = Recipe().key
    monkeypatch.setattr(base, "BASE_VERSION", 99)
    assert Recipe().key != before


def test_a_training_cut_short_leaves_nothing_behind(tmp_path, monkeypatch):
    def cut(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(base, "train_whole", cut)
    with pytest.raises(KeyboardInterrupt):
        base.tiny_base(QUICK, tmp_path)
    assert not list(tmp_path.iterdir())


def test_both_stages_move_what_they_should():
    words = tiny_model.tokenizer(vocabulary_texts(), SMALL.vocabulary)
    model, album = tiny_model.model(words, SMALL, 0).train(), Album.drawn(20, 0)
    before = {name: p.clone() for name, p in model.named_parameters()}
    base.train_vision(model, album, album, QUICK)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and not any("language_model" in name or "lm_head" in name for name in moved)
    base.train_whole(model, words, album, QUICK)
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters() if "post_layernorm" not in name)


@pytest.mark.slow
def test_the_eyes_learn_to_see_within_a_minute():
    words = tiny_model.tokenizer(vocabulary_texts(), Size().vocabulary)
    recipe = Recipe(vision_steps=300, pictures=3000)
    model = tiny_model.model(words, recipe.size, 0).train()
    seen = base.train_vision(model, Album.drawn(3000, 0), Album.drawn(300, 1), recipe)
    assert seen["colour"] > 0.9 and seen["quadrant"] > 0.7 and seen["size"] > 0.7


def test_places_tell_every_patch_apart():
    code = tiny_model.places(8, 96)
    assert code.shape == (64, 96) and torch.cdist(code, code).fill_diagonal_(9).min() > 0.5
    row = code.reshape(8, 8, 96)
    assert torch.equal(row[0, 3, :48], row[5, 3, :48]) and torch.equal(row[2, 0, 48:], row[2, 7, 48:])


def test_toy_sizes_are_read_from_the_configuration():
    assert SIZE.side // SIZE.patch == 2 and draw_thing(np.random.default_rng(0)).shape in SHAPES
    assert set(picture_questions.TIMES) <= set(QUESTIONS)
