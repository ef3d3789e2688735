"""Several processes compute what one would (design contract 4), and train.py knows how to start them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import test_chain
import torch
import toy_mllm
import toys_mllm
from hydra import compose, initialize_config_dir
from lightning_fabric.utilities.data import _set_sampler_epoch
from torch import nn
from torch.utils.data import DataLoader
from toys import write_toy_stores
from two_processes import CLIENTS, METHODS, client, run_client, train, train_mllm

import eval as evaluation
import federate
import prepare
import train as train_door
from datamodules.errors import InputError
from datamodules.miniature import skeletons
from datamodules.skeleton import EpochSampler
from federated.client import Client
from federated.data import PartitionedData, own_share
from federated.device import ALONE, Team
from federated.ledger import Ledger
from federated.making import configured_team
from lightning_modules.synced_norm import SyncedStatistics
from tracking import records

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
    toys_mllm.llava(out / "llava")
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
    """Losses, gradients of every step, weights, banks, key encoders and k-NN: float64, on either rank.

    To 1e-10 with batch norm in eval mode. Its statistics over two processes are sums in another order, and the attack's
    sign-like step makes the last digits of a gradient larger: to 1e-8 in training mode.
    """
    one, tolerance = train(name, stores, tmp_path, frozen), 1e-10 if frozen else 1e-8
    for two in (rank[f"{name} {frozen}"] for rank in pair):
        assert apart(one["state"], two["state"]) < tolerance
        assert len(one["gradients"]) == len(two["gradients"]) > 0
        assert all(apart(*step) < tolerance for step in zip(one["gradients"], two["gradients"], strict=True))
        for mine, theirs in zip(one["epochs"], two["epochs"], strict=True):
            assert mine == pytest.approx(theirs, abs=tolerance)
            assert "test/knn1" in mine


@pytest.mark.slow
@pytest.mark.parametrize("name", list(METHODS))
def test_all_processes_hold_the_same_state(name, pair):
    """Bit by bit, with nothing broadcast after the last step."""
    for frozen in (False, True):
        one, other = (rank[f"{name} {frozen}"]["state"] for rank in pair)
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_two_processes_weigh_every_answer_token_of_a_multimodal_model_alike(pair, tmp_path):
    """Gradients and the logged loss, though one process holds more tokens, and pictures where the other has none."""
    one = train_mllm(toys_mllm.llava(tmp_path / "llava"), devices=1)
    for two in (rank["mllm"] for rank in pair):
        assert all(apart(*step) < 1e-10 for step in zip(one["gradients"], two["gradients"], strict=True))
        assert two["epochs"] == [pytest.approx(epoch, abs=1e-6) for epoch in one["epochs"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CLIENTS))
def test_a_client_on_two_processes_is_that_of_one(name, pair, tmp_path):
    """Accumulated, clipped, checkpointed, with a projector that texts leave out, held back by a term: float64, 1e-10.

    Of bf16-mixed the change agrees to a fiftieth: bfloat16 rounds each process's part of a gradient to 1 in 256.
    """
    one = run_client(name, toys_mllm.llava(tmp_path / "llava"))
    for two in (rank[f"client {name}"] for rank in pair):
        assert (two["steps"], two["error"]) == (one["steps"], one["error"])
        if one["error"]:
            assert one["error"] == "NotFiniteError" and name == "spoilt"
        elif name == "bf16-mixed":
            start = client(name, tmp_path / "llava")._adapter.extract()
            moved, apart_by = (
                torch.cat([(state[key] - other[key]).flatten() for key in start]).norm()
                for state, other in ((one["state"], start), (one["state"], two["state"]))
            )
            assert apart_by < 0.02 * moved
        else:
            assert apart(one["state"], two["state"]) < 1e-10
            assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-6)


@pytest.mark.slow
def test_what_fails_in_one_process_of_a_team_ends_all(stores, tmp_path):
    """In the middle of a step, where a failed client would leave the other process waiting."""
    toys_mllm.llava(tmp_path / "llava")
    line = [*TORCHRUN, str(Path(__file__).parent / "two_processes.py"), str(stores), str(tmp_path), "break a client"]
    ended = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=120)
    assert ended.returncode != 0
    assert "client 0 in process 1 of 2 failed, RuntimeError: no memory left" in ended.stderr


@pytest.mark.slow
def test_two_processes_resume_what_they_began(stores, pair, tmp_path):
    one = train("a2mc", stores, tmp_path, frozen=True)
    assert all(apart(one["state"], rank["resumed"]["state"]) < 1e-10 for rank in pair)
    assert all(len(rank["resumed"]["gradients"]) * 2 == len(one["gradients"]) for rank in pair)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_fails_ends_the_other(rank, stores, tmp_path):
    """Started by Lightning itself: nobody waits for ever, the cause is told."""
    script = Path(__file__).parent / "two_processes.py"
    line = [sys.executable, str(script), str(stores), str(tmp_path), f"fail={rank}"]
    ended = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=120)
    assert ended.returncode != 0
    assert f"process {rank} breaks down" in ended.stderr


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A function: overrides for train.py on a prepared miniature, its runs and records in a folder of their own."""
    root = tmp_path_factory.mktemp("root")
    skeletons.write_ntu(root / "raw", **test_chain.FEW)
    prepare.main.run(test_chain.config("prepare", root, "data=ntu60", f"raw={root / 'raw'}", "workers=1"))
    small = [override.removeprefix("+") for override in test_chain.SMALL]
    common = [*small, f"raw={root}/raw", f"paths.root={root}", "trainer.precision=64-true"]
    return lambda name: [*common, f"paths.runs={root}/{name}/runs", f"paths.records={root}/{name}/records"], root


