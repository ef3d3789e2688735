"""federate.py on a tiny miniature: cameras as clients, found again, resumed, evaluated, refused."""

import shutil
from contextlib import redirect_stdout
from dataclasses import asdict
from io import StringIO
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from toy_federation import elsewhere, same

import eval as evaluation
import federate
import prepare
from datamodules.errors import InputError
from datamodules.miniature import skeletons
from federated.client import Client
from federated.ledger import Ledger
from federated.privacy import ClientLevelPrivacy
from lightning_modules.released_checkpoints import SDS_CL, released_name
from tracking import records

CONF = str(Path(__file__).parents[1] / "conf")
SMALL = [
    "scale=mini",
    "method.encoder.num_frames=8",
    "method.encoder.layers=[[8,8,4,2]]",
    "method.schedule.milestones=[]",
    "method.schedule.warmup=2",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    "batch_size=8",
    "knn_every=0",
]
PRIVATE = [
    f"federated.privacy.{name}" for name in ("_target_=federated.privacy.ClientLevelPrivacy", "clip=1", "noise=1")
]
BY_CAMERA = "experiment=federated/sds_cl_by_camera"


def config(door: str, root: Path, *overrides: str):
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(door, [f"paths.root={root}", f"paths.reports={root}/reports", *overrides])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Prepared: 60 clips of three cameras and one setup, half of them to train on."""
    root = tmp_path_factory.mktemp("root")
    skeletons.write_ntu(root / "raw", performers=(1, 3), replications=1, frames=(12, 20))
    prepare.main.run(config("prepare", root, "data=ntu60", f"raw={root / 'raw'}", "workers=1"))
    return root


def composed(root: Path, *overrides: str, door: str = "federate", preset: str = BY_CAMERA):
    return config(door, root, preset, *SMALL, f"raw={root / 'raw'}", *overrides)


@pytest.fixture(scope="module")
def settings(root):
    """Composing takes longer than training these models, so it is done once."""
    return composed(root)


def launched(settings, *overrides: str) -> dict:
    return federate.main.run(OmegaConf.merge(settings, OmegaConf.from_dotlist(list(overrides))))


def weights(result: dict, model: str = "global") -> dict:
    return torch.load(result["checkpoint"][model], weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def first(settings):
    """Result and output of an uninterrupted federation."""
    with redirect_stdout(StringIO()) as out:
        result = launched(settings)
    return result, out.getvalue()


@pytest.fixture
def uninterrupted(first):
    return first[0]


def test_cameras_become_clients_and_are_told_round_by_round(root, first):
    result, out = first
    assert "3 clients by camera: [10, 10, 10] samples, skew 0.00" in out
    assert "round 1/2  clients 0 1 2  loss " in out and "failed 0" in out and "round 2/2" in out
    (record,) = records.find(root / "records", key=result["key"])
    assert record.kind == "federated" and record.best == {} and record.setting == "FedAvg, 3 clients by camera"
    assert {**record.metrics, "rounds": 2, "clients": 3}.items() <= result.items()
    exchanged = weights(result)
    size = sum(tensor.nbytes for tensor in exchanged.values() if tensor.is_floating_point())
    assert record.metrics["bytes_up"] == record.metrics["bytes_down"] == 2 * 3 * size
    assert record.metrics["train/loss"] > 0
    progress = Ledger(Path(result["folder"]) / "ledger.safetensors", result["key"]).resume()
    # The method's warm-up of two epochs goes over the rounds, not over each client's only epoch.
    assert [kept["rate"] for kept in progress.records] == [0.5, 1.0]


def test_launching_twice_finds_the_result_and_fresh_runs_again(settings, uninterrupted, capsys):
    before = weights(uninterrupted)
    assert launched(settings) == uninterrupted
    assert "found" in capsys.readouterr().out
    assert launched(settings, "fresh=true") == uninterrupted
    assert "round 2/2" in capsys.readouterr().out
    assert same(weights(uninterrupted), before)


def test_a_federation_killed_in_its_second_round_ends_as_an_uninterrupted_one(
    settings, uninterrupted, tmp_path, monkeypatch, capsys
):
    runs, calls = Client.run, []

    def doomed(client, task):
        calls.append((task.round_number, task.client))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return runs(client, task)

    monkeypatch.setattr(Client, "run", doomed)
    with pytest.raises(KeyboardInterrupt):
        launched(settings, *elsewhere(tmp_path))
    assert not records.find(tmp_path / "records")
    resumed = launched(settings, *elsewhere(tmp_path))
    assert calls[5:] == [(1, 0), (1, 1), (1, 2)]
    assert "round 2/2" in capsys.readouterr().out
    assert same(weights(resumed), weights(uninterrupted))
    assert resumed["train/loss"] == uninterrupted["train/loss"]


def test_the_global_model_is_evaluated_as_any_checkpoint(root, settings, uninterrupted):
    overrides = [f"checkpoint={uninterrupted['checkpoint']['global']}", "protocol=knn"]
    rows = evaluation.main.run(composed(root, *overrides, door="eval", preset="experiment=ntu60/sds_cl_xsub"))
    assert rows["trained"] == uninterrupted["test/knn1"]
    start = federate.Run.of(settings).workload.module().state_dict()
    found = weights(uninterrupted)
    assert found.keys() == start.keys() and not same(found, start)


@pytest.mark.slow
def test_one_client_is_the_pooled_partition(root, settings):
    pooled = federate.main.run(composed(root, "federated/partition=pooled", "federated.rounds=1"))
    # All clips are of one setup.
    alone = launched(settings, "federated.partition.attribute=setups", "federated.rounds=1")
    assert pooled["clients"] == alone["clients"] == 1 and pooled["key"] != alone["key"]
    assert same(weights(pooled), weights(alone))


def test_batch_norm_stays_with_its_client_by_switch(settings):
    result = launched(settings, "federated.local_buffers=true", "federated.rounds=1")
    assert sorted(result["checkpoint"]) == ["client_0", "client_1", "client_2"]
    first, second = weights(result, "client_0"), weights(result, "client_1")
    different = {name for name in first if not torch.equal(first[name], second[name])}
    assert different and all("running_" in name for name in different)


def released_file(settings, folder: Path) -> tuple[Path, dict]:
    """Random weights of this network, in a file as the authors' code writes it, and by our names."""
    torch.manual_seed(8)
    ours = {
        name: torch.rand_like(value) if value.is_floating_point() else value
        for name, value in federate.Run.of(settings).workload.module().state_dict().items()
    }
    theirs = {released_name(name, SDS_CL.names): value for name, value in ours.items()}
    torch.save(theirs | {"fc.weight": torch.ones(60, 16)}, folder / "released.pt")
    torch.save({"state_dict": ours}, folder / "ours.ckpt")
    return folder / "released.pt", theirs


