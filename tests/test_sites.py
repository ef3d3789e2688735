"""Sites with data of their own: what they train is what the pooled data would give; what cannot be done is said."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import test_federate_door as door_tests
import torch
import toy_mllm
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from toy_federation import Toy, elsewhere, federation, same

import federate
import prepare
from datamodules.errors import InputError
from datamodules.image_text.readers.hateful_memes import HatefulMemes
from datamodules.miniature import memes, skeletons
from datamodules.miniature.folder import MARK
from federated.client import ClientTask
from federated.ledger import Ledger
from federated.privacy import ClientLevelPrivacy
from federated.sites import Elsewhere, Holding, Own, Sited
from lightning_modules.evaluation.knn import nearest_other
from tracking import records

AT_SITES = "federated/partition=sites"
SEPARATE = ["node0", "node1", "server"]


def config(overrides: list[str]):
    with initialize_config_dir(door_tests.CONF, version_base="1.3"):
        return compose("federate", overrides)


# --- who holds what -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> tuple[Path, list[str]]:
    """Two performers to train on and one to test on: pooled in `all`, and a prepared folder for each of SEPARATE.

    Only the first node's and the server's files are marked as made up. Returns the folder, and settings of the run.
    """
    root = tmp_path_factory.mktemp("clips")
    skeletons.write_ntu(root / "all/raw", performers=(1, 2, 3), replications=1, frames=(12, 20))
    for name, performer in zip(SEPARATE, ("P001", "P002", "P003"), strict=True):
        (root / name / "raw").mkdir(parents=True)
        for path in (root / "all/raw").glob(f"*{performer}*"):
            shutil.copy(path, root / name / "raw")
        if name != "node1":
            shutil.copy(root / "all/raw" / MARK, root / name / "raw")
    for name in ("all", *SEPARATE):
        raw = [f"raw={root / name / 'raw'}", "workers=1"]
        prepare.main.run(door_tests.config("prepare", root / name, "data=ntu60", *raw))
    return root, [door_tests.BY_CAMERA, *door_tests.SMALL]


@pytest.fixture(scope="module")
def captions(tmp_path_factory) -> tuple[Path, list[str]]:
    """Memes shared out by a published draw: pooled in `all`, and each client's alone, in its order, at its node."""
    root = tmp_path_factory.mktemp("memes")
    memes.write_memes(root / "all/raw", train=60, dev=4, test=16)
    sizes = [setting for setting in toy_mllm.SMALL if not setting.startswith("federated.partition")]
    settings = ["experiment=fedmllm/hateful_memes_alpha_5", *sizes, *toy_mllm.TWO_ROUNDS]
    drawn = federate.Run.of(config([*settings, *pooled(root, captions=True)])).workload.data
    rows = (root / "all/raw/train.jsonl").read_text().splitlines()
    for number, name in enumerate(SEPARATE):
        raw = root / name / "raw"
        shutil.copytree(root / "all/raw/img", raw / "img")
        held = [] if name == "server" else [rows[row] for row in drawn._pieces[number]]
        write(
            raw, train=held, test_seen=(root / "all/raw/test_seen.jsonl").read_text().splitlines() if not held else []
        )
    return root, settings


def write(raw: Path, **sides: list[str]) -> None:
    """Lists of memes; a side that is not named is empty."""
    for side in ("train", "dev_seen", "test_seen"):
        (raw / f"{side}.jsonl").write_text("".join(line + "\n" for line in sides.get(side, [])))


def place(root: Path, name: str, captions: bool) -> list[str]:
    """Where one of the places has its files, a base model of its own included."""
    own = [f"paths.root={root / name}", f"paths.reports={root / name}/reports", f"raw={root / name / 'raw'}"]
    if captions:
        if not (root / name / "model").is_dir():
            toy_mllm.write_model(root / name / "model")
        own.append(f"method.family.source={root / name / 'model'}")
    return own


