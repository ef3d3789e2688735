"""Transports: how far a number is rounded, what is never rounded, bytes as they travel, a federation under each."""

import re
from pathlib import Path

import pytest
import torch
from toy_federation import federation, same

from datamodules.errors import InputError
from federated.state import num_bytes
from federated.transport import SCALE, Bfloat16, Exact, Int8, rounded, transport
from tracking import identity, records

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "performance.md").read_text()


def state(key: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(key)
    sizes = {"matrix": (6, 5), "kernel": (4, 3, 2, 2), "vector": (7,), "still": (3, 4), "buffer": (5,)}
    found = {name: torch.randn(size, generator=source, dtype=dtype) for name, size in sizes.items()}
    found["matrix"][2] *= 1000  # a row whose steps must not be those of the others
    found["still"].zero_()
    return found


TRAINED = frozenset({"matrix", "kernel", "vector", "still"})


def bound(rule: Exact, tensor: torch.Tensor) -> torch.Tensor:
    """Largest error of each number."""
    if isinstance(rule, Bfloat16):
        return tensor.abs() / 256
    rows = tensor.flatten(1) if tensor.ndim > 1 else tensor[None]
    largest = rows.abs().amax(1, keepdim=True).expand_as(rows)
    return (largest / 254).reshape(tensor.shape) * (1 + 1e-5)


@pytest.mark.parametrize("rule", [Bfloat16(), Int8()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_state_comes_back_within_the_bound_and_buffers_as_they_were(rule, dtype):
    sent = state(dtype=dtype)
    packed = rule.pack(sent, TRAINED)
    back = rule.unpack(packed, sent)
    assert back.keys() == sent.keys() and torch.equal(back["buffer"], sent["buffer"])
    assert sorted(rounded(packed, sent)) == sorted(TRAINED)
    for name in TRAINED:
        assert back[name].dtype == dtype
        assert ((back[name] - sent[name]).abs() <= bound(rule, sent[name])).all(), name
    assert not torch.equal(back["matrix"], sent["matrix"]) and not back["still"].any()


@pytest.mark.parametrize("rule", [Bfloat16(), Int8()])
def test_what_is_rounded_of_an_answer_is_a_share_of_the_change(rule):
    """The weights are large, the change small: rounding the weights would leave nothing of it."""
    server = {name: 100 + tensor for name, tensor in state().items()}
    begin = rule.unpack(rule.pack(server, TRAINED), server)
    change = {name: 1e-3 * tensor for name, tensor in state(1).items()}
    trained = {name: begin[name] + change[name] for name in begin}
    got = rule.result(rule.answer(trained, begin, TRAINED), server)
    for name in TRAINED:
        moved = trained[name] - begin[name]  # as float32 holds it at 100
        error = (got[name] - server[name] - moved).abs()
        assert (error <= bound(rule, moved) + 1e-5).all(), name
    assert torch.equal(got["buffer"], trained["buffer"])


def test_bytes_are_a_half_and_a_quarter_and_the_scales():
    sent = {"matrix": torch.ones(64, 256), "vector": torch.ones(128)}
    whole = num_bytes(sent)
    assert num_bytes(Bfloat16().pack(sent, set(sent))) == whole / 2
    assert num_bytes(Int8().pack(sent, set(sent))) == whole / 4 + 4 * (64 + 1)


def test_exact_is_exact():
    sent, begin = state(), state(1)
    rule = Exact()
    assert rule.pack(sent, TRAINED) is sent and rule.unpack(sent, begin) is sent
    assert rule.answer(sent, begin, TRAINED) is sent and rule.result(sent, begin) is sent


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda packed: packed.pop("matrix" + SCALE), "expected 6 float32 scales of 'matrix', found none"),
        (lambda packed: packed.update({"matrix" + SCALE: torch.ones(5)}), r"found \(5,\) torch.float32"),
        (lambda packed: packed.update({"matrix": torch.ones(6, 5).bfloat16()}), "expected 'matrix' as .* torch.int8"),
        (lambda packed: packed.update({"matrix": packed["matrix"][:3]}), r"found \(3, 5\) torch.int8"),
    ],
)
def test_what_no_transport_gives_is_refused(change, told):
    packed = Int8().pack(state(), TRAINED)
    change(packed)
    with pytest.raises(InputError, match=told):
        Int8().unpack(packed, state())