TWO = ["trainer=ddp", "trainer.devices=2"]
WATCHED = ["logger=wandb", "logger.mode=offline"]


def watchers(folder: Path) -> int:
    """W&B runs below `folder`."""
    return len(list(folder.rglob("offline-run-*")))


@pytest.mark.slow
@pytest.mark.parametrize("start", [[sys.executable], TORCHRUN], ids=["lightning", "torchrun"])
def test_training_on_two_processes_is_the_run_of_one(start, settings, request):
    """From the command line, batch statistics and all: the same key, one record, its numbers to 1e-8, one watcher."""
    overrides, root = settings
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        train_door.main.run(compose("train", overrides("one")))
    line = [*start, str(ROOT / "train.py"), *overrides(request.node.callspec.id), *TWO, *WATCHED]
    for said in ("trained: ", "found: "):  # launched again, it finds what is there
        ended = subprocess.run(line, env=environment(), cwd=root, capture_output=True, text=True, timeout=600)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count(said) == 1
        assert ended.stdout.count("test/knn1: ") == 1  # what the door prints at its end
    (one,), (two,) = (records.find(root / name / "records") for name in ("one", request.node.callspec.id))
    assert one.key == two.key and watchers(root / request.node.callspec.id) == 1
    assert one.metrics == pytest.approx(two.metrics, rel=1e-8)
    assert one.best == pytest.approx(two.best, rel=1e-8)


