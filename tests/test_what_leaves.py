"""A raw sample never leaves its client: what messages, ledger and records of a federation hold."""

import pytest
import toy_mllm
from toy_federation import Toy, dataset, federation, shares

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

from flwr.app import Message
from flwr.common.serde import message_to_proto
from test_secure import settings

import federate
from datamodules.errors import InputError
from federated.adapter import Adapter
from federated.client import Client
from federated.data import PartitionedData
from federated.engines import flower

UPDATE = {
    "state": None,  # tensors: looked at by name and shape
    "update": {"client", "num_samples", "steps", "seconds"},
    "metrics": {"train/loss"},
}
SECRET = "the diagnosis of patient 17"


@pytest.fixture
def heard(monkeypatch) -> list[Message]:
    """Every reply of a node."""
    replies: list[Message] = []
    pull = flower.LocalGrid.pull_messages

    def listening(grid, names):
        found = list(pull(grid, names))
        replies.extend(found)
        return found

    monkeypatch.setattr(flower.LocalGrid, "pull_messages", listening)
    return replies


def spread(replies: list[Message]) -> bytes:
    """All replies as they go over the wire."""
    return b"".join(message_to_proto(reply).SerializeToString() for reply in replies)


def toy(module: Toy, config: dict):
    adapter = Adapter(module)
    client = Client(module, adapter, PartitionedData(dataset(), shares(4), batch_size=8), device="cpu")
    return federation(module=module, adapter=adapter, engine=flower.simulated(config, client), max_failed=1.0)


def test_a_reply_holds_trained_tensors_and_four_facts_and_the_loss(heard):
    orchestrator = toy(Toy(), {})
    orchestrator.run()
    shapes = {name: tuple(tensor.shape) for name, tensor in orchestrator.adapter.extract().items()}
    assert len(heard) == 4
    for reply in heard:
        assert set(reply.content) == set(UPDATE)
        assert {name: tuple(array.shape) for name, array in reply.content["state"].items()} == shapes
        assert all(set(reply.content[part]) == names for part, names in UPDATE.items() if names)
        assert all(
            isinstance(fact, float | int) for part in ("update", "metrics") for fact in reply.content[part].values()
        )
    assert not any(row.numpy().tobytes() in spread(heard) for row in dataset().tensors[0])


class Quoting(Toy):
    """Errors quote what they stumble over."""

    kind: type[Exception] = KeyError

    def training_step(self, batch, batch_idx):
        raise self.kind(f"{SECRET}: {batch[0][0].tolist()}")


@pytest.mark.parametrize("config", [{}, settings()], ids=["in the clear", "masked"])
@pytest.mark.parametrize("kind", [KeyError, InputError], ids=["of other code", "ours"])
def test_an_error_that_quotes_a_sample_is_told_without_it(heard, config, kind, caplog):
    module = Quoting()
    module.kind = kind
    (record,) = toy(module, config).run().records
    assert len(heard) >= 4 and all("error" in outcome for outcome in record["outcomes"])
    assert SECRET.encode() not in spread(heard) and SECRET not in str(record)
    assert "stays in the log of where it happened" in record["outcomes"][0]["message"] and SECRET in caplog.text


def test_no_text_and_no_picture_of_a_meme_leaves_its_client(heard, tmp_path):
    """Neither in messages nor in anything the server writes."""
    toy_mllm.write_model(tmp_path / "model")
    config = toy_mllm.composed(tmp_path, "federated/engine=flower", "federated.per_round=3", "federated.rounds=1")
    result = federate.main.run(config)
    data = federate.Run.of(config).workload.data
    memes = data.samples("train")
    pixels = [data.pictures(sample.image).tobytes() for sample in memes if sample.image is not None]
    secrets = [sample.text.encode() for sample in memes if sample.text] + pixels
    written = [p for kind in ("runs", "records") for p in (tmp_path / kind).rglob("*") if p.is_file()]
    assert len(heard) == 3 and result["failed"] == 0 and len(secrets) > 80 and len(written) > 3
    for content in (spread(heard), *(path.read_bytes() for path in written)):
        assert not any(secret in content for secret in secrets)