def pooled(root: Path, captions: bool) -> list[str]:
    """Settings of the same federation in one process that holds everything."""
    shared = ["federated.partition.clients=2"] if captions else ["federated/partition=by_performer"]
    return [*shared, *place(root, "all", captions)]


# --- a federation of sites ------------------------------------------------------------------------------------------


def engine():
    """The module of the engine, where Flower is installed."""
    pytest.importorskip("flwr", reason="the extra `flower` is not installed")
    from federated.engines import flower

    return flower


def of_sites(root: Path, settings: list[str], captions: bool, numbers=(0, 1), clients: int = 2) -> None:
    """Runs the ServerApp and a node for each of `numbers`, every one on its own folder, all in this process."""
    flower = engine()
    from flwr.app import Context, RecordDict

    def context(number: int, **config) -> Context:
        empty = {"node_config": {}, "run_config": {}} | config
        return Context(run_id=1, node_id=number, state=RecordDict(), **empty)

    class Known(flower.LocalGrid):
        def push_messages(self, messages):
            """No id, as from a SuperLink, for a node that is not there."""
            (message,) = messages
            return super().push_messages([message]) if message.metadata.dst_node_id in apps else [None]

    apps = {}
    for node, number in enumerate(numbers):
        own = " ".join(place(root, SEPARATE[node], captions))
        told = context(node, node_config={"partition-id": number, "overrides": own})
        apps[node] = flower.client_app(flower.configured_site), told
    overrides = " ".join([*settings, AT_SITES, *place(root, "server", captions)])
    server = flower.server_app(federate.federate)
    server(Known(apps), context(9, run_config={"overrides": overrides, "nodes": clients}))


def trained(folder: Path) -> dict[str, torch.Tensor]:
    """The global tensors of the one federation below `folder`."""
    (ledger,) = folder.glob("runs/*/ledger.safetensors")
    (record,) = records.find(folder / "records")
    return Ledger(ledger, record.key).resume().shared


@pytest.mark.parametrize("kind", ["clips", "captions"])
def test_two_sites_train_what_the_pooled_data_would_give(kind, request, capfd):
    """Bit by bit: each site's samples are those of one client of the pooled data, in its order."""
    root, settings = request.getfixturevalue(kind)
    federate.federate(config([*settings, *pooled(root, kind == "captions")]))
    of_sites(root, settings, kind == "captions")
    assert same(trained(root / "all"), trained(root / "server"))
    (record,) = records.find(root / "server/records")
    (whole,) = records.find(root / "all/records")
    assert record.key != whole.key and "skew" not in record.metrics
    sites = record.data["sites"]
    held = json.loads((next((root / "all").glob("runs/*/partition.json"))).read_text())["sizes"]
    assert [site["client"] for site in sites] == [0, 1] and [site["samples"] for site in sites] == held
    assert record.data["counts"]["train"] == sum(held) == whole.data["counts"]["train"]
    fingerprints = {site["fingerprint"] for site in sites} | {record.data["server"], record.data["fingerprint"]}
    assert len(fingerprints) == 4
    assert f"2 clients by site: {held} samples\n" in capfd.readouterr().out
    for name, value in whole.metrics.items():
        if name not in ("skew", "test/knn1"):
            assert record.metrics[name] == value, name


def test_a_run_that_is_started_again_goes_on_without_a_site_that_it_met(clips, tmp_path):
    """The same run, the absent site a failed client of the rounds that are left; the first start needs everybody."""
    root, settings = clips
    settings = [*settings, f"paths.runs={tmp_path / 'runs'}", f"paths.records={tmp_path / 'records'}"]
    settings += ["federated.rounds=2", "seed=7", "federated.engine.meet_seconds=0"]
    with pytest.raises(InputError, match=r"expected clients 0 to 1, found \[0\]: nobody is client 1: start its node"):
        of_sites(root, settings, captions=False, numbers=(0,))
    commit = Ledger.commit

    def first_round(ledger: Ledger, progress) -> None:
        commit(ledger, progress)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Ledger, "commit", first_round)
        of_sites(root, settings, captions=False)
    of_sites(root, settings, captions=False, numbers=(0,))
    (record,) = records.find(tmp_path / "records")
    (ledger,) = tmp_path.glob("runs/*/ledger.safetensors")
    told = Ledger(ledger, record.key).resume().records
    assert [["error" in outcome for outcome in one["outcomes"]] for one in told] == [[False, False], [False, True]]
    assert [site["samples"] for site in record.data["sites"]] == [30, 30]


