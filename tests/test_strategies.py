"""Server rules, the ordered mean, client sampling and the rate by round, against the released code's numbers."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from datamodules.errors import InputError
from federated.schedule import AllClients, ConstantRate, CosineRate, SampleClients
from federated.strategies.fedadagrad import FedAdagrad
from federated.strategies.fedadam import FedAdam
from federated.strategies.fedavg import FedAvg
from federated.strategies.fedavgm import FedAvgM
from federated.strategies.fedyogi import FedYogi
from federated.strategies.fold import OrderedMean
from federated.strategies.local import Local
from federated.strategies.one_shot import OneShot

GOLDEN_FOLDER = Path(__file__).parent / "golden"
GOLDEN = np.load(GOLDEN_FOLDER / "strategies.npz")
SCHEDULE = json.loads((GOLDEN_FOLDER / "schedule.json").read_text())
RULES = {
    "fedavg": FedAvg(),
    "fedavgm": FedAvgM(),
    "fedadagrad": FedAdagrad(eta=1e-2),
    "fedyogi": FedYogi(eta=1e-2),
    "fedadam": FedAdam(eta=1e-2),
}
TAU = 1e-3


def tensors(prefix):
    return {name: torch.from_numpy(GOLDEN[f"{prefix}/{name}"]).double() for name in "abc"}


def mean_of(round_number, theta, weighted):
    clients = GOLDEN["in/participants"][round_number].tolist()
    mean = OrderedMean(clients)
    for client in clients:
        delta = tensors(f"in/delta/round{round_number}/client{client}")
        weight = int(GOLDEN["in/sample_counts"][client]) if weighted else 1
        mean.add(client, {name: theta[name] + delta[name] for name in theta}, weight)
    return mean.result()


def play(rule):
    """(theta, memory) after each golden round; the memory travels as safetensors bytes between rounds."""
    theta, memory, played = tensors("in/global"), {}, []
    for round_number in range(len(GOLDEN["in/participants"])):
        theta, memory = rule.step(theta, mean_of(round_number, theta, rule.weighted), load(save(memory)))
        played.append((theta, memory))
    return played


@pytest.mark.parametrize("name", RULES)
def test_four_rounds_equal_the_released_rule(name):
    for round_number, (theta, _) in enumerate(play(RULES[name])):
        golden = tensors(f"out/{name}/round{round_number}")
        for key in golden:
            error = (theta[key] - golden[key]).abs().max() / golden[key].abs().max()
            assert error < 1e-5, (round_number, key)


def plain_changes():
    """Plain mean of the golden deltas of each round, by hand."""
    for round_number, clients in enumerate(GOLDEN["in/participants"]):
        deltas = [GOLDEN[f"in/delta/round{round_number}/client{client}/a"].astype(np.float64) for client in clients]
        yield sum(deltas) / len(deltas)


@pytest.mark.parametrize("name", ["fedadagrad", "fedyogi", "fedadam"])
def test_v_itself(name):
    """theta hides v's start (5e-5 in FedAdagrad), so v is followed by hand, in numpy."""
    m, v = None, np.full((4, 3), TAU**2)
    for delta, (_, memory) in zip(plain_changes(), play(RULES[name]), strict=True):
        m = delta if m is None else 0.9 * m + 0.1 * delta
        if name == "fedadagrad":
            v = v + delta**2
        elif name == "fedyogi":
            v = np.where(v > m**2, v - 0.01 * m**2, v + 0.01 * m**2)
        else:
            v = 0.99 * v + 0.01 * m**2
        assert np.allclose(memory["v/a"].numpy(), v, rtol=1e-10, atol=0)


def test_a_step_changes_nothing_in_place():
    theta = tensors("in/global")
    for rule in RULES.values():
        _, memory = rule.step(theta, mean_of(0, theta, rule.weighted), {})
        kept = {name: tensor.clone() for name, tensor in memory.items()}
        rule.step(theta, mean_of(0, theta, rule.weighted), memory)
        assert all(torch.equal(memory[name], kept[name]) for name in kept)
    assert all(torch.equal(theta[name], tensors("in/global")[name]) for name in theta)


def test_weights_count_in_fedavg_only():
    assert RULES["fedavg"].weighted and RULES["fedavgm"].weighted
    assert not any(rule.weighted for rule in (*list(RULES.values())[2:], OneShot()))


def test_local_exchanges_nothing_and_one_shot_averages():
    assert Local().personal(["a", "b"]) == {"a", "b"} and FedAvg().personal(["a"]) == frozenset()
    theta = {"a": torch.zeros(2, dtype=torch.float64)}
    assert Local().step(theta, theta, {}) == (theta, {})
    mean = {"a": torch.ones(2, dtype=torch.float64)}
    assert OneShot().step(theta, mean, {}) == (mean, {})


