"""The ledger: what it keeps, what it refuses, and that kill -9 at any moment costs at most a round."""

import json
import multiprocessing
import os
import signal
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save, save_file
from toy_federation import Toy, accuracy, federation, same, shares

import federated.ledger
from datamodules.errors import InputError
from federated.adapter import Adapter
from federated.client import Client
from federated.ledger import Ledger, Progress
from federated.strategies.fedadam import FedAdam

ROUNDS = 4


def drawn_clients(round_number, clients):
    """A sampler with a state, so that the recorded random state is needed."""
    return sorted(torch.randperm(clients)[:2].tolist())


def run(path, rounds=ROUNDS):
    """A federation with everything a ledger must hold: server momenta, personal buffers, draws, metrics."""
    module = Toy()
    orchestrator = federation(
        module,
        shares(4),
        adapter=Adapter(module, local_buffers=True),
        strategy=FedAdam(eta=0.1),
        rounds=rounds,
        sample=drawn_clients,
        evaluate=accuracy,
        ledger=Ledger(path, identity="run 1"),
    )
    torch.manual_seed(8)
    return orchestrator.run()


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def nth(call, n, deadly):
    """`call`, until its n-th time, which is `deadly`."""
    calls = iter(range(1, n + 1))
    return lambda *args, **kwargs: (deadly if next(calls) == n else call)(*args, **kwargs)


def half_write(tensors, path, metadata):
    path.write_bytes(save(tensors, metadata)[:500])
    die()


def replace_and_die(*paths):
    REPLACE(*paths)
    die()


REPLACE = os.replace


def doomed(path, moment):
    """Run the federation and be killed at the given moment."""
    if moment == "in a client":
        Client.run = nth(Client.run, 4, die)
    elif moment == "half written":
        federated.ledger.save_file = nth(save_file, 3, half_write)
    elif moment == "written":
        os.replace = nth(REPLACE, 3, die)
    elif moment == "replaced":
        os.replace = nth(REPLACE, 3, replace_and_die)
    run(path, rounds=ROUNDS if moment != "from outside" else 10_000)


def resume(path, rounds):
    run(path, rounds)


def contents(path):
    with safe_open(path, framework="pt") as file:
        told = json.loads(file.metadata()["ledger"])
        told["records"] = [json.loads(file.metadata()[f"record {number}"]) for number in range(told["records"])]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    for record in told["records"]:
        for timed in [record, *record["outcomes"]]:
            del timed["seconds"]
    return tensors, told


@pytest.fixture(scope="module")
def processes():
    """Children forked from a clean process that has the imports done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["federated.orchestrator", "federated.engines.in_process"])
    return context


def call(processes, target, *args):
    child = processes.Process(target=target, args=args)
    child.start()
    return child


def assert_uninterrupted(path, processes, rounds, folder):
    child = call(processes, resume, path, rounds)
    child.join()
    assert child.exitcode == 0
    reference = call(processes, resume, folder / "reference", rounds)
    reference.join()
    (found, told), (expected, expected_told) = contents(path), contents(folder / "reference")
    assert told == expected_told and told["next_round"] == rounds
    assert same(found, expected)
    assert {name.split("/")[0] for name in found} == {"shared", "memory", "personal", "fresh", "rng"}


@pytest.mark.parametrize("moment", ["in a client", "half written", "written", "replaced"])
def test_killed_and_relaunched_equals_uninterrupted(moment, processes, tmp_path):
    path = tmp_path / "deep" / "ledger"
    child = call(processes, doomed, path, moment)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    completed = contents(path)[1]["next_round"]
    assert completed == {"in a client": 1, "half written": 2, "written": 2, "replaced": 3}[moment]
    assert_uninterrupted(path, processes, ROUNDS, tmp_path)


def test_killed_from_outside_at_some_moment(processes, tmp_path):
    path = tmp_path / "ledger"
    child = call(processes, doomed, path, "from outside")
    while not path.exists():
        time.sleep(0.01)
    time.sleep(0.2)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert_uninterrupted(path, processes, contents(path)[1]["next_round"] + 2, tmp_path)


def test_relaunching_a_finished_run_trains_nothing(tmp_path, monkeypatch):
    first = run(tmp_path / "ledger")
    monkeypatch.setattr(Client, "run", None)
    again = run(tmp_path / "ledger")
    assert again.records == first.records and again.metrics == first.metrics
    assert all(same(again.models[name], first.models[name]) for name in first.models)


def test_what_is_no_ledger_of_this_run_is_refused(tmp_path):
    path = tmp_path / "ledger"
    assert Ledger(path, "run 1").resume() is None
    Ledger(path, "run 1").commit(Progress({"w": torch.ones(2)}))
    with pytest.raises(InputError, match="expected the ledger of run run 2, found that of run 1"):
        Ledger(path, "run 2").resume()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="expected a ledger, found"):
        Ledger(path, "run 1").resume()
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(InputError, match="expected a ledger of version 2"):
        Ledger(path, "run 1").resume()


def test_a_changed_model_does_not_resume(tmp_path):
    Ledger(tmp_path / "ledger", "run 1").commit(Progress({"w": torch.ones(2)}))
    with pytest.raises(InputError, match=r"expected tensor 'net\.0\.bias'"):
        run(tmp_path / "ledger")
