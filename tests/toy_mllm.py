"""A vision-language model of a few thousand parameters and a few dozen memes, for federations of seconds."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from lightning_modules.mllm import tiny_model

CONF = Path(__file__).parents[1] / "conf"
SIZE = tiny_model.Size(side=64, patch=32, vision_width=16, vision_layers=1, width=16, layers=2, heads=2, vocabulary=300)
SMALL = [
    "scale=mini",
    "trainer.accelerator=cpu",
    "federated.partition.clients=3",
    "federated.passes=2",
    "batch_size=8",
]
MEMES = [
    "federated.partition.alpha=5",
    "corpus.miniature.train=80",
    "corpus.miniature.dev=4",
    "corpus.miniature.test=16",
]
TWO_ROUNDS = ["federated.per_round=2", "federated.rounds=2"]


def write_model(folder: Path, seed: int = 0) -> Path:
    """Files of a model with random weights."""
    words = tiny_model.tokenizer(["meme : a dinner , harmful ? yes no with its picture"] * 3, SIZE.vocabulary)
    tiny_model.save(folder, tiny_model.model(words, SIZE, seed), tiny_model.processor(words, SIZE))
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder with the model in it, one a test module."""
    return write_model(tmp_path_factory.mktemp("root") / "model").parent


def overrides(root: Path, experiment: str = "hateful_memes_missing_50", sizes=MEMES) -> list[str]:
    """Of a small federation whose model is `root`/model and whose outputs lie below `root`.

    sizes: of the miniature.
    """
    settings = [f"experiment=fedmllm/{experiment}", *SMALL, *sizes, f"method.family.source={root / 'model'}"]
    return [*settings, f"paths.root={root}", f"paths.reports={root}/reports"]


def composed(root: Path, *more: str, **kind):
    """The configuration of `overrides` and `more`."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("federate", [*overrides(root, **kind), *more])