def fold(order, states, drop=()):
    mean = OrderedMean(list(order))
    for client in order:
        mean.drop(client) if client in drop else mean.add(client, states[client], client + 1)
    return mean


def test_arrival_order_does_not_change_a_byte():
    torch.manual_seed(0)
    states = {client: {"w": torch.randn(50) * 1e4 ** (client % 5)} for client in range(20)}
    expected = fold(range(20), states).result()["w"]
    order = list(range(20))
    for seed in range(5):
        random.Random(seed).shuffle(order)
        assert torch.equal(fold(order, states).result()["w"], expected)
    one_by_one = sum(states[client]["w"].double() * (client + 1) for client in range(20)) / 210
    assert torch.equal(one_by_one, expected)
    naive = sum(states[client]["w"].double() * (client + 1) for client in reversed(range(20))) / 210
    assert not torch.equal(naive, expected), "the states are too tame: any order gives the same bytes"


def test_a_drop_out_renormalises_and_frees_its_place():
    states = {client: {"w": torch.full((3,), float(client))} for client in range(4)}
    mean = fold([3, 2, 1, 0], states, drop=[0])
    assert torch.allclose(mean.result()["w"], torch.full((3,), (1 * 2 + 2 * 3 + 3 * 4) / 9).double())
    assert fold(range(4), states, drop=range(4)).result() is None
    head_fails = OrderedMean([0, 1])
    head_fails.add(1, states[1], 1)
    assert head_fails.settled == 0
    head_fails.drop(0)
    assert head_fails.settled == 2


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": torch.ones(2)}, r"client 1: expected 'b' as in the clients before, \(3,\), found no such tensor"),
        (
            {"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(1)},
            r"client 1: expected 'c' as in the clients before, no such tensor, found \(1,\)",
        ),
        ({"a": torch.ones(2), "b": torch.ones(1)}, r"client 1: expected 'b' .*\(3,\), found \(1,\); drop the client"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_a_state_of_other_tensors_is_refused_and_the_mean_is_that_of_the_others(state, message, late):
    """late: it arrives before its turn, after a client whose turn has not come either."""
    good = {"a": torch.full((2,), 3.0), "b": torch.full((3,), 5.0)}
    mean = OrderedMean([0, 1, 2])
    mean.add(2 if late else 0, good, 1)
    with pytest.raises(ValueError, match=message):
        mean.add(1, state, 1)
    mean.drop(1)
    mean.add(0 if late else 2, good, 7)
    found = mean.result()
    assert mean.folded == 2 and found.keys() == good.keys()
    assert all(torch.equal(found[name], good[name].double()) for name in good)


def test_few_states_wait_however_many_clients():
    mean = OrderedMean(range(500))
    for client in range(0, 500, 4):
        for late in (client + 3, client + 1, client + 2, client):
            mean.add(late, {"w": torch.ones(1)}, 1)
    assert mean.most_waiting == 4 and mean.result()["w"].item() == 1


def test_equal_states_give_themselves_in_float32():
    state = {"w": torch.randn(100)}
    mean = OrderedMean(range(7))
    for client in range(7):
        mean.add(client, state, 13 * client + 1)
    assert torch.equal(mean.result()["w"].float(), state["w"])


def test_a_client_counts_once():
    mean = OrderedMean([1, 2])
    mean.add(2, {}, 1)
    for client in (2, 5):
        with pytest.raises(ValueError, match="not awaited"):
            mean.add(client, {}, 1)
    with pytest.raises(RuntimeError, match=r"\[1, 2\] are not settled"):
        mean.result()
    with pytest.raises(ValueError, match="twice"):
        OrderedMean([1, 1])


def test_clients_of_a_round_equal_the_released_draw():
    golden = SCHEDULE["clients_sampled_2_of_10_by_round"]
    assert {number: SampleClients(2)(int(number), 10) for number in golden} == golden
    assert AllClients()(3, 4) == [0, 1, 2, 3]
    with pytest.raises(InputError, match="1 to 3 clients a round, found 4"):
        SampleClients(4)(0, 3)


def test_rate_by_round_equals_the_released_one_but_for_its_fault():
    golden = SCHEDULE["learning_rate_by_round_base2e-5_total50_warmup0.5"]
    rates = [2e-5 * CosineRate(released=True)(r, 50) for r in range(50)]
    assert np.allclose(rates, golden, rtol=1e-12, atol=0)
    assert CosineRate()(0, 50) == 1.0 and golden[0] == 4e-5
    assert [CosineRate()(r, 50) for r in range(1, 50)] == [CosineRate(released=True)(r, 50) for r in range(1, 50)]
    assert [CosineRate(warmup=0.04)(r, 50) for r in range(2)] == [0.5, 1.0]
    assert ConstantRate()(7, 50) == 1.0
