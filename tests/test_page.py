"""The page holds the tables of the Markdown and a figure for all that was measured, and no string becomes markup."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
import toy_report as toy
from PIL import Image
from test_report import NASTY, TARGETS, tables

from tracking import artefacts, figures, groups, page, plots, report
from tracking.errors import UsageError

TAGS = {
    *("html", "head", "meta", "link", "title", "style", "body", "nav", "a", "h1", "h2", "h3", "p", "blockquote"),
    *("strong", "ul", "li", "code", "div", "table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "b"),
    *("header", "main", "h4", "details", "summary"),
    *("svg", "g", "line", "text", "polyline", "polygon", "circle", "image", "canvas", "script", "span"),
}


def written(records, parts, out, targets=None) -> str:
    targets = TARGETS if targets is None else targets
    markdown = report.write(records, targets, "toy", out).read_text()
    return page.write(markdown, records, parts, targets, out / "toy.html").read_text()


class Reader(HTMLParser):
    """Tables as rows of texts, and every tag with its attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.tables, self.tags, self.texts, self._cell = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append("".join(self._cell))
            self._cell = None

    def handle_data(self, data):
        self.texts.append(data)
        if self._cell is not None:
            self._cell.append(data)


def test_the_tables_are_those_of_the_markdown(tmp_path):
    records, parts = toy.everything()
    html = Reader(written(records, parts, tmp_path))
    markdown = tables((tmp_path / "toy.md").read_text())
    assert [[dict(zip(head, row, strict=True)) for row in rows] for head, *rows in html.tables] == markdown
    assert len(markdown) > 4


def test_every_link_of_the_page_has_its_target_and_nothing_is_fetched(tmp_path):
    records, parts = toy.everything()
    text = written(records, parts, tmp_path)
    tags = Reader(text).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    links = {attributes["href"] for tag, attributes in tags if tag == "a" and "href" in attributes}
    assert len(ids) == len(set(ids)) and {link[1:] for link in links} <= set(ids) and len(links) > 8
    fetched = [value for tag, a in tags for name, value in a.items() if name in ("src", "href", "data") and tag != "a"]
    assert all(value.startswith("data:") for value in fetched)
    assert "http" not in re.sub(r'xmlns="http://www.w3.org/2000/svg"', "", text.split("<body>")[1].split("<script>")[0])


def test_figures_stand_between_the_tables_and_what_is_behind_them(tmp_path):
    records, parts = toy.everything()
    text = written(records, parts, tmp_path)
    order = [
        "At a glance</h2>",
        "miniature, not NTU RGB+D 60</h2>",
        "Curves</h2>",
        "Confusion</h2>",
        "Embeddings</h2>",
        "Clips</h2>",
        "Attention</h2>",
        "Cost</h2>",
        f"{report.BEHIND}</h2>",
    ]
    places = [text.index(heading) for heading in order]
    assert places == sorted(places)


def test_without_figures_there_is_no_empty_heading(tmp_path):
    text = written([toy.record("knn", metrics={"effective_rank": 3.0})], {}, tmp_path)
    assert "<figure" not in text.split("<body>")[1] and "Curves" not in text


def rows_of(text: str) -> list[list[tuple[str, ...]]]:
    """Of every figure at a glance: (row, series, mean, deviation or "") of each mark."""
    glance = text.split("At a glance</h2>")[1].split("<h2")[0]
    return [
        re.findall(r"<title>([^<]*), ([a-z ]+): ([\d.]+)(?: ± ([\d.]+))?</title>", figure)
        for figure in glance.split("<figure")[1:]
    ]


def test_at_a_glance_each_method_stands_beside_its_baselines_and_what_is_published(tmp_path):
    real = toy.DATA | {"name": "NTU RGB+D 60", "miniature": False}
    linear = [
        toy.record("linear", seed, data=real, setting="all", method="scd_net", metrics={"top1": 60.0 + seed})
        for seed in (1, 3)
    ]
    others = [
        toy.record("linear", data=real, setting="all", method=method, variant=variant, metrics={"top1": value})
        for method, variant, value in (("scd_net", "coordinates", 40.0), ("sds_cl", "", 70.0))
    ]
    knn = toy.record("knn", metrics={"k1": 50.0, "k5": 60.0})
    found = rows_of(written([*linear, *others, knn, toy.train_record(1)], {}, tmp_path))
    assert found == [
        [
            ("SDS-CL", "trained", "70.00", ""),
            ("SCD-Net", "published", "86.60", ""),
            ("SCD-Net", "coordinates", "40.00", ""),
            ("SCD-Net", "trained", "62.00", "1.4"),
        ],
        [("SDS-CL", "trained", "50.00", "")],
    ], "the best row first, of a row the first mark on top; a miniature beside nothing published; no losses"


