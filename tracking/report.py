"""Records -> one Markdown page: our numbers, what is published, and what stands behind each number.

A miniature is never set beside a published number: there the published ones stand apart, marked as not comparable.
"""

import html
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tracking.errors import UsageError
from tracking.groups import Group, grouped, natural
from tracking.records import Record

KINDS = {  # in the order of the page; any other kind follows under its own name
    "linear": "Linear evaluation",
    "knn": "Nearest neighbours",
    "semi": "Semi-supervised fine-tuning",
    "finetune": "Fine-tuning",
    "transfer": "Transfer",
    "inspect": "Shape of the embedding",
    "federated": "Federated training",
    "pretrain": "Pre-training",
    "train": "Training",
}
TRAINING = ("pretrain", "train")  # losses: nobody publishes those
NOT_COMPARED = (*TRAINING, "inspect")
BASELINES = ("random initialisation", "supervised only", "coordinates")
NOT_A_RESULT = ("labels", "epoch", "bytes_up", "bytes_down")  # stand among the metrics, but count
NONE_KNOWN = "none known"
COST = "Cost"
BEHIND = "What stands behind the numbers"
COLUMNS = ("row", "measure", "last epoch", "best test epoch", "published", "difference", "seeds", "seconds", "runs")
LONG_SOURCE = 24  # letters, from which a source stands below its table
PUBLISHED_SIZE = "published"  # of conf/scale/
FEW_SPLITS = 3  # beside which there is room for the source of every number
GIGA = 1e9


@dataclass(frozen=True)
class Published:
    """Published numbers of one data set, as `conf/targets/*.yaml` holds them."""

    data: str
    titles: Mapping[str, str]
    unknown: tuple[str, ...]
    sources: Mapping[str, str]
    numbers: tuple[Mapping[str, Any], ...]

    @classmethod
    def of(cls, targets: Mapping[str, Any]) -> "Published":
        """Checked; raises UsageError for an unknown or missing key and for a source that is not listed."""
        known = {"data", "titles", "unknown", "sources", "numbers"}
        if targets and (different := known ^ targets.keys()):
            raise UsageError(f"targets hold {', '.join(sorted(known))}, see {', '.join(sorted(different))}")
        default = {"variant": "", "setting": "", "metric": "top1"}
        needed = {"method", "kind", "source", "values"}
        numbers = tuple(default | dict(entry) for entry in targets.get("numbers", ()))
        for entry in numbers:
            if different := (needed | default.keys()) ^ entry.keys():
                raise UsageError(f"a published number holds {', '.join(sorted(needed))}, see {sorted(different)}")
            if entry["source"] not in targets["sources"]:
                raise UsageError(f"the published number of {entry['method']} names no source: {entry['source']!r}")
        return cls(
            targets.get("data", ""),
            targets.get("titles", {}),
            tuple(targets.get("unknown", ())),
            targets.get("sources", {}),
            numbers,
        )

    def title(self, name: str) -> str:
        """How a method or a split is printed."""
        return self.titles.get(name, name)

    def find(self, record: Record, metric: str) -> float | None:
        """The number published for what `record` measures, None if none is known."""
        wanted = (record.method, record.variant, record.kind, record.setting, metric)
        for entry in self.numbers:
            found = tuple(entry[field] for field in ("method", "variant", "kind", "setting", "metric"))
            if found == wanted and record.data["split"] in entry["values"]:
                return entry["values"][record.data["split"]]
        return None


Matrices = Callable[[Sequence[Group], Published, Mapping[int, int]], Iterable[str]]