AS_EVER = {
    "int8": ["federated.transport=int8"],
    "FedAdam": ["federated/strategy=fedadam"],
    "FedProx": ["federated.terms=[{_target_:federated.terms.FedProx,mu:0.1}]"],
    "client_level": ["federated/privacy=client_level", "federated.privacy.clip=0.05", "method.norm_groups=4"],
}


@pytest.mark.parametrize("name", AS_EVER)
def test_transports_server_rules_terms_and_privacy_are_as_ever_at_sites(name, clips, tmp_path, monkeypatch):
    """Bit by bit those of the pooled data in one process, and none of them what FedAvg gives; noise is made known."""
    monkeypatch.setattr(ClientLevelPrivacy, "_noise", lambda rule, like, source: torch.full_like(like, 1e-3))
    root, settings = clips
    chosen = [*settings, *AS_EVER[name]]
    federate.federate(config([*chosen, *pooled(root, False), *elsewhere(tmp_path / "pooled")]))
    of_sites(root, [*chosen, *elsewhere(tmp_path / "sites")], captions=False)
    assert same(trained(tmp_path / "pooled"), trained(tmp_path / "sites"))
    (record,), (whole,) = (records.find(tmp_path / kind / "records") for kind in ("sites", "pooled"))
    assert record.metrics["failed"] == 0 and record.metrics.get("epsilon") == whole.metrics.get("epsilon")
    assert record.metrics["bytes_up"] == whole.metrics["bytes_up"]
    assert ("epsilon" in record.metrics) == (name == "client_level")
    federate.federate(config([*settings, *pooled(root, False), *elsewhere(tmp_path / "plain")]))
    assert not same(trained(tmp_path / "plain"), trained(tmp_path / "sites"))


def test_a_server_without_training_clips_measures_among_its_test_clips(clips):
    root, settings = clips
    run = federate.Run.of(*sited(root, settings))
    found = run.workload.evaluate(run.workload.module())
    assert list(found) == ["test/knn1_leave_one_out"] and 0 <= found["test/knn1_leave_one_out"] <= 100


def test_the_nearest_other_row_is_never_the_row_itself():
    source = torch.Generator().manual_seed(0)
    rows = torch.randn(20, 4, generator=source)
    rows[7] = rows[3]  # copies are each other's nearest
    unit = torch.nn.functional.normalize(rows, dim=1)
    closeness = unit @ unit.T
    closeness.fill_diagonal_(-torch.inf)
    found = nearest_other(rows, "cosine")
    assert found[3] == 7 and found[7] == 3
    torch.testing.assert_close(closeness.gather(1, found[:, None]), closeness.max(1, keepdim=True).values)


# --- what is told and what agrees -----------------------------------------------------------------------------------


def sited(root: Path, settings: list[str], *holdings: Holding):
    """The server's configuration and workload, for sites that told these."""
    composed = config([*settings, AT_SITES, *place(root, "server", False)])
    told = holdings or (Holding(10, "a" * 64, False), Holding(20, "b" * 64, False))
    return composed, Sited(federate.build(composed.workload, config=composed), told)


def test_the_run_is_another_where_a_site_holds_other_data(clips):
    root, settings = clips
    first, second = Holding(10, "a" * 64, False), Holding(20, "b" * 64, False)
    key = federate.Run.of(*sited(root, settings, first, second)).key
    assert federate.Run.of(*sited(root, settings, first, second)).key == key
    others = [(second, first), (first, replace(second, fingerprint="c" * 64)), (first, replace(second, samples=21))]
    keys = {federate.Run.of(*sited(root, settings, *told)).key for told in [*others, (first, second, second)]}
    assert len(keys) == 4 and key not in keys