def test_an_unknown_transport_is_refused_by_the_known_ones():
    with pytest.raises(InputError, match="expected one of exact, bf16, int8, found 'int4'"):
        transport("int4")


@pytest.mark.parametrize("name", ["bf16", "int8"])
def test_a_federation_under_a_transport_stays_near_the_exact_one_and_counts_fewer_bytes(name):
    rule = transport(name)
    exact = federation(rounds=2).run()
    squeezed = federation(rounds=2, transport=rule, client={"transport": rule}).run()
    assert not same(exact.models["global"], squeezed.models["global"])
    for key, tensor in exact.models["global"].items():
        torch.testing.assert_close(squeezed.models["global"][key], tensor, rtol=0.05, atol=0.02)
    for before, after in zip(exact.records, squeezed.records, strict=True):
        assert after["bytes_up"] < 0.8 * before["bytes_up"] and after["bytes_down"] < 0.8 * before["bytes_down"]


def test_the_server_is_never_rounded():
    """Without a step of the clients (rate 0) the global state stays as it was to the bit under every transport."""
    for name in ("bf16", "int8"):
        rule = transport(name)
        orchestrator = federation(rounds=1, transport=rule, client={"transport": rule}, rate=lambda n, r: 0.0)
        before = orchestrator.adapter.extract()
        after = orchestrator.run().models["global"]
        for key in orchestrator.adapter.trained:
            torch.testing.assert_close(after[key], before[key], rtol=1e-6, atol=1e-7)


def test_a_client_that_does_not_know_the_transport_fails_and_says_why():
    orchestrator = federation(rounds=1, transport=Int8(), max_failed=1.0)
    outcomes = orchestrator.run().records[0]["outcomes"]
    assert {outcome["error"] for outcome in outcomes} == {"InputError"}
    assert "int8" in outcomes[0]["message"] or SCALE in outcomes[0]["message"]


def test_rounded_answers_have_no_secure_sum():
    class Secure:
        capacity, secure = 1, True

    with pytest.raises(InputError, match="expected federated.transport=exact, found Int8"):
        federation(transport=Int8(), engine=Secure())
    federation(transport=Exact(), engine=Secure())


def test_the_default_changes_no_key_and_another_does():
    config = {"federated": {"rounds": 2}, "paths": {}}
    plain = identity.run_key(config, "data")
    assert identity.run_key({"federated": {"rounds": 2, "transport": "exact"}, "paths": {}}, "data") == plain
    assert identity.run_key({"federated": {"rounds": 2, "transport": "int8"}, "paths": {}}, "data") != plain


def test_every_number_of_the_page_is_that_of_its_record():
    lines = re.findall(r"^\| (\w+) \| (.*) \| \[record\]\(results/(.*)\) \|$", PAGE, flags=re.MULTILINE)
    lines = [(name, numbers, file) for name, numbers, file in lines if name in ("exact", "bf16", "int8")]
    assert [name for name, _, _ in lines] == 2 * ["exact", "bf16", "int8"]
    for name, numbers, file in lines:
        record = records.read(ROOT / "docs" / "results" / file)
        found, miniature = record.metrics, record.data["miniature"]
        assert record.config["federated"]["transport"] == name and miniature == ("auc_hard" in found)
        scores = ("auc_hard", "auc_probability") if miniature else ("test/knn1",)
        loss = [] if miniature else [f"{found['train/loss']:.2f}"]
        told = [f"{found['bytes_up'] / 1e6:.1f}", *loss, *(f"{found[score]:.1f}" for score in scores)]
        assert numbers == " | ".join(told)
