"""Records and what stands beside them -> the figures of the page, as HTML. Every string is escaped."""

import html
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np

from tracking import plots
from tracking.groups import Group, grouped
from tracking.records import Record
from tracking.report import BASELINES, KINDS, NOT_COMPARED, Published, in_order, is_baseline, measure

Parts = Mapping[str, Any]
OF_WHOM = " @ "  # in the name of a curve: what is measured, and of which client or model
TOTAL = "train/loss"
X_NAMES = {"federated": "round"}  # of a kind's curves; of all others "epoch"
# Rates; of a record the first it has.
HEADLINES = ("top1", "k1", "test/knn1", "test/knn1_leave_one_out", "auc_hard", "accuracy", "overall")
COLOURED = 8  # classes of an embedding that get a colour
NAMED = 5  # confusions named below a matrix


@dataclass(frozen=True)
class Section:
    """A heading of the page and the figures below it; more: those folded away as `folded`; first: before the tables."""

    title: str
    figures: tuple[str, ...]
    more: tuple[str, ...] = ()
    folded: str = "Baselines"
    first: bool = False


def sections(records: Sequence[Record], parts: Mapping[str, Parts], published: Published) -> list[Section]:
    """The sections that have a figure. parts: by record id, as `artefacts.read` gives them."""
    records = in_order(records)
    made = [
        Section("At a glance", tuple(_glances(records, published)), first=True),
        Section(
            "Curves",
            tuple(_curves(records, published, lambda name: not is_term(name))),
            tuple(_curves(records, published, is_term)),
            "Terms of the losses",
        ),
        Section(
            "Confusion",
            tuple(_each([r for r in records if not is_baseline(r)], parts, "confusion", published, _confusion)),
            tuple(_each([r for r in records if is_baseline(r)], parts, "confusion", published, _confusion)),
        ),
        Section("Embeddings", tuple(_each(records, parts, "points", published, _points))),
        Section("Clips", tuple(_each(records, parts, "samples", published, _player))),
        Section("Attention", tuple(filter(None, _each(records, parts, "samples", published, _attention)))),
    ]
    return [section for section in made if section.figures or section.more]


def _each(
    records: Sequence[Record], parts: Mapping[str, Parts], part: str, published: Published, draw
) -> Iterable[str]:
    """Figures of the newest record of each row and seed that has this part."""
    for kind in dict.fromkeys(record.kind for record in records):
        having = [r for r in records if r.kind == kind and part in parts.get(r.id, {})]
        for group in grouped(having, records):
            for record in group.records:
                seed = f", seed {record.seeds['seed']}" if len(group.records) > 1 and "seed" in record.seeds else ""
                yield draw(parts[record.id][part], f"{label(group, published)}{seed}", record)


def heading(record: Record) -> str:
    """Where a figure belongs: data set and kind, the miniature said."""
    return f"{KINDS.get(record.kind, record.kind)} on {record.data['name']}"


def label(group: Group, published: Published, with_split: bool = True) -> str:
    """The row of a group, as the tables name it; with_split: and its split, where there may be several."""
    return ", ".join(filter(None, _parts(group, published, with_split)))


def _parts(group: Group, published: Published, with_split: bool) -> list[str]:
    first = group.first
    split = published.title(first.data["split"]) if with_split else ""
    return [published.title(first.method), first.variant, first.setting, split, group.note]


def figure(body: str, title: str, note: str = "", wide: bool = False) -> str:
    """A figure with its caption; body is HTML, the rest is text."""
    kind = ' class="wide"' if wide else ""
    return f"<figure{kind}><figcaption><b>{escaped(title)}</b>{escaped(note)}</figcaption>{body}</figure>"


def escaped(string: Any) -> str:
    """Any string as text in HTML, on one line."""
    return html.escape(plots.clean(string))


# --- at a glance -------------------------------------------------------------------------------------------------


def _glances(records: Sequence[Record], published: Published) -> Iterable[str]:
    """A figure for each thing measured, its rows the methods; the headline of each beside its baselines."""
    alike: dict[tuple, list[Group]] = defaultdict(list)
    for kind in dict.fromkeys(r.kind for r in records if r.kind not in NOT_COMPARED):
        for group in grouped([r for r in records if r.kind == kind and _headline(r)], records):
            first = group.first
            alike[first.data["name"], kind, first.data["split"], first.setting, _headline(first)].append(group)
    for (data, kind, split, setting, metric), groups in alike.items():
        rows = _rated(groups, metric, published)
        if not rows:
            continue
        title = ", ".join(filter(None, [KINDS.get(kind, kind), setting]))
        told = f"{data}, {published.title(split)}. {measure(metric)}, per cent; the number is the trained network's."
        shown = [name for name in plots.SERIES if any(name == mark.series for _, marks in rows for mark in marks)]
        body = plots.rates(rows, f"{title}, {told}") + ("" if shown == ["trained"] else plots.rates_legend(shown))
        yield figure(body, title, told)