def test_one_made_up_site_makes_a_miniature(clips):
    root, settings = clips
    composed, _ = sited(root, settings)
    here = federate.build(composed.workload, config=composed)
    here.miniature = False
    real, made_up = Holding(1, "a" * 64, False), Holding(1, "b" * 64, True)
    assert Sited(here, [real, made_up]).miniature and not Sited(here, [real, real]).miniature


@pytest.mark.parametrize(
    "told",
    [
        {"samples": 0},
        {"samples": -3},
        {"samples": 2.5},
        {"samples": True},
        {"fingerprint": "x"},
        {"fingerprint": None},
        {"fingerprint": "a" * 10**6},
        {"miniature": 1},
    ],
    ids=lambda told: str(told)[:40],
)
def test_what_no_site_holds_is_refused(told):
    right = {"samples": 3, "fingerprint": "a" * 64, "miniature": False}
    assert Holding.told(0, **right) == Holding(**right)
    with pytest.raises(InputError, match="expected samples and a fingerprint of client 0, found") as raised:
        Holding.told(0, **(right | told))
    assert len(str(raised.value)) < 300 and "\n" not in str(raised.value)


def test_sites_of_another_kind_cannot_take_part(clips, monkeypatch):
    root, settings = clips
    flower = engine()
    shared = flower.make_workload

    def other(config):
        workload = shared(config)
        if str(config["paths"]["root"]).endswith("node1"):
            workload.schema = "another skeleton"
        return workload

    monkeypatch.setattr(flower, "make_workload", other)
    flower._prepared.cache_clear()
    with pytest.raises(InputError, match=r"expected the server's schema, found another at client 1 \(another skel"):
        of_sites(root, settings, captions=False)
    flower._prepared.cache_clear()


def test_a_process_makes_its_site_once_a_run(clips):
    root, settings = clips
    flower = engine()
    overrides = tuple([*settings, AT_SITES, *place(root, "node0", False)])
    flower._prepared.cache_clear()
    first = flower._prepared(overrides, 0, 1)
    assert flower._prepared(overrides, 0, 1) is first
    assert flower._prepared(overrides, 0, 2) is not first, "its data may have changed since"


def test_a_site_that_cannot_read_its_data_quotes_nothing_of_them(captions, tmp_path, caplog):
    root, settings = captions
    engine()
    spoilt = Path(shutil.copytree(root / "node0", tmp_path / "node0"))
    shutil.copytree(root / "node1", tmp_path / "node1")
    shutil.copytree(root / "server", tmp_path / "server")
    write(spoilt / "raw", train=[json.dumps({"id": 1, "img": "img/1.png", "label": "the diagnosis", "text": "x"})])
    with pytest.raises(InputError, match="a site cannot read its data, MalformedFile: its message stays") as raised:
        of_sites(tmp_path, settings, captions=True)
    assert "the diagnosis" not in str(raised.value) and "the diagnosis" in caplog.text


def test_every_site_has_a_number_of_its_own(clips):
    root, settings = clips
    with pytest.raises(InputError, match=r"expected clients 0 to 1, found \[1, 1\]"):
        of_sites(root, settings, captions=False, numbers=(1, 1))


# --- what each place is asked ---------------------------------------------------------------------------------------


def test_a_site_trains_its_own_client_and_no_other(clips):
    root, settings = clips
    composed = config([*settings, AT_SITES, *place(root, "node1", False)])
    workload = federate.build(composed.workload, config=composed)
    own = Own.of(workload, 1)
    assert own.num_samples(1) == workload.clients.num_samples(0) == workload.counts["train"] > 0
    rows = torch.cat([batch.ids for batch in own.train_dataloader(1, 5)])
    assert sorted(rows.tolist()) == list(range(own.num_samples(1)))
    for ask in (own.num_samples, lambda client: own.train_dataloader(client, 5)):
        with pytest.raises(InputError, match="expected a task for client 1, whose site this is, found 0"):
            ask(0)


