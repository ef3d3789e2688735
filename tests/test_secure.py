"""Secure aggregation: the mean is the plain one but for rounding, and no reply tells a client's change."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import test_federate_door as door_tests
import torch
import toy_mllm
from test_flower import toy_client
from test_privacy import grouped
from toy_federation import Toy, dataset, federation, shares

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

from flwr.app import Array, Message
from flwr.common import bytes_to_ndarray
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage

import federate
from datamodules.errors import InputError
from federated.adapter import Adapter
from federated.client import Client, ClientFailure, ClientTask
from federated.data import PartitionedData
from federated.engines import flower, secure, wire
from federated.engines.wire import task_content
from federated.ledger import Ledger
from federated.orchestrator import TooManyFailuresError
from federated.privacy import ClientLevelPrivacy
from federated.strategies.fedavg import FedAvg
from federated.strategies.fedyogi import FedYogi
from federated.strategies.local import Local

root = door_tests.root
ONE_ROUND = ["federated.per_round=2", "federated.rounds=1"]
CLIP = 1.0
STEP = CLIP / 2**21  # of the rounding: 2^22 of them from -CLIP to CLIP


def settings(strategy: str = "fedavg.FedAvg", **other) -> dict:
    hidden = {"clip": CLIP, "threshold": 0.67} | other
    return {
        "federated": {
            "secure_aggregation": hidden,
            "strategy": {"_target_": f"federated.strategies.{strategy}"},
        }
    }


class Failing(Toy):
    """Client 1 of the toy fails."""

    def training_step(self, batch, batch_idx):
        if len(self.trainer.train_dataloader.dataset) == len(shares(4)[1]):
            raise RuntimeError("no more")
        return super().training_step(batch, batch_idx)


def made(module, config: dict, **options):
    """A federation of the toy whose server sees sums alone."""
    adapter = Adapter(module)
    client = Client(module, adapter, PartitionedData(dataset(), shares(4), batch_size=8), device="cpu")
    return federation(module=module, adapter=adapter, engine=flower.simulated(config, client), **options)


@pytest.mark.parametrize(("strategy", "name"), [(FedAvg(), "fedavg.FedAvg"), (FedYogi(eta=0.01), "fedyogi.FedYogi")])
def test_the_mean_is_the_plain_one_but_for_rounding(strategy, name):
    """Weighted by samples, and plain: what one round folds, before the rule moves anything."""
    plain, hidden = (federation(strategy=strategy), made(Toy(), settings(name), strategy=strategy))
    means = []
    for orchestrator in (plain, hidden):
        begun = orchestrator._begin()
        mean, outcomes, _ = orchestrator._train(begun, begun.shared, [0, 1, 2, 3], 1.0, None)
        assert not any("error" in outcome for outcome in outcomes)
        means.append({key: value.double() for key, value in mean.items()})
    # Every client's number is rounded by less than a step, times at most 1 / its share of the largest weight.
    sizes = [len(piece) for piece in shares(4)]
    most = 4 * STEP * max(sizes) / (sum(sizes) if strategy.weighted else 4 * max(sizes))
    for key in means[1]:
        difference = (means[0][key] - means[1][key]).abs().max()
        assert difference < most + 2e-7, key  # float32 on the way back
    assert any(not torch.equal(means[0][key], means[1][key]) for key in means[1])


def test_several_rounds_end_where_plain_ones_do():
    plain, hidden = federation(rounds=2).run(), made(Toy(), settings(), rounds=2).run()
    torch.testing.assert_close(plain.models["global"], hidden.models["global"], rtol=0, atol=1e-4)
    for one, other in zip(plain.records, hidden.records, strict=True):
        assert [outcome["num_samples"] for outcome in one["outcomes"]] == [
            outcome["num_samples"] for outcome in other["outcomes"]
        ]
        assert other["lora_gap"] is None


class Listening(flower.LocalGrid):
    """A grid that keeps what the server is told."""

    def __init__(self, inner):
        super().__init__(inner._apps)
        self.heard = []

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        self.heard += replies
        return replies


def test_no_reply_tells_a_change():
    """Masked numbers lie anywhere below 2^32, where changes weighed and rounded lie below 2^22."""
    orchestrator = made(Toy(), settings())
    grid = orchestrator.engine._grid = Listening(orchestrator.engine._grid)
    orchestrator.run()
    told = [reply.content for reply in grid.heard]
    assert all(not array for content in told for array in content.array_records.values())
    vectors = [
        np.concatenate([bytes_to_ndarray(part).ravel() for part in config[Key.MASKED_PARAMETERS]])
        for content in told
        if Key.MASKED_PARAMETERS in (config := content.config_records[RECORD_KEY_CONFIGS])
    ]
    assert len(vectors) == 4
    for vector in vectors:
        assert vector.min() >= 0 and vector.max() < 2**32
        assert 0.3 < (vector > 2**31).mean() < 0.7


def test_who_drops_out_is_a_failed_client_and_the_sum_is_that_of_the_others():
    plain, hidden = federation(module=Failing()).run(), made(Failing(), settings()).run()
    errors = [[outcome.get("error") for outcome in run.records[0]["outcomes"]] for run in (plain, hidden)]
    assert errors == [[None, "RuntimeError", None, None], [None, "DroppedOut", None, None]]
    message = "collect_masked_vectors: RuntimeError: its message stays in the log"
    assert message in hidden.records[0]["outcomes"][1]["message"]
    torch.testing.assert_close(plain.models["global"], hidden.models["global"], rtol=0, atol=1e-5)


def test_without_enough_clients_nobody_reads_the_sum():
    told = "client 0, UnreadSum: expected 4 of 4 clients to stay to the end, lost 1: client 1: collect.*: RuntimeError"
    with pytest.raises(TooManyFailuresError, match=told):
        made(Failing(), settings(threshold=1.0)).run()


class Mute(flower.LocalGrid):
    """A grid whose node of client 1 says nothing when it is asked for `stage` in the first round.

    As a SuperNode it does one thing after the other: what it was asked then it does before what it is asked next.
    """

    def __init__(self, inner, stage):
        super().__init__(inner._apps)
        self.stage, self.ttl = stage, set()
        self.left: list[Message] = []

    def push_messages(self, messages):
        messages = list(messages)
        named = super().push_messages(messages)
        self.ttl |= {message.metadata.ttl for message in messages}
        for message in messages:
            if message.metadata.dst_node_id == 2:
                if message.metadata.group_id == "0" and message.content[RECORD_KEY_CONFIGS][Key.STAGE] == self.stage:
                    self.left.append(message)
                elif self.left:
                    app, context = self._apps[2]
                    app(self.left.pop(), context)
        return named

    def pull_messages(self, message_ids):
        return super().pull_messages(name for name in message_ids if self._waiting[name] not in self.left)


class Unknown(flower.LocalGrid):
    """A grid that knows no node of client 1."""

    def push_messages(self, messages):
        messages = list(messages)
        return [None] if messages[0].metadata.dst_node_id == 2 else super().push_messages(messages)


def mean_of(clients: list[int], number: int = 0) -> dict[str, torch.Tensor]:
    """The state that these clients of the toy, trained one by one without any masks, have on average, by samples."""
    _, adapter, client = toy_client()
    begin = adapter.extract()
    updates = [client.run(ClientTask(number, one, begin, 1.0, 3)) for one in clients]
    total = sum(update.num_samples for update in updates)
    return {
        name: sum(update.state[name].double() * (update.num_samples / total) for update in updates).to(value.dtype)
        for name, value in begin.items()
    }


def round_of(engine, number: int = 0) -> list:
    """The outcomes of a round of four clients."""
    for client in range(4):
        engine.submit(ClientTask(number, client, toy_client()[1].extract(), 1.0, 3))
    return [engine.collect() for _ in range(4)]


@pytest.mark.parametrize("stage", Stage.all())
def test_a_node_that_hangs_at_any_stage_is_left_out_and_takes_part_again(stage):
    """In the last stage its change is in the sum already, and it is no longer needed."""
    engine = made(Toy(), settings()).engine
    engine._patience = 0.2
    grid = engine._grid = Mute(engine._grid, stage)
    outcomes = round_of(engine)
    lost = [outcome.client for outcome in outcomes if isinstance(outcome, ClientFailure)]
    assert lost == ([] if stage == Stage.UNMASK else [1])
    if lost:
        assert outcomes[1].error == "DroppedOut"
        assert f"{stage}: no answer within 0.2 s" in outcomes[1].message and "reply_seconds" in outcomes[1].message
    stayed = [client for client in range(4) if client not in lost]
    torch.testing.assert_close(outcomes[0].state, mean_of(stayed), rtol=0, atol=1e-5)
    assert len(grid.left) == 1 and grid.ttl == {wire.GRACE + 0.2}

    again = round_of(engine, 1)
    assert not grid.left and not any(isinstance(outcome, ClientFailure) for outcome in again)
    torch.testing.assert_close(again[0].state, mean_of([0, 1, 2, 3], 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("stage", Stage.all())
def test_where_everybody_is_needed_one_that_hangs_fails_the_round_and_is_named(stage):
    engine = made(Toy(), settings(threshold=1.0)).engine
    engine._patience = 0.2
    engine._grid = Mute(engine._grid, stage)
    outcomes = round_of(engine)
    assert [outcome.error for outcome in outcomes] == ["UnreadSum", "DroppedOut", "UnreadSum", "UnreadSum"]
    told = f"expected 4 of 4 clients to stay to the end, lost 1: client 1: {stage}: no answer within 0.2 s"
    assert outcomes[0].message.startswith(told) and "\n" not in outcomes[0].message


def test_a_node_that_the_superlink_does_not_know_is_left_out():
    engine = made(Toy(), settings()).engine
    engine._grid = Unknown(engine._grid._apps)
    outcomes = round_of(engine)
    assert "setup: the SuperLink takes no message for node 2" in outcomes[1].message
    torch.testing.assert_close(outcomes[0].state, mean_of([0, 2, 3]), rtol=0, atol=1e-5)


def test_a_change_beyond_the_clip_is_told():
    with pytest.raises(TooManyFailuresError, match="changes of at most 0.0001, found .* raise federated.secure"):
        made(Toy(), settings(clip=1e-4)).run()


def test_server_and_node_must_both_want_it():
    """A node shows no change to a server that asks plainly, and adds none to a sum that its settings know not of."""
    client = toy_client()[2]

    def grid(hidden) -> flower.LocalGrid:
        site = flower.Site(client, 0, "", "", "", hidden)
        return flower.LocalGrid(flower.Nodes(flower.client_app(lambda *_: site)))

    hidden, task = flower.masking(settings()), ClientTask(0, 0, toy_client()[1].extract(), 1.0, 3)
    with pytest.raises(InputError, match="found a plain request"):
        grid(hidden).send_and_receive([Message(task_content(task), 1, "train")])
    engine = flower.SecureFlower(grid(None), lambda number: number + 1, 2, hidden, lambda number: 1)
    for number in range(2):
        engine.submit(replace(task, client=number))
    with pytest.raises(InputError, match="expected it in the settings of this node, found it in none"):
        engine.collect()


@pytest.mark.parametrize(
    "wrong",
    [
        {"client": 0},
        {"client": -1},
        {"num_samples": 10**18},
        {"seconds": "long"},
        {"extra": 1},
        {"metric x": float("inf")},
    ],
    ids=str,
)
def test_who_tells_wrong_facts_spoils_the_sum(wrong, monkeypatch):
    """Its change cannot be taken out again, so nobody's is used: every client fails, with the reason."""
    trained = secure._trained

    def lying(request, client, hidden):
        reply = trained(request, client, hidden)
        facts = reply.content.config_records["fitres.metrics"]
        if facts["client"] == 1:
            facts.update(wrong)
        return reply

    monkeypatch.setattr(secure, "_trained", lying)
    engine = made(Toy(), settings()).engine
    for number in range(3):
        engine.submit(ClientTask(0, number, toy_client()[1].extract(), 1.0, 3))
    outcomes = {outcome.client: outcome for outcome in (engine.collect() for _ in range(3))}
    assert sorted(outcomes) == [0, 1, 2] and all(isinstance(found, ClientFailure) for found in outcomes.values())
    assert outcomes[0].error == outcomes[2].error == "SpoiltSum" and "change of client 1" in outcomes[0].message
    assert outcomes[1].error != "SpoiltSum"


