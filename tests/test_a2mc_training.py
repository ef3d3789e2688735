"""A2MC and SCD-Net in training: resumed is bitwise uninterrupted, two processes compute what one would."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from toys import toy_data, write_toy_stores
from toys_a2mc import RELEASED, a2mc, scd_net

from lightning_modules.fitting import CHECKPOINT, fit

METHODS = {"a2mc": a2mc, "a2mc_released": partial(a2mc, RELEASED), "scd_net": scd_net}


class FrozenStatistics(pl.Callback):
    """Batch normalisation in eval mode: its batch statistics are the one thing that processes do not share here."""

    def on_train_batch_start(self, trainer, module, *_) -> None:
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()


def train(name: str, stores: Path, folder: Path, epochs: int, callbacks=(), **options) -> dict[str, torch.Tensor]:
    """State of a method after epochs of four steps of 8 clips, of which the first two fill the 10 slots."""
    settings = {"accelerator": "cpu", "devices": 1, "max_epochs": epochs} | options
    fit(METHODS[name](), toy_data(stores), folder, settings, 3, name, callbacks=list(callbacks))
    return torch.load(folder / CHECKPOINT, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return write_toy_stores(tmp_path_factory.mktemp("stores"))


@pytest.mark.parametrize("name", list(METHODS))
def test_resumed_is_bitwise_the_whole(name, stores, tmp_path):
    whole = train(name, stores, tmp_path / "whole", 2)
    half = train(name, stores, tmp_path / "parts", 1)
    resumed = train(name, stores, tmp_path / "parts", 2)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert any(not torch.equal(whole[key], half[key]) for key in whole)


RANK = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_a2mc_training import FrozenStatistics, train

options = dict(precision="64-true", strategy="ddp", devices=2)
train({name!r}, Path({stores!r}), Path({folder!r}), 2, [FrozenStatistics()], **options)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", list(METHODS))
def test_two_processes_compute_what_one_would(name, stores, tmp_path):
    """Draws, slots of the mixer, codes of the head, banks and queues see the clips of both (float64, to 1e-10)."""
    one = train(name, stores, tmp_path / "one", 2, [FrozenStatistics()], precision="64-true")
    script, tests = tmp_path / "rank.py", str(Path(__file__).parent)
    script.write_text(RANK.format(tests=tests, name=name, stores=str(stores), folder=str(tmp_path / "two")))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    subprocess.run(launch, check=True, env=environment, timeout=300)
    two = torch.load(tmp_path / "two" / CHECKPOINT, weights_only=True)["state_dict"]
    apart = {key: float((one[key] - two[key]).abs().max()) for key in one}
    assert max(apart.values()) < 1e-10, max(apart.items(), key=lambda item: item[1])
