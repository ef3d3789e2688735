"""What is seen of training: a bar with loss and time left in a terminal, plain lines elsewhere."""

import re
from io import StringIO

import pytest
import rich
from pytorch_lightning.callbacks.progress import rich_progress
from rich.console import Console
from toys import ToyMethod, toy_data, write_toy_stores

from lightning_modules.callbacks import progress
from lightning_modules.callbacks.online_knn import OnlineKNN
from lightning_modules.fitting import fit

CPU = {"accelerator": "cpu", "max_epochs": 2}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return write_toy_stores(tmp_path_factory.mktemp("stores"))


def train(stores, folder) -> None:
    fit(ToyMethod(), toy_data(stores), folder, CPU, 3, "toy", False, [OnlineKNN(1)])


def test_without_a_terminal_there_are_lines(stores, tmp_path, capsys):
    train(stores, tmp_path)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("toy: epoch")]
    assert re.fullmatch(r"toy: epoch 2/2(  \w+ -?[\d.]+)+  0 s left", line) and "  loss " in line and "  knn1 " in line


def test_a_terminal_has_bars_with_loss_and_time_left(stores, tmp_path, monkeypatch):
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, width=200, color_system=None)
    monkeypatch.setattr(rich, "_console", console)
    monkeypatch.setattr(rich_progress, "reconfigure", lambda **_: None)  # Lightning would write elsewhere
    monkeypatch.setattr(progress.sys.stdout, "isatty", lambda: True, raising=False)
    told = []
    monkeypatch.setattr(progress.EpochBars, "_update_metrics", lambda bar, trainer, module: told.append(bar._told))
    train(stores, tmp_path)
    seen = screen.getvalue()
    assert "toy: epoch 1/2" in seen and "toy: epoch 2/2" in seen
    assert {"loss", "knn1", "left"} <= told[-1].keys() and told[-1]["left"] == "0 s"
