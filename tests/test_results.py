"""Committed results: records that can be read, that do not tell where they were made, and their report."""

import json
import math
import re
from pathlib import Path

import pytest

from tracking import records

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
FOLDERS = sorted(path.parent for path in RESULTS.glob("*/README.md"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_number_of_a_committed_report_has_its_record(folder):
    found = records.find(folder)
    page = (folder / "README.md").read_text()
    assert found and all(record.key in page for record in found)
    assert set(re.findall(r"key: <code>(\w+)</code>", page)) == {record.key for record in found}


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("*.json")), ids=lambda path: path.name)
def test_no_committed_result_tells_where_it_was_made(path):
    assert not re.search(r"[\"'= ](/|~/)\w", path.read_text())


ROWS = {
    "SDS-CL, pre-trained and fine-tuned": ("sds_cl", ""),
    "the same network, supervised only": ("sds_cl", "supervised only"),
    "PSP Learning": ("psp", ""),
    "cross-entropy under PSP's batches": ("psp_ce", ""),
    "coordinates without a network, linear": ("sds_cl", "coordinates"),
}


@pytest.mark.parametrize("row", ROWS)
def test_the_table_of_the_readme_is_what_the_records_say(row):
    method, variant = ROWS[row]
    found = records.find(RESULTS / "ucla", kind="semi", method=method, variant=variant)
    by_labels = {int(record.metrics["labels"]) // 10: record.metrics["top1"] for record in found}
    (line,) = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(f"| {row} |")]
    assert line.split(" | ")[1:] == [*(f"{by_labels[n]:.1f}" for n in (5, 15, 30)), f"{by_labels[40]:.1f} |"]


def test_the_sentences_of_the_readme_are_what_the_records_say():
    text = " ".join((ROOT / "README.md").read_text().split())

    def of(kind: str, method: str, variant: str = "") -> str:
        (record,) = records.find(RESULTS / "ucla", kind=kind, method=method, variant=variant)
        return f"{record.metrics['k1' if kind == 'knn' else 'top1']:.1f}"

    blank = "coordinates"
    assert f"({of('knn', 'sds_cl', blank)} by 1-NN, {of('linear', 'sds_cl', blank)} by the linear probe)" in text
    for name, method in {
        "SDS-CL": "sds_cl",
        "SCD-Net": "scd_net",
        "A2MC (our reading)": "a2mc",
        "A2MC (released)": "a2mc_released",
        "SkeletonCLR": "skeleton_clr",
        "AimCLR": "aim_clr",
    }.items():
        assert of("linear", method, blank) == of("linear", "sds_cl", blank)  # one probe for every method
        pairs = [of(kind, method, variant) for kind in ("linear", "knn") for variant in ("", "random initialisation")]
        assert f"| {name} | {' | '.join(pairs)} |" in text
    sds, scd, ours, released = (
        of("finetune", method, "supervised only") for method in ("sds_cl", "scd_net", "a2mc", "a2mc_released")
    )
    assert f"SDS-CL's network reaches {sds}, SCD-Net's {scd} and the same" in text
    assert f"network from A2MC's first weights {ours} and {released}, SkeletonCLR's" in text
    assert f"SkeletonCLR's {of('finetune', 'skeleton_clr', 'supervised only')}. So" in text
    (trained,) = records.find(RESULTS / "ucla", kind="train", method="scd_net")
    blind = 4 * math.log(1 + trained.config["method"]["memory_size"])
    assert f"goes to {trained.metrics['train/loss']:.1f} from {blind:.1f}" in text
    assert f"wider networks ({of('knn', 'sds_cl_wide')})" in text
    tuned, scratch = (
        records.find(RESULTS / "ntu60_miniature_a2mc", kind="semi", variant=variant)[0].metrics["top1"]
        for variant in ("", "supervised only")
    )
    assert f"it reaches {tuned:.1f} with 10 % of the labels, from scratch {scratch:.1f}" in text
    rows = json.loads((RESULTS / "performance.json").read_text())["rows"]
    points = {name: row["points"][0] for name, row in rows.items()}
    times = {name: point["plain"] / point["ours"] for name, point in points.items() if "plain" in point}
    told = re.search(
        r"is more than (\d+) times as fast on one core .*? PPA more than (\d+) times .*? more than (\d+) times; "
        r"the linear evaluation of 80 epochs is more than (\d+) times",
        text,
    )
    assert told
    preparing, maps, gradients, linear = map(int, told.groups())
    assert min(times["prepare_agcn"], times["prepare_dsta"]) > preparing
    assert times["ppa_maps"] > maps and times["ppa_maps_gradient"] > gradients and times["linear"] > linear


def test_the_durations_of_the_readme_are_those_measured():
    text = " ".join((ROOT / "README.md").read_text().split())
    rows = json.loads((RESULTS / "durations.json").read_text())["rows"]
    for row in rows:
        minutes, seconds = divmod(round(row["seconds"]), 60)
        assert f"{minutes} min {seconds} s" in text, row["command"]
        assert row["command"] == "make install" or f"`{row['command']}`" in text
        assert "gigabytes" not in row or f"{row['gigabytes']} GB" in text
    found = records.find(RESULTS / "ntu60_miniature", kind="train", method="sds_cl")
    assert found and all(record.data["miniature"] for record in found)  # and never read as the real set's
