"""What a multimodal LLM answers: by the likelihood of each option, and by greedy generation."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from datamodules.errors import InputError
from datamodules.image_text.batch import ImageTextBatch
from datamodules.image_text.sample import Sample
from lightning_modules.mllm.families.base import Encoder
from lightning_modules.mllm.module import MultimodalModule
from lightning_modules.mllm.scoring import (
    area_under_curve,
    normalise_answer,
    option_metrics,
    parse_option,
    vqa_accuracy,
)

CRISIS_LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Answer:
    """One sample's answer.

    log_probs: log-likelihood of each option, () for open questions. text: what was generated, None where nothing was.
    option: the hard answer, counted from 0: the likeliest option, or the one parsed from the text (`published`);
    None where the text names none, and for open questions.
    """

    id: str
    log_probs: tuple[float, ...]
    text: str | None
    option: int | None


@dataclass(frozen=True)
class Asking:
    """How answers are taken.

    options: the answers to choose from, as the prompt has them; () for open questions, which are always generated.
    published: hard answers are parsed from generated text as the released evaluation does, not chosen by likelihood.
    lettered: options are told apart by a capital letter (the published parser) instead of by their words.
    max_new_tokens: of a generated answer.

    The likelihood of an option is the probability that the answer begins with it: the sum over its tokens, longer
    options not made up for. Where one option begins with another, the end of the answer counts as a token, too.
    """

    options: Sequence[str] = ()
    published: bool = False
    lettered: bool = False
    max_new_tokens: int = 16

    def parse(self, text: str) -> int | None:
        """The option that a generated text names, None if none."""
        if self.lettered:
            letters = CRISIS_LETTERS if len(self.options) > 7 else CRISIS_LETTERS[:7]
            return parse_option(text, len(self.options), letters)
        named = [normalise_answer(option) for option in self.options]
        told = normalise_answer(text)
        return named.index(told) if told in named else None


@torch.no_grad()
def answer(module: MultimodalModule, batches: Iterable[ImageTextBatch], asking: Asking) -> list[Answer]:
    """An answer to every row of the batches (encoded without answers), in their order; the module's mode is kept."""
    answers: list[Answer] = []
    with _evaluating(module):
        for batch in batches:
            answers += _answer(module, _on(batch, module.device), asking)
    return answers


def score(answers: Sequence[Answer], samples: Mapping[str, Sample], asking: Asking) -> dict[str, float]:
    """Metrics of answers; samples: by id.

    With options: accuracy, macro_f1, unparsable, and for two options auc_hard (published) and auc_probability. Open
    questions, and options of which some are closed and some open: open, closed (those that occur) and overall.
    """
    asked = [samples[found.id] for found in answers]
    metrics: dict[str, float] = {}
    if asking.options:
        labels = [_label(sample) for sample in asked]
        metrics |= option_metrics([found.option for found in answers], labels, len(asking.options))
        if len(asking.options) == 2:
            odds = torch.tensor([found.log_probs for found in answers], dtype=torch.float64).softmax(1)
            metrics["auc_probability"] = area_under_curve(labels, odds[:, 1].tolist())
    if not asking.options or any(sample.closed is not None for sample in asked):
        told = [said(found, asking) for found in answers]
        wanted = [asking.options[_label(sample)] if asking.options else sample.answer for sample in asked]
        metrics |= vqa_accuracy(told, wanted, [bool(sample.closed) for sample in asked])
    return metrics


def said(found: Answer, asking: Asking) -> str:
    """What an answer says: the generated text, else the option chosen; empty where neither is known."""
    if found.text is not None:
        return found.text
    return "" if found.option is None else asking.options[found.option]


def option_tokens(encoder: Encoder, options: Sequence[str]) -> list[list[int]]:
    """Tokens of each option as `Asking` counts them; raises InputError where two options are the same tokens."""
    rows = [encoder.answer_ids(option) for option in options]
    if len({tuple(row) for row in rows}) < len(rows):
        raise InputError(f"options: expected answers that differ in tokens, found {list(options)}; rename some")
    nested = any(a is not b and a == b[: len(a)] for a in rows for b in rows)
    return [[*row, encoder.end] for row in rows] if nested else rows


def option_log_probs(prompt: "Reading", tokens: Sequence[Sequence[int]]) -> Tensor:
    """(N, options) log-likelihood of each option after each row, the reading left as it is."""
    first = prompt.logits.log_softmax(-1)
    return torch.stack([first[:, row[0]] + prompt.fork().log_prob_of_rest(row) for row in tokens], dim=1)


def generate(reading: "Reading", max_new_tokens: int) -> list[list[int]]:
    """Greedy tokens after each row, its end token left out; the reading goes on with them."""
    end = reading.end
    told: list[Tensor] = []
    while len(told) < max_new_tokens:
        told.append(reading.logits.argmax(-1))
        if (torch.stack(told) == end).any(0).all():
            break
        reading.read(told[-1][:, None])
    rows = torch.stack(told, dim=1).tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]


class Reading:
    """Rows read so far: `logits` (N, V) of the next token, and the keys and values to read on with."""

    def __init__(self, module: MultimodalModule, batch: ImageTextBatch):
        self._module, self._mask, self.end = module, batch.attention_mask, module.encoder.end
        output = module.hidden(batch, use_cache=True)
        self._past = output.past_key_values
        self.logits = module.head(output.last_hidden_state[:, -1])

    def fork(self) -> "Reading":
        return copy.copy(self)

    def read(self, ids: Tensor) -> Tensor:
        """Read tokens (N, k); returns their (N, k, V) logits of the next token. Writes into the keys and values."""
        self._mask = torch.cat([self._mask, torch.ones_like(ids)], dim=1)
        output = self._module.base.model(
            input_ids=ids, attention_mask=self._mask, past_key_values=self._past, use_cache=True
        )
        logits = self._module.head(output.last_hidden_state)
        self.logits = logits[:, -1]
        return logits

    def log_prob_of_rest(self, row: Sequence[int]) -> Tensor | float:
        """(N,) log-likelihood of row[1:] after row[0]; 0 for a single token."""
        if len(row) == 1:
            return 0.0
        self._past = copy.deepcopy(self._past)
        tokens = torch.tensor(row, device=self._mask.device).expand(len(self._mask), -1)
        logits = self.read(tokens[:, :-1]).log_softmax(-1)
        return logits.gather(-1, tokens[:, 1:, None])[..., 0].sum(1)


def _answer(module: MultimodalModule, batch: ImageTextBatch, asking: Asking) -> list[Answer]:
    rows, reading = range(len(batch.input_ids)), Reading(module, batch)
    log_probs: list[list[float]] = [[] for _ in rows]
    texts: list[str | None] = [None for _ in rows]
    if asking.options:
        log_probs = option_log_probs(reading, option_tokens(module.encoder, asking.options)).tolist()
    if asking.published or not asking.options:
        texts = [module.encoder.decode(row) for row in generate(reading, asking.max_new_tokens)]
    found = []
    for row in rows:
        option, text = None, texts[row]
        if asking.options:
            option = asking.parse(text) if text is not None else log_probs[row].index(max(log_probs[row]))
        found.append(Answer(batch.ids[row], tuple(log_probs[row]), text, option))
    return found


def _label(sample: Sample) -> int:
    if sample.label is None:
        raise InputError(f"sample {sample.id}: expected a class to score options against, found none")
    return sample.label


def _on(batch: ImageTextBatch, device: torch.device) -> ImageTextBatch:
    return apply_to_collection(batch, Tensor, lambda tensor: tensor.to(device))


@contextmanager
def _evaluating(module: MultimodalModule) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