def test_a_rate_stands_where_the_axis_says():
    svg = ElementTree.fromstring(plots.rates([("one", [plots.Rate("trained", 60.0, 5.0)])], "title"))
    texts = {e.text: float(e.get("x")) for e in svg.iter() if e.tag.endswith("text")}
    (spot,) = [e for e in svg.iter() if e.tag.endswith("circle")]
    (bar,) = [e for e in svg.iter() if e.tag.endswith("line") and e.get("stroke-width")]
    each = (texts["100"] - texts["0"]) / 100
    assert float(spot.get("cx")) == pytest.approx(texts["60"], abs=0.1)
    assert float(bar.get("x2")) - float(bar.get("x1")) == pytest.approx(10 * each, abs=0.1)
    assert "60.0" in texts


def test_what_lines_share_is_told_in_the_caption(tmp_path):
    runs = [toy.train_record(1, method=method, setting="joint stream") for method in ("sds_cl", "scd_net")]
    text = written(runs, {}, tmp_path)
    assert (
        'train/loss over epoch: SCD-Net, SDS-CL"' in text and "Training on miniature, not NTU RGB+D 60, joint" in text
    )


def test_baselines_confusion_and_terms_of_losses_are_folded_away(tmp_path):
    curves = {name: [[1, 2.0], [2, y]] for name, y in (("train/loss", 1.0), ("train/stl", 0.5), ("train/gl", 0.25))}
    train, same = toy.train_record(1, curves=curves), {"train/loss": [[1, 2.0], [2, 1.0]]}
    ours, bare = toy.record("knn"), toy.record("knn", variant="coordinates")
    parts = {record.id: {"confusion": toy.confusion()} for record in (ours, bare)}
    text = written([train, ours, bare], parts, tmp_path)
    assert "<details><summary>Terms of the losses (2)</summary>" in text and "<summary>Baselines (1)</summary>" in text
    shown = re.sub(r"<details>.*?</details>", "", text, flags=re.S)
    assert "train/loss over epoch" in shown and "train/stl over epoch" not in shown
    assert 'aria-label="Confusion matrix, SDS-CL, xsub"' in shown and "Confusion matrix, SDS-CL, coord" not in shown
    alone = toy.train_record(1, curves=same | {"train/cross_entropy": same["train/loss"]})
    assert "cross_entropy over epoch" not in written([alone], {}, tmp_path), "a loss of one term is drawn once"


def test_more_lines_than_colours_are_parted_by_split_and_setting(tmp_path):
    runs = [
        toy.train_record(1, method=f"m{n}", key=f"{n}{split}" * 8, data=toy.DATA | {"split": split})
        for split in ("ntu60_xsub", "ntu60_xview")
        for n in range(4)
    ]
    text = written(runs, {}, tmp_path)
    assert re.findall('train/loss over epoch: ([^"]*)"', text) == ["m0, m1, m2, m3"] * 2
    assert "miniature, not NTU RGB+D 60, xsub<" in text and "miniature, not NTU RGB+D 60, ntu60_xview<" in text


def test_losses_and_what_is_behind_are_folded_away(tmp_path):
    records, parts = toy.everything()
    text = written(records, parts, tmp_path)
    folds = re.findall(r"<details><summary><h3>(.*?)</h3>", text)
    assert folds[0] == "Training" and folds[-1] == "Versions" and text.count("</details>") == len(folds)
    assert [f'<a id="run-{n}"></a>' in fold for n, fold in enumerate(folds[1:-1], 1)] == [True] * len(records)
    assert text.index("</details>") < text.index("Curves</h2>")


