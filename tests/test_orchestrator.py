"""The round loop and its clients: equalities that any federation owes, failures as values, accounts."""

import logging
import random

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from toy_federation import Toy, accuracy, dataset, federation, same, shares
from toys import ToyMethod, toy_data, write_toy_stores

from datamodules.errors import InputError
from datamodules.partition import ByAttribute
from datamodules.skeleton import Clips
from federated.adapter import Adapter
from federated.client import ClientFailure, ClientTask
from federated.data import PartitionedData
from federated.orchestrator import TooManyFailuresError
from federated.schedule import CosineRate, SampleClients
from federated.seeding import seed_of, seeded
from federated.state import num_bytes
from federated.strategies.fedadam import FedAdam
from federated.strategies.fedavg import FedAvg
from federated.strategies.fedavgm import FedAvgM
from federated.strategies.local import Local
from federated.strategies.one_shot import OneShot

EMPTY = torch.empty(0)
EVERYTHING = [np.arange(60)]


def centrally_trained(seed: int) -> dict:
    """The toy trained by plain Lightning on the whole set, with the seeds of client 0 in round 0."""
    module = Toy()
    loader = DataLoader(dataset(), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(seed))
    with seeded(seed):
        options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        pl.Trainer(max_epochs=2, accelerator="cpu", **options).fit(module, loader)
    return Adapter(module).extract()


def test_one_client_for_one_round_is_centralised_training():
    result = federation(pieces=EVERYTHING, client={"options": {"max_epochs": 2}}).run()
    assert same(result.models["global"], centrally_trained(seed_of(3, 0, 0)))
    assert not same(result.models["global"], centrally_trained(seed_of(3, 0, 1)))


class Alike(PartitionedData):
    """Every client sees the same batches in the same order."""

    def train_dataloader(self, client, seed):
        return super().train_dataloader(0, 0)


@pytest.mark.parametrize("strategy", [FedAvg(), FedAdam(eta=0.1)])
def test_equal_clients_are_as_one(strategy):
    def run(clients):
        pieces = EVERYTHING * clients
        data = Alike(dataset(), pieces, batch_size=8)
        return federation(Toy(dropout=0.0), pieces, data=data, strategy=strategy, rounds=2).run().models["global"]

    one, three = run(1), run(3)
    # Delta = mean - theta in float64 may differ in its last bit; the weighted mean of equal float32 numbers may not.
    assert all(torch.allclose(one[name], three[name], rtol=1e-6, atol=0) for name in one)
    assert strategy != FedAvg() or same(one, three)


def test_the_global_state_is_the_mean_by_samples_or_the_plain_one():
    orchestrator = federation()
    state = orchestrator.adapter.extract()
    updates = [orchestrator.engine._client.run(ClientTask(0, client, state, 1.0, 3)) for client in range(4)]
    samples = torch.tensor([22.0, 14.0, 13.0, 11.0], dtype=torch.float64)
    found = torch.stack([update.state["net.4.weight"].double() for update in updates])
    for strategy, weights in ((FedAvg(), samples / 60), (OneShot(), torch.full((4,), 0.25, dtype=torch.float64))):
        result = federation(strategy=strategy).run().models["global"]["net.4.weight"]
        assert torch.allclose(result.double(), torch.einsum("k,kij->ij", weights, found), rtol=1e-6)


class Shuffled:
    """An engine of four places whose clients finish in any order."""

    capacity = 4
    secure = False

    def __init__(self, inner, seed):
        self._inner, self._order, self._started = inner, random.Random(seed), []
        self.most_started = 0

    def submit(self, task):
        self._started.append(task)
        self.most_started = max(self.most_started, len(self._started))

    def collect(self):
        self._inner.submit(self._started.pop(self._order.randrange(len(self._started))))
        return self._inner.collect()


def test_arrival_does_not_change_a_byte():
    def run(seed):
        orchestrator = federation(pieces=shares(7), strategy=FedAvgM())
        if seed is not None:
            orchestrator.engine = Shuffled(orchestrator.engine, seed)
        result = orchestrator.run()
        assert [outcome["client"] for outcome in result.records[0]["outcomes"]] == list(range(7))
        return result.models["global"], orchestrator.engine

    expected, _ = run(None)
    for seed in range(2):
        found, engine = run(seed)
        assert same(found, expected) and engine.most_started == 4


