"""Committed results: records that can be read, that do not tell where they were made, and their report."""

import re
from pathlib import Path

import pytest

from tracking import records

RESULTS = Path(__file__).parents[1] / "docs" / "results"
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