def test_weights_of_the_authors_are_evaluated_as_ours(root, settings, tmp_path):
    """The same numbers as the same weights in a file of ours, told apart in the record; what does not fit is named."""
    path, theirs = released_file(settings, tmp_path)

    def evaluated(checkpoint: Path) -> dict:
        overrides = [f"checkpoint={checkpoint}", "protocol=knn", *elsewhere(tmp_path)]
        return evaluation.main.run(composed(root, *overrides, door="eval", preset="experiment=ntu60/sds_cl_xsub"))

    assert evaluated(path) == evaluated(tmp_path / "ours.ckpt")
    rows = records.find(tmp_path / "records", kind="knn")
    assert sorted((row.variant, row.setting) for row in rows if not row.variant) == [
        ("", ""),
        ("", "the authors' weights"),
    ]
    torch.save(theirs | {"graph_layers.7.alphas": torch.ones(1)}, path)
    with pytest.raises(InputError, match=r"found keys unknown: graph_layers\.7\.alphas; build the encoder"):
        evaluated(path)


def test_what_a_private_federation_releases_went_through_the_noise(root):
    """One model, no statistics, no losses, epsilon; and the model is evaluated as any other."""
    private = ["federated/privacy=client_level", "method.norm_groups=4", "federated.rounds=1"]
    result = federate.main.run(composed(root, *private))
    (record,) = records.find(root / "records", key=result["key"])
    assert record.metrics["epsilon"] > 0 and "epsilon covers" in result
    assert not any("loss" in name or "drift" in name for name in [*record.metrics, *record.curves])
    assert list(result["checkpoint"]) == ["global"]
    progress = Ledger(Path(result["folder"]) / "ledger.safetensors", result["key"]).resume()
    assert not progress.personal and progress.shared.keys() == weights(result).keys()
    chosen = ["protocol=knn", "method.norm_groups=4", f"checkpoint={result['checkpoint']['global']}"]
    rows = evaluation.main.run(composed(root, *chosen, door="eval", preset="experiment=ntu60/sds_cl_xsub"))
    assert 0 <= rows["trained"] <= 100 and "test/knn1" not in {*result, *record.curves}
    assert result["test/knn1_leave_one_out"] == among_test_clips(composed(root, *private), weights(result))


def among_test_clips(settings, state: dict) -> float:
    """Per cent of the test clips whose nearest other one (cosine) is of their class, clip by clip."""
    workload = federate.Run.of(settings).workload
    module = workload.module().eval()
    module.load_state_dict(state)
    with torch.no_grad():
        parts = [(module.embed(batch).flatten(1), batch.labels) for batch in workload.data.ordered("test")]
    vectors, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    right = 0
    for row, vector in enumerate(vectors):
        closeness = torch.nn.functional.cosine_similarity(vectors, vector[None])
        closeness[row] = -2
        right += int(labels[closeness.argmax()] == labels[row])
    return pytest.approx(100 * right / len(labels))


