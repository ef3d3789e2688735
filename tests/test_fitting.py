"""Training: resume equals the uninterrupted run bitwise, and state is updated once an optimiser step."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toys import ToyMethod, toy_data, write_toy_stores

from datamodules.errors import InputError
from lightning_modules.callbacks.online_knn import OnlineKNN
from lightning_modules.fitting import CHECKPOINT, fit

CPU = {"accelerator": "cpu", "devices": 1}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return write_toy_stores(tmp_path_factory.mktemp("stores"))


def train(stores: Path, folder: Path, epochs: int, callbacks=None, **options):
    torch.manual_seed(5)
    module = ToyMethod()
    history = fit(
        module, toy_data(stores), folder, CPU | {"max_epochs": epochs} | options, 3, "toy", callbacks=callbacks or []
    )
    return module, history


def same_weights(one, other) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_interrupted_after_an_epoch_and_resumed_is_bitwise_the_whole(stores, tmp_path):
    whole, history = train(stores, tmp_path / "whole", 4)
    train(stores, tmp_path / "parts", 2)
    resumed, resumed_history = train(stores, tmp_path / "parts", 4)
    assert same_weights(whole, resumed)
    assert history.epochs == resumed_history.epochs and len(history.epochs) == 4


KILLED = """
import os, signal, sys
from pathlib import Path
import pytorch_lightning as pl
sys.path.insert(0, {tests!r})
from test_fitting import train

class Kill(pl.Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.current_epoch == 2 and trainer.global_step == 10:
            os.kill(os.getpid(), signal.SIGKILL)

train(Path({stores!r}), Path({folder!r}), 4, [Kill()])
"""


def test_killed_in_the_middle_of_an_epoch_and_relaunched_is_bitwise_the_whole(stores, tmp_path):
    whole, history = train(stores, tmp_path / "whole", 4)
    code = KILLED.format(tests=str(Path(__file__).parent), stores=str(stores), folder=str(tmp_path / "killed"))
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], env=os.environ | {"PYTHONPATH": "."}
    )
    assert ended.returncode == -signal.SIGKILL
    assert torch.load(tmp_path / "killed" / CHECKPOINT, weights_only=True)["epoch"] == 1
    resumed, resumed_history = train(stores, tmp_path / "killed", 4)
    assert same_weights(whole, resumed) and history.epochs == resumed_history.epochs


def test_another_seed_is_another_run(stores, tmp_path):
    torch.manual_seed(5)
    other = ToyMethod(seed=4)
    fit(other, toy_data(stores), tmp_path / "other", CPU | {"max_epochs": 1}, 3, "toy")
    assert not same_weights(train(stores, tmp_path / "one", 1)[0], other)


def test_online_knn_changes_nothing_but_the_log(stores, tmp_path):
    plain, _ = train(stores, tmp_path / "plain", 2)
    watched, history = train(stores, tmp_path / "watched", 2, [OnlineKNN(every=1, clips=20)])
    assert same_weights(plain, watched)
    assert all(0 <= epoch["test/knn1"] <= 100 for epoch in history.epochs)
    assert all(1 < epoch["embedding/effective_rank"] < 15 and epoch["embedding/spread"] > 0 for epoch in history.epochs)


def test_state_is_updated_once_an_optimiser_step(stores, tmp_path):
    module, _ = train(stores, tmp_path / "plain", 2)
    assert module.steps == 2 * (33 // 8)
    accumulated, _ = train(stores, tmp_path / "accumulated", 2, accumulate_grad_batches=2)
    assert accumulated.steps == 2 * (33 // 8) / 2


def test_the_loss_is_the_sum_of_the_named_terms(stores, tmp_path):
    _, history = train(stores, tmp_path / "run", 1)
    assert history.last()["train/loss"] == pytest.approx(history.last()["train/contrast"])
    assert "train/keys" not in history.last()


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(stores, tmp_path):
    module = ToyMethod()
    torch.nn.init.constant_(module.encoder[0].weight, float("nan"))
    with pytest.raises(InputError, match="lower the learning rate"):
        fit(module, toy_data(stores), tmp_path / "nan", CPU | {"max_epochs": 2}, 3, "toy")
