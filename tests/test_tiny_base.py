"""The tiny base: packed rows equal rows alone, the same recipe gives the same bytes, and it learns."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toys_mllm import SIZE

from datamodules.image_text.batch import IGNORED
from datamodules.miniature import picture_questions
from datamodules.miniature.picture_questions import QUESTIONS, ask_all, vocabulary_texts
from datamodules.miniature.scenes_images import COLOURS, QUADRANTS, SHAPES, SIZES, Thing, draw_thing, render
from lightning_modules.mllm import tiny_base as base
from lightning_modules.mllm import tiny_model
from lightning_modules.mllm.families.base import weights_digest
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
        together, tokens = base.answer_logits(model, base.features(model, album.pixels(torch.arange(2))), packed)
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
    given = Tiny(source=str(other)).fingerprint()  # by somebody, who may have changed what lies beside the weights
    assert family.fingerprint() == weights_digest(other) != given
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

    monkeypatch.setattr(base, "train_words", cut)
    with pytest.raises(KeyboardInterrupt):
        base.tiny_base(QUICK, tmp_path)
    assert not list(tmp_path.iterdir())


def test_each_stage_moves_its_half_and_leaves_the_other():
    words = tiny_model.tokenizer(vocabulary_texts(), SMALL.vocabulary)
    model, album = tiny_model.model(words, SMALL, 0).train(), Album.drawn(20, 0)

    def moved(train) -> set[str]:
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        train()
        return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}

    def of_the_eyes(name: str) -> bool:
        return "vision_tower" in name or "projector" in name

    every = {name for name, _ in model.named_parameters()}
    seen = moved(lambda: base.train_vision(model, album, album, QUICK))
    assert seen == {name for name in every if of_the_eyes(name) and "post_layernorm" not in name}  # LLaVA leaves it out
    assert moved(lambda: base.train_words(model, words, album, QUICK)) == {
        name for name in every if not of_the_eyes(name)
    }


@pytest.mark.slow
def test_of_two_processes_one_trains_and_the_other_uses_its_model(tmp_path):
    script = f"""
import sys
sys.path.insert(0, "tests")
from pathlib import Path
from test_tiny_base import QUICK, base
base.HELD_OUT = 20
print(base.tiny_base(QUICK, Path({str(tmp_path)!r})).name)
"""
    command, root = [sys.executable, "-c", script], Path(__file__).parents[1]
    both = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted("right on pictures held out" in text for text in told) == [False, True]
    assert {text.splitlines()[-1] for text in told} == {path.name for path in tmp_path.iterdir()}


def test_the_window_holds_the_thing_and_the_outline_is_what_was_drawn():
    rng = np.random.default_rng(4)
    album = Album.drawn(60, 3)
    at, drawn = base.window(album.things, Size()), base.outlines(album.pictures, 8)
    assert at.shape == (60, 25) and drawn.shape == (60, 64, 16)
    inside = drawn.gather(1, at[..., None].expand(-1, -1, 16)).sum((1, 2))
    assert (inside > 0.97 * drawn.sum((1, 2))).all() and (inside > 0).all()
    thing = Thing(
        "rectangle", "red", 20, 40, 12, 0, 1.0
    )  # a square of 17 pixels with its middle in a corner of patches
    picture = torch.from_numpy(np.asarray(render(thing, rng)))[None]
    pixels = base.outlines(picture, 8)[0].reshape(8, 8, 4, 4).permute(0, 2, 1, 3).reshape(32, 32)
    expected = torch.zeros(32, 32)
    expected[16:24, 6:14] = 1
    assert (pixels[16:24, 6:14] == 1).all() and pixels.sum() - expected.sum() < 20


def test_looking_at_every_patch_by_number_is_looking_at_the_picture():
    model, album = tiny_model.model(tiny_model.tokenizer(["x"], 300), Size(), 0).eval(), Album.drawn(2, 3)
    pixels, every = album.pixels(torch.arange(2)), torch.arange(64).expand(2, -1)
    torch.testing.assert_close(base.features(model, pixels, every), base.features(model, pixels))


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
