"""Federations of a multimodal LLM as the papers print them: a row a method, a column a setting, a table a model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracking.groups import Group
from tracking.records import Record
from tracking.report import Published, spread, table, text

ORDER = ("zero_shot", "local", "centralised", "fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi", "oneshot")
MANY = 10_000  # from here on digits are grouped
FLOOR = "text alone, the commonest training answer to each question"
LARGEST_GAP, LAST_GAP = "lora_gap_largest", "lora_gap"  # older records hold that of the last round, which is not shown
COUNTED = ("rounds", "clients", "skew", "failed", LARGEST_GAP, "bytes_up", "bytes_down", "train/loss", "unparsable")
COLUMNS = {LARGEST_GAP: "largest LoRA gap"}  # the others bear their own names


@dataclass(frozen=True)
class Matrix:
    """Groups of one model on one data set; numbers: of each record's run by `id`."""

    groups: Sequence[Group]
    published: Published
    numbers: Mapping[int, int]

    @property
    def metrics(self) -> list[str]:
        """Rates that show both modalities, those of the published tables first."""
        theirs = dict.fromkeys(entry["metric"] for entry in self.published.numbers)
        ours = dict.fromkeys(
            name
            for group in self.groups
            for name in group.first.metrics
            if ", " not in name and _plain(name) not in (*COUNTED, LAST_GAP)
        )
        return sorted(ours, key=lambda name: list(theirs).index(name) if name in theirs else len(theirs))

    @property
    def settings(self) -> list[str]:
        """Settings that were run, in the order of the titles."""
        run = dict.fromkeys(group.first.data["split"] for group in self.groups)
        titles = list(self.published.titles)
        return sorted(run, key=lambda name: titles.index(name) if name in titles else len(titles))

    def of(self, metric: str, settings: Sequence[str]) -> list[dict[str, str]]:
        """One line a row, cells linked to the runs behind them."""
        lines: dict[tuple, dict[str, str]] = {}
        for group in sorted(self.groups, key=_order):
            first = group.first
            if metric not in first.metrics:
                continue
            name = ", ".join(filter(None, [self.published.title(first.method), first.variant, group.note]))
            line = lines.setdefault((first.method, first.variant, group.note), {"row": text(name)})
            runs = " ".join(f"[{self.numbers[id(r)]}](#run-{self.numbers[id(r)]})" for r in group.records)
            line[self._head(first.data["split"])] = f"{spread([r.metrics[metric] for r in group.records])} {runs}"
        return list(lines.values())

    def floor(self, metric: str) -> list[dict[str, str]]:
        """One line of what the questions' text alone scores, by setting; empty where no record holds it."""
        side, colon, plain = metric.rpartition(": ")
        name = f"{side}{colon}floor, {plain}"
        found: dict[str, dict[str, None]] = {}  # by setting: once where rows agree, as rows on the same samples do
        for record in (record for group in self.groups for record in group.records if name in record.metrics):
            found.setdefault(self._head(record.data["split"]), {})[spread([record.metrics[name]])] = None
        return [{"row": FLOOR} | {head: ", ".join(values) for head, values in found.items()}] if found else []

    def theirs(self, metric: str, settings: Sequence[str]) -> list[dict[str, str]]:
        """The published rows below a line that says whose they are; empty where none is known."""
        entries = [entry for entry in self.published.numbers if entry["metric"] == metric]
        lines = [{"row": "**published, with another and larger model: compare within a model, not across this line**"}]
        for entry in entries:
            name = text(", ".join(filter(None, [self.published.title(entry["method"]), entry["variant"]])))
            values = {self._head(s): str(entry["values"][s]) for s in settings if s in entry["values"]}
            lines.append({"row": name, **values, "source": text(self.published.sources[entry["source"]])})
        return lines if entries else []

    def pages(self) -> Iterable[str]:
        """A table a metric; of the first metric also what is left where a modality, or both, are hidden."""
        settings = self.settings
        columns = ["row", *map(self._head, settings), "source"]
        miniature = any(group.first.data["miniature"] for group in self.groups)
        for metric in self.metrics:
            yield f"#### {text(metric)}"
            theirs = [] if miniature else self.theirs(metric, settings)
            yield table(columns, [*self.of(metric, settings), *self.floor(metric), *theirs])
        for condition in ("image only", "text only", "neither"):
            hidden = f"{self.metrics[0]}, {condition}" if self.metrics else ""
            if lines := self.of(hidden, settings):
                yield f"#### {text(hidden)}: what test samples show"
                yield table(columns, lines)

    def exchanged(self) -> str:
        """What crossed the network and went wrong, by setting and row."""
        lines = []
        for group in sorted(self.groups, key=lambda g: (self.settings.index(g.first.data["split"]), _order(g))):
            first = group.first
            name = ", ".join(filter(None, [self.published.title(first.method), first.variant, group.note]))
            setting = text(self.published.title(first.data["split"]))
            counts = {text(k): f"{v:,.0f}" if v >= MANY else f"{v:.4g}" for k, v in _counts(first).items()}
            lines.append({"setting": setting, "row": text(name), **counts})
        return table(["setting", "row", *(text(COLUMNS.get(name, name)) for name in COUNTED)], lines)

    def chosen(self) -> str:
        """Rates, sizes of LoRA and wording by row; a row that was run with several has a line for each."""
        lines: dict[tuple, dict[str, str]] = {}
        for group in sorted(self.groups, key=_order):
            told = {text(name): text(value) for name, value in _choices(group.first.config).items()}
            name = ", ".join(filter(None, [self.published.title(group.first.method), group.first.variant, group.note]))
            line = lines.setdefault((name, *told.items()), {"row": text(name), "settings": ""} | told)
            title = text(self.published.title(group.first.data["split"]))
            line["settings"] = ", ".join(filter(None, [line["settings"], title]))
        return table(list(dict.fromkeys(name for line in lines.values() for name in line)), list(lines.values()))

    def _head(self, setting: str) -> str:
        return text(self.published.title(setting))


