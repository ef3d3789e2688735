"""Client-level privacy: the bound on one client's influence, the noise, and the accountant against an integral."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from scipy import integrate, stats
from toy_federation import Toy, federation, same

from datamodules.errors import InputError
from datamodules.partition import IID, manifest
from federated.adapter import Adapter
from federated.curves import values
from federated.ledger import Ledger, Progress
from federated.privacy import ClientLevelPrivacy, gaussian_delta, gaussian_epsilon, public
from federated.strategies.fedavgm import FedAvgM
from federated.strategies.local import Local
from federated.watch import loss_of
from lightning_modules.group_norm import by_groups
from tracking import records
from tracking.build import build

ROOT = Path(__file__).parents[1]
PAGE = " ".join((ROOT / "docs" / "deployment.md").read_text().split())


def states(seed: int, size: float = 1.0) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {name: size * torch.randn(shape, generator=source) for name, shape in (("a", (3, 4)), ("b", (5,)))}


def norm(state) -> float:
    return torch.cat([part.flatten() for part in state.values()]).norm().item()


def test_a_change_is_no_longer_than_the_clip_and_keeps_its_direction():
    begin = states(0)
    rule = ClientLevelPrivacy(clip=0.5, noise=1.0)
    bounded = rule.bounded(states(1), begin)
    assert norm(bounded) == pytest.approx(0.5)
    change = {name: states(1)[name].double() - begin[name].double() for name in begin}
    assert torch.allclose(bounded["a"] / bounded["a"][0, 0], change["a"] / change["a"][0, 0])
    near = {name: tensor + 1e-3 for name, tensor in begin.items()}
    assert norm(rule.bounded(near, begin)) == pytest.approx(1e-3 * math.sqrt(17), rel=1e-4)
    assert norm(rule.bounded(begin, begin)) == 0


def test_one_client_moves_the_sum_by_no_more_than_the_clip():
    """Whatever it sends: the sensitivity that the noise is made for."""
    begin, rule = states(0), ClientLevelPrivacy(clip=0.7, noise=1.0)
    for size in (1e-4, 1.0, 1e6):
        assert norm(rule.bounded(states(2, size), begin)) <= 0.7 * (1 + 1e-12)


def test_a_client_replaced_by_another_moves_it_twice_as_far():
    """So its epsilon is that of half the noise: mu is sensitivity by noise."""
    begin, rule = states(0), ClientLevelPrivacy(clip=0.7, noise=1.0)
    there = rule.bounded({name: begin[name] + 9 for name in begin}, begin)
    back = rule.bounded({name: begin[name] - 9 for name in begin}, begin)
    assert norm({name: there[name] - back[name] for name in begin}) == pytest.approx(2 * 0.7)
    half = ClientLevelPrivacy(clip=0.7, noise=0.5).epsilon([[0]])
    assert half == pytest.approx(gaussian_epsilon(2.0, 1e-5)) and half > 2 * rule.epsilon([[0]])


@pytest.mark.parametrize(("noise", "chosen"), [(2.0, 4), (0.01, 4), (2.0, 1000)])
def test_the_noise_is_as_long_as_was_forecast(noise, chosen):
    numbers = 10_000
    rule = ClientLevelPrivacy(clip=0.5, noise=noise)
    begin = {"a": torch.zeros(100, 50), "b": torch.zeros(5000)}
    nothing = {name: tensor.double() for name, tensor in begin.items()}
    found = norm(rule.released(nothing, chosen, begin, chosen)) / 0.5
    assert found == pytest.approx(rule.noise_norm(numbers, chosen), rel=0.05)
    line = rule.forecast(numbers, chosen)
    assert f"{numbers:,} trained numbers and {chosen} clients" in line and "\n" not in line
    assert ("WARNING" in line and "LoRA pairs" in line) == (found > 1)


def test_of_who_holds_what_neither_labels_nor_their_skew_are_told():
    whole = manifest(IID(2), [np.arange(2), np.arange(2, 4)], [0, 0, 1, 1])
    assert {"label_counts", "labels", "skew", "digest"} < whole.keys()
    assert public(whole) == {"kind": "IID", "settings": whole["settings"], "sizes": [2, 2]}


def test_the_noise_is_gaussian_with_the_clips_spread_and_never_the_same():
    begin = {"a": torch.zeros(100_000)}
    total = {"a": torch.zeros(100_000, dtype=torch.float64)}
    rule = ClientLevelPrivacy(clip=0.5, noise=2.0)
    one, other = (rule.released(total, 4, begin, chosen=4)["a"] for _ in range(2))
    assert not torch.equal(one, other)
    assert one.std().item() == pytest.approx(2.0 * 0.5 / 4, rel=0.02)
    assert stats.kstest(one.numpy() * 4, "norm").pvalue > 1e-4


def slow_delta(mu: float, epsilon: float) -> float:
    """E[(1 - exp(epsilon - L))+] over the privacy loss L ~ N(mu^2 / 2, mu^2), the definition of the tight delta."""
    density = stats.norm(mu**2 / 2, mu).pdf
    upper = mu**2 / 2 + 40 * mu
    if epsilon >= upper:
        return 0.0
    value, _ = integrate.quad(lambda loss: -math.expm1(epsilon - loss) * density(loss), epsilon, upper, limit=500)
    return value


@pytest.mark.parametrize("mu", [0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.2, 1.0, 4.0])
def test_the_accountant_is_the_integral(mu, epsilon):
    assert gaussian_delta(mu, epsilon) == pytest.approx(slow_delta(mu, epsilon), rel=1e-5, abs=1e-11)


def test_epsilon_is_where_delta_is_reached():
    for mu in (0.01, 0.3, 1.0, 5.0, 40.0):
        epsilon = gaussian_epsilon(mu, 1e-5)
        assert gaussian_delta(mu, epsilon) <= 1e-5
        assert epsilon == 0 or gaussian_delta(mu, epsilon * 0.999) > 1e-5


def test_epsilon_is_that_of_the_client_that_took_part_most_often():
    rule = ClientLevelPrivacy(clip=1.0, noise=2.0)
    assert rule.epsilon([[0, 1], [1, 2], [1]]) == pytest.approx(gaussian_epsilon(math.sqrt(3) / 2, 1e-5))
    assert rule.epsilon([]) == 0
    assert ClientLevelPrivacy(clip=1.0, noise=0.0).epsilon([[0]]) == math.inf


def grouped() -> Toy:
    """The toy without batch norm."""
    module = Toy()
    by_groups(module, 4)
    return module


def private(rule, **options):
    return federation(**({"module": grouped(), "evaluate": None} | options), privacy=rule)


def test_without_noise_and_with_a_long_clip_it_is_the_plain_mean_of_the_clients():
    equal = np.split(np.arange(60), 4)
    loose = private(ClientLevelPrivacy(clip=1e6, noise=0.0), pieces=equal, rounds=2).run().models["global"]
    plain = private(None, pieces=equal, rounds=2).run().models["global"]
    assert all(torch.allclose(loose[name], plain[name], atol=1e-6) for name in plain)


def test_a_client_that_fails_is_one_that_changes_nothing():
    begin, rule = states(0), ClientLevelPrivacy(clip=1.0, noise=0.0)
    change = rule.bounded(states(1), begin)
    released = rule.released(change, 1, begin, chosen=4)  # the mean of the one that came back
    assert all(torch.allclose(released[name], begin[name].double() + change[name] / 4) for name in begin)


def test_a_run_tells_its_epsilon_and_changes_with_the_noise():
    rule = ClientLevelPrivacy(clip=0.1, noise=1.0)
    one, other = (private(rule, rounds=2).run() for _ in range(2))
    assert one.records[1]["epsilon"] == pytest.approx(gaussian_epsilon(math.sqrt(2), 1e-5))
    assert one.records[0]["epsilon"] < one.records[1]["epsilon"]
    assert not same(one.models["global"], other.models["global"])
    assert one.records[0]["lora_gap"] is None


def held(progress: Progress) -> dict[str, torch.Tensor]:
    """Every number that the ledger keeps, by part and name, and what the records tell of clients."""
    parts = {"shared": progress.shared, "fresh": progress.fresh, "memory": progress.memory} | progress.personal
    return {f"{part}/{name}": tensor for part, state in parts.items() for name, tensor in state.items()}


def test_nothing_that_is_kept_or_released_comes_from_a_client_but_through_the_noise(tmp_path):
    """With noise that is known, and so small a clip that the clients' changes vanish, all is as if nobody trained."""

    class Known(ClientLevelPrivacy):
        def _noise(self, like, source):
            return torch.ones_like(like, dtype=torch.float64)

    module, ledger = grouped(), Ledger(tmp_path / "ledger.safetensors", "run")
    first = Adapter(module).extract()
    result = private(Known(1e-12, 1.0), module=module, ledger=ledger, strategy=FedAvgM(0.9), rounds=1).run()
    kept = held(ledger.resume())
    assert {name.split("/", 1)[0] for name in kept} == {"shared", "memory"}
    for name, begun in first.items():
        expected = begun.double() + 0.25  # the noise by the clients chosen, as FedAvgM's first step goes
        torch.testing.assert_close(kept[f"shared/{name}"].double(), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(kept[f"memory/m/{name}"].double(), expected - begun, rtol=0, atol=1e-6)
    assert result.models.keys() == {"global"} and same(result.models["global"], ledger.resume().shared)


def test_what_clients_measured_is_not_recorded():
    """A loss is a function of a client's data and gets no noise."""
    shown = []
    record = private(ClientLevelPrivacy(0.1, 1.0)).run(on_client=shown.append).records[0]
    told = {"client", "num_samples", "steps", "metrics", "seconds"}
    for outcome in [*record["outcomes"], *shown]:
        assert outcome.keys() == told and outcome["metrics"] == {}
    assert loss_of(record) == {} and not any("loss" in name for name in values(record))
    assert loss_of(private(None).run().records[0]).keys() == {"train/loss"}


@pytest.mark.parametrize("kind", [KeyError, InputError])
def test_what_an_error_quotes_is_not_recorded(kind, caplog):
    """Whoever wrote the code: ours names lines of files too. The server, which is trusted, has it in its log."""
    module, shown = grouped(), []

    def quoting(batch, batch_idx):
        raise kind("patient 17")

    module.training_step = quoting
    rule = ClientLevelPrivacy(0.1, 1.0)
    record = private(rule, module=module, max_failed=1.0).run(on_client=shown.append).records[0]
    assert {outcome["error"] for outcome in record["outcomes"]} == {kind.__name__}
    assert "patient" not in str(record) + str(shown)
    told = [entry.getMessage() for entry in caplog.records if entry.name == "federated.orchestrator"]
    assert sum("patient 17" in line for line in told) == 4


@pytest.mark.parametrize("local_buffers", [False, True])
def test_batch_norm_cannot_be_private(local_buffers):
    """Shared or local: local ones would lie on the server, and in the clients' checkpoints, without noise."""
    module = Toy()
    adapter = Adapter(module, local_buffers=local_buffers)
    with pytest.raises(InputError, match=r"found 2 buffers \('net.1.running_mean'\): .*method.norm_groups"):
        federation(module=module, adapter=adapter, privacy=ClientLevelPrivacy(1.0, 1.0))


@pytest.mark.parametrize("local_buffers", [False, True])
def test_a_carried_key_encoder_cannot_be_private(local_buffers):
    """Whatever happens to the buffers."""
    module = Toy()
    module.net[0].requires_grad_(False)
    adapter = Adapter(module, carry=["net.0."], local_buffers=local_buffers)
    with pytest.raises(InputError, match=r"carried without gradient \('net.0.bias'\): take a method without .*carry"):
        federation(module=module, adapter=adapter, privacy=ClientLevelPrivacy(1.0, 1.0))


def test_parameters_of_each_clients_own_cannot_be_private():
    with pytest.raises(
        InputError, match="found 6 parameters that each client keeps .*: take a federated/strategy that"
    ):
        private(ClientLevelPrivacy(1.0, 1.0), strategy=Local())


@pytest.mark.parametrize("wrong", [{"clip": 0}, {"noise": -1}, {"delta": 0}, {"delta": 1}])
def test_what_is_no_setting_is_refused(wrong):
    with pytest.raises(InputError, match="privacy: expected clip"):
        ClientLevelPrivacy(**({"clip": 1.0, "noise": 1.0} | wrong))


def norms_of_sds_cl() -> list[tuple[int, int]]:
    """Trained numbers by groups, and the noise's norm in clips with the three cameras of its preset, at either size."""
    found = []
    for scale in ("published", "mini"):
        chosen = ["experiment=federated/sds_cl_by_camera", f"scale={scale}", "method.norm_groups=8"]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            settings = compose("federate", [*chosen, "federated/privacy=client_level"])
        plain = OmegaConf.to_container(settings, resolve=True)
        numbers = sum(tensor.numel() for tensor in Adapter(build(plain["method"])).extract().values())
        found.append((numbers, round(build(plain["federated"]["privacy"]).noise_norm(numbers, 3))))
    return found


def test_the_page_tells_how_the_noise_grows_with_the_model():
    (numbers, norm), (few, shorter) = norms_of_sds_cl()
    assert f"d is {numbers:,} at published size and the noise {norm} times the longest change" in PAGE
    assert f"{few:,} and {shorter} times with `scale=mini`" in PAGE
    told = re.search(r"epsilon would be above ([\d,]+) and above ([\d,]+) for one round", PAGE)
    for d, least in zip((numbers, few), told.groups(), strict=True):
        as_long = ClientLevelPrivacy(clip=1.0, noise=3 / math.sqrt(d))
        assert as_long.noise_norm(d, 3) == pytest.approx(1)
        assert int(least.replace(",", "")) < as_long.epsilon([[0, 1, 2]])


def test_every_number_of_the_pages_table_is_that_of_its_record():
    cells = r"\| (noise 1|without privacy) \| ([\d.]*) ?\| ([\d. /]+) \| \[record\]\(results/privacy/([\w.-]+)\) \|"
    rows = re.findall(cells, PAGE)
    assert len(rows) == 2
    for name, epsilon, scores, file in rows:
        record = records.read(ROOT / "docs" / "results" / "privacy" / file)
        found, rule = record.metrics, record.config["federated"]["privacy"]
        assert record.data["miniature"] and found["failed"] == 0 and (rule is None) == (name == "without privacy")
        assert scores == f"{found['auc_hard']:.1f} / {found['auc_probability']:.1f}"
        assert epsilon == ("" if rule is None else f"{build(rule).epsilon([range(50)] * int(found['rounds'])):.1f}")
        assert found["bytes_up"] / 4 / found["rounds"] / found["clients"] == 3584