def _rated(groups: Sequence[Group], metric: str, published: Published) -> list[tuple[str, list[plots.Rate]]]:
    """(row, marks in the order of the series); a baseline stands in the row of its method."""
    rows: dict[str, list[plots.Rate]] = defaultdict(list)
    for group in groups:
        first = group.first
        series = next((name for name in BASELINES if first.variant.endswith(name)), "trained")
        streams = first.variant.removesuffix(series).strip(", ")
        name = ", ".join(filter(None, [published.title(first.method), streams, group.note]))
        values = [record.metrics[metric] for record in group.records]
        rows[name].append(plots.Rate(series, mean(values), stdev(values) if len(values) > 1 else 0.0))
        theirs = published.find(first, metric) if series == "trained" and _comparable(first, published) else None
        if theirs is not None:
            rows[name].append(plots.Rate("published", theirs))
    order = list(plots.SERIES)
    sorted_rows = [(name, sorted(marks, key=lambda mark: order.index(mark.series))) for name, marks in rows.items()]
    whole = [(name, marks) for name, marks in sorted_rows if all(0 <= mark.value <= 100 for mark in marks)]
    return sorted(whole, key=lambda row: -row[1][0].value)


def _comparable(record: Record, published: Published) -> bool:
    return not record.data["miniature"] and record.data["name"] == published.data


def _headline(record: Record) -> str:
    return next((name for name in HEADLINES if name in record.metrics), "")


# --- curves ------------------------------------------------------------------------------------------------------


def is_term(name: str) -> bool:
    """Whether a curve is of a part of a loss."""
    return name.startswith("train/") and name != TOTAL


def _curves(records: Sequence[Record], published: Published, wanted: Callable[[str], bool]) -> Iterable[str]:
    for data in dict.fromkeys(r.data["name"] for r in records):
        for kind in dict.fromkeys(r.kind for r in records if r.data["name"] == data):
            of_kind = [r for r in records if r.kind == kind and r.data["name"] == data and r.curves]
            several = len({record.data["split"] for record in of_kind}) > 1
            for groups in _together(grouped(of_kind, records)):
                yield from _of_groups(groups, f"{KINDS.get(kind, kind)} on {data}", published, several, wanted)


def _together(groups: Sequence[Group]) -> Iterable[Sequence[Group]]:
    """The groups whose lines share axes: all, or where they are more than colours those of one split and setting."""
    if len(groups) <= len(plots.PALETTE):
        return [groups] if groups else []
    alike: dict[tuple[str, str], list[Group]] = defaultdict(list)
    for group in groups:
        alike[group.first.data["split"], group.first.setting].append(group)
    return alike.values()


def _of_groups(
    groups: Sequence[Group], title: str, published: Published, several: bool, wanted: Callable[[str], bool]
) -> Iterable[str]:
    """several: whether the lines of the section are of several splits, which are then named."""
    rows = [_parts(group, published, with_split=several) for group in groups]
    common = [part for part in rows[0][1:] if part and all(part in row[1:] for row in rows)] if len(rows) > 1 else []
    panels: dict[tuple[str, str], list[plots.Line]] = defaultdict(list)
    for group, row in zip(groups, rows, strict=True):
        own = ", ".join(part for part in row if part and part not in common)
        for name, whose, line in curves_of(group, own):
            panels[name, own if whose else ""].append(line)
    x_name = X_NAMES.get(groups[0].first.kind, "epoch")
    for (name, whose), lines in sorted(panels.items(), key=lambda item: _metric_order(*item[0])):
        if wanted(name) and _worth_drawing(name, lines, panels.get((TOTAL, whose), ())):
            told = ", ".join(filter(None, [title, *common, whose]))  # what all lines share is told once
            yield from _panels(f"{name}, each" if whose else name, lines, told, x_name)


def _worth_drawing(name: str, lines: Sequence[plots.Line], total: Sequence[plots.Line]) -> bool:
    """Not what was measured but once, which stands in the tables, and not the only term of a loss."""
    points = [line.points for line in lines]
    alone = is_term(name) and points == [line.points for line in total]
    return any(len(line) > 1 for line in points) and not alone


def _panels(name: str, lines: Sequence[plots.Line], title: str, x_name: str) -> Iterable[str]:
    """As many figures as the palette needs."""
    at_once = len(plots.PALETTE)
    for start in range(0, len(lines), at_once):
        shown = lines[start : start + at_once]
        part = f" ({start // at_once + 1})" if len(lines) > at_once else ""
        body = plots.lines(shown, x_name, name) + plots.legend([line.label for line in shown])
        yield figure(body, f"{measure(name)}{part}", title)


