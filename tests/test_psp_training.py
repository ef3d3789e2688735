"""PSP in training: resumed is bitwise uninterrupted (on two processes as on one: tests/test_ddp.py)."""

from pathlib import Path

import pytest
import torch
from goldens import read
from goldens_psp import build
from toys import toy_data, write_toy_stores

from datamodules.skeleton import Labelled
from lightning_modules.fitting import CHECKPOINT, fit


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
