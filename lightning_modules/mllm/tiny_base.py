"""The tiny model's general training: first its eyes, then its words, on pictures of the miniature.

Cached by its recipe. Nothing of a task is in it: clients tune LoRA pairs on what comes out, which stays frozen.
"""

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutputWithPooling

from datamodules.alone import alone_in
from datamodules.image_text.batch import IGNORED
from datamodules.miniature import picture_questions
from datamodules.miniature.picture_questions import LOOKS, ask_all, looks
from datamodules.miniature.scenes_images import Thing, draw_thing, render
from lightning_modules.mllm import tiny_model
from lightning_modules.mllm.tiny_model import Size

# Raised by hand whenever a change of this file, or of the pictures and questions, changes the weights.
BASE_VERSION = 3
HELD_OUT = 300
WINDOW = 5  # patches across, enough for the largest thing
WHOLE = 0.2  # share of the eyes' steps, the last, that see whole pictures
CELLS, OUTLINE = 4, 4.0  # cells across a patch; weight of the outline's loss


@dataclass(frozen=True)
class Recipe:
    """Everything the weights depend on. pictures: drawn for training; the two stages see batches of them, so many
    steps each, at a rate (AdamW's; Muon's is 20 times that) that rises over 50 steps and falls as a cosine to 0."""

    seed: int = 0
    pictures: int = 12_000
    size: Size = Size()  # noqa: RUF009 - frozen
    vision_steps: int = 1300
    vision_batch: int = 24
    vision_rate: float = 1e-3
    steps: int = 1600
    batch: int = 6
    rate: float = 1e-3

    @property
    def key(self) -> str:
        text = json.dumps([BASE_VERSION, asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def tiny_base(recipe: Recipe, cache: Path) -> Path:
    """The folder of the trained model below `cache`; trained now if it is not there.

    The same recipe gives the same bytes on the same machine and versions, whatever its cores: no sum is split over
    threads. `trained.json` tells what it can do.
    """
    folder = cache / f"tiny-{recipe.key[:16]}"
    if not (folder / "trained.json").exists():
        with alone_in(cache):
            if not (folder / "trained.json").exists():  # nobody made it while this process waited
                with tempfile.TemporaryDirectory(dir=cache, prefix="writing-") as writing, _one_thread():
                    _train(recipe, made := Path(writing) / "model")
                    made.rename(folder)
    return folder


def _train(recipe: Recipe, folder: Path) -> None:
    start = time.process_time()
    print("tiny base: drawing pictures, then some minutes of training, once", flush=True)
    words = tiny_model.tokenizer(picture_questions.vocabulary_texts(), recipe.size.vocabulary)
    model = tiny_model.model(words, recipe.size, recipe.seed).train()
    album = Album.drawn(recipe.pictures, recipe.seed)
    held_out = Album.drawn(HELD_OUT, recipe.seed + 1)
    seen = train_vision(model, album, held_out, recipe)
    train_words(model, words, album, recipe)
    answered = answers_right(model.eval(), words, held_out)
    tiny_model.save(folder, model, tiny_model.processor(words, recipe.size))
    told = {"recipe": asdict(recipe), "seconds": round(time.process_time() - start, 1)}
    told |= {"vision_accuracy": seen, "answer_accuracy": answered, "versions": {"torch": torch.__version__}}
    (folder / "trained.json").write_text(json.dumps(told, indent=1))
    shown = "  ".join(f"{kind} {share:.0%}" for kind, share in answered.items())
    print(f"tiny base: {told['seconds']:.0f} s; right on pictures held out: {shown}", flush=True)


@dataclass(frozen=True)
class Album:
    """pictures: (n, side, side, 3) uint8; what they show; looks: (n, 4) its classes."""

    pictures: Tensor
    things: Sequence[Thing]
    looks: Tensor

    @classmethod
    def drawn(cls, number: int, seed: int) -> "Album":
        rng = np.random.default_rng([seed, 7])
        things = [draw_thing(rng) for _ in range(number)]
        pictures = np.stack([np.asarray(render(thing, rng)) for thing in things])
        return cls(torch.from_numpy(pictures), things, torch.tensor([looks(thing) for thing in things]))

    def pixels(self, rows: Tensor) -> Tensor:
        """(n, 3, side, side) float32 between -1 and 1, as the processor gives them."""
        return self.pictures[rows].permute(0, 3, 1, 2).float() / 127.5 - 1


def features(model: LlavaForConditionalGeneration, pixels: Tensor, at: Tensor | None = None) -> Tensor:
    """(n, patches, width) what the language model is shown; at: (n, k) the patches that are looked at, None for all."""
    if at is None:
        return torch.stack(list(model.get_image_features(pixel_values=pixels).pooler_output))
    tower = model.model.vision_tower
    seen = tower.encoder(inputs_embeds=_taken(tower.embeddings(pixels), at)).last_hidden_state
    return model.model.multi_modal_projector(seen)


def _taken(patches: Tensor, at: Tensor) -> Tensor:
    return patches.gather(1, at[..., None].expand(-1, -1, patches.shape[-1]))


def window(things: Sequence[Thing], size: Size) -> Tensor:
    """(n, WINDOW^2) numbers of the patches round each thing."""
    side, across = size.side // size.patch, min(WINDOW, size.side // size.patch)
    middles = torch.tensor([[thing.x, thing.y] for thing in things]) / size.patch
    first = (middles - across / 2).round().clamp(0, side - across).long()
    columns, rows = (first[:, axis, None] + torch.arange(across) for axis in (0, 1))
    return (rows[:, :, None] * side + columns[:, None]).flatten(1)


def outlines(pictures: Tensor, patch: int) -> Tensor:
    """(n, patches, CELLS^2) share of each cell of a patch that the thing covers; its ground is that of the corner."""
    thing = (pictures.int() - pictures[:, :1, :1].int()).abs().sum(-1).gt(40).float()
    cells = functional.avg_pool2d(thing[:, None], patch // CELLS)
    return functional.unfold(cells, CELLS, stride=CELLS).transpose(1, 2)


def train_vision(model, album: Album, held_out: Album, recipe: Recipe) -> dict[str, float]:
    """Vision tower and projector, by linear heads that are thrown away: from each patch its part of the outline, from
    mean and maximum over the patches shape, colour, size and place.

    The outline says the same of things of every colour, and at 25 patches at a time: with it half of all shapes were
    told after 300 steps, without it after 400 not yet four in ten. Most steps look only at the patches round the thing,
    which takes half the time. Returns the heads' accuracy on pictures held out.
    """
    size, steps = recipe.size, recipe.vision_steps
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        heads, outline = nn.Linear(2 * size.width, sum(LOOKS.values())), nn.Linear(size.width, CELLS**2)

    def scores(shown: Tensor) -> Sequence[Tensor]:
        return heads(torch.cat([shown.mean(1), shown.amax(1)], dim=1)).split(list(LOOKS.values()), dim=1)

    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    hidden = [*tower.encoder.parameters(), *projector.parameters()]
    every = [*tower.parameters(), *projector.parameters(), *heads.parameters(), *outline.parameters()]
    around = window(album.things, size)

    def batch(step: int, rows: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        at, drawn = around[rows] if step < (1 - WHOLE) * steps else None, outlines(album.pictures[rows], size.patch)
        return album.pixels(rows), at, drawn if at is None else _taken(drawn, at), album.looks[rows].T

    with Optimiser(every, hidden, recipe.vision_rate, steps) as optimiser:
        rows = drawn_rows(album, recipe.vision_batch, recipe.seed)
        for pixels, at, drawn, looks_of in optimiser.steps(rows, batch, "its eyes"):
            shown = features(model, pixels, at)
            losses = [functional.cross_entropy(z, y) for z, y in zip(scores(shown), looks_of, strict=True)]
            traced = functional.binary_cross_entropy_with_logits(outline(shown), drawn)
            optimiser.descend(torch.stack(losses).sum() + OUTLINE * traced)
    with torch.no_grad():
        told = scores(features(model, held_out.pixels(torch.arange(len(held_out.things)))))
    right = [(z.argmax(1) == y).float().mean().item() for z, y in zip(told, held_out.looks.T, strict=True)]
    return dict(zip(LOOKS, right, strict=True))


def train_words(model, words: PreTrainedTokenizerFast, album: Album, recipe: Recipe) -> None:
    """The language model, on the answers to all questions about a picture; the eyes stay as they are.

    Trained on together with it, at the rate of a beginning, they forget shapes before the language model asks for them.
    """
    eyes = [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters()]
    learnt = [parameter for parameter in model.parameters() if all(parameter is not eye for eye in eyes)]
    hidden = model.model.language_model.layers.parameters()

    def batch(step: int, rows: Tensor) -> tuple[Tensor, Packed]:
        rng = np.random.default_rng([recipe.seed, 8, step])
        packed = pack([ask_all(album.things[row], rng) for row in rows], words, recipe.size)
        with torch.no_grad():  # the eyes are still: another thread may look through them
            return features(model, album.pixels(rows)), packed

    with Optimiser(learnt, hidden, recipe.rate, recipe.steps) as optimiser:
        rows = drawn_rows(album, recipe.batch, recipe.seed + 1)
        for shown, packed in optimiser.steps(rows, batch, "its words"):
            logits, tokens = answer_logits(model, shown, packed)
            optimiser.descend(functional.cross_entropy(logits, tokens))


def drawn_rows(album: Album, batch: int, seed: int) -> Iterator[Tensor]:
    """Numbers of the pictures of a step's batch, step after step."""
    source = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randint(len(album.things), (batch,), generator=source)


class Optimiser:
    """Muon on the hidden matrices, AdamW on everything else, over so many steps, clipped at norm 1.

    Muon took 400 steps where AdamW alone took 900 to tell as many shapes. A second thread makes the next batch while
    gradients are computed and moves half of the matrices; whoever computes a number computes it alone, so that threads
    change no bit. A context, which the thread does not outlive.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], hidden: Iterable[nn.Parameter], rate: float, steps: int):
        self._steps, self._loss = steps, 0.0
        self._beside = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
        self._prepare: Callable[[], Any] | None = None
        self._coming: Future | None = None
        matrices = {id(p): p for p in hidden if p.ndim == 2}
        others = [p for p in parameters if id(p) not in matrices]
        self._parameters = [*matrices.values(), *others]
        every = list(matrices.values())
        self._parts: list[Optimizer] = [
            *(
                torch.optim.Muon(half, lr=20 * rate, momentum=0.95, weight_decay=0.05)
                for half in (every[::2], every[1::2])
            ),
            torch.optim.AdamW(others, rate, betas=(0.9, 0.98), weight_decay=0.05),
        ]
        self._schedules = [
            LambdaLR(part, lambda step: min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps)))
            for part in self._parts
        ]

    def __enter__(self) -> "Optimiser":
        return self

    def __exit__(self, *_: object) -> None:
        self._beside.shutdown()

    def steps(self, rows: Iterator[Tensor], batch: Callable[[int, Tensor], Any], what: str) -> Iterator[Any]:
        """What `batch` makes of each step's rows; tells now and then how far it is."""
        start = told = time.monotonic()
        for step in range(self._steps):
            made = self._coming.result() if self._coming else batch(step, next(rows))
            self._prepare = None if step + 1 == self._steps else partial(batch, step + 1, next(rows))
            yield made
            if (now := time.monotonic()) - told > 10:
                told = now
                left = (now - start) / (step + 1) * (self._steps - step - 1)
                print(
                    f"tiny base: {what}: step {step + 1}/{self._steps}  loss {self._loss:.3f}  {left:.0f} s left",
                    flush=True,
                )

    def descend(self, loss: Tensor) -> None:
        """Move the parameters against the gradient, the next batch being made meanwhile."""
        self._coming = self._beside.submit(self._prepare) if self._prepare else None
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        first, second, others = self._parts
        moving = self._beside.submit(second.step)
        first.step()
        others.step()
        moving.result()
        for part, schedule in zip(self._parts, self._schedules, strict=True):
            schedule.step()
            part.zero_grad()
        self._loss = loss.item()


@dataclass(frozen=True)
class Packed:
    """Rows of one picture and all questions about it, each question blind to the others.

    ids, positions, labels: (N, L); mask: (N, 1, L, L) 0 where a token (third axis) sees another, -inf elsewhere;
    kinds: (N, L) number of the question's kind on answer tokens.
    """

    ids: Tensor
    positions: Tensor
    labels: Tensor
    mask: Tensor
    kinds: Tensor


def pack(asked: Sequence[Sequence[tuple[str, str, str]]], words: PreTrainedTokenizerFast, size: Size) -> Packed:
    """asked: per picture (kind, prompt, answer)."""
    patches, numbers = (size.side // size.patch) ** 2, {kind: i for i, kind in enumerate(picture_questions.QUESTIONS)}
    rows = []
    for questions in asked:
        row = [(words.image_token_id, place, 0, IGNORED, -1) for place in range(patches)]
        for number, (kind, prompt, answer) in enumerate(questions, 1):
            head, tail = _tokens(words, prompt), (*_tokens(words, f" {answer}"), words.eos_token_id)
            for place, token in enumerate(head + tail):
                told = place >= len(head)
                label, which = (token, numbers[kind]) if told else (IGNORED, -1)
                row.append((token, patches + place, number, label, which))
        rows.append(row)
    width = max(map(len, rows))
    table = torch.tensor([row + [(words.pad_token_id, 0, -1, IGNORED, -1)] * (width - len(row)) for row in rows])
    ids, positions, segments, labels, kinds = table.unbind(-1)
    same = (segments[:, None, :] == segments[:, :, None]) | (segments[:, None, :] == 0)
    seen = same & torch.ones(width, width).tril().bool()
    mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[:, None]
    return Packed(ids, positions, labels, mask, kinds)


@lru_cache(maxsize=10_000)
def _tokens(words: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    """Few texts are asked for again and again, and a call of a tokenizer takes as long as a row of a training step."""
    return tuple(words(text, add_special_tokens=False).input_ids)


def answer_logits(model: LlavaForConditionalGeneration, shown: Tensor, packed: Packed) -> tuple[Tensor, Tensor]:
    """(A, V) logits at the answer tokens and (A,) the tokens; shown: the pictures' features."""
    output = model.model(
        input_ids=packed.ids, attention_mask=packed.mask, position_ids=packed.positions, use_cache=False,
        mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=list(shown))},
    )  # fmt: skip
    answered = packed.labels[:, 1:] != IGNORED
    return model.lm_head(output.last_hidden_state[:, :-1][answered]), packed.labels[:, 1:][answered]


@torch.no_grad()
def answers_right(model, words: PreTrainedTokenizerFast, album: Album) -> dict[str, float]:
    """Share of a kind's answer tokens that are foretold, the answer's earlier tokens given."""
    hits: dict[str, list[bool]] = {kind: [] for kind in picture_questions.QUESTIONS}
    size = Size(side=model.config.vision_config.image_size, patch=model.config.vision_config.patch_size)
    for rows in torch.arange(len(album.things)).split(25):
        rng = np.random.default_rng([9, int(rows[0])])
        packed = pack([ask_all(album.things[row], rng) for row in rows], words, size)
        logits, tokens = answer_logits(model, features(model, album.pixels(rows)), packed)
        right = logits.argmax(-1) == tokens
        kinds = packed.kinds[:, 1:][packed.labels[:, 1:] != IGNORED]
        for number, kind in enumerate(hits):
            own = (kinds == number) & (tokens != words.eos_token_id)
            hits[kind] += right[own].tolist()
    return {kind: sum(found) / len(found) for kind, found in hits.items()}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in another order give other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
