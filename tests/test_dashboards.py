"""The description of the W&B workspaces: sound in itself, about what is logged, and understood by W&B's package."""

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
    pytest.importorskip("wandb_workspaces", reason="the extra dashboards is not installed")
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

    assert run() == (
        2,
        "error: expected ENTITY [PROJECT], the W&B user or team and the project: make dashboards ENTITY=...",
    )
    assert run("us") == (2, "error: W&B knows no API key here: run wandb login")