def test_the_rate_of_a_round_scales_each_step_and_leaves_the_scheduler_alone():
    class Watching(Toy):
        def on_train_batch_end(self, *args):
            self.rates.append(self.optimizers().param_groups[0]["lr"])

    def train(factor, rows):
        module = Watching(dropout=0.0)
        module.rates = []
        orchestrator = federation(module, [np.arange(rows)])
        state = orchestrator.adapter.extract()
        update = orchestrator.engine._client.run(ClientTask(0, 0, state, factor, 3))
        return update.state["net.4.bias"] - state["net.4.bias"], module.rates

    assert torch.allclose(train(0.25, rows=8)[0], train(1.0, rows=8)[0] / 4, rtol=1e-4)
    assert train(0.25, rows=32)[1] == train(1.0, rows=32)[1]
    result = federation(pieces=EVERYTHING, rounds=3, rate=CosineRate(warmup=0.5)).run()
    assert [record["rate"] for record in result.records] == [CosineRate(warmup=0.5)(r, 3) for r in range(3)]


def test_nothing_of_one_client_reaches_the_next():
    """Client 1 alone and client 1 after client 0 are the same, optimiser, dropout and counters included."""
    alone, after = federation(), federation()
    state = alone.adapter.extract()
    expected = alone.engine._client.run(ClientTask(2, 1, state, 1.0, 3))
    after.engine._client.run(ClientTask(2, 0, state, 1.0, 3))
    found = after.engine._client.run(ClientTask(2, 1, state, 1.0, 3))
    assert same(found.state, expected.state) and found.metrics == expected.metrics
    other_round = after.engine._client.run(ClientTask(3, 1, state, 1.0, 3))
    assert not same(other_round.state, expected.state)
    module = after.module
    assert module._trainer is None and all(p.grad is None for p in module.parameters())


def test_global_generators_do_not_notice_a_client():
    broken = federation(data=Breaking(how="exception"), max_failed=1.0, evaluate=accuracy)

    def draw(then):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - the global state is what is tested
        then()
        return torch.rand(1).item(), random.random(), np.random.rand()  # noqa: NPY002

    assert draw(broken.run) == draw(lambda: None)


class Breaking(PartitionedData):
    """Client 1 fails in the way that is asked for."""

    def __init__(self, how):
        super().__init__(dataset(), shares(4), batch_size=8)
        self.how = how

    def train_dataloader(self, client, seed):
        if client != 1:
            return super().train_dataloader(client, seed)
        return DataLoader(Broken(self.how), batch_size=8)


class Broken(Dataset):
    def __init__(self, how):
        self.how = how

    def __len__(self):
        return 0 if self.how == "empty" else 16

    def __getitem__(self, row):
        if self.how == "exception":
            raise ValueError("row\nis broken")
        if self.how == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.full((4,), float("nan") if self.how == "nan" else 0.0), 0


FAILURES = {
    "exception": ("ValueError", "row is broken"),
    "memory": ("OutOfMemoryError", "out of memory"),
    "nan": ("NotFiniteError", "finite numbers"),
    "empty": ("InputError", "an optimiser step"),
}


@pytest.mark.parametrize("how", FAILURES)
def test_a_failed_client_is_a_value_and_the_mean_renormalises(how):
    broken = federation(data=Breaking(how))
    error, message = FAILURES[how]
    outcome = broken.engine._client.run(ClientTask(0, 1, broken.adapter.extract(), 1.0, 3))
    assert isinstance(outcome, ClientFailure) and outcome.error == error
    result = federation(data=Breaking(how), rounds=2).run()
    for record in result.records:
        failed = record["outcomes"][1]
        assert failed["client"] == 1 and failed["error"] == error and message in failed["message"]
        assert "\n" not in failed["message"] and record["updated"]
    without = federation(rounds=2, sample=lambda number, clients: [0, 2, 3]).run()
    assert same(result.models["global"], without.models["global"])
    size = num_bytes(result.models["global"])
    assert (result.records[0]["bytes_down"], result.records[0]["bytes_up"]) == (4 * size, 3 * size)


def test_a_slow_client_times_out():
    result = federation(client={"time_limit": 0.0}, max_failed=1.0).run()
    assert {outcome["error"] for outcome in result.records[0]["outcomes"]} == {"ClientTimeout"}
    assert federation(client={"time_limit": 600.0}).run().records[0]["updated"]