def test_seeds_become_a_mean_with_a_band(tmp_path):
    group = groups.Group((toy.train_record(1), toy.train_record(3)))
    found = {name: line for name, _, line in figures.curves_of(group, "SDS-CL")}
    knn = found["test/knn1"]
    assert knn.label == "SDS-CL (mean ± sd of 2 seeds)" and list(knn.points) == [(2, 34), (4, 38), (6, 42), (8, 46)]
    assert knn.band[0] == pytest.approx((2, 34 - 2 * 2**0.5, 34 + 2 * 2**0.5))
    alone = {name: line for name, _, line in figures.curves_of(groups.Group((toy.train_record(1),)), "SDS-CL")}
    assert alone["train/loss"].label == "SDS-CL" and not alone["train/loss"].band


def test_a_seed_that_ends_early_leaves_the_mean_of_the_others():
    short = toy.train_record(2, curves={"train/loss": [[1, 5.0]]})
    found = figures.curves_of(groups.Group((toy.train_record(1), short)), "")
    (line,) = [line for name, _, line in found if name == "train/loss"]
    assert line.points[:2] == [(1, (3.1 + 5) / 2), (2, 1.6)] and len(line.band) == 1


def test_what_was_measured_but_once_is_no_curve(tmp_path):
    curves = {"test/top1": [[8, 50.0]], "test/knn1": [[4, 40.0], [8, 50.0]]}
    text = written([toy.train_record(1, curves=curves)], {}, tmp_path)
    assert "test/knn1 over epoch" in text and "test/top1 over epoch" not in text


def test_lines_name_their_split_where_there_are_several(tmp_path):
    one, other = toy.train_record(1), toy.train_record(1, data=toy.DATA | {"split": "ntu60_xview"}, key="v" * 64)
    assert 'over epoch: SDS-CL"' in written([one], {}, tmp_path)
    assert 'over epoch: SDS-CL, xsub, SDS-CL, ntu60_xview"' in written([one, other], {}, tmp_path)


def test_clients_share_the_axes_of_what_they_measure(tmp_path):
    text = written([toy.federated_record(9)], {}, tmp_path)
    drawn = re.findall(r'aria-label="([^"]*)"', text)
    losses = [label for label in drawn if label.startswith("train/loss, each over round")]
    assert [label.count("client") for label in losses] == [7, 2], "more lines than colours need a further figure"
    two = [toy.federated_record(2), toy.federated_record(2, method="scd_net", key="v" * 64)]
    text = written(two, {}, tmp_path)
    losses = re.findall(r'train/loss, each over round: ([^"]*)"', text)
    assert losses == ["client 0, client 1"] * 2, "each federation has axes of its own for its clients"
    assert 'over round: SCD-Net, SDS-CL"' in text and "miniature, not NTU RGB+D 60, SCD-Net<" in text
    assert any(label.startswith("test/knn1 over round") for label in drawn)


def test_a_line_goes_where_its_axes_say():
    svg = ElementTree.fromstring(plots.lines([plots.Line("one", [(0, 0.0), (1, 10.0), (2, 5.0)])], "epoch", "top1"))
    (line,) = [e for e in svg.iter() if e.tag.endswith("polyline")]
    (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, p.split(","))) for p in line.get("points").split()]
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y0 - y1 == pytest.approx(2 * (y0 - y2), abs=0.3)
    texts = {e.text: e for e in svg.iter() if e.tag.endswith("text")}
    assert float(texts["10"].get("y")) - 4 == pytest.approx(y1, abs=0.2), "the tick 10 stands at the height of 10"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 17), (0.0001, 0.00013), (1e6, 5e6), (41, 43.5)])
def test_ticks_are_round_and_inside(low, high):
    found = plots.ticks(low, high)
    steps = {round((b - a) / 10 ** np.floor(np.log10(b - a)), 6) for a, b in pairwise(found)}
    assert 3 <= len(found) <= 9 and low - 1e-12 <= found[0] and found[-1] <= high + 1e-12
    assert len(steps) == 1 and steps <= {1, 2, 5, 10}


def test_a_constant_curve_can_be_drawn():
    assert "polyline" in plots.lines([plots.Line("flat", [(1, 2.0), (2, 2.0)])], "epoch", "x")
    assert "polyline" in plots.lines([plots.Line("dot", [(1, 0.0)])], "epoch", "x")


