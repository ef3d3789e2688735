"""The page says what the records hold, beside what is published, and nothing a record could smuggle in."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

from tracking import report
from tracking.errors import UsageError
from tracking.records import Record

ROOT = Path(report.__file__).parent.parent
TARGETS = {
    "data": "NTU RGB+D 60",
    "titles": {"sds_cl": "SDS-CL", "scd_net": "SCD-Net", "ntu60_xsub": "xsub"},
    "unknown": ["sds_cl"],
    "sources": {"paper": "AAAI 2024"},
    "numbers": [
        {"method": "scd_net", "kind": "linear", "setting": "all", "source": "paper", "values": {"ntu60_xsub": 86.6}},
        {"method": "Other", "kind": "linear", "setting": "all", "source": "paper", "values": {"ntu60_xsub": 80}},
    ],
}
SPLIT = {"miniature": False, "split": "ntu60_xsub", "counts": {"train": 40091, "test": 16487}}
REAL = {"name": "NTU RGB+D 60", "fingerprint": "f" * 64, **SPLIT}
MINIATURE = REAL | {"name": "miniature, not NTU RGB+D 60", "miniature": True, "fingerprint": "e" * 64}


def record(top1: float = 85.0, seed: int = 0, **changes) -> Record:
    values = {
        "kind": "linear",
        "key": f"{seed:064d}",
        "experiment": "ntu60/sds_cl",
        "method": "sds_cl",
        "metrics": {"top1": top1, "labels": 100},
        "config": {"seed": seed, "method": {"seed": seed, "lr": 0.1}, "trainer": {"devices": seed}},
        "data": REAL,
        "seeds": {"seed": seed},
        "seconds": 10.0,
        "setting": "all",
        "versions": {"python": "3.11", "torch": "2.13"},
        "commit": "c" * 40,
        "command": "python eval.py protocol=linear",
    }
    return Record(**(values | changes))


def page(records, targets=TARGETS, name="ntu60", *, out) -> str:
    return report.write(records, targets, name, out).read_text()


def plain(inline) -> str:
    return "".join(child.content for child in inline.children if child.type != "html_inline")


def tables(markdown: str) -> list[list[dict[str, str]]]:
    """Every table as a Markdown reader sees it."""
    found, row = [], []
    for token, following in pairwise(MarkdownIt().enable("table").parse(markdown)):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            row = []
        elif token.type in ("th_open", "td_open"):
            row.append(plain(following))
        elif token.type == "tr_close":
            found[-1].append(row)
    return [[dict(zip(header, line, strict=True)) for line in lines] for header, *lines in found]


def test_ours_stands_beside_the_published_number_and_its_difference(tmp_path):
    ours = record(85.5, method="scd_net", best={"top1": 87.25})
    markdown = page([ours], out=tmp_path)
    (line,) = tables(markdown)[0]
    assert "\n#### xsub, all, top-1\n" in markdown
    assert line == {
        "row": "SCD-Net",
        "last epoch": "85.50",
        "best test epoch": "87.25",
        "published": "86.6",
        "difference": "-1.10",
        "seeds": "1",
        "seconds": "10.00",
        "runs": "1",
    }


def test_where_nothing_is_published_the_table_says_so_but_not_for_baselines(tmp_path):
    rows = [record(), record(30, variant="random initialisation"), record(40, variant="coordinates")]
    lines = {line["row"]: line for line in tables(page(rows, out=tmp_path))[0]}
    assert {row: line["published"] for row, line in lines.items()} == {
        "SDS-CL": "none known",
        "SDS-CL, random initialisation": "",
        "SDS-CL, coordinates": "",
    }
    assert [line["last epoch"] for line in lines.values()] == ["85.00", "40.00", "30.00"]


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "knn"},
        {"setting": "10 %"},
        {"variant": "3 streams"},
        {"metrics": {"top5": 99.0}},
        {"data": REAL | {"split": "ntu60_xview"}},
        {"data": REAL | {"name": "NTU RGB+D 120"}},
    ],
)
def test_a_published_number_is_only_set_beside_the_same_measurement(tmp_path, changes):
    (line,) = tables(page([record(method="scd_net", **changes)], out=tmp_path))[0]
    assert line["published"] == "none known" and "difference" not in line


def test_a_miniature_has_a_banner_and_is_never_compared(tmp_path):
    markdown = page([record(method="scd_net", data=MINIATURE)], out=tmp_path)
    assert markdown.split("\n\n")[1].startswith("> **miniature, not NTU RGB+D 60**")
    ours, published = tables(markdown)
    assert not {"published", "difference"} & ours[0].keys()
    assert [line["method"] for line in published] == ["SCD-Net", "Other"]
    before, after = markdown.split("## Published on")
    assert "86.6" not in before and "Not comparable" in after


def test_real_data_has_no_banner(tmp_path):
    markdown = page([record()], out=tmp_path)
    assert "miniature" not in markdown and "Not comparable" not in markdown


def test_small_networks_on_real_data_are_said_to_be_small(tmp_path):
    small = record(config={"seed": 0, "scale": "cpu"})
    made_up = record(20, data=MINIATURE, config={"seed": 0, "scale": "mini"})
    published = record(90, 1, config={"seed": 1, "scale": "published"})
    told = "> **Not of published size**: 1 of 2 results are of small networks and few epochs (scale=cpu)"
    assert told in page([small, made_up, published], out=tmp_path)
    assert "published size" not in page([made_up, published], out=tmp_path)


def test_real_and_miniature_stand_in_tables_of_their_own(tmp_path):
    markdown = page([record(85), record(50, data=MINIATURE)], out=tmp_path)
    assert "> **miniature" in markdown and "Not comparable" in markdown
    assert [[line["last epoch"] for line in t] for t in tables(markdown)[:2]] == [["85.00"], ["50.00"]]


def test_published_numbers_are_listed_with_their_source_and_the_unknown_named(tmp_path):
    markdown = page([record()], out=tmp_path)
    assert tables(markdown)[1] == [
        {"method": "SCD-Net", "xsub": "86.6", "source": "AAAI 2024"},
        {"method": "Other", "xsub": "80", "source": "AAAI 2024"},
    ]
    assert "No published number known: SDS-CL." in markdown


def test_sources_of_a_wide_table_stand_below_it(tmp_path):
    splits = {f"split {n}": 50.0 + n for n in range(4)}
    numbers = [TARGETS["numbers"][0] | {"values": splits, "source": name} for name in ("paper", "other | one")]
    targets = TARGETS | {"numbers": numbers, "sources": {"paper": "AAAI 2024", "other | one": "a | b"}}
    markdown = page([record()], targets, out=tmp_path)
    assert [line["source"] for line in tables(markdown)[1]] == ["1", "2"]
    assert r"Sources: (1) AAAI 2024; (2) a \| b." in markdown


def test_seeds_become_mean_and_standard_deviation(tmp_path):
    runs = [record(value, seed) for seed, value in enumerate([80.0, 82.0, 87.0])]
    (line,) = tables(page(runs, out=tmp_path))[0]
    assert (line["last epoch"], line["seeds"], line["runs"]) == ("83.00 ± 3.61", "3", "1 2 3")


def test_other_settings_are_never_averaged_and_are_told_apart(tmp_path):
    longer = record(90, 1, config={"seed": 1, "method": {"seed": 1, "lr": 0.2}, "epochs": 9})
    lines = tables(page([record(80, 0), longer], out=tmp_path))[0]
    assert {line["row"]: line["last epoch"] for line in lines} == {
        "SDS-CL, epochs=None, method.lr=0.1": "80.00",
        "SDS-CL, epochs=9, method.lr=0.2": "90.00",
    }


def test_what_all_rows_share_stands_above_them_and_numbers_end_at_the_right(tmp_path):
    runs = [record(80), record(9.5, variant="coordinates", metrics={"top1": 9.5, "top5": 30.0})]
    other = record(70, data=REAL | {"split": "ntu60_xview"})
    markdown = page([*runs, other], out=tmp_path)
    assert "\n\n#### xsub, all\n\n| row | measure | last epoch | published | seeds |" in markdown
    assert "\n| --- | --- | ---: | ---: | ---: | ---: | --- |\n" in markdown
    assert "\n\n#### ntu60\\_xview, all, top-1\n\n| row | last epoch |" in markdown


def test_the_page_says_of_when_it_is(tmp_path):
    runs = [record(created="2026-01-02T00:00:00+00:00"), record(90, 1, created="2026-01-01T00:00:00+00:00")]
    assert "2 results of 2026-01-01 to 2026-01-02, commit cccccccc." in page(runs, out=tmp_path)
    assert "1 result of 2026-01-02, commit cccccccc." in page(runs[:1], out=tmp_path)
    other = replace(runs[1], commit="d" * 40)
    assert ", 2 commits." in page([runs[0], other], out=tmp_path)


def test_shares_of_labels_come_in_their_order(tmp_path):
    runs = [record(setting=f"{share} % of the labels") for share in (40, 5, 100, 15, 2.5)]
    found = re.findall(r"^#### xsub, (.*) % of the labels, top-1$", page(runs, out=tmp_path), flags=re.M)
    assert found == ["2.5", "5", "15", "40", "100"]


def test_other_data_are_never_averaged(tmp_path):
    other = record(90, 1, data=REAL | {"fingerprint": "0" * 64})
    assert [line["seeds"] for line in tables(page([record(80, 0), other], out=tmp_path))[0]] == ["1", "1"]


def evaluated(top1, seed, parent):
    return record(top1, seed, parents=[parent.key])


def test_the_settings_of_the_parents_count_too(tmp_path):
    def trained(seed, epochs):
        config = {"seed": seed, "epochs": epochs}
        return record(seed=seed, kind="train", key=f"{seed}{epochs}" * 8, metrics={"train/loss": 2.0}, config=config)

    def rows(parents):
        children = [evaluated(80 + n, n, parent) for n, parent in enumerate(parents)]
        return [line["seeds"] for line in tables(page([*children, *parents], out=tmp_path))[0]]

    assert rows([trained(0, 5), trained(1, 5)]) == ["2"]
    assert rows([trained(0, 5), trained(1, 6)]) == ["1", "1"]
    children = [evaluated(80 + n, n, parent) for n, parent in enumerate([trained(0, 5), trained(1, 5)])]
    lines = tables(page(children, out=tmp_path))[0]
    assert [line["seeds"] for line in lines] == ["1", "1"], "unknown parents may differ in anything"
    assert len({line["row"] for line in lines}) == 2


def test_of_two_runs_with_the_same_seeds_the_newer_counts_and_the_older_is_named(tmp_path):
    old = record(70, created="2026-01-01T00:00:00+00:00", key="a" * 64)
    new = replace(old, metrics={"top1": 75.0}, created="2026-01-02T00:00:00+00:00", key="b" * 64)
    markdown = page([new, old], out=tmp_path)
    assert [line["last epoch"] for line in tables(markdown)[0]] == ["75.00"]
    older = section(markdown, "a" * 64)
    assert "not in the tables" in older and "not in the tables" not in section(markdown, "b" * 64)


def section(markdown: str, key: str) -> str:
    (found,) = [part for part in markdown.split("\n### ") if f"- key: <code>{key}" in part]
    return found


def test_behind_each_number_stand_command_key_versions_commit_and_data(tmp_path):
    runs = [
        record(key="a" * 64, command="python eval.py a=1", parents=["d" * 64]),
        record(key="b" * 64, kind="knn", metrics={"k1": 70.0}, commit=None, versions={"torch": "3.0"}),
    ]
    markdown = page(runs, out=tmp_path)
    linear, knn = tables(markdown)[0][0], tables(markdown)[1][0]
    first, second = section(markdown, "a" * 64), section(markdown, "b" * 64)
    assert f'id="run-{linear["runs"]}"' in first and f'id="run-{knn["runs"]}"' in second
    for fact in ("python eval.py a=1", "d" * 64, "c" * 40, "f" * 64, "40091 train", "seed 0", "labels 100\n", "set 1"):
        assert fact in first, fact
    assert "unknown (no git checkout)" in second and "set 2" in second
    assert "- set 1: python 3.11, torch 2.13" in markdown and "- set 2: torch 3.0" in markdown


def test_kinds_come_in_order_and_new_ones_need_no_change(tmp_path):
    kinds = ["train", "federated", "knn", "linear"]
    runs = [record(kind=kind, key=kind, metrics={"k5": 50.0, "train/loss": 0.01234}) for kind in kinds]
    markdown = page(runs, targets={}, out=tmp_path)
    headings = re.findall(r"^### (?!<|V)(.*)$", markdown, flags=re.M)
    assert headings == ["Linear evaluation", "Nearest neighbours", "Federated training", "Training"]
    training = tables(markdown)[3]
    assert "published" not in training[0]
    assert [(line["measure"], line["last epoch"]) for line in training] == [
        ("5-NN", "50.00"),
        ("train/loss", "0.01234"),
    ]


NASTY = (
    "<script>alert(1)</script>",
    "a | b || c",
    "*bold* _em_ **x** `code` ~~gone~~",
    "[link](javascript:alert(1)) ![img](http://evil/x.png)",
    "line\nbreak\r\n\n# heading\n\n- item\u2028x\x00y",
    "</code></a><img src=x onerror=alert(1)>",
    "back\\slash \\| pipe &lt;b&gt; &amp; $x$",
    "trailing #",
)


@pytest.mark.parametrize("evil", NASTY)
def test_every_string_comes_out_as_text(tmp_path, evil):
    data = REAL | {"name": evil, "split": evil, "fingerprint": evil, "miniature": True, "counts": {evil: 1}}
    hostile = record(
        method=evil,
        variant=evil,
        setting=evil,
        experiment=evil,
        key=evil,
        command=evil,
        parents=[evil],
        commit=evil,
        versions={evil: evil},
        seeds={evil: 1},
        metrics={evil: 1.0},
        data=data,
    )
    targets = {
        "data": evil,
        "titles": {},
        "unknown": [evil],
        "sources": {evil: evil},
        "numbers": [{"method": evil, "kind": evil, "setting": evil, "source": evil, "values": {evil: 1.0}}],
    }
    markdown = page([hostile], targets, out=tmp_path)
    seen = " ".join("".join(c if c.isprintable() else " " for c in evil).split())
    ours, published = tables(markdown)
    assert ours[0]["last epoch"] == "1.00" and seen in ours[0]["row"]
    tokens = MarkdownIt().enable("table").parse(markdown)
    told = [plain(token) for token in tokens if token.type == "inline"]
    assert published[0]["method"] == seen
    assert published[0]["source"] == (seen if len(seen) <= report.LONG_SOURCE else "1")
    assert len(seen) <= report.LONG_SOURCE or f"Sources: (1) {seen}." in told
    inline = [child for token in tokens for child in token.children or ()]
    assert {token.type for token in tokens if token.type.startswith("html")} == set()
    html = {child.content for child in inline if child.type == "html_inline"}
    assert all(re.fullmatch(r'</?code>|</a>|<a id="run-\d+">', tag) for tag in html)
    links = {child.attrs["href"] for child in inline if child.type == "link_open"}
    assert links == {"#run-1"}
    assert not {child.type for child in inline} & {"image", "em_open", "code_inline", "s_open", "softbreak"}
    headings = [plain(after) for token, after in pairwise(tokens) if token.type == "heading_open"]
    assert f"Published on {seen}" in headings and "heading" not in headings
    assert f"{seen}, {seen}, {seen}" in headings


def test_no_records_and_bad_names_are_the_users_mistakes(tmp_path):
    with pytest.raises(UsageError, match="found none"):
        report.write([], TARGETS, "ntu60", tmp_path / "reports")
    with pytest.raises(UsageError, match="name"):
        report.write([record()], TARGETS, "../ntu60", tmp_path / "reports")
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"surplus": 1},
        {"sources": {}},
        {"numbers": [{"method": "x", "kind": "linear", "source": "paper"}]},
        {"numbers": [{"method": "x", "kind": "linear", "source": "paper", "values": {}, "vlaue": 1}]},
    ],
)
def test_malformed_targets_write_nothing(tmp_path, change):
    with pytest.raises(UsageError):
        report.write([record()], TARGETS | change, "ntu60", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_report_is_replaced_whole(tmp_path):
    report.write([record(10)], {}, "ntu60", tmp_path)
    report.write([record(20)], {}, "ntu60", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["ntu60.md"]
    (line,) = tables((tmp_path / "ntu60.md").read_text())[0]
    assert line["last epoch"] == "20.00"


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "targets").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_targets_are_sound_and_each_number_has_a_source(path, tmp_path):
    targets = yaml.safe_load(path.read_text())
    published = report.Published.of(targets)
    assert published.data and (published.numbers or published.unknown)
    keys = [(e["method"], e["variant"], e["kind"], e["setting"], e["metric"]) for e in published.numbers]
    assert len(keys) == len(set(keys))
    assert all(0 < value < 100 for entry in published.numbers for value in entry["values"].values())
    assert {entry["source"] for entry in published.numbers} == set(published.sources)
    assert not {entry["method"] for entry in published.numbers} & set(published.unknown)
    report.write([record()], targets, path.stem, tmp_path)