def test_without_a_survivor_the_global_state_stays_and_it_is_said(caplog):
    orchestrator = federation(strategy=FedAvgM(), max_failed=1.0, client={"time_limit": 0.0})
    before = orchestrator.adapter.extract()
    with caplog.at_level(logging.WARNING):
        result = orchestrator.run()
    assert same(result.models["global"], before) and not result.records[0]["updated"]
    assert "no client came back" in caplog.text


def test_too_many_failures_stop_the_run_with_the_first_cause():
    told = "round 0: expected at most 20% of 4 clients to fail, found 1; .*client 1, ValueError: row is broken"
    with pytest.raises(TooManyFailuresError, match=told):
        federation(data=Breaking("exception"), max_failed=0.2).run()
    assert federation(data=Breaking("exception"), max_failed=0.25).run().records[0]["updated"]


def cut(state):
    state["net.0.weight"] = state["net.0.weight"][:, :2]


@pytest.mark.parametrize("forge", [cut, lambda state: state.pop("net.0.weight"), lambda state: state.update(x=EMPTY)])
def test_an_update_that_does_not_fit_is_left_out(forge):
    class Forging:
        capacity = 1
        secure = False

        def __init__(self, inner):
            self.submit, self._collect = inner.submit, inner.collect

        def collect(self):
            outcome = self._collect()
            if outcome.client == 2:
                forge(outcome.state)
            return outcome

    orchestrator = federation()
    orchestrator.engine = Forging(orchestrator.engine)
    result = orchestrator.run()
    assert result.records[0]["outcomes"][2]["error"] == "InputError"
    expected = federation(sample=lambda number, clients: [0, 1, 3]).run()
    assert same(result.models["global"], expected.models["global"])


def test_a_module_that_changes_frozen_parameters_stops_the_run():
    class Drifting(Toy):
        def __init__(self):
            super().__init__()
            self.key = nn.Linear(4, 8).requires_grad_(False)

        def on_train_batch_end(self, *args):
            with torch.no_grad():
                self.key.weight.lerp_(self.net[0].weight, 0.1)

    with pytest.raises(InputError, match=r"'key\.weight' to stay"):
        federation(Drifting()).run()
    module = Drifting()
    result = federation(module, adapter=Adapter(module, carry=["key."])).run()
    assert not torch.equal(result.models["global"]["key.weight"], Drifting().key.weight)


def test_zero_rounds_is_zero_shot():
    module = Toy()
    result = federation(module, rounds=0, evaluate=accuracy).run()
    assert result.metrics == accuracy(Toy()) and result.records == []
    assert same(result.models["global"], Adapter(Toy()).extract())


def test_local_training_is_each_client_alone():
    result = federation(strategy=Local(), rounds=2, evaluate=accuracy, evaluate_every=0).run()
    assert list(result.models) == [f"client {client}" for client in range(4)]
    for client in range(4):
        alone = federation(rounds=2, sample=lambda number, clients, chosen=client: [chosen]).run()
        assert same(result.models[f"client {client}"], alone.models["global"])
    scores = [metrics["accuracy"] for metrics in result.by_model.values()]
    assert result.metrics["accuracy"] == pytest.approx(sum(scores) / 4)
    assert [record["bytes_up"] for record in result.records] == [0, 0] and result.records[0]["metrics"] == {}


def test_buffers_are_averaged_or_stay_with_their_client():
    averaged = federation(Toy(dropout=0.0), strategy=FedAdam()).run().models["global"]
    module = Toy(dropout=0.0)
    local = federation(module, adapter=Adapter(module, local_buffers=True), rounds=2, strategy=FedAdam()).run().models
    means = [model["net.1.running_mean"] for model in local.values()]
    assert len(means) == 4 and not torch.equal(means[0], means[1])
    assert all(torch.equal(m["net.0.weight"], local["client 0"]["net.0.weight"]) for m in local.values())
    # After one round from the same start, FedAdam's plain mean of the clients' statistics is the averaged buffer.
    module = Toy(dropout=0.0)
    first = federation(module, adapter=Adapter(module, local_buffers=True), strategy=FedAdam()).run().models
    mean = torch.stack([model["net.1.running_mean"].double() for model in first.values()]).mean(0).float()
    assert torch.equal(averaged["net.1.running_mean"], mean)


