"""PSP in training: resumed is bitwise uninterrupted, two processes compute what one would."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from goldens import read
from goldens_psp import build
from torch import nn
from toys import toy_data, write_toy_stores

from datamodules.skeleton import Labelled
from lightning_modules.fitting import CHECKPOINT, fit


class FrozenStatistics(pl.Callback):
    """Batch normalisation in eval mode: its batch statistics are the one thing that processes do not share here."""

    def on_train_batch_start(self, trainer, module, *_) -> None:
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()


def train(stores: Path, folder: Path, epochs: int, callbacks=(), **options) -> dict[str, torch.Tensor]:
    """State of a PSP after so many epochs of two steps: 6 labelled and 8 unlabelled clips a step."""
    module = build(read("psp"), seed=3, lr=1e-3)
    data = toy_data(stores, labelled=Labelled(fraction=0.5, batch_size=6, steps=2))
    settings = {"accelerator": "cpu", "devices": 1, "max_epochs": epochs} | options
    fit(module, data, folder, settings, 3, "psp", callbacks=list(callbacks))
    return torch.load(folder / CHECKPOINT, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return write_toy_stores(tmp_path_factory.mktemp("stores"))


def test_resumed_is_bitwise_the_whole(stores, tmp_path):
    whole = train(stores, tmp_path / "whole", 2)
    half = train(stores, tmp_path / "parts", 1)
    resumed = train(stores, tmp_path / "parts", 2)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not torch.equal(whole["fc.weight"], half["fc.weight"])


RANK = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_psp_training import FrozenStatistics, train

train(Path({stores!r}), Path({folder!r}), 2, [FrozenStatistics()], precision="64-true", strategy="ddp", devices=2)
"""


@pytest.mark.slow
def test_two_processes_compute_what_one_would(stores, tmp_path):
    """The contrast sees the clips of both, each clip its own draws (float64, to 1e-10)."""
    one = train(stores, tmp_path / "one", 2, [FrozenStatistics()], precision="64-true")
    script = tmp_path / "rank.py"
    script.write_text(RANK.format(tests=str(Path(__file__).parent), stores=str(stores), folder=str(tmp_path / "two")))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    subprocess.run(launch, check=True, env=environment, timeout=300)
    two = torch.load(tmp_path / "two" / CHECKPOINT, weights_only=True)["state_dict"]
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-10