def replaced(root: Path, folder: Path) -> Path:
    """`root` with as many other training clips of camera 1 in other classes, everything else as it was."""
    raw = Path(shutil.copytree(root / "raw", folder / "raw"))
    for path in raw.glob("*C001P001*.skeleton"):
        path.unlink()
    for number, path in enumerate(sorted(raw.glob("*C002P003*A*.skeleton"))[:10]):
        shutil.copy(path, raw / f"S001C001P001R{number + 2:03d}A001.skeleton")
    prepare.main.run(config("prepare", folder, "data=ntu60", f"raw={raw}", "workers=1"))
    return folder


def test_other_clips_of_a_private_client_change_nothing_but_through_the_noise(root, tmp_path, monkeypatch):
    """With noise that is known, and so small a clip that changes vanish: model, record, curves and partition stay."""
    monkeypatch.setattr(ClientLevelPrivacy, "_noise", lambda rule, like, source: torch.full_like(like, 1e-3))
    private = ["federated/privacy=client_level", "federated.privacy.clip=1e-30", "method.norm_groups=4", "knn_every=1"]
    released = []
    for place in (root, replaced(root, tmp_path)):
        result = federate.main.run(composed(place, *private, f"raw={place / 'raw'}"))
        (record,) = records.find(place / "records", key=result["key"])
        told = asdict(record)
        told["data"].pop("fingerprint")  # told, as are times; the key covers the fingerprint
        for name in ("key", "seconds", "cost", "created", "command"):
            told.pop(name)
        partition = (Path(result["folder"]) / "partition.json").read_text()
        released.append((told, partition, {name: tensor.tolist() for name, tensor in weights(result).items()}))
    first, second = released
    assert first == second
    assert len(first[0]["curves"]["test/knn1_leave_one_out"]) == 2 and '"sizes"' in first[1]


@pytest.mark.slow
def test_partitions_and_strategies_are_chosen_by_name(root):
    for partition, strategy, models in (
        ("by_performer", "fedyogi", 1),
        ("iid", "local", 2),
        ("dirichlet", "fedavgm", 1),
    ):
        overrides = [f"federated/partition={partition}", f"federated/strategy={strategy}", "federated.rounds=1"]
        overrides += [] if partition == "by_performer" else ["federated.partition.clients=2"]
        result = federate.main.run(composed(root, *overrides))
        assert result["clients"] == (1 if partition == "by_performer" else 2)
        assert len(result["checkpoint"]) == models


@pytest.mark.parametrize("path", sorted((Path(CONF) / "federated" / "strategy").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_strategy_starts_from_its_own_defaults(path):
    shared = OmegaConf.load(Path(CONF) / "federate.yaml").federated
    told = {name: shared[name] for name in ("eta", "tau", "momentum")}
    whole = OmegaConf.create({"federated": {**told, "strategy": OmegaConf.load(path)}})
    settings = whole.federated.strategy
    built = federate.build(settings)
    assert type(built).__name__.lower() == path.stem.replace("_", "")
    assert asdict(built) == asdict(type(built)()) == {name: settings[name] for name in asdict(built)}


def test_zero_rounds_measure_the_untrained_model(settings):
    result = launched(settings, "federated.rounds=0")
    assert result["rounds"] == 0 and "train/loss" not in result
    assert same(weights(result), federate.Run.of(settings).workload.module().state_dict())


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["federated.partition.attribute=shoes"], "expected a column 'shoes', found .*'cameras'"),
        (["federated.epochs=0"], "epochs of 1 or more, found 2 rounds of 0 epochs"),
        (["federated.per_round=4"], "expected 1 to 3 clients a round, found 4"),
        (["trainer.devices=2"], "torchrun --nproc-per-node 2"),
        (["trainer.accelerator=abacus"], "found 'abacus'"),
        (["labelled.fraction=0.4", "labelled.batch_size=3", "labelled.steps=2"], "found labelled"),
        (["federated.carry=[key.]"], "begin with 'key.', found none"),
        (PRIVATE, r"privacy: .*found \d+ buffers \('.*running_mean'\): .*method.norm_groups"),
    ],
)
def test_mistakes_are_told_in_one_line(settings, tmp_path, overrides, told):
    with pytest.raises(InputError, match=told) as raised:
        launched(settings, *overrides, *elsewhere(tmp_path))
    assert "\n" not in str(raised.value)


def test_a_partition_that_is_not_there_is_refused(root):
    with pytest.raises(HydraException, match="by_shoe"):
        composed(root, "federated/partition=by_shoe")