def tables(groups: Sequence[Group], published: Published, numbers: Mapping[int, int]) -> Iterable[str]:
    """All tables of groups whose configurations name a `model`; models are never mixed in one table."""
    by_model: dict[str, list[Group]] = {}
    for group in groups:
        by_model.setdefault(group.first.config["model"]["title"], []).append(group)
    for model, own in by_model.items():
        made_up = own[0].first.data["miniature"]
        yield f"#### Model: {text(model)}{', on a miniature' if made_up else ''}"
        matrix = Matrix(own, published if own[0].first.data["name"] == published.data or made_up else _none(), numbers)
        yield from matrix.pages()
        yield "#### What was chosen"
        yield matrix.chosen()
        yield "#### Rounds, bytes, failures"
        yield matrix.exchanged()


def _choices(config: Mapping[str, Any]) -> dict[str, str]:
    """What a reader has to know to run it again, of a record's configuration."""
    method, federated = config["method"], config["federated"]
    lora = ", ".join(f"{name} {method['lora'][name]}" for name in ("rank", "alpha", "dropout"))
    server = {name: value for name, value in (federated.get("strategy") or {}).items() if not name.startswith("_")}
    return {
        "client's rate": str(method["optimizer"]["lr"]),
        "batch": str(config["batch_size"]),
        "LoRA": lora,
        "server": ", ".join(f"{name} {value}" for name, value in server.items()),
        "wording": str(config["prompt"]["source"]),
    }


def _counts(record: Record) -> dict[str, float]:
    """What a record counts, by column; the largest LoRA gap of an older one is read from its curve."""
    told = {COLUMNS.get(name, name): record.metrics[name] for name in COUNTED if name in record.metrics}
    if curve := record.curves.get("LoRA gap"):
        told.setdefault(COLUMNS[LARGEST_GAP], max(gap for _, gap in curve))
    return told


def _none() -> Published:
    return Published.of({})


def _order(group: Group) -> tuple:
    first = group.first
    place = ORDER.index(first.method) if first.method in ORDER else len(ORDER)
    return place, first.variant, group.note


def _plain(metric: str) -> str:
    """The metric's name without the test set before it."""
    return metric.split(": ")[-1]