def write(
    records: Sequence[Record], targets: Mapping[str, Any], name: str, out: Path, matrices: Matrices | None = None
) -> Path:
    """Write `out/<name>.md` whole; `targets` as in `conf/targets/*.yaml`, empty where nothing is published.

    matrices: tables of their own for records whose configuration names a `model` (`tracking.matrix.tables`).
    Raises UsageError where there is no record, and for malformed targets or a name that is no plain file name.
    """
    if not records:
        raise UsageError("expected records to report, found none: train and evaluate first")
    if not re.fullmatch(r"[\w-]+", name):
        raise UsageError(f"a report's name is letters, digits, _ and -, found {name!r}")
    page = "\n\n".join(_page(list(records), Published.of(targets), name, matrices)) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    path, temporary = out / f"{name}.md", out / f".{name}.md.{os.getpid()}"
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def _page(records: list[Record], published: Published, name: str, matrices: Matrices | None) -> Iterable[str]:
    records = in_order(records)
    numbers = {id(record): number for number, record in enumerate(records, 1)}
    tabled: set[int] = set()
    yield f"# Results: {text(name)}"
    for made_up in sorted({r.data["name"] for r in records if r.data["miniature"]}):
        yield f"> **{text(made_up)}**: its numbers show that everything runs, and say nothing about the real data set."
    yield from _of_size(records)
    yield "Headline = last epoch; the best test epoch stands beside it as the field's habit. Rates in per cent."
    yield _of_when(records)
    for data in dict.fromkeys(r.data["name"] for r in records):
        yield f"## {text(data)}"
        of_data = [r for r in records if r.data["name"] == data]
        for kind in dict.fromkeys(r.kind for r in of_data):
            groups = grouped([r for r in of_data if r.kind == kind], records)
            tabled |= {id(record) for group in groups for record in group.records}
            yield f"### {text(KINDS.get(kind, kind))}"
            apart = [group for group in groups if matrices and "model" in group.first.config]
            if matrices and apart:
                yield from matrices(apart, published, numbers)
            if listed := [group for group in groups if group not in apart]:
                yield from _results(listed, published, numbers)
    yield from _literature(published, beside_miniature=any(r.data["miniature"] for r in records))
    yield from _costs(records, numbers)
    yield from _runs(records, numbers, tabled)


def _of_size(records: Sequence[Record]) -> Iterable[str]:
    """What no reader may miss: networks smaller, or epochs fewer, than those of the numbers they stand beside."""
    real = [record for record in records if not record.data["miniature"]]
    sizes = [record.config["scale"] for record in real if record.config.get("scale", PUBLISHED_SIZE) != PUBLISHED_SIZE]
    if sizes:
        named = text(", ".join(f"scale={size}" for size in dict.fromkeys(sizes)))
        of = f"{len(sizes)} of {len(real)} results"
        yield f"> **Not of published size**: {of} are of small networks and few epochs ({named}); see their commands."


def in_order(records: Iterable[Record]) -> list[Record]:
    """The records as the page goes through them."""

    def place(r: Record) -> tuple:
        return r.data["name"], _kind_order(r.kind), r.method, r.variant, r.setting, r.created

    return sorted(records, key=place)


def _kind_order(kind: str) -> tuple[int, str]:
    order = list(KINDS)
    return (order.index(kind) if kind in KINDS else order.index("pretrain") - 1, kind)


def _of_when(records: Sequence[Record]) -> str:
    days = sorted({record.created[:10] for record in records})
    commits = list(dict.fromkeys(record.commit[:8] for record in records if record.commit))
    told = f"{len(records)} result{'s' * (len(records) > 1)} of {text(' to '.join(dict.fromkeys([days[0], days[-1]])))}"
    if not commits:
        return f"{told}."
    return f"{told}, commit {text(commits[0])}." if len(commits) == 1 else f"{told}, {len(commits)} commits."


# --- tables ------------------------------------------------------------------------------------------------------


def _results(groups: Sequence[Group], published: Published, numbers: Mapping[int, int]) -> Iterable[str]:
    """A table for each split and setting, under a heading that says what all its rows are of."""
    alike: dict[tuple[str, str], list[Group]] = defaultdict(list)
    for group in groups:
        alike[group.first.data["split"], group.first.setting].append(group)
    for (split, setting), members in alike.items():
        lines = [line for group in members for line in _lines(group, published, numbers)]
        measures = {line["measure"] for line in lines}
        common = [text(published.title(split)), text(setting), *(measures if len(measures) == 1 else ())]
        yield f"#### {', '.join(filter(None, common))}"
        yield table(COLUMNS if len(measures) > 1 else [name for name in COLUMNS if name != "measure"], lines)


