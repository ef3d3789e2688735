"""What W&B's offline files hold after a federation: the federation's run, its clients', and no sample unless asked."""

from pathlib import Path

import pytest
import toy_mllm
from omegaconf import OmegaConf
from PIL import Image
from test_dashboards import SHIPPED
from test_loggers import contents
from toy_federation import elsewhere
from toy_mllm import TWO_ROUNDS, composed

import federate
from datamodules.image_text.sample import Sample
from federated.client import Client
from federated.workloads.image_text import SHOWN
from tracking import records

OFFLINE = ["logger.mode=offline", "federated.evaluate_every=1", "federated.max_failed=1"]
FAILING = (1, 0)  # the round and the place among its clients of the one that is made to fail


root = toy_mllm.root


@pytest.fixture(scope="module")
def settings(root):
    return composed(root, *TWO_ROUNDS, *OFFLINE, f"corpus.miniature.test={SHOWN + 4}")


def launched(settings, folder: Path, *overrides: str) -> Path:
    """The run's folder of a federation of which one client fails."""
    runs, seen = Client.run, []

    def failing(client, task):
        seen.append(task.round_number)
        if (task.round_number, seen.count(task.round_number) - 1) == FAILING:
            client = Client(client._module, client._adapter, client._data, options={"max_epochs": 0})
        return runs(client, task)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "run", failing)
        patch.setenv("HOME", str(folder / "home"))
        merged = OmegaConf.merge(settings, OmegaConf.from_dotlist([*elsewhere(folder), *overrides]))
        return Path(federate.main.run(merged)["folder"])


@pytest.fixture(scope="module")
def quiet(settings, tmp_path_factory) -> Path:
    return launched(settings, tmp_path_factory.mktemp("quiet"))


def test_rounds_clients_conditions_bytes_and_failures_are_told_by_round(settings, quiet):
    run, config, history, exits = contents(quiet)
    (record,) = records.find(quiet.parents[1] / "records")
    assert (run.run_id, run.job_type, exits) == (record.key[:16], "federated", [0])
    assert run.run_group == "fedmllm_hateful_memes/fedmllm"
    assert {"fedmllm_hateful_memes", "missing_50", "FedAvg"} <= set(run.tags)
    assert config["federated.rounds"] == 2 and not any(name.startswith(("paths", "raw")) for name in config)
    rounds = [row for row in history if "bytes up" in row]
    assert [row["trainer/global_step"] for row in rounds] == [0, 1]
    assert [row["failed clients"] for row in rounds] == [0, 1]
    assert [row["bytes down"] for row in rounds] == [rounds[0]["bytes up"]] * 2
    assert 2 * rounds[1]["bytes up"] == rounds[0]["bytes up"], "half of the clients came back"
    for row in rounds:
        assert {f"auc_probability{c}" for c in ("", ", image only", ", text only", ", neither")} <= row.keys()
        whose = {name.partition(" @ ")[2] for name in row if name.startswith("train/loss @ ")}
        assert whose == {name.partition(" @ ")[2] for name in row if name.startswith("adapter drift @ ")}
        assert len(whose) == 2 - row["failed clients"] and row["adapter drift"] > 0 and row["LoRA gap"] >= 0
    assert {name: rounds[1][name] for name in ("auc_hard", "train/loss")}.items() <= record.metrics.items()


def test_every_client_has_a_run_of_the_same_group(quiet):
    group = contents(quiet)[0].run_group
    rounds = [row for row in contents(quiet)[2] if "bytes up" in row]
    folders = sorted((quiet / "clients").iterdir())
    assert 2 <= len(folders) <= 3
    failures = 0
    for folder in folders:
        run, config, history, exits = contents(folder)
        assert (run.job_type, run.run_group, exits) == ("client", group, [0])
        assert config["client"] == int(folder.name) and config["samples"] > 0 and f"client {folder.name}" in run.tags
        for row in history:
            told = rounds[row["trainer/global_step"]]
            failures += int(row["failed"])
            loss = f"train/loss @ client {folder.name}"
            assert row["failed"] == (loss not in told) and row.get("train/loss") == told.get(loss)
    assert failures == 1
    ids = {contents(folder)[0].run_id for folder in [quiet, *folders]}
    assert len(ids) == 1 + len(folders)


def test_clients_runs_can_be_left_out(settings, tmp_path):
    folder = launched(settings, tmp_path, "client_runs=false")
    assert not (folder / "clients").exists() and list(folder.glob("wandb/offline-run-*"))


def told(folder: Path) -> set[str]:
    """Names of what was logged; W&B writes a picture `a` as a._type, a.path and so on."""
    return {name.split(".")[0] for row in contents(folder)[2] for name in row}


def sent(folder: Path) -> bytes:
    """All that would go to W&B."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and is_sent(path))


def is_sent(path: Path) -> bool:
    return "wandb" in path.parts and not path.is_symlink()


def shown_samples(settings) -> list[Sample]:
    return federate.Run.of(settings).workload.data.samples("test")


def test_no_sample_leaves_the_house_unasked(settings, quiet):
    everything = sent(quiet)
    assert b"bytes up" in everything, "the test reads what is sent"
    texts = [sample.text for sample in shown_samples(settings)]
    assert len(set(texts)) > 5 and not any(text.encode() in everything for text in texts)
    assert not [path for path in quiet.rglob("*") if is_sent(path) and path.suffix in (".png", ".jpg")]
    assert {"samples", "pictures"} & told(quiet) == set()


def test_samples_go_out_where_asked_and_change_no_result(settings, quiet, tmp_path):
    folder = launched(settings, tmp_path, "show_samples=true", "client_runs=false")
    assert folder.name == quiet.name, "watching is no part of a run's key"
    (table,) = folder.glob("wandb/offline-run-*/files/media/table/samples*.json")
    content = table.read_text()
    shown, kept = shown_samples(settings)[:SHOWN], shown_samples(settings)[SHOWN:]
    assert len(kept) == 4 and all(f'"{sample.id}"' in content and sample.text in content for sample in shown)
    assert not any(f'"{sample.id}"' in content for sample in kept)
    assert all(f"answer, {c}" in content for c in ("both", "image only", "text only", "neither"))
    different = {Image.open(sample.image).convert("RGB").tobytes() for sample in shown}  # W&B keeps one of equal ones
    assert len([path for path in folder.rglob("pictures*.png") if is_sent(path)]) == len(different) > 5
    assert {"samples", "pictures"} <= told(folder)
    before, after = (records.find(one.parents[1] / "records")[0].metrics for one in (quiet, folder))
    assert before == after


def test_the_dashboards_show_what_is_logged(quiet):
    logged = {name for row in contents(quiet)[2] for name in row}
    (family,) = [one for one in SHIPPED if one.family == "federated"]
    named = {name for section in family.sections for name in section.lines} - {"test/knn1"}  # of skeletons
    assert named <= logged
    begun = {start for section in family.sections for start in section.terms} - {"test/", "overall"}
    assert all(any(name.startswith(start) for name in logged) for start in begun)