def test_the_server_trains_nobody():
    assert Elsewhere([3, 4]).num_samples(1) == 4
    server = federation(module=Toy(), data=Elsewhere([3, 4]))
    outcome = server.engine._client.run(ClientTask(0, 1, server.adapter.extract(), 1.0, 3))
    assert "expected the server to train nobody" in outcome.message


def test_a_side_that_is_not_there_is_told_where_it_is_needed(clips, captions):
    root, settings = clips
    with pytest.raises(InputError, match="expected samples to measure on at the server, found none of 'test'"):
        composed = config([*settings, AT_SITES, *place(root, "node0", False)])
        Sited(federate.build(composed.workload, config=composed), [Holding(1, "a" * 64, False)])
    composed = config([*settings, AT_SITES, *place(root, "server", False)])
    with pytest.raises(InputError, match="expected training samples, found none at the site of client 1: prepare"):
        Own.of(federate.build(composed.workload, config=composed), 1)
    with pytest.raises(InputError, match="leaves no test clip"):
        federate.Run.of(config([*settings, "federated/partition=iid", *place(root, "node0", False)]))
    root, settings = captions
    with pytest.raises(InputError, match="Hateful Memes: expected test samples, found none"):
        federate.Run.of(config([*settings, "federated/partition=iid", *place(root, "node0", True)]))


@pytest.mark.parametrize("private", [[], ["federated/privacy=client_level"]], ids=["plain", "private"])
def test_what_the_server_could_not_read_is_its_own_to_tell(captions, tmp_path, private):
    root, settings = captions
    raw = Path(shutil.copytree(root / "server/raw", tmp_path / "raw"))
    rows = (raw / "test_seen.jsonl").read_text().splitlines()
    write(raw, test_seen=[*rows, json.dumps({"id": 1, "img": "img/none.png", "label": 0, "text": "x"})])
    composed = config([*settings, *private, AT_SITES, *place(root, "server", True), f"raw={raw}"])
    here = federate.build(composed.workload, config=composed)
    run = federate.Run.of(composed, Sited(here, [Holding(1, "a" * 64, False)]))
    assert run.rejected == [("img/none.png", "is missing")] and "1 rejected (first img/none.png" in run.described


def test_one_process_is_no_site(clips):
    root, settings = clips
    for engine in ("in_process", "workers", "flower"):
        composed = config([*settings, AT_SITES, f"federated/engine={engine}", *place(root, "all", False)])
        with pytest.raises(InputError, match="expected nodes that hold the sites' data, found this process alone"):
            federate.main.run(composed)


@pytest.mark.parametrize(
    ("setting", "found"), [("modality=missing", "found Missing"), ("sharing.pooled=true", "found pooled data")]
)
def test_what_needs_all_the_data_is_refused(captions, setting, found):
    root, settings = captions
    composed = config([*settings, AT_SITES, *place(root, "server", True), setting])
    with pytest.raises(InputError, match=f"scenarios are drawn over all clients, {found}: set modality=aligned"):
        federate.build(composed.workload, config=composed)


def test_an_empty_list_is_a_side_that_is_elsewhere_and_a_spoilt_one_an_error(captions, tmp_path):
    root, _ = captions
    node, server = (HatefulMemes().read(root / name / "raw") for name in ("node0", "server"))
    assert node.train and not node.test and server.test and not server.train
    raw = Path(shutil.copytree(root / "node0/raw", tmp_path / "raw"))
    write(raw, train=[json.dumps({"id": 1, "img": "img/none.png", "label": 0, "text": "x"})])
    with pytest.raises(InputError, match="expected train samples in .*1 rejected, first img/none.png"):
        HatefulMemes().read(raw)


def test_a_site_holds_all_its_samples_in_their_order():
    rule = OmegaConf.load(Path(door_tests.CONF) / "federated/partition/sites.yaml").partition
    (rows,) = federate.build(rule).split({"labels": np.array([3, 1, 2])})
    assert rows.tolist() == [0, 1, 2]