def _lines(group: Group, published: Published, numbers: Mapping[int, int]) -> Iterable[dict[str, str]]:
    """One line a metric of a row."""
    first = group.first
    compared = first.kind not in NOT_COMPARED and not first.data["miniature"]
    for metric in sorted(first.metrics, key=lambda name: natural([name])):
        if metric in NOT_A_RESULT:
            continue
        line = {
            "row": text(", ".join(filter(None, [published.title(first.method), first.variant, group.note]))),
            "measure": text(measure(metric)),
            "last epoch": spread([r.metrics[metric] for r in group.records if metric in r.metrics]),
            "best test epoch": spread([r.best[metric] for r in group.records if metric in r.best]),
            "seeds": str(len(group.records)),
            "seconds": spread([r.seconds for r in group.records], "{:.2f}".format),
            "runs": " ".join(f"[{numbers[id(r)]}](#run-{numbers[id(r)]})" for r in group.records),
        }
        yield line | (_compared(group, metric, published) if compared else {})


def is_baseline(record: Record) -> bool:
    """Whether it shows what the numbers beside it are worth; also of several streams."""
    return record.variant.endswith(BASELINES)


def _compared(group: Group, metric: str, published: Published) -> dict[str, str]:
    first = group.first
    if is_baseline(first):
        return {}
    theirs = published.find(first, metric) if first.data["name"] == published.data else None
    if theirs is None:
        return {"published": NONE_KNOWN}
    ours = mean(r.metrics[metric] for r in group.records if metric in r.metrics)
    return {"published": str(theirs), "difference": f"{ours - theirs:+.2f}"}


