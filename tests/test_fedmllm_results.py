"""What docs/results/fedmllm holds: records that read, say what they are of, and are what docs/fedmllm.md prints."""

import json
import re
from pathlib import Path

from tracking import records

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "fedmllm"
DOC = (ROOT / "docs" / "fedmllm.md").read_text()


def test_records_read_and_name_no_place():
    found = records.find(RESULTS / "records")
    assert found and all(record.kind == "federated" for record in found)
    for record in found:
        assert record.command.startswith("python federate.py ")
        assert record.data["miniature"] == record.data["name"].startswith("miniature, not ")
        assert record.data["base_model"] and not re.search(r"/(work|tmp|home|root)/", json.dumps(vars(record)))


def test_every_number_of_the_page_is_a_record():
    """A line of its tables ends with the record that its numbers are from."""
    lines = re.findall(r"^\|.*\[record\]\(results/fedmllm/records/([\w.-]+)\) \|$", DOC, flags=re.MULTILINE)
    rows = [line for line in DOC.splitlines() if "[record](results" in line]
    assert lines and len(lines) == len(rows)
    for name, row in zip(lines, rows, strict=True):
        measured = {f"{value:.1f}" for value in records.read(RESULTS / "records" / name).metrics.values()}
        numbers = re.findall(r"\b\d+\.\d\b", row.split("[record]")[0])
        assert numbers and set(numbers) <= measured, row


def test_the_measured_cost_of_fifty_rounds_is_below_its_bound():
    cost = json.loads((RESULTS / "cost.json").read_text())
    assert (cost["rounds"], cost["clients"], len(cost["memory_mb"])) == (50, 50, 50)
    assert max(cost["memory_mb"]) < 1.1 * cost["memory_mb"][0]
