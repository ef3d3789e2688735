"""Seed by seed: bfloat16 beside float32; the page says what the measurements say."""

import json
import re
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev, variance

import pytest
import torch
from scipy.stats import t as students_t
from toys import ToyMethod, toy_data, write_toy_stores

from benchmarks import precision
from benchmarks.precision import COMPARED, PROTOCOLS, InHalf, accuracies, interval, of_seed, overrides, summary, verdict
from lightning_modules.evaluation.embedding import Embedding, embed
from lightning_modules.evaluation.linear import LinearProbe
from lightning_modules.evaluation.measured import Measured
from lightning_modules.evaluation.subject import Subject
from lightning_modules.schedules import Constant

DOCS = Path(__file__).parents[1] / "docs"


def test_the_interval_is_that_of_student():
    mean, wide = interval([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5 and wide == pytest.approx(3.182446 * 1.2909944 / 2, abs=1e-5)  # t(.975, 3) s / sqrt(n)


def test_only_an_interval_within_the_bound_shows_it():
    assert verdict({"mean": -0.1, "half_width": 0.19}) == "within .3: shown"
    for mean, wide in (-0.1, 0.21), (0.0, 0.31), (-0.4, 0.0):
        assert verdict({"mean": mean, "half_width": wide}) == "within .3: not shown"


def test_differences_are_from_float32_of_the_same_seed():
    def row(seed: int, whole: float, embedded: float, trained: float) -> dict:
        names = ("float32", *COMPARED)
        return {"seed": seed} | {
            name: dict.fromkeys(PROTOCOLS, value) for name, value in zip(names, (whole, embedded, trained), strict=True)
        }

    found = summary([row(1, 60, 61, 58), row(2, 70, 71, 72)])
    for protocol in PROTOCOLS:
        assert found[COMPARED[0]][protocol] == {"mean": 1.0, "half_width": 0.0}
        assert found[COMPARED[1]][protocol]["mean"] == 0.0 and found[COMPARED[1]][protocol]["half_width"] > 10


def test_a_network_in_half_computes_in_bfloat16_and_gives_float32(tmp_path):
    write_toy_stores(tmp_path)
    module, seen = ToyMethod(), []
    module.encoder.register_forward_hook(lambda layer, given, out: seen.append((out.dtype, layer.training)))
    batch = next(iter(toy_data(tmp_path).ordered("test")))
    whole = module.eval().embed(batch)
    half = InHalf(module.train()).eval().to(torch.device("cpu")).embed(batch)
    assert seen == [(torch.float32, False), (torch.bfloat16, False)]
    assert half.dtype == torch.float32 and not torch.equal(half, whole)
    torch.testing.assert_close(half, whole, rtol=0.05, atol=0.05)


def test_the_two_trainings_of_a_seed_differ_in_their_precision_alone():
    whole, half = (overrides("raw", "mini", 3, precision) for precision in ("float32", "bfloat16"))
    assert whole[:-1] == half[:-1] and "seed=3" in whole
    assert (whole[-1], half[-1]) == ("trainer.precision=32-true", "trainer.precision=bf16-mixed")


def told(train: Embedding, test: Embedding) -> float:
    """A number of two embeddings that a rounded feature changes."""
    return train.vectors.double().square().sum().item() - test.vectors.double().sum().item()


class Told:
    """Stands for k-NN, whose ways of summing may put near ones in another order."""

    def measure(self, subject: Subject) -> Measured:
        train, test = subject.embedding("train"), subject.embedding("test")
        return Measured({"k1": told(train, test)}, {}, test)


def test_of_a_network_every_probe_is_trained_on_one_embedding_in_the_asked_precision(tmp_path, monkeypatch):
    write_toy_stores(tmp_path, clips=120)
    torch.manual_seed(0)
    data, module = toy_data(tmp_path), ToyMethod().eval()
    measures = {"knn": Told(), "linear": LinearProbe(5, 0.1, 16, Constant(), seed=7)}
    subject = Subject("", "key", tmp_path / "trained", tmp_path, data, 3, {}, lambda **_: data, lambda: module)
    monkeypatch.setattr(precision, "subject_of", lambda arguments, protocol: (subject, measures[protocol]))
    found = []
    for half, network in (False, module), (True, InHalf(module)):
        sides = [embed(network.embed, data.ordered(side), torch.device("cpu"), "") for side in ("train", "test")]
        by_seed = {seed: replace(measures["linear"], seed=seed).fit(*sides, 3)[0][-1] for seed in (1, 2, 3, 7)}
        result = accuracies([], half, [1, 2, 3])
        assert result["linear_probes"] == [by_seed[seed] for seed in (1, 2, 3)]
        assert result["linear"] == pytest.approx(sum(by_seed[seed] for seed in (1, 2, 3)) / 3)
        assert result["knn"] == told(*sides)
        assert accuracies([], half, [])["linear_probes"] == [by_seed[7]]  # without probes the run's own seed
        found.append(result)
    assert found[0]["knn"] != found[1]["knn"]


def test_embedded_only_trains_nothing_in_bfloat16(monkeypatch):
    def measured(arguments: list[str], half: bool, probes: list[int]) -> dict:
        return {"of": (arguments[-1], half, probes)}

    networks: list[str] = []
    monkeypatch.setattr(precision, "trained", lambda arguments: networks.append(arguments[-1]))
    monkeypatch.setattr(precision, "accuracies", measured)
    whole, half = ("trainer.precision=32-true", "trainer.precision=bf16-mixed")
    embedded = {"seed": 3, "float32": {"of": (whole, False, [1, 2])}, COMPARED[0]: {"of": (whole, True, [1, 2])}}
    assert of_seed("raw", "mini", 3, [1, 2], embedded_only=True) == embedded and networks == [whole]
    both = of_seed("raw", "mini", 3, [1, 2], embedded_only=False)
    assert both == embedded | {COMPARED[1]: {"of": (half, False, [1, 2])}} and networks[1:] == [whole, half]


def test_the_summary_is_of_what_was_compared():
    rows = [{"float32": dict.fromkeys(PROTOCOLS, 50), COMPARED[0]: dict.fromkeys(PROTOCOLS, 51)}] * 2
    assert summary(rows) == {COMPARED[0]: {name: {"mean": 1.0, "half_width": 0.0} for name in PROTOCOLS}}


def test_each_measurement_has_a_file_of_its_own():
    files = [str(precision.asked_for(["raw", *words]).out) for words in ([], ["--embedded-only"], ["--out", "x"])]
    assert files == ["docs/results/bf16_seeds.json", "docs/results/bf16_embedded.json", "x"]


RECORDS = DOCS / "results"
TOLD = {name: json.loads((RECORDS / f"bf16_{name}.json").read_text()) for name in ("seeds", "embedded")}


@pytest.mark.parametrize("name", TOLD)
def test_a_record_sums_up_its_rows(name):
    assert TOLD[name]["summary"] == summary(TOLD[name]["seeds"])


def test_the_record_of_the_embedding_is_of_one_clean_commit_and_of_the_same_probes_for_both():
    told = TOLD["embedded"]
    assert re.fullmatch("[0-9a-f]{40}", told["commit"]) and "--embedded-only" in told["command"]
    for words, found in (
        ("--probes", told["probes"]),
        ("--seeds", [row["seed"] for row in told["seeds"]]),
    ):
        assert f"{words} {' '.join(map(str, found))}" in told["command"] and len(set(found)) == len(found)
    for row in told["seeds"]:
        for result in (row["float32"], row[COMPARED[0]]):
            assert len(result["linear_probes"]) == len(told["probes"])
            assert result["linear"] == pytest.approx(fmean(result["linear_probes"]))


def test_the_page_says_what_was_measured():
    page = (DOCS / "performance.md").read_text()
    rows = re.findall(r"^\| (embedded|trained) in bfloat16 \| (\d+) \| (.*) \| (.*) \|$", page, flags=re.MULTILINE)
    assert [(f"{row[0]} in bfloat16") for row in rows] == list(COMPARED)
    for (what, count, *numbers), told in zip(rows, (TOLD["embedded"], TOLD["seeds"]), strict=True):
        assert int(count) == len(told["seeds"])
        points = told["summary"][f"{what} in bfloat16"]
        for number, of in zip(numbers, (points[name] for name in PROTOCOLS), strict=True):
            assert number == f"{of['mean']:+.2f} ± {of['half_width']:.2f}, {verdict(of)}".replace("-", "−")
    of = TOLD["seeds"]["summary"][COMPARED[0]]
    before = [f"{of[name]['mean']:+.2f} ± {of[name]['half_width']:.2f}".replace("-", "−") for name in PROTOCOLS]
    assert "bfloat16: 1-NN {}, linear {}.".format(*before) in " ".join(page.split())


def test_the_page_says_how_the_embedded_differences_spread():
    told = TOLD["embedded"]
    text = " ".join((DOCS / "performance.md").read_text().split())
    by_protocol = {
        name: {row["seed"]: row[COMPARED[0]][name] - row["float32"][name] for row in told["seeds"]}
        for name in PROTOCOLS
    }
    pilot = [stdev(by_protocol[name][seed] for seed in (1, 2, 3, 11)) for name in PROTOCOLS]
    assert "standard deviation of {:.2f} (1-NN) and {:.2f} points (linear)".format(*pilot) in text
    expected = students_t.ppf(0.975, 23) * pilot[1] / 24**0.5
    assert f"24 seeds would give ± {expected:.2f}".replace("0.", ".") in text
    probes = [
        variance(half - whole for whole, half in zip(*(row[at]["linear_probes"] for at in names), strict=True))
        for names in [("float32", COMPARED[0])]
        for row in told["seeds"]
    ]
    within, between = fmean(probes) ** 0.5, stdev(by_protocol["linear"].values())
    assert f"standard deviation of {within:.2f} points, the networks' means one of {between:.2f}" in text
    assert told["processor"] == "AVX2" and "AVX2 alone" in text and f"and {len(told['seeds'])} were trained" in text