def _literature(published: Published, beside_miniature: bool) -> Iterable[str]:
    if not published.data:
        return
    yield f"## Published on {text(published.data)}"
    if beside_miniature:
        yield "**Not comparable** with the numbers of a miniature."
    tables: dict[tuple[str, str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for entry in published.numbers:
        tables[entry["kind"], entry["setting"], entry["metric"]].append(entry)
    for (kind, setting, metric), entries in tables.items():
        yield "### " + text(", ".join(filter(None, [KINDS.get(kind, kind), setting, measure(metric)])))
        splits = list(dict.fromkeys(split for entry in entries for split in entry["values"]))
        sources = list(dict.fromkeys(published.sources[entry["source"]] for entry in entries))
        apart = len(splits) > FEW_SPLITS or max(map(len, sources)) > LONG_SOURCE
        lines = []
        for entry in entries:
            values = {text(published.title(s)): str(entry["values"][s]) for s in splits if s in entry["values"]}
            method = ", ".join(filter(None, [published.title(entry["method"]), entry["variant"]]))
            source = published.sources[entry["source"]]
            told = str(sources.index(source) + 1) if apart else text(source)
            lines.append({"method": text(method), **values, "source": told})
        yield table(["method", *(text(published.title(s)) for s in splits), "source"], lines)
        if apart:
            yield f"Sources: {'; '.join(f'({n}) {text(source)}' for n, source in enumerate(sources, 1))}."
    if published.unknown:
        yield f"No published number known: {text(', '.join(map(published.title, published.unknown)))}."


def _costs(records: Sequence[Record], numbers: Mapping[int, int]) -> Iterable[str]:
    """Seconds, memory and bytes sent of the jobs that measured more than their seconds."""
    lines = [
        {
            "run": f"[{numbers[id(record)]}](#run-{numbers[id(record)]})",
            "job": text(", ".join(filter(None, [record.kind, record.method, record.variant, record.setting]))),
            "seconds": f"{record.seconds:.2f}",
            "peak memory, GB": gigabytes(record.cost.get("peak_memory"), "{:.2f}".format),
            "peak memory of the GPU, GB": gigabytes(record.cost.get("peak_gpu_memory"), "{:.2f}".format),
            "sent to the server, GB": gigabytes(record.metrics.get("bytes_up")),
            "sent to clients, GB": gigabytes(record.metrics.get("bytes_down")),
        }
        for record in records
        if record.cost
    ]
    if lines:
        yield f"## {COST}"
        yield table(list(lines[0]), lines)


def _runs(records: Sequence[Record], numbers: Mapping[int, int], tabled: set[int]) -> Iterable[str]:
    yield f"## {BEHIND}"
    installed = list(dict.fromkeys(", ".join(f"{k} {v}" for k, v in sorted(r.versions.items())) for r in records))
    for record in records:
        data, counts = record.data, ", ".join(f"{value} {name}" for name, value in record.data["counts"].items())
        counted = [f"{name} {record.metrics[name]:g}" for name in NOT_A_RESULT if name in record.metrics]
        versions = ", ".join(f"{k} {v}" for k, v in sorted(record.versions.items()))
        facts = {
            "command": f"<code>{text(record.command)}</code>",
            "key": f"<code>{text(record.key)}</code>",
            "builds on": " ".join(f"<code>{text(key)}</code>" for key in record.parents),
            "experiment": text(record.experiment),
            "data": text(f"{data['name']}, {data['split']}: {counts}; fingerprint {data['fingerprint']}"),
            "LoRA": text(data.get("lora", "")),
            "seeds": text(", ".join(f"{k} {v}" for k, v in record.seeds.items())),
            "counts": text(", ".join(counted)),
            "commit": text(record.commit or "unknown (no git checkout)"),
            "versions": f"set {installed.index(versions) + 1}",
            "made": text(f"{record.created} in {number(record.seconds)} s"),
            "not in the tables": "" if id(record) in tabled else "a newer run has the same settings and seeds",
        }
        what = ", ".join(filter(None, [record.kind, record.method, record.variant, record.setting]))
        yield f'### <a id="run-{numbers[id(record)]}"></a>Run {numbers[id(record)]}: {text(what)}'
        yield "\n".join(f"- {name}: {fact}" for name, fact in facts.items() if fact)
    yield "### Versions"
    yield "\n".join(f"- set {n}: {text(versions)}" for n, versions in enumerate(installed, 1))


def table(columns: Sequence[str], lines: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table of cells that are escaped already; columns empty throughout are left out, numbers end at the
    right.
    """
    columns = [column for column in columns if any(line.get(column) for line in lines)]
    cells = {column: [line.get(column, "") for line in lines] for column in columns}
    rules = ["---:" if all(map(_is_number, filter(None, cells[column]))) else "---" for column in columns]
    rows = [columns, rules, *([line.get(column, "") for column in columns] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _is_number(cell: str) -> bool:
    return cell == NONE_KNOWN or re.fullmatch(r"[-+]?[\d.,]+(e[-+]?\d+)?( ± [\d.e+-]+)?( \[.*\))?", cell) is not None


def measure(metric: str) -> str:
    """How a metric is printed: k5 -> 5-NN, top1 -> top-1."""
    return re.sub(r"^top(\d+)$", r"top-\1", re.sub(r"^k(\d+)$", r"\1-NN", metric))


def number(value: float) -> str:
    """Two decimals, or four significant digits below 1."""
    return f"{value:.2f}" if abs(value) >= 1 or value == 0 else f"{value:.4g}"


def spread(values: Sequence[float], printed: Callable[[float], str] = number) -> str:
    """Mean, with the sample standard deviation where there are several; empty for none."""
    if len(values) < 2:
        return "".join(map(printed, values))
    return f"{printed(mean(values))} ± {printed(stdev(values))}"


def gigabytes(value: float | None, printed: Callable[[float], str] = number) -> str:
    """Bytes in units of 10^9, empty where they were not measured."""
    return "" if value is None else printed(value / GIGA)


def text(string: Any) -> str:
    """Any string as plain text inside Markdown and HTML, on one line."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(string)).split())
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", html.escape(line, quote=False))
