"""Several processes compute what one would (design contract 4), and train.py knows how to start them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toys import write_toy_stores
from two_processes import METHODS, train

ROOT = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def environment(**more: str) -> dict[str, str]:
    """Of a process that starts processes: none of it may be a rank's, whoever runs the tests."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in ranks}
    return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return write_toy_stores(tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def pair(stores, tmp_path_factory):
    """What either of two processes computed, by method and whether batch norm was frozen."""
    out = tmp_path_factory.mktemp("pair")
    script = Path(__file__).parent / "two_processes.py"
    subprocess.run([*TORCHRUN, str(script), str(stores), str(out)], check=True, env=environment(), timeout=600)
    return [torch.load(out / f"rank{rank}.pt") for rank in (0, 1)]


def apart(one: dict, other: dict) -> float:
    """Largest difference of two dicts of tensors."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True], ids=["batch statistics", "frozen statistics"])
@pytest.mark.parametrize("name", list(METHODS))
def test_two_processes_compute_what_one_would(name, frozen, stores, pair, tmp_path):
    """Losses, gradients of every step, weights, banks, key encoders and k-NN: float64, to 1e-10, on either rank."""
    one = train(name, stores, tmp_path, frozen)
    for two in (rank[f"{name} {frozen}"] for rank in pair):
        assert apart(one["state"], two["state"]) < 1e-10
        assert len(one["gradients"]) == len(two["gradients"]) > 0
        assert all(apart(*step) < 1e-10 for step in zip(one["gradients"], two["gradients"], strict=True))
        for mine, theirs in zip(one["epochs"], two["epochs"], strict=True):
            assert mine == pytest.approx(theirs, abs=1e-10)
            assert "test/knn1" in mine


@pytest.mark.slow
@pytest.mark.parametrize("name", list(METHODS))
def test_all_processes_hold_the_same_state(name, pair):
    """Bit by bit, with nothing broadcast after the last step."""
    for frozen in (False, True):
        one, other = (rank[f"{name} {frozen}"]["state"] for rank in pair)
        assert all(torch.equal(one[key], other[key]) for key in one)
