"""Seed by seed: bfloat16 beside float32; the page says what the measurements say."""

import json
import re
from pathlib import Path

import pytest
import torch
from toys import ToyMethod, toy_data, write_toy_stores

from benchmarks.precision import COMPARED, PROTOCOLS, InHalf, interval, overrides, summary, verdict

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


def test_the_page_says_what_was_measured():
    told = json.loads((DOCS / "results" / "bf16_seeds.json").read_text())
    assert told["summary"] == summary(told["seeds"])
    page = (DOCS / "performance.md").read_text()
    rows = re.findall(r"^\| (embedded|trained) in bfloat16 \| (.*) \| (.*) \|$", page, flags=re.MULTILINE)
    assert [f"{row[0]} in bfloat16" for row in rows] == list(COMPARED)
    for what, *numbers in rows:
        points = told["summary"][f"{what} in bfloat16"]
        for number, of in zip(numbers, (points[name] for name in PROTOCOLS), strict=True):
            assert number == f"{of['mean']:+.2f} ± {of['half_width']:.2f}, {verdict(of)}".replace("-", "−")
    assert f"over {len(told['seeds'])} seeds" in " ".join(page.split())