def federations(root: Path, overrides) -> dict[str, list[str]]:
    """A skeleton method, and a multimodal LLM whose clients accumulate, forget activations and train two epochs."""
    toy_mllm.write_model(root / "model")
    more = ["federated/partition=iid", "trainer.precision=32-true"]
    memes = ["federated.epochs=2", "trainer.accumulate_grad_batches=2", "++method.gradient_checkpointing=true"]
    return {
        "sds_cl": ["experiment=federated/sds_cl_by_camera", *overrides[1:], *more],
        "mllm": [*toy_mllm.overrides(root), *toy_mllm.TWO_ROUNDS, *memes, *overrides[-2:]],
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sds_cl", "mllm"])
def test_clients_on_two_processes_are_those_of_one(kind, settings):
    """federate.py under torchrun: every client on both, to 1e-5; one ledger, one record, one watcher, the same key."""
    overrides, root = settings
    more = ["batch_size=4", "federated.drop_last=true", "client_runs=false"]
    common = [*federations(root, overrides(f"alone-{kind}"))[kind], *more]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        one = federate.main.run(compose("federate", common))
    there = [override.replace(f"/alone-{kind}/", f"/team-{kind}/") for override in common]
    line = [*TORCHRUN, str(ROOT / "federate.py"), *there, *TWO, *WATCHED]
    for said in ("federated: ", "found: "):
        ended = subprocess.run(line, env=environment(), cwd=root, capture_output=True, text=True, timeout=900)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count(said) == 1 and ended.stdout.count("bytes_up: ") == 1
    (record,) = records.find(root / f"team-{kind}/records")
    assert record.key == one["key"] and watchers(root / f"team-{kind}") == 1
    (team,) = (root / f"team-{kind}/runs").glob("*/ledger.safetensors")
    states = [Ledger(path, one["key"]).resume().shared for path in (Path(one["folder"]) / team.name, team)]
    torch.testing.assert_close(*states, rtol=1e-5, atol=1e-5)


def test_a_federation_on_several_devices_says_how_it_is_started():
    with pytest.raises(InputError, match=r"torchrun --nproc-per-node 2 federate\.py"):
        configured_team({"trainer": {"devices": 2}})
    assert configured_team({"trainer": {"devices": 1}}) == ALONE


def test_processes_that_nobody_asked_for_are_refused(monkeypatch):
    """Each would train all, and all write."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"found trainer\.devices=1 on 1 machine\(s\) and 2 process"):
        configured_team({"trainer": {"devices": 1}})


def test_a_process_of_a_team_takes_no_time_limit(tmp_path):
    with pytest.raises(InputError, match="one would stop alone"):
        Client(nn.Linear(1, 1), None, None, time_limit=1.0, team=Team(0, 2))


def test_shares_are_shuffled_anew_in_every_epoch():
    """By whoever shuffles the batches of one: Lightning tells it the epoch."""
    sampler = EpochSampler(16, 4, seed=3)
    loader = DataLoader(torch.arange(16), 4, sampler=sampler)
    shares = [own_share(loader, rank, 2) for rank in range(2)]
    orders = []
    for epoch in (0, 1):
        _set_sampler_epoch(shares[0], epoch)
        orders.append([row for parts in zip(*shares, strict=True) for row in torch.cat(parts).tolist()])
        assert orders[-1] == list(EpochSampler(16, 4, seed=3, epoch=epoch))
    assert orders[0] != orders[1]


def test_processes_share_out_the_batches_of_one():
    data = PartitionedData(torch.arange(22), [np.arange(22)], batch_size=4, drop_last=True)
    shares = [list(own_share(data.train_dataloader(0, 7), rank, 2)) for rank in range(2)]
    whole = list(data.train_dataloader(0, 7))
    assert len(whole) == 5
    assert all(torch.equal(batch, torch.cat(parts)) for batch, *parts in zip(whole, *shares, strict=True))
    ragged = PartitionedData(torch.arange(21), [np.arange(21)], batch_size=4)
    with pytest.raises(InputError, match="found one of 1 for 2 processes: set federated"):
        list(own_share(ragged.train_dataloader(0, 7), 0, 2))


def test_evaluation_says_that_it_wants_one_device():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("eval", ["trainer=ddp"])
    with pytest.raises(InputError, match="leave trainer=ddp out"):
        evaluation.main.run(config)


@pytest.fixture
def alone(tmp_path):
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 5), (3, 4, 5, 2)])
@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}])
def test_synced_batch_norm_is_batch_norm(shape, options, alone):
    make = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    plain, synced = (nn.Sequential(make(4, **options)).double() for _ in range(2))
    plugin = SyncedStatistics()
    plugin.apply(synced)
    source = torch.Generator().manual_seed(0)
    for _ in range(3):
        x, slope = (torch.randn(shape, generator=source, dtype=torch.float64) + 3 for _ in range(2))
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        outputs = [layer(part) for layer, part in zip((plain, synced), inputs, strict=True)]
        torch.testing.assert_close(*outputs)
        for output in outputs:
            output.backward(slope)
        torch.testing.assert_close(*(part.grad for part in inputs))
    for one, other in zip(plain.parameters(), synced.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    plugin.revert(synced)
    assert type(synced[0]) is make
    torch.testing.assert_close(plain.state_dict(), synced.state_dict())
    torch.testing.assert_close(plain.eval()(x), synced.eval()(x))


def test_synced_batch_norm_refuses_one_value_per_channel(alone):
    """Its unbiased variance is 0 / 0: the layer stays as it was, and works once there are two."""
    layer = nn.Sequential(nn.BatchNorm1d(4))
    SyncedStatistics().apply(layer)
    with pytest.raises(InputError, match=r"more than one value per channel in training, found one of shape \(1, 4\)"):
        layer(torch.randn(1, 4))
    assert torch.equal(layer[0].running_var, torch.ones(4))
    layer(torch.randn(2, 4))
    assert layer[0].running_var.isfinite().all()


def test_synced_batch_norm_keeps_half_precision(alone):
    layer = nn.Sequential(nn.BatchNorm2d(4))
    SyncedStatistics().apply(layer)
    x = torch.randn(3, 4, 5, 2, dtype=torch.bfloat16, requires_grad=True)
    out = layer(x)
    out.float().square().sum().backward()
    assert out.dtype == x.grad.dtype == torch.bfloat16
    assert layer[0].running_mean.dtype == torch.float32