def test_a_round_of_more_clients_than_the_sum_bears_is_refused_before_any_trains():
    engine = made(Toy(), settings()).engine
    task = ClientTask(0, 0, {}, 1.0, 3)
    for number in range(1024):
        engine.submit(replace(task, client=number))
    with pytest.raises(InputError, match="at most 1023 clients a round, found 1024, .* federated.per_round=1023"):
        engine.collect()


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("clients", [2, 3, 4])
def test_as_many_as_are_let_in_can_all_change_by_the_clip(clients, monkeypatch):
    """Under a modulus of four times the levels: the sum of three is read rightly, that of one more is not."""
    trained = secure._trained

    def extreme(request, client, hidden):
        reply = trained(request, client, hidden)
        arrays = reply.content.array_records["fitres.parameters"]
        for name, array in arrays.items():
            arrays[name] = Array(np.full_like(array.numpy(), CLIP))
        return reply

    monkeypatch.setattr(secure, "_trained", extreme)
    monkeypatch.setattr(secure, "MODULUS", 4 * secure.LEVELS)
    engine, begin = made(Toy(), settings("fedyogi.FedYogi")).engine, toy_client()[1].extract()
    for number in range(clients):
        engine.submit(ClientTask(0, number, begin, 1.0, 3))
    outcome = engine.collect()
    right = all(torch.allclose(outcome.state[name], begin[name] + CLIP, atol=1e-5) for name in begin)
    assert right == (clients <= (secure.MODULUS - 1) // secure.LEVELS)


def test_a_reply_that_breaks_the_protocol_fails_the_round():
    """A masked vector that is none."""
    engine = made(Toy(), settings()).engine
    plain = engine._grid.pull_messages

    def broken(message_ids):
        for reply in plain(message_ids):
            reply.content.config_records[RECORD_KEY_CONFIGS].pop(Key.MASKED_PARAMETERS, None)
            yield reply

    engine._grid.pull_messages = broken
    for number in range(2):
        engine.submit(ClientTask(0, number, toy_client()[1].extract(), 1.0, 3))
    outcomes = [engine.collect() for _ in range(2)]
    assert all("a reply broke the protocol: KeyError" in outcome.message for outcome in outcomes)


def test_what_secure_aggregation_cannot_do_is_said(root):
    with pytest.raises(InputError, match="found tensors that clients keep"):
        made(Toy(), settings("local.Local"), strategy=Local())
    engine = made(Toy(), settings()).engine
    with pytest.raises(InputError, match="found noise on each client's update"):
        federation(module=grouped(), engine=engine, privacy=ClientLevelPrivacy(1.0, 1.0))
    with pytest.raises(InputError, match="expected two clients a round or more, found one"):
        made(Toy(), settings(), sample=lambda number, clients: [0]).run()
    with pytest.raises(InputError, match="found clip 0 and threshold 0.67"):
        flower.masking(settings(clip=0))
    config = door_tests.composed(root, "federated/privacy=secure_aggregation")
    with pytest.raises(InputError, match="set federated/engine=flower"):
        federate.main.run(config)


@pytest.mark.slow
def test_the_door_hides_changes_by_a_switch(tmp_path):
    """Of a multimodal model, in one round of two clients; the hidden run is one of its own."""
    toy_mllm.write_model(tmp_path / "model")
    plain, hidden = (
        federate.main.run(toy_mllm.composed(tmp_path, "federated/engine=flower", *ONE_ROUND, *more))
        for more in ([], ["federated/privacy=secure_aggregation"])
    )
    assert plain["key"] != hidden["key"] and hidden["failed"] == 0
    assert "lora_gap_largest" in plain.keys() - hidden.keys()
    states = [Ledger(Path(run["folder"]) / "ledger.safetensors", run["key"]).resume().shared for run in (plain, hidden)]
    torch.testing.assert_close(*states, rtol=0, atol=2e-6)