def curves_of(group: Group, name: str) -> Iterable[tuple[str, str, plots.Line]]:
    """(what is measured, of which client or model, line) of every curve of a row: the mean over its seeds, and a band
    of one deviation. Lines of a client bear its name, the others that of the row.
    """
    for curve in dict.fromkeys(name for record in group.records for name in record.curves):
        by_x: dict[float, list[float]] = defaultdict(list)
        for record in group.records:
            for x, y in record.curves.get(curve, ()):
                by_x[x].append(y)
        if not by_x:
            continue
        what, _, whose = curve.partition(OF_WHOM)
        points = [(x, mean(by_x[x])) for x in sorted(by_x)]
        several = [(x, mean(ys), stdev(ys)) for x, ys in sorted(by_x.items()) if len(ys) > 1]
        band = [(x, middle - sd, middle + sd) for x, middle, sd in several]
        seeds = f" (mean ± sd of {len(group.records)} seeds)" if band else ""
        yield what, whose, plots.Line((whose or name) + seeds, points, band)


def _metric_order(name: str, whose: str) -> tuple[int, str, str]:
    """Accuracies first, then losses, the total before its terms."""
    first = 0 if name.startswith("test/") else 1
    return first, "" if name == TOTAL else name, whose


# --- what stands beside a record ---------------------------------------------------------------------------------


def _confusion(part: Parts, title: str, record: Record) -> str:
    counts = np.asarray(part["matrix"], dtype=np.float64)
    occur = np.flatnonzero(counts.sum(0) + counts.sum(1))  # a miniature has a sixth of the labels
    counts = counts[np.ix_(occur, occur)]
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    wrong = shares - np.diag(np.diag(shares))
    rows, columns = np.unravel_index(np.argsort(-wrong, axis=None)[:NAMED], wrong.shape)
    told = [
        f"{occur[r]} for {occur[c]} ({100 * wrong[r, c]:.0f} %)"
        for r, c in zip(rows, columns, strict=True)
        if wrong[r, c] > 0
    ]
    note = f"{heading(record)}. Share of each label's clips, dark 0 to bright 1; {int(counts.sum())} test clips."
    if told:
        note += f" Taken most often: {', '.join(told)}."
    body = plots.matrix(shares, occur.tolist(), "label, from 0", "answer", f"Confusion matrix, {title}")
    return figure(body, title, note)


def _points(part: Parts, title: str, record: Record) -> str:
    xy, labels = np.asarray(part["xy"], dtype=np.float64), np.asarray(part["labels"], dtype=np.int64)
    found, counts = np.unique(labels, return_counts=True)
    classes = sorted(int(one) for one in found[np.argsort(-counts, kind="stable")][:COLOURED])
    rest = "other labels" if len(found) > COLOURED else ""
    body = plots.scatter(xy, labels, classes, part["names"], f"Embedding, {title}")
    legend = plots.points_legend([f"label {one}" for one in classes], rest)
    return figure(
        body + legend,
        title,
        f"{record.data['name']}. {part['method']} of {len(xy)} of {part['of']} test clips; distances say little.",
    )


def _player(part: Parts, title: str, record: Record) -> str:
    name = f"samples-{record.id}"
    controls = f'<div class="player" data-source="{name}"><div class="controls"></div>'
    canvas = (
        f'<canvas tabindex="0" role="img" aria-label="{escaped(f"Clips, {title}")}"></canvas><p class="note"></p></div>'
    )
    note = f"{record.data['name']}. Drag to turn the figure; tap a joint to see where it looks."
    return figure(f"{controls}{canvas}{json_block(name, part)}", title, note, wide=True)


def _attention(part: Parts, title: str, record: Record) -> str:
    """The maps of the first body of the first clip, one figure each, brightest where a map is largest."""
    clip, figures = part["clips"][0], []
    for one in clip["maps"]:
        values = np.asarray(one["values"][0], dtype=np.float64)
        body = plots.matrix(
            values / max(values.max(), 1e-12),
            range(len(values)),
            f"{one['over']} asking, from 0",
            f"{one['over']} asked",
            f"Attention map, {one['name']}",
            f"{values.max():.2g}",
        )
        note = f"{title}; {clip['title']}. Mean over heads of its size, dark 0 to bright {values.max():.3g}."
        figures.append(figure(body, one["name"], note))
    return "".join(figures)


def json_block(name: str, content: Any) -> str:
    """JSON that no browser runs and no string in it can end."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{html.escape(name)}">{text}</script>'
