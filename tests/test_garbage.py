"""No fit outlives its client, whatever Python's collector has in mind."""

import gc
import importlib.metadata
import logging

import pytest
import pytorch_lightning as pl
from toy_federation import Toy, federation

from federated.device import trainer
from federated.garbage import cleared


class Knot:
    def __init__(self):
        self.itself = self


def knots() -> int:
    return sum(isinstance(thing, Knot) for thing in gc.get_objects())


@pytest.fixture(autouse=True)
def nothing_collected_by_itself():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_cycles_of_the_block_are_freed_and_earlier_ones_left_to_the_collector():
    Knot()
    with cleared():
        Knot()
        kept = Knot()
    assert knots() == 2 and kept.itself is kept and gc.get_freeze_count() == 0
    with pytest.raises(KeyError), cleared():
        Knot()
        raise KeyError
    assert knots() == 2
    del kept
    gc.collect()
    assert knots() == 0


def test_a_freeze_of_somebody_else_is_kept():
    gc.freeze()
    with cleared():
        pass
    assert gc.get_freeze_count() > 0
    gc.unfreeze()


def test_no_trainer_is_left_after_a_round_nor_after_a_client_that_failed(monkeypatch):
    monkeypatch.setattr(logging.getLogger("federated.client"), "disabled", True)  # pytest keeps what is logged

    class Failing(Toy):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("no")

    federation(rounds=2).run()
    federation(module=Failing(), max_failed=1.0).run()
    assert not [thing for thing in gc.get_objects() if isinstance(thing, pl.Trainer)]


def test_what_is_installed_is_looked_up_once_for_all_trainers(monkeypatch):
    trainer("cpu", [])
    looked = []
    monkeypatch.setattr(importlib.metadata, "distributions", lambda **which: looked.append(which) or [])
    trainer("cpu", [])
    assert not looked
    assert len(importlib.metadata.entry_points(group="none")) == 0 and looked, "Python finds them by another function"
