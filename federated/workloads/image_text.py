"""A multimodal LLM as a federation: LoRA on a frozen base, clients whose images and texts are missing or apart."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from datamodules.errors import InputError
from datamodules.image_text.modality import Aligned
from datamodules.image_text.module import ImageTextDataModule
from datamodules.image_text.reading import WRITERS, read_corpus, told
from datamodules.image_text.sample import Corpus
from datamodules.miniature.folder import is_miniature
from datamodules.store import MINIATURE
from federated.data import ClientData
from federated.export import export
from federated.orchestrator import Metrics, Orchestrator
from federated.sites import at_sites
from federated.state import State
from federated.strategies.base import Strategy
from lightning_modules.mllm.answers import Answer, Asking, answer, said, score
from lightning_modules.mllm.module import MultimodalModule
from lightning_modules.mllm.text_floor import text_floor
from tracking import identity
from tracking.build import build, factory

for writer in WRITERS:
    factory(writer)

COUNTS = ("unparsable",)  # metrics that are no rates
ADAPTER = ".adapter"  # ends the name of a PEFT folder
SHOWN = 16  # samples for the eye


class ImageText:
    """Any family of lightning_modules/mllm on any corpus of datamodules/image_text (`Workload`)."""

    def __init__(self, config: DictConfig):
        self._config = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
        check_tone(self._config)
        check_size(self._config)
        self._family = build(self._config["method"]["family"])
        corpus, scenario, sites = corpus_of(self._config), build(self._config["modality"]), at_sites(self._config)
        if sites and (not isinstance(scenario, Aligned) or self._config["sharing"]["pooled"]):
            found = "found pooled data" if self._config["sharing"]["pooled"] else f"found {type(scenario).__name__}"
            wanted = "expected sites to show what they hold, for scenarios are drawn over all clients"
            raise InputError(f"modality: {wanted}, {found}: set modality=aligned, sharing.pooled=false")
        self.data = ImageTextDataModule(
            corpus,
            build(self._config["prompt"]),
            build(self._config["federated"]["partition"]),
            scenario,
            self._family.encoder(),
            batch_size=self._config["batch_size"],
            seed=self._config["seed"],
            drop_last=self._config["federated"]["drop_last"],
            partial=sites,
            **self._config["sharing"],
            **self._config["loader"],
        )
        for side in self._config["tested"]:
            self.data.check_classes(side)
        self.fingerprint, self.miniature, self.counts = self.data.fingerprint, corpus.miniature, self.data.counts
        self.rejected, self.described = corpus.rejected, told(corpus)
        self.schema = identity.digest([corpus.name, corpus.task, list(corpus.options)])
        self.base_model, self.tested = self._family.fingerprint(), self._config["tested"]
        self._initial: State = {}
        self._taken: State = {}
        self._answers: dict[str, dict[str, str]] = {}  # condition -> sample -> what was answered

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """That of the data; where the clients' samples are pooled, `sizes` is the one that is left."""
        held, floor = self.data.manifest(), self._floor()
        return held | {"sizes": held["held"], **({"floor": floor} if floor else {})}

    def _floor(self) -> Metrics:
        """What the text alone scores, `floor, open`, in per cent; none where sites hold the training side."""
        if at_sites(self._config):
            return {}
        train = self.data.samples("train")
        return {
            _named(f"floor, {name}", side, "both"): 100 * value
            for side in self._config["tested"]
            for name, value in text_floor(train, self.data.samples(side)).items()
        }

    @property
    def clients(self) -> ClientData:
        return self.data

    @property
    def rate(self) -> Callable[[int, int], float]:
        return build(self._config["federated"]["rate"])

    def module(self) -> pl.LightningModule:
        pl.seed_everything(self._config["seed"], verbose=False)
        module = build(self._config["method"], family=self._family)
        if start := build(self._config["federated"]["start"]):
            self._taken = start(module)
        return module

    def evaluate(self, module: MultimodalModule) -> Metrics:
        """The test sets under every condition: `auc_hard` shows both modalities, `auc_hard, text only` the text.

        A corpus's further sets stand in front: `slake: overall`. Rates in per cent, unparsable answers counted.
        """
        found: Metrics = {}
        asking = self._asking
        for side in self._config["tested"]:
            samples = {sample.id: sample for sample in self.data.samples(side)}
            for condition in self._config["conditions"]:
                answers = self._answered(module, side, condition)
                if side == "test":
                    self._answers[condition] = {found.id: said(found, asking) for found in answers}
                for name, value in score(answers, samples, asking).items():
                    rate = value if name in COUNTS else 100 * value
                    found[_named(name, side, condition)] = rate
        return found

    def _answered(self, module: MultimodalModule, side: str, condition: str) -> list[Answer]:
        """One answer a sample; samples that ask the same have the same."""
        asked, place = self.data.distinct(side, condition)
        given = answer(module, asked, self._asking)
        return [replace(given[at], id=sample.id) for at, sample in zip(place, self.data.samples(side), strict=True)]

    @property
    def _asking(self) -> Asking:
        prompts, options = self.data.prompts, self.data.corpus.options
        said = prompts.answers(options) if options else ()
        return Asking(said, lettered=prompts.lettered, **self._config["asking"])

    def row(self, strategy: Strategy, clients: int) -> dict[str, str]:
        """The row of the published tables: what the configuration names, else the server rule."""
        federated = self._config["federated"]
        return {"method": federated["row"] or type(strategy).__name__.lower(), "variant": federated["variant"]}

    def samples(self) -> list[dict[str, Any]]:
        """The first of the test set: `sample`, `image`, `text`, `wanted` and an answer a condition."""
        return [
            {
                "sample": sample.id,
                "image": None if sample.image is None else self.data.pictures(sample.image),
                "text": sample.text,
                "wanted": self.data.prompts.answer_of(sample, self.data.corpus.options),
                **{f"answer, {condition}": found[sample.id] for condition, found in self._answers.items()},
            }
            for sample in self.data.samples("test")[:SHOWN]
        ]

    def save(self, folder: Path, orchestrator: Orchestrator, models: dict[str, State]) -> None:
        """Export every model as a PEFT folder; where nothing was learnt there is nothing but the base to keep."""
        if orchestrator.rounds == 0:
            return
        for name, state in models.items():
            if all(torch.equal(state[key], begun) for key, begun in orchestrator.initial.items()):
                print(f"no adapter of the {name} model: every tensor is as at the start")
                continue
            orchestrator.adapter.load(state)
            path = folder / f"{name.replace(' ', '_')}{ADAPTER}"
            export(orchestrator.module, path, orchestrator.initial, state, self._taken)

    def saved(self, folder: Path) -> dict[str, str]:
        return {path.stem: str(path) for path in sorted(folder.glob(f"*{ADAPTER}"))}


