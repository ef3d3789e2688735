"""W&B workspaces from `conf/dashboards.yaml`: `python -m tracking.dashboards ENTITY [PROJECT]` creates or updates them.

The description is our own; W&B's package turns it into what W&B stores.
"""

import hashlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tracking.errors import UsageError

DESCRIPTION = Path(__file__).parents[1] / "conf" / "dashboards.yaml"
STEPS = "trainer/global_step"
VITALS = ("train/lr", "train/gradient_norm", "train/clips_per_second")  # no loss terms, of other sizes than these
KINDS = ("lines", "terms", "bars", "media", "importance", "parallel")


@dataclass(frozen=True)
class Section:
    """Panels under one heading; every entry is the name of something logged (`terms`: how such names begin)."""

    name: str
    lines: tuple[str, ...] = ()
    terms: tuple[str, ...] = ()
    bars: tuple[str, ...] = ()
    media: tuple[str, ...] = ()
    importance: tuple[str, ...] = ()
    parallel: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Dashboard:
    """One workspace: which runs, by their job type, and which panels."""

    family: str
    title: str
    job_types: tuple[str, ...]
    sections: tuple[Section, ...]

    @property
    def view(self) -> str:
        """W&B's name of the workspace: the same at every call, so that it is updated and not made twice."""
        return f"nw-{hashlib.sha256(f'skelfed {self.family}'.encode()).hexdigest()[:11]}-v"


def described(text: str) -> list[Dashboard]:
    """The dashboards of a description; raises UsageError for a key that is not known or lacks."""
    found = []
    for family, content in yaml.safe_load(text).items():
        _expect(f"dashboard {family}", content, {"title", "job_types", "sections"})
        sections = []
        for section in content["sections"]:
            _expect(f"a section of dashboard {family}", section, {"name"}, set(KINDS))
            if len(section) < 2:
                raise UsageError(f"section {section['name']!r} of dashboard {family} shows nothing: give it a panel")
            if "parallel" in section:
                _expect(f"parallel of section {section['name']!r}", section["parallel"], {"parameters", "metric"})
            lists: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in section.items()
            }
            sections.append(Section(**lists))
        found.append(Dashboard(family, content["title"], tuple(content["job_types"]), tuple(sections)))
    return found


def _expect(what: str, found: Any, needed: set[str], allowed: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    keys = set(found) if isinstance(found, Mapping) else set()
    if not needed <= keys <= needed | allowed:
        wrong = ", ".join(sorted(needed - keys | keys - needed - allowed)) or repr(found)
        raise UsageError(f"{what} holds {', '.join(sorted(needed | allowed))}; see {wrong}")


def workspace(dashboard: Dashboard, entity: str, project: str) -> Any:
    """The dashboard as W&B's package writes it."""
    from wandb_workspaces import workspaces as ws

    made = ws.Workspace(
        entity=entity,
        project=project,
        name=dashboard.title,
        sections=[ws.Section(name=s.name, panels=_panels(s), is_open=True) for s in dashboard.sections],
        settings=ws.WorkspaceSettings(x_axis=STEPS),
        runset_settings=ws.RunsetSettings(filters=f"JobType in {list(dashboard.job_types)!r}"),
    )
    made._internal_name = dashboard.view
    return made


def _panels(section: Section) -> list[Any]:
    from wandb_workspaces.reports import v2 as wr

    class Flat(wr.ParallelCoordinatesPlotColumn):
        """A setting under its dotted key. Of a Config the package makes that of nested settings, `a.value.b`."""

        def _to_model(self) -> Any:
            column = super()._to_model()
            assert isinstance(self.metric, wr.Config)
            column.accessor = f"config:{self.metric.name}.value"
            return column

    panels: list[Any] = [wr.LinePlot(title=name, x=STEPS, y=[name]) for name in section.lines]
    panels += [wr.LinePlot(title=f"{start}...", x=STEPS, metric_regex=pattern(start)) for start in section.terms]
    panels += [wr.BarPlot(title=name, metrics=[name]) for name in section.bars]
    panels += [wr.MediaBrowser(title=name, media_keys=[name]) for name in section.media]
    panels += [wr.ParameterImportancePlot(with_respect_to=name) for name in section.importance]
    if section.parallel:
        columns: list[Any] = [Flat(wr.Config(name)) for name in section.parallel["parameters"]]
        columns.append(wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(section.parallel["metric"])))
        panels.append(wr.ParallelCoordinatesPlot(columns=columns))
    return panels


def pattern(start: str) -> str:
    """What the names that a panel of `terms` draws look like: they begin with `start` and are no vital sign."""
    return f"^(?!({'|'.join(VITALS)})$){start}.*"


def main(arguments: list[str]) -> None:
    """Create or update every workspace."""
    if not 1 <= len(arguments) <= 2 or not arguments[0].strip():
        raise UsageError("expected ENTITY [PROJECT], the W&B user or team and the project: make dashboards ENTITY=...")
    with _told("W&B takes no key"):
        import wandb

        known = wandb.login(prompt=False, verify=False)
    if not known:
        raise UsageError("W&B knows no API key here: run wandb login")
    project = (arguments[1] if len(arguments) == 2 else "") or "skelfed"
    for dashboard in described(DESCRIPTION.read_text(encoding="utf-8")):
        made = workspace(dashboard, arguments[0], project)
        made._internal_id = existing(arguments[0], project, dashboard.view)
        with _told(f"W&B does not keep workspace {dashboard.family}"):
            print(f"{dashboard.family}: {made.save().url}")


def existing(entity: str, project: str, view: str) -> str:
    """W&B's id of the workspace if it is there, empty if it is not; raises UsageError if W&B does not tell."""
    from wandb_workspaces.workspaces import internal

    with _told("W&B does not say which workspaces there are"):
        try:
            return internal.View.from_name(entity, project, view).id
        except ValueError as error:  # so the package tells that a project or a workspace is not there, and more
            if "not found" not in str(error):
                raise
    print(f"new workspace in {entity}/{project}")
    return ""


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Whatever W&B's packages raise, by many exceptions, as one line."""
    try:
        yield
    except Exception as error:
        raise UsageError(f"{what}: {' '.join(str(error).split()) or type(error).__name__}") from error


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
