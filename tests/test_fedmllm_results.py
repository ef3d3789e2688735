"""What docs/results/fedmllm holds: records that read, say what they are of, and are what docs/fedmllm.md prints."""

import json
import re
from pathlib import Path

import pytest

from tracking import records

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "fedmllm"
README = " ".join((ROOT / "README.md").read_text().split())
AUC = ("auc_hard", "auc_probability")
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
    memory = cost["memory_mb"]
    assert sum(memory[-10:]) < 1.01 * sum(memory[1:11])  # flat: the first round has still to reach its level
    assert (
        f"{memory[0]:.1f} MB after the first round, {memory[-1]:.1f} after the last and {max(memory):.1f} at most"
        in DOC
    )


ROWS = {
    "zero-shot": ("zero_shot", ""),
    "Local, mean of ten": ("local", ""),
    "centralised, equal passes": ("centralised", ""),
    "FedAvg": ("fedavg", ""),
    "FedAvgM": ("fedavgm", ""),
    "FedAdam": ("fedadam", ""),
    "FedYogi": ("fedyogi", ""),
    "FedYogi, prompt": ("fedyogi", "modality-agnostic prompt"),
    "FedYogi, adaptive": ("fedyogi", "adaptive regularisation"),
}


@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_the_memes_is_what_the_records_say(row):
    method, variant = ROWS[row]
    found = records.find(RESULTS.parent / "fedmllm_hateful_memes", method=method, variant=variant)
    by_setting = {record.data["split"]: record.metrics for record in found}
    told = (by_setting[setting] for setting in ("alpha_05", "missing_50", "cross_5_5", "hybrid_60"))
    cells = " | ".join(f"{metrics['auc_hard']:.1f} / {metrics['auc_probability']:.1f}" for metrics in told)
    assert f"| {row} | {cells} |" in DOC
    for metrics in by_setting.values():  # as the page says
        for auc in AUC:
            assert metrics[f"{auc}, image only"] == pytest.approx(50) == metrics[f"{auc}, text only"]


def test_the_untouched_base_with_its_answers_swapped_stands_below_the_table():
    """The miniature memes ask for the complement of what the base was trained to say: rows are read beside it."""
    zero, *_ = records.find(RESULTS.parent / "fedmllm_hateful_memes", method="zero_shot")
    swapped = " / ".join(f"{100 - zero.metrics[auc]:.1f}" for auc in AUC)
    assert f"| zero-shot, answers swapped | {swapped} | {swapped} | {swapped} | {swapped} |" in DOC


def test_what_the_page_of_the_models_says_of_the_base_is_what_it_told():
    told = json.loads((RESULTS / "tiny_base.json").read_text())
    page = " ".join((ROOT / "docs" / "models.md").read_text().split())
    right = {kind: f"{100 * share:.0f} %" for kind, share in told["answer_accuracy"].items()}
    assert f"tells in words {right['shape']} of seven shapes" in page and right["colour"] == "100 %"
    assert f"{right['place']} of places, {right['size']} of sizes" in page
    assert f"`true or false : red` right in {right['statement']}, `is it not red ?` in {right['doubt']}" in page
    assert f"`line : ... fits ?` in {right['line']} of cases" in page


def test_what_clients_reach_alone_is_what_the_record_says():
    (local,) = records.find(RESULTS / "records", method="local")
    alone = [curve[-1][1] for name, curve in local.curves.items() if name.startswith("open @ client")]
    span = f"{min(alone):.1f} to {max(alone):.1f}"
    assert len(alone) == 10 and f"they reach {span} (the curves" in " ".join(DOC.split())
    assert f"the clients alone reach {span} %" in README


def test_what_the_readme_says_of_easy_vqa_is_what_the_records_say():
    found = [r for r in records.find(RESULTS / "records") if r.experiment.startswith("fedmllm_easy_vqa")]
    overall = {(record.data["split"], record.method): record.metrics["overall"] for record in found}
    assert f"{overall['all', 'fedavg']:.1f} % of all its test questions after 8 rounds (in one place, " in README
    assert f"(in one place, each question once: {overall['all', 'centralised']:.1f})" in README
    assert f"on open questions: {overall['open', 'fedavg']:.1f} %, where" in README