def test_only_the_drawn_clients_are_sent_to_and_evaluation_is_by_round():
    result = federation(rounds=3, pieces=shares(6), sample=SampleClients(2), evaluate=accuracy, evaluate_every=2).run()
    assert [len(record["metrics"]) for record in result.records] == [0, 1, 1]
    chosen = [[outcome["client"] for outcome in record["outcomes"]] for record in result.records]
    assert chosen == [SampleClients(2)(number, 6) for number in range(3)]
    assert result.records[0]["bytes_down"] == 2 * num_bytes(result.models["global"])


def test_an_evaluation_leaves_no_trace_in_training():
    """`accuracy` leaves the module in eval mode; Lightning would then train without dropout."""
    often, once = (federation(rounds=2, evaluate=accuracy, evaluate_every=every).run() for every in (1, 0))
    assert same(often.models["global"], once.models["global"])


class LowRank(Toy):
    """The toy with a LoRA pair under PEFT's names on its first layer, all else frozen."""

    def __init__(self):
        super().__init__(dropout=0.0)
        self.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 4, bias=False)})

    def training_step(self, batch, batch_idx):
        x, y = batch
        return super().training_step((x + self.lora_B["default"](self.lora_A["default"](x)), y), batch_idx)


def test_the_gap_of_averaged_lora_factors_is_recorded():
    def gap(pieces, **options):
        result = federation(LowRank(), pieces, **options).run()
        return result.records[0]["lora_gap"], result.models["global"]

    several, alone = gap(shares(4))[0], gap(EVERYTHING)[0]
    assert several > 1e-6 and alone < 1e-12
    (untracked, without), (_, tracked) = gap(shares(4), track_gap=False), gap(shares(4))
    assert untracked is None and same(without, tracked) and "lora_A.weight" in tracked
    assert federation().run().records[0]["lora_gap"] is None


def test_a_gap_that_would_keep_too_much_is_told_and_left_out(monkeypatch, caplog):
    whole = federation(LowRank(), shares(4), rounds=2).run()
    monkeypatch.setattr("federated.orchestrator.MOST_BYTES", 4 * 4 * (4 * 2 + 2 * 4) - 1)
    result = federation(LowRank(), shares(4), rounds=2).run()
    assert [record["lora_gap"] for record in result.records] == [None, None]
    (told,) = [line for line in caplog.messages if "LoRA" in line]
    assert "the factors of 4 clients are" in told and "\n" not in told
    assert same(result.models["global"], whole.models["global"])
    assert all(record["lora_gap"] > 0 for record in whole.records)


def test_the_module_stays_where_it_is_between_clients():
    class Anchored(Toy):
        def cpu(self):
            raise AssertionError("Lightning carries a module back to the CPU after each fit")

    record = federation(Anchored()).run().records[0]
    assert not any("error" in outcome for outcome in record["outcomes"])


def test_a_client_has_one_device():
    with pytest.raises(InputError, match="without devices, strategy"):
        federation(client={"options": {"strategy": "ddp", "devices": 2}})


def test_empty_clients_are_refused():
    with pytest.raises(InputError, match="samples for client 1, found none"):
        PartitionedData(dataset(), [np.arange(3), np.arange(0)], batch_size=2)


def test_a_skeleton_method_is_federated_by_camera(tmp_path):
    """Any LightningModule of the house: batches of a store, draws keyed by the module's seed, counters, batch norm."""
    store = toy_data(write_toy_stores(tmp_path)).store
    pieces = ByAttribute("cameras").split({"cameras": store.index.cameras})
    clips = Clips(store, np.arange(len(store)), store.index.labels, max_bodies=2)

    def run():
        torch.manual_seed(0)
        module = ToyMethod(seed=3)
        data = PartitionedData(clips, pieces, batch_size=8, collate=lambda batch: batch)
        result = federation(module, pieces, data=data, rounds=2).run()
        assert module.seed == 3
        return result

    result = run()
    assert [outcome["client"] for outcome in result.records[1]["outcomes"]] == [0, 1, 2]
    assert all(record["updated"] for record in result.records)
    assert same(result.models["global"], run().models["global"])


def test_draws_keyed_by_a_modules_seed_differ_by_client_and_round():
    class Keyed(Toy):
        def __init__(self):
            super().__init__()
            self.seed, self.seen = 9, []

        def on_train_start(self):
            self.seen.append(self.seed)

    module = Keyed()
    federation(module, shares(3), rounds=2).run()
    assert len(set(module.seen)) == 6 and module.seed == 9
    assert module.seen == [seed_of(3, number, client) for number in range(2) for client in range(3)]