def check_tone(config: Mapping[str, Any]) -> None:
    """Raises InputError for a tone whose wording is the base one: the record would name what was not done."""
    tone, length = config["prompt_tone"], config["prompt_length"]
    wordings = config["prompts"][length]
    if tone != "base" and wordings[tone] == wordings["base"]:
        found = f"found the base wording itself, which speaks of no modality, for {config['corpus']['name']}"
        raise InputError(
            f"prompt: expected another wording for prompt_tone={tone}, {found}; leave row=prompt out or take "
            "prompt_length=long"
        )


def check_size(config: Mapping[str, Any]) -> None:
    """Raises InputError where a published model would be fetched to answer some hundred made-up memes."""
    raw, corpus = config["raw"], config["corpus"]
    made_up = bool(corpus["miniature"]) if raw in MINIATURE else is_miniature(Path(raw).expanduser())
    if config["scale"] == "published" and made_up:
        told = f"expected the files of {corpus['title']} at scale=published, found its miniature"
        raise InputError(f"data: {told}: add scale=mini for the tiny model on it, or give raw=folder")


def corpus_of(config: Mapping[str, Any]) -> Corpus:
    """The corpus of the configured raw folder, or of its miniature."""
    chosen = config["corpus"]
    miniature = partial(build, chosen["miniature"]) if chosen.get("miniature") else None
    stores = Path(config["paths"]["stores"])
    return read_corpus(build(chosen["reader"]), miniature, stores, chosen["name"], config["raw"])


def _named(metric: str, side: str, condition: str) -> str:
    shown = metric if condition == "both" else f"{metric}, {condition}"
    return shown if side == "test" else f"{side}: {shown}"