def test_confusions_are_shares_of_each_label_and_the_worst_are_named(tmp_path):
    part = {"matrix": [[8, 2, 0], [0, 4, 0], [5, 5, 0]]}
    text = written([toy.record("knn")], {toy.record("knn").id: {"confusion": part}}, tmp_path)
    assert "24 test clips. Taken most often: 2 for 0 (50 %), 2 for 1 (50 %), 0 for 1 (20 %)." in text
    pixels = np.asarray(plots.heat(np.array([[0.0, 1.0]]))).astype(int)
    assert pixels[0, 1].sum() > pixels[0, 0].sum() + 300


def test_attention_maps_are_drawn_as_they_are(tmp_path):
    record = toy.record("inspect")
    text = written([record], {record.id: {"samples": toy.samples()}}, tmp_path)
    drawn = re.findall(r'aria-label="Attention map, ([^"]*)".*?href="data:image/png;base64,([^"]*)"', text)
    assert [name for name, _ in drawn] == ["spatial, intra", "temporal, intra"]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn[1][1]))).convert("RGB")).astype(int)
    assert (pixels == np.asarray(plots.heat(np.array([[5, 1], [2, 7]]) / 7))).all()
    assert "dark 0 to bright 0.7." in text
    bare = toy.samples()
    for clip in bare["clips"]:
        clip["maps"] = []
    assert "Attention</h2>" not in written([record], {record.id: {"samples": bare}}, tmp_path)


def test_labels_beyond_the_palette_are_grey_and_said(tmp_path):
    record = toy.record("inspect")
    text = written([record], {record.id: {"points": toy.points(40)}}, tmp_path)
    assert text.count(f'fill="{plots.GREY}"') == 8 + 1 and "other labels" in text
    assert "t-SNE of 40 of 300 test clips" in text


@pytest.mark.parametrize("evil", [*NASTY, "</script><script>alert(1)</script>", "<!--<script>", "\u2028'\"`${x}"])
def test_every_string_comes_out_as_text(tmp_path, evil):
    data = toy.DATA | {"name": evil, "split": evil}
    curves = {f"{evil}": [[1, 2.0], [2, 3.0]], f"train/loss @ {evil}": [[1, 1.0]]}
    made = [
        toy.record(kind, method=evil, variant=evil, setting=evil, data=data, curves=curves, metrics={evil: 1.0})
        for kind in ("train", "knn", "inspect")
    ]
    parts = {
        made[1].id: {"confusion": toy.confusion()},
        made[2].id: {"points": toy.points(name=evil) | {"method": evil}, "samples": toy.samples(evil, evil)},
    }
    clean, dirty = (Reader(written(*both, tmp_path)) for both in (toy_parts(), (made, parts)))
    assert {tag for tag, _ in dirty.tags} <= TAGS
    assert {name for _, a in dirty.tags for name in a} <= {name for _, a in clean.tags for name in a} | {
        "stroke-dasharray"
    }
    scripts = [attributes for tag, attributes in dirty.tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": f"samples-{made[2].id}"}, {}]
    assert not any(name.startswith("on") for _, a in dirty.tags for name in a)
    (block,) = [text for text in dirty.texts if text.startswith('{"bones"')]
    assert json.loads(block)["clips"][0]["title"] == evil


def toy_parts():
    records, parts = toy.everything()
    return records, parts


def test_html_in_markdown_that_is_not_ours_is_shown_not_run():
    text = page.page('# t\n\n<img src=x onerror=alert(1)>\n\n<a id="run-1"></a>x <a id="run-1" onclick=1>y <b>z', [])
    assert "<img" not in text and "&lt;img src=x" in text
    assert '<a id="run-1"></a>x' in text and "onclick=1>" not in text and "<b>" not in text.split("<body>")[1]


def test_parts_come_back_and_a_torn_file_is_named(tmp_path):
    record = toy.record("knn")
    artefacts.write(record, tmp_path, {"confusion": toy.confusion()})
    assert artefacts.read(record, tmp_path) == {"confusion": toy.confusion()}
    assert artefacts.read(toy.record("linear"), tmp_path) == {}
    (path,) = artefacts.folder_of(record, tmp_path).iterdir()
    for text in ('{"matrix": [[1,', '{"matrix": [[NaN]]}'):
        path.write_text(text)
        with pytest.raises(UsageError, match=r"confusion\.json"):
            artefacts.read(record, tmp_path)
    with pytest.raises(ValueError):
        artefacts.write(record, tmp_path, {"points": [float("nan")]})
