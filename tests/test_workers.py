"""Clients in worker processes: the bytes of the sequential engine, failures and deaths as values."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import test_federate_door as door_tests
import torch
import toy_mllm
from toy_federation import Toy, dataset, federation, same, shares

import federate
from datamodules.errors import InputError
from federated.adapter import Adapter
from federated.client import Client, ClientTask
from federated.data import PartitionedData
from federated.engines import workers as engine_module
from federated.engines.workers import Workers, configured
from federated.ledger import Ledger
from federated.privacy import ClientLevelPrivacy
from lightning_modules.group_norm import by_groups

root = door_tests.root


class Failing(Toy):
    """Client 1 of the toy raises an error, client 2 dies."""

    def training_step(self, batch, batch_idx):
        size = len(self.trainer.train_dataloader.dataset)
        if size == len(shares(4)[1]):
            raise RuntimeError("no more")
        if size == len(shares(4)[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(batch, batch_idx)


class Hanging(Toy):
    """Client 1 of the toy never comes to an end and does not end when it is asked to."""

    def training_step(self, batch, batch_idx):
        if len(self.trainer.train_dataloader.dataset) == len(shares(4)[1]):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(3600)
        return super().training_step(batch, batch_idx)


class Changing(Toy):
    """Its frozen layer does not stay as it was."""

    def __init__(self):
        super().__init__()
        self.net[0].requires_grad_(False)

    def on_train_end(self):
        with torch.no_grad():
            self.net[0].weight.add_(1)


class Grouped(Toy):
    """Without batch norm."""

    def __init__(self):
        super().__init__()
        by_groups(self, 4)


class Known(ClientLevelPrivacy):
    """With noise that everybody knows."""

    def _noise(self, like, source):
        return torch.full_like(like, 1e-3)


def client(kind, device: str) -> Client:
    module = kind()
    data = PartitionedData(dataset(), shares(4), batch_size=8)
    return Client(module, Adapter(module), data, device=device)


@pytest.fixture
def workers():
    """Two places for clients of a kind of module."""
    opened = []

    def make(kind, places: int = 2, time_limit: float | None = None) -> Workers:
        opened.append(Workers(partial(client, kind), ["cpu"] * places, threads=1, time_limit=time_limit))
        return opened[-1]

    yield make
    for engine in opened:
        engine.close()


@pytest.mark.slow
def test_the_bytes_of_the_sequential_engine(workers):
    alone = federation(rounds=2).run()
    together = federation(rounds=2, engine=workers(Toy)).run()
    assert same(alone.models["global"], together.models["global"])
    told = [
        [{name: value for name, value in outcome.items() if name != "seconds"} for outcome in record["outcomes"]]
        for record in alone.records + together.records
    ]
    assert told[:2] == told[2:]


@pytest.mark.slow
def test_private_clients_train_the_same_bytes(workers):
    rule = Known(clip=0.1, noise=1.0)
    alone = federation(module=Grouped(), rounds=2, privacy=rule).run()
    together = federation(module=Grouped(), rounds=2, privacy=rule, engine=workers(Grouped)).run()
    assert same(alone.models["global"], together.models["global"])
    assert alone.records[1]["epsilon"] == together.records[1]["epsilon"] > 0
    assert all(outcome["metrics"] == {} for record in together.records for outcome in record["outcomes"])


@pytest.mark.slow
def test_clients_train_at_the_same_time_and_never_more_than_there_are_places(workers):
    engine = workers(Toy)
    state = Adapter(Toy()).extract()
    for number in range(2):
        engine.submit(ClientTask(0, number, state, 1.0, 3))
    with pytest.raises(RuntimeError, match="all 2 places are taken"):
        engine.submit(ClientTask(0, 2, state, 1.0, 3))
    assert {engine.collect().client, engine.collect().client} == {0, 1}
    with pytest.raises(RuntimeError, match="no client was submitted"):
        engine.collect()


@pytest.mark.slow
def test_an_error_and_a_death_are_failed_clients(workers):
    result = federation(module=Failing(), engine=workers(Failing)).run()
    outcomes = result.records[0]["outcomes"]
    assert [outcome.get("error") for outcome in outcomes] == [None, "RuntimeError", "WorkerDied", None]
    assert "status -9" in outcomes[2]["message"]


@pytest.mark.slow
def test_a_worker_that_dies_between_rounds_is_replaced(workers):
    engine = workers(Toy, 1)
    task = ClientTask(0, 1, Adapter(Toy()).extract(), 1.0, 3)
    engine.submit(task)
    first, process = engine.collect(), engine._places[0].process
    process.kill()
    process.join()
    engine.submit(task)
    assert same(first.state, engine.collect().state) and engine._places[0].process is not process


@pytest.mark.slow
def test_a_worker_that_hangs_is_a_failed_client_and_is_replaced(workers, monkeypatch):
    """Beside it another goes on; when its time is over it is ended, and its place takes the next task."""
    engine, state = workers(Hanging, time_limit=0.5), Adapter(Toy()).extract()
    for number in (0, 2):  # the places open
        engine.submit(ClientTask(0, number, state, 1.0, 3))
    assert {engine.collect().client, engine.collect().client} == {0, 2}
    monkeypatch.setattr(engine_module, "GRACE", 2.0)
    monkeypatch.setattr(engine_module, "GOODBYE", 0.5)
    engine.submit(ClientTask(0, 1, state, 1.0, 3))
    engine.submit(ClientTask(0, 0, state, 1.0, 3))
    hanging = next(place.process for place in engine._places if place.task.client == 1)
    other, hung = engine.collect(), engine.collect()
    assert other.client == 0 and other.steps > 0
    assert (hung.client, hung.error) == (1, "WorkerHung") and 2.5 <= hung.seconds < 10
    assert hung.message.endswith("time_limit is 0.5 s: its process was ended")
    assert hanging.exitcode == -signal.SIGKILL
    monkeypatch.setattr(engine_module, "GRACE", 600.0)
    for number in (0, 3):
        engine.submit(ClientTask(0, number, state, 1.0, 3))
    assert {engine.collect().client, engine.collect().client} == {0, 3}


@pytest.mark.slow
def test_closing_waits_for_nobody(workers, monkeypatch):
    monkeypatch.setattr(engine_module, "GOODBYE", 0.5)
    engine = workers(Hanging, 1)
    engine.submit(ClientTask(0, 0, Adapter(Toy()).extract(), 1.0, 3))
    engine.collect()
    engine.submit(ClientTask(0, 1, Adapter(Toy()).extract(), 1.0, 3))
    time.sleep(2)  # it sleeps by now, deaf to SIGTERM
    process, began = engine._places[0].process, time.monotonic()
    engine.close()
    assert process.exitcode == -signal.SIGKILL and time.monotonic() - began < 5


@pytest.mark.slow
def test_what_ends_a_federation_ends_it_here_too(workers):
    with pytest.raises(InputError, match="frozen parameter"):
        federation(module=Changing(), engine=workers(Changing, 1)).run()


def test_no_place_is_an_error():
    with pytest.raises(InputError, match=r"raise engine\.places"):
        Workers(partial(client, Toy), [])


@pytest.mark.parametrize(
    ("gpus", "accelerator", "expected"),
    [
        (2, "gpu", ["cuda:0", "cuda:1", "cuda:0"]),
        (2, "auto", ["cuda:0", "cuda:1", "cuda:0"]),
        (2, "cpu", ["cpu"] * 3),
        (0, "auto", ["cpu"] * 3),
    ],
)
def test_places_go_round_the_gpus(gpus, accelerator, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    config = {"trainer": {"accelerator": accelerator, "devices": 1}, "federated": {"time_limit": 7}}
    engine = configured(config, None, places=3, threads=1)
    assert engine._devices == expected and engine.capacity == 3 and engine._time_limit == 7
    with pytest.raises(InputError, match=r"set trainer\.devices=1"):
        configured({"trainer": {"devices": 2}}, None)


@pytest.mark.slow
def test_clients_of_a_multimodal_model_at_the_same_time(tmp_path):
    """In bfloat16, accumulated and with activations computed twice: the bytes of one after the other."""
    toy_mllm.write_model(tmp_path / "model")
    memory = [
        "trainer.precision=bf16-mixed",
        "trainer.accumulate_grad_batches=2",
        "++method.gradient_checkpointing=true",
    ]
    found = []
    for engine in ("in_process", "workers"):
        where = [f"paths.{kind}={tmp_path}/{engine}/{kind}" for kind in ("runs", "records")]
        settings = [f"federated/engine={engine}", *toy_mllm.TWO_ROUNDS, "batch_size=4", *memory, *where]
        result = federate.main.run(toy_mllm.composed(tmp_path, *settings))
        found.append(Ledger(Path(result["folder"]) / "ledger.safetensors", result["key"]).resume().shared)
    assert same(*found)


@pytest.mark.slow
def test_the_door_gives_the_same_run_and_record(root):
    """On prepared clips: the engine is no part of the key."""
    folders = [f"paths.{kind}={root}/{{}}/{kind}" for kind in ("runs", "records")]
    results = []
    for engine in ("in_process", "workers"):
        where = [folder.format(engine) for folder in folders]
        results.append(federate.main.run(door_tests.composed(root, f"federated/engine={engine}", *where)))
    one, other = results
    assert one["key"] == other["key"] and one["test/knn1"] == other["test/knn1"]
    weights = [torch.load(result["checkpoint"]["global"], weights_only=True)["state_dict"] for result in results]
    assert same(*weights)
