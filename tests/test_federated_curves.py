"""The curves of a federation: by round, by client, by model; and what is seen of it while it runs."""

from io import StringIO

import pytest
from rich.console import Console
from toy_federation import federation

from federate import summary
from federated.curves import curves, unmeasured
from federated.orchestrator import FederatedResult
from federated.watch import Watch


def one_round(number, losses, failed=(), by_model=None, metrics=None, gap=None):
    outcomes = [
        {"client": client, "num_samples": 1 + client, "metrics": {"train/loss": loss}}
        for client, loss in losses.items()
    ]
    outcomes += [{"client": client, "error": "ClientTimeout", "message": "late", "seconds": 1.0} for client in failed]
    return {
        "round": number,
        "outcomes": outcomes,
        "bytes_up": 10 * len(losses),
        "bytes_down": 10 * len(outcomes),
        "lora_gap": gap,
        "metrics": metrics or {},
        "by_model": by_model or {},
    }


def test_every_client_has_a_curve_with_gaps_where_it_failed():
    found = curves([one_round(0, {0: 3.0, 2: 4.0}, gap=0.5), one_round(1, {2: float("nan")}, failed=[0])])
    assert found["train/loss @ client 0"] == [[1, 3.0]] and found["train/loss @ client 2"] == [[1, 4.0]]
    assert found["failed clients"] == [[1, 0.0], [2, 1.0]] and found["LoRA gap"] == [[1, 0.5]]
    assert found["bytes up"] == [[1, 20.0], [2, 10.0]] and found["bytes down"] == [[1, 20.0], [2, 20.0]]


def test_rounds_that_were_to_be_measured_and_were_not_are_known():
    rounds = [one_round(number, {0: 3.0}, metrics={"auc": 50.0} if number == 3 else {}) for number in range(4)]
    last = curves(rounds), {"auc", "train/loss"}, 4
    assert unmeasured(*last, every=1) == [1, 2, 3] and unmeasured(*last, every=2) == [2]
    assert unmeasured(*last, every=0) == unmeasured(*last, every=4) == unmeasured(*last, every=7) == []
    rounds[1]["metrics"] = {"auc": 40.0}
    assert unmeasured(curves(rounds), {"auc"}, 4, every=2) == []
    assert unmeasured(curves(rounds), {"train/loss"}, 4, every=1) == []  # nothing is measured here
    assert unmeasured({}, {"auc"}, 3, every=1) == [1, 2]  # a record that is older than curves


def test_the_mean_over_clients_is_by_their_samples():
    found = curves([one_round(0, {0: 3.0, 2: 4.0}), one_round(1, {}, failed=[0, 2])])
    assert found["train/loss"] == [[1, (3.0 + 3 * 4.0) / 4]]


def test_models_are_told_apart_where_there_are_several():
    one = {"global": {"top1": 50.0}}
    assert curves([one_round(0, {0: 1.0}, by_model=one, metrics={"top1": 50.0})])["top1"] == [[1, 50.0]]
    two = {"client 0": {"top1": 40.0}, "client 1": {"top1": 60.0}}
    found = curves([one_round(4, {0: 1.0}, by_model=two, metrics={"top1": 50.0})])
    assert found["top1"] == [[5, 50.0]] and found["top1 @ client 0"] == [[5, 40.0]]


def test_the_headline_of_the_lora_gap_is_the_largest_of_the_rounds():
    """That of the last round would say nothing: there the rate has fallen to next to nothing."""
    rounds = [one_round(number, {0: 1.0}, gap=gap) for number, gap in enumerate([0.1, 0.3, None, 1e-6])]
    found = summary(FederatedResult({}, {}, {}, rounds, 1.0), {"sizes": [1]})
    assert found["lora_gap_largest"] == 0.3 and "lora_gap" not in found
    assert "lora_gap_largest" not in summary(FederatedResult({}, {}, {}, rounds[2:3], 1.0), {"sizes": [1]})


class Sink:
    """A logger that remembers."""

    def __init__(self):
        self.rows = []

    def log_metrics(self, metrics, step):
        self.rows.append((step, metrics))

    def save(self):
        pass


def test_the_loggers_see_every_round_with_its_clients(capsys):
    sink = Sink()
    watch = Watch("toy", 2, 3, [sink])
    for number in range(2):
        watch(one_round(number, {0: 3.0, 2: 4.0}, failed=[1], metrics={"test/knn1": 50.0 + number}))
    assert [step for step, _ in sink.rows] == [0, 1]
    row = sink.rows[1][1]
    assert row["train/loss @ client 2"] == 4.0 and row["failed clients"] == 1 and row["bytes up"] == 20
    assert row["train/loss"] == 3.75 and row["test/knn1"] == 51.0
    assert "round 2/2" in capsys.readouterr().out


def test_drift_is_how_far_a_client_went(tmp_path):
    orchestrator = federation()
    start = orchestrator.adapter.extract()
    came_back = []
    orchestrator.run(on_client=came_back.append)
    assert [outcome["client"] for outcome in came_back] == [0, 1, 2, 3]
    fresh = federation()
    for outcome in came_back:
        begun = fresh._begin()
        state = fresh.engine._client.run(fresh._task(begun, begun.shared, outcome["client"], 1.0)).state
        moved = sum((state[name].double() - start[name].double()).square().sum() for name in fresh.adapter.trained)
        assert outcome["drift"] == pytest.approx(float(moved) ** 0.5) and outcome["drift"] > 0
        fresh.adapter.load(start)
    one = one_round(0, {0: 3.0, 2: 4.0})
    for outcome, drift in zip(one["outcomes"], (1.0, 2.0), strict=True):
        outcome["drift"] = drift
    found = curves([one])
    assert found["adapter drift @ client 2"] == [[1, 2.0]] and found["adapter drift"] == [[1, 1.75]]


def test_in_a_terminal_rounds_and_clients_are_bars_and_failures_stay():
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    record = one_round(0, {0: 3.0, 2: 4.0}, failed=[1], metrics={"test/knn1": 50.0})
    with Watch("toy [bold]", 2, 3, [], console) as watch:
        for outcome in record["outcomes"]:
            watch.client(outcome)
        rounds, clients = watch._bars.tasks
        assert clients.completed == 3 and clients.description == "client 1  ClientTimeout"
        watch(record)
        assert rounds.completed == 1 and rounds.description == "toy [bold]: rounds  loss 3.750  knn1 50.000"
        assert clients.completed == 0
    assert "round 1: client 1 failed, ClientTimeout: late" in screen.getvalue()
    assert "toy [bold]: rounds" in screen.getvalue()
