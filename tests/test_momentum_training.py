"""The methods with a momentum encoder in training: resumed bitwise (on two processes as on one: tests/test_ddp.py)."""

from functools import partial
from pathlib import Path

import pytest
import torch
from toys import toy_data, write_toy_stores
from toys_a2mc import RELEASED, a2mc, scd_net
from toys_clr import aim_clr, skeleton_clr

from lightning_modules.fitting import CHECKPOINT, fit

METHODS = {
    "a2mc": a2mc,
    "a2mc_released": partial(a2mc, RELEASED),
    "scd_net": scd_net,
    "skeleton_clr": skeleton_clr,
    "aim_clr": aim_clr,  # mines in the second epoch
}


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
