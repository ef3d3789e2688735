"""Answers by option likelihood and by generation against plain loops over whole rows."""

import pytest
import torch
from toys_mllm import ANSWERS, PROMPTS, images, llava, module, picture

from datamodules.errors import InputError
from datamodules.image_text.sample import Sample
from lightning_modules.mllm.answers import (
    Answer,
    Asking,
    Reading,
    answer,
    generate,
    option_log_probs,
    option_tokens,
    score,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return module(llava(tmp_path_factory.mktemp("llava"))).eval()


@pytest.fixture(scope="module")
def asked(made):
    return made.encoder(PROMPTS, images(), None)._replace(ids=("a", "b", "c", "d"))


def alone(made, row: int, tail: list[int]) -> torch.Tensor:
    """(L, V) log-probabilities of one row read alone with a tail behind it, whole, without keys and values kept."""
    batch = made.encoder(PROMPTS[row : row + 1], images()[row : row + 1], None)
    ids = torch.cat([batch.input_ids, torch.tensor([tail], dtype=torch.int64)], dim=1)
    whole = batch._replace(input_ids=ids, attention_mask=torch.ones_like(ids))
    with torch.no_grad():
        return made.head(made.hidden(whole).last_hidden_state[0]).log_softmax(-1)


def test_option_likelihood_equals_a_whole_pass_for_each_option(made, asked):
    options = ["yes", "no, it is not", "circle", "star yes"]
    tokens = option_tokens(made.encoder, options)
    assert {len(row) for row in tokens} > {1}
    with torch.no_grad():
        found = option_log_probs(Reading(made, asked), tokens)
    for row in range(4):
        for column, option in enumerate(tokens):
            table = alone(made, row, option)
            begin = len(table) - len(option)
            expected = sum(table[begin + k - 1, token] for k, token in enumerate(option))
            assert found[row, column].item() == pytest.approx(expected.item(), abs=1e-4)


def test_the_end_counts_only_where_an_option_begins_with_another(made):
    encoder = made.encoder
    assert option_tokens(encoder, ["yes", "no"]) == [encoder.answer_ids("yes"), encoder.answer_ids("no")]
    assert [row[-1] for row in option_tokens(encoder, ["no", "no, it is not", "yes"])] == [encoder.end] * 3
    with pytest.raises(InputError, match="differ in tokens"):
        option_tokens(encoder, ["yes", "no", "yes"])


def test_generation_follows_the_argmax_of_whole_passes(made, asked):
    with torch.no_grad():
        found = generate(Reading(made, asked), 6)
    for row, told in enumerate(found):
        expected: list[int] = []
        while len(expected) < 6:
            token = alone(made, row, expected)[-1].argmax().item()
            if token == made.encoder.end:
                break
            expected.append(token)
        assert told == expected


def test_generation_equals_that_of_transformers_and_stops_at_the_end(made, asked):
    head = made.base.get_output_embeddings()
    with torch.no_grad():
        before = head.weight.clone()
        head.weight[made.encoder.end] = 2 * head.weight.mean(0) + 3 * head.weight[5]  # the end becomes likely somewhere
    try:
        with torch.no_grad():
            found = generate(Reading(made, asked), 12)
            theirs = made.base.generate(
                input_ids=asked.input_ids,
                attention_mask=asked.attention_mask,
                **asked.vision,
                max_new_tokens=12,
                do_sample=False,
            )
    finally:
        with torch.no_grad():
            head.weight.copy_(before)
    length = asked.input_ids.shape[1]
    for mine, row in zip(found, theirs[:, length:].tolist(), strict=True):
        assert mine == (row[: row.index(made.encoder.end)] if made.encoder.end in row else row[:12])


def test_answers_by_likelihood_and_by_the_published_parser(made, asked):
    made.train()
    by_likelihood = answer(made, [asked], Asking(options=["yes", "no"]))
    assert made.training
    assert [found.id for found in by_likelihood] == ["a", "b", "c", "d"]
    assert all(found.option == int(found.log_probs[1] > found.log_probs[0]) for found in by_likelihood)
    assert all(found.text is None for found in by_likelihood)
    published = answer(made, [asked], Asking(options=["(A)", "(B)"], published=True, lettered=True))
    assert all(found.text is not None and len(found.log_probs) == 2 for found in published)
    open_ended = answer(made, [asked], Asking())
    assert all(found.option is None and found.log_probs == () for found in open_ended)
    made.eval()


def test_dropout_sleeps_while_answering(made, asked):
    made.train()
    first, second = (answer(made, [asked], Asking(options=["yes", "no"])) for _ in range(2))
    made.eval()
    assert first == second


@pytest.mark.parametrize(("text", "option"), [("No.", 1), ("yes", 0), ("yes no", None), ("", None), ("the no", 1)])
def test_words_are_parsed_whole_after_normalisation(text, option):
    assert Asking(options=["yes", "no"]).parse(text) == option


def test_letters_run_to_h_for_eight_options_alone():
    eight = Asking(options=[f"({letter})" for letter in "ABCDEFGH"], lettered=True)
    assert eight.parse("(H)") == 7 and Asking(options=["(A)", "(B)"], lettered=True).parse("H B") == 1


def sample(name: str, label: int | None, closed: bool | None = None, text: str = "x") -> Sample:
    return Sample(id=name, image=None, text=None, answer=text, label=label, closed=closed)


def test_score_of_two_options_uses_hard_answers_and_probabilities():
    samples = {name: sample(name, label) for name, label in zip("abcd", [1, 0, 1, 0], strict=True)}
    answers = [
        Answer("a", (-1.0, -0.1), None, 1),
        Answer("b", (-0.2, -0.3), None, 0),
        Answer("c", (-0.3, -0.9), None, 0),
        Answer("d", (-5.0, -5.0), None, None),
    ]
    found = score(answers, samples, Asking(options=["no", "yes"]))
    # P(yes): .71, .475, .354, .5; of the four pairs (1 before 0) a wins both, c loses both.
    assert found["auc_probability"] == pytest.approx(0.5)
    assert found["unparsable"] == 1 and found["accuracy"] == 0.5 and "overall" not in found


def test_score_of_open_and_closed_questions():
    samples = {"a": sample("a", None, True, "Yes"), "b": sample("b", None, False, "left lung")}
    answers = [Answer("a", (), "yes.", None), Answer("b", (), "right lung", None)]
    assert score(answers, samples, Asking()) == {"open": 0.0, "closed": 1.0, "overall": 0.5}
    optional = {"a": sample("a", 0, True), "b": sample("b", 1, False)}
    chosen = [Answer("a", (-1.0, -2.0, -3.0), None, 0), Answer("b", (-1.0, -2.0, -3.0), None, 0)]
    found = score(chosen, optional, Asking(options=["yes", "blue", "red"]))
    assert (found["accuracy"], found["closed"], found["open"], found["overall"]) == (0.5, 1.0, 0.0, 0.5)
    with pytest.raises(InputError, match="sample b: expected a class"):
        score(chosen, optional | {"b": sample("b", None)}, Asking(options=["yes", "blue", "red"]))


def test_a_cache_of_features_answers_the_same(made, asked, tmp_path):
    cached = module(llava(tmp_path), cache_features=True)
    plain = answer(made, [asked], Asking(options=ANSWERS))
    for _ in range(2):
        found = answer(cached, [asked], Asking(options=ANSWERS))
        assert [f.log_probs for f in found] == [pytest.approx(p.log_probs, abs=1e-5) for p in plain]
    other = cached.encoder(PROMPTS, [picture(7), None, picture(1), None], None)._replace(ids=tuple("abcd"))
    assert answer(cached, [other], Asking(options=ANSWERS))[0].log_probs != found[0].log_probs
