"""The description of the W&B workspaces: sound in itself, about what is logged, and understood by W&B's package."""

import json
import re
import subprocess
import sys

import pytest
import yaml

from tracking import dashboards
from tracking.errors import UsageError

TEXT = dashboards.DESCRIPTION.read_text()
SHIPPED = dashboards.described(TEXT)
JOB_TYPES = {"pretrain", "semi", "knn", "linear", "finetune", "inspect", "transfer", "federated", "client"}


def test_there_is_a_workspace_for_each_family_with_a_name_that_stays():
    assert [one.family for one in SHIPPED] == ["skeleton", "federated", "sweeps"]
    views = [one.view for one in SHIPPED]
    assert len(set(views)) == 3 and views == [one.view for one in dashboards.described(TEXT)]
    assert {kind for one in SHIPPED for kind in one.job_types} <= JOB_TYPES


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d["skeleton"].pop("title"), "title"),
        (lambda d: d["skeleton"].update(colour="red"), "colour"),
        (lambda d: d["sweeps"]["sections"][0].update(lnies=["x"]), "lnies"),
        (lambda d: d["sweeps"]["sections"].append({"name": "empty"}), "empty"),
        (lambda d: d["sweeps"]["sections"][0]["parallel"].pop("metric"), "metric"),
    ],
)
def test_a_slip_in_the_description_is_named(change, says):
    description = yaml.safe_load(TEXT)
    change(description)
    with pytest.raises(UsageError, match=says):
        dashboards.described(yaml.safe_dump(description))


@pytest.mark.parametrize("dashboard", SHIPPED, ids=lambda one: one.family)
def test_wandbs_package_writes_every_panel(dashboard):
    pytest.importorskip("wandb_workspaces", reason="the extra `dashboards` is not installed")
    made = dashboards.workspace(dashboard, "us", "lab")._to_model()
    assert (made.entity, made.project, made.name, made.display_name) == ("us", "lab", dashboard.view, dashboard.title)
    sections = made.spec.section.panel_bank_config.sections
    assert [section.name for section in sections] == [section.name for section in dashboard.sections]
    for section, described in zip(sections, dashboard.sections, strict=True):
        lists = (described.lines, described.terms, described.bars, described.media, described.importance)
        assert len(section.panels) == sum(map(len, lists)) + bool(described.parallel)
        text = section.model_dump_json(by_alias=True)
        assert all(
            f'"{name}"' in text for names in (described.lines, described.bars, described.media) for name in names
        )
    assert all(f'"{kind}"' in made.spec.model_dump_json(by_alias=True) for kind in dashboard.job_types)


def test_a_setting_is_named_by_its_flat_key():
    pytest.importorskip("wandb_workspaces", reason="the extra `dashboards` is not installed")
    (sweeps,) = [one for one in SHIPPED if one.family == "sweeps"]
    text = dashboards.workspace(sweeps, "us", "lab")._to_model().spec.model_dump_json(by_alias=True)
    assert re.findall(r'"accessor":"([^"]*)"', text) == [
        "config:method.temperature.value",
        "config:method.optimizer.lr.value",
        "config:batch_size.value",
        "config:seed.value",
        "summary:k1",
    ]


def test_a_panel_of_loss_terms_draws_nothing_else():
    names = ["train/loss", "train/stl", "train/lr_term", "train/lr", "train/gradient_norm", "train/clips_per_second"]
    drawn = [name for name in [*names, "test/train/loss"] if re.search(dashboards.pattern("train/"), name)]
    assert drawn == ["train/loss", "train/stl", "train/lr_term"]
    assert re.search(dashboards.pattern("train/loss @ client"), "train/loss @ client 3")
    pytest.importorskip("wandb_workspaces", reason="the extra `dashboards` is not installed")
    text = dashboards.workspace(SHIPPED[0], "us", "lab")._to_model().spec.model_dump_json(by_alias=True)
    assert json.dumps(dashboards.pattern("train/")) in text


def test_only_what_is_not_there_is_new(monkeypatch, capsys):
    internal = pytest.importorskip(
        "wandb_workspaces.workspaces.internal", reason="the extra `dashboards` is not installed"
    )

    def answers(error):
        def from_name(*_):
            raise error

        monkeypatch.setattr(internal.View, "from_name", from_name)

    answers(ValueError("Workspace `nw-1-v` not found in project `lab`"))
    assert dashboards.existing("us", "lab", "nw-1-v") == "" and "new workspace" in capsys.readouterr().out
    for error in (RuntimeError("HTTP 401:\nnobody"), ValueError("a spec of version 9"), ConnectionError("no network")):
        answers(error)
        with pytest.raises(UsageError, match=str(error).split()[-1]) as told:
            dashboards.existing("us", "lab", "nw-1-v")
        assert "\n" not in str(told.value) and capsys.readouterr().out == ""


def test_without_a_key_or_a_team_the_command_says_what_to_do(tmp_path):
    script = [sys.executable, "-m", "tracking.dashboards"]
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "WANDB_SILENT": "true"}

    def run(*arguments):
        found = subprocess.run(
            [*script, *arguments],
            cwd=dashboards.DESCRIPTION.parents[1],
            env=environment,
            capture_output=True,
            text=True,
        )
        return found.returncode, found.stderr.strip().splitlines()[-1]

    nobody = "error: expected ENTITY [PROJECT], the W&B user or team and the project: make dashboards ENTITY=..."
    assert run() == run("", "") == (2, nobody)
    assert run("us") == (2, "error: W&B knows no API key here: run wandb login")
