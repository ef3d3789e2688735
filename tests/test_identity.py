"""The run key stays where the numbers stay and moves where they move."""

import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tracking import identity

CONFIG = {
    "paths": {"outputs": "outputs", "stores": "${paths.outputs}/stores"},
    "raw": None,
    "checkpoint": None,
    "fresh": False,
    "show_samples": True,
    "seed": 0,
    "logger": {"mode": "disabled"},
    "data": {"store": "${paths.stores}/ntu60", "raw": "${raw}", "batch_size": 16, "num_workers": 2},
    "method": {"encoder": {"widths": [8, 16], "num_workers": 1}, "seed": "${seed}"},
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "strategy": "auto",
        "num_nodes": 1,
        "enable_progress_bar": True,
        "precision": "32-true",
        "max_epochs": 3,
    },
}


def key(*overrides: str, data: str = "d", **rest) -> str:
    config = OmegaConf.merge(OmegaConf.create(CONFIG), OmegaConf.from_dotlist(list(overrides)))
    return identity.run_key(config, data=data, **rest)


@pytest.mark.parametrize(
    "override",
    [
        "paths.outputs=/elsewhere",
        "paths.stores=/big/disk",
        "raw=/data/ntu",
        "checkpoint=/a/b.ckpt",
        "fresh=true",
        "show_samples=false",
        "logger.mode=online",
        "data.num_workers=0",
        "method.encoder.num_workers=0",
        "trainer.accelerator=gpu",
        "trainer.devices=8",
        "trainer.strategy=ddp",
        "trainer.num_nodes=2",
        "trainer.enable_progress_bar=false",
        "hydra.run.dir=/x",
    ],
)
def test_key_ignores_where_and_how_a_run_is_watched(override):
    assert key(override) == key()


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "data.batch_size=32",
        "data.store=another",
        "method.encoder.widths=[8,17]",
        "trainer.precision=bf16-mixed",
        "trainer.max_epochs=4",
        "data.extra=1",
    ],
)
def test_key_follows_what_changes_numbers(override):
    assert key(override) != key()


def test_key_follows_data_base_model_and_results_version():
    keys = {key(), key(data="e"), key(base_model="m"), key(results_version=identity.RESULTS_VERSION + 1)}
    assert len(keys) == 4


def test_key_ignores_the_order_of_keys_and_is_the_same_for_plain_containers():
    backwards = dict(reversed(CONFIG.items()))
    assert identity.run_key(OmegaConf.create(backwards), data="d") == key() == identity.run_key(CONFIG, data="d")


def test_key_is_the_documented_hash():
    """Pinned, so that a change of the recipe is noticed: it would orphan every result on disk."""
    text = '{"base_model":"","config":{"a":1},"data":"d","results_version":1}'
    expected = subprocess.run(["sha256sum"], input=text.encode(), capture_output=True, check=True).stdout.split()[0]
    assert identity.run_key({"a": 1}, data="d", results_version=1) == expected.decode()


def test_computing_the_key_leaves_the_config_alone():
    config = OmegaConf.create(CONFIG)
    identity.run_key(config, data="d")
    assert config == OmegaConf.create(CONFIG)


def test_not_a_number_has_no_key():
    with pytest.raises(ValueError):
        identity.run_key({"lr": float("nan")}, data="d")


def test_versions_are_those_installed_and_skip_the_rest(monkeypatch):
    monkeypatch.setattr(identity, "PACKAGES", ("torch", "no-such-package-here"))
    assert identity.versions() == {
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": metadata.version("torch"),
    }


def git(folder: Path, *args: str) -> str:
    line = ["git", "-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false", *args]
    return subprocess.run(line, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_commit_tells_clean_dirty_and_none(tmp_path, monkeypatch):
    package = tmp_path / "tracking"
    package.mkdir()
    monkeypatch.setattr(identity, "__file__", str(package / "identity.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert identity.commit() is None
    (package / "identity.py").write_text("one\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    git(tmp_path, "tag", "-a", "v1", "-m", "a tag must not shorten the hash")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert identity.commit() == head
    (package / "identity.py").write_text("two\n")
    assert identity.commit() == f"{head}-dirty"


def test_command_survives_a_shell(monkeypatch):
    argv = ["/opt/venv/bin/python", "train.py", "raw=ntu 60", "method.name='a b'"]
    monkeypatch.setattr(sys, "orig_argv", argv)
    assert shlex.split(identity.command()) == ["python", *argv[1:]]


def test_command_holds_no_location(monkeypatch):
    argv = ["/opt/bin/python", "/home/me/lab/eval.py", "-m", "raw=/data/me/nw-ucla", "target.raw=~/pku", "seed=1,2"]
    monkeypatch.setattr(sys, "orig_argv", argv)
    assert identity.command() == "python .../eval.py -m raw=.../nw-ucla target.raw=.../pku seed=1,2"


def test_batch_norm_as_published_changes_no_key_and_groups_do():
    method = {"_target_": "lightning_modules.sds_cl.SDSCL"}
    keys = [
        identity.run_key({"method": method | groups, "paths": {}}, "data")
        for groups in ({}, {"norm_groups": None}, {"norm_groups": 8})
    ]
    assert keys[0] == keys[1] != keys[2]
