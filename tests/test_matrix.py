"""FedMLLM's tables: a row a method, a column a setting, never two models in one, published rows below a line."""

import re

from tracking import matrix, report
from tracking.records import Record

TARGETS = {
    "data": "Hateful Memes",
    "titles": {"fedavg": "FedAvg", "fedyogi": "FedYogi", "alpha_05": "alpha .5", "missing_50": "missing 50 %"},
    "unknown": [],
    "sources": {"paper": "a paper, with a large model"},
    "numbers": [
        {"method": "fedyogi", "kind": "federated", "metric": "auc_hard", "source": "paper",
         "values": {"alpha_05": 74.32, "missing_50": 75.12, "alpha_5": 75.74}},
    ],
}  # fmt: skip


def record(method, split, auc, model="Tiny", miniature=True, variant="", seed=1, rate=0.003) -> Record:
    title = "Hateful Memes"
    return Record(
        kind="federated",
        key=f"{method} {variant} {split} {model} {seed}",
        experiment="fedmllm",
        method=method,
        variant=variant,
        metrics={"accuracy": auc - 1, "auc_hard": auc, "auc_hard, text only": 50.0, "bytes_up": 8e6, "failed": 1.0},
        config={
            "model": {"title": model}, "data": {"name": "fedmllm_hateful_memes"}, "seed": seed, "batch_size": 16,
            "method": {"optimizer": {"lr": rate}, "lora": {"rank": 8, "alpha": 16, "dropout": 0.0}},
            "federated": {"strategy": {"_target_": "a.b", "eta": 0.05, "tau": 0.02}},
            "prompt": {"source": "own, short"},
        },
        data={"name": f"miniature, not {title}" if miniature else title, "fingerprint": "f", "miniature": miniature,
              "split": split, "counts": {"train": 8}},
        seeds={"seed": seed},
        seconds=2.0,
    )  # fmt: skip


def page(records, tmp_path) -> str:
    return report.write(records, TARGETS, "fedmllm_hateful_memes", tmp_path, matrix.tables).read_text()


def lines_of(page: str, title: str) -> list[str]:
    """The table below a heading."""
    below = page.split(f"#### {title}\n", 1)[1]
    return [line for line in below.split("\n#", 1)[0].splitlines() if line.startswith("|")]


def cells(line: str) -> list[str]:
    return [re.sub(r" ?\[\d+\]\(#run-\d+\)", "", cell).strip() for cell in line.strip("|").split("|")]


def test_a_row_a_method_and_a_column_a_setting(tmp_path):
    records = [
        record("fedyogi", "missing_50", 61.0),
        record("fedavg", "alpha_05", 70.0),
        record("fedavg", "missing_50", 60.0),
        record("fedyogi", "missing_50", 63.0, variant="modality-agnostic prompt"),
    ]
    head, _, *rows = lines_of(page(records, tmp_path), r"auc\_hard")
    assert cells(head) == ["row", "alpha .5", "missing 50 %"]
    assert [cells(row) for row in rows] == [
        ["FedAvg", "70.00", "60.00"],
        ["FedYogi", "", "61.00"],
        ["FedYogi, modality-agnostic prompt", "", "63.00"],
    ]


def test_seeds_share_a_cell_and_link_their_runs(tmp_path):
    records = [record("fedavg", "alpha_05", 70.0, seed=1), record("fedavg", "alpha_05", 74.0, seed=2)]
    *_, row = lines_of(page(records, tmp_path), r"auc\_hard")
    assert "72.00 ± 2.83" in row and row.count("](#run-") == 2


def test_a_miniature_stands_without_published_rows(tmp_path):
    text = page([record("fedavg", "alpha_05", 70.0)], tmp_path)
    ours = text.split("## Published on")[0]
    assert "on a miniature" in ours and "74.32" not in ours
    assert "**Not comparable** with the numbers of a miniature." in text and "74.32" in text


def test_real_data_stand_above_a_line_and_below_it_another_model(tmp_path):
    rows = lines_of(page([record("fedyogi", "alpha_05", 60.0, miniature=False)], tmp_path), r"auc\_hard")[2:]
    assert cells(rows[0])[:2] == ["FedYogi", "60.00"]
    assert "published, with another and larger model" in rows[1] and "60.00" not in rows[1]
    # Only the settings that were run: 75.74 and 75.12 belong to others.
    assert cells(rows[2]) == ["FedYogi", "74.32", "a paper, with a large model"]


def test_the_floor_of_the_text_stands_below_the_rows_and_above_the_published_ones(tmp_path):
    rows = [("fedavg", "alpha_05", 60.0), ("fedyogi", "alpha_05", 61.0), ("fedavg", "missing_50", 62.0)]
    records = [record(*row, miniature=False) for row in rows]
    for each in records[:2]:
        each.metrics.update({"floor, auc_hard": 23.26, "slake: open": 40.0, "slake: floor, open": 31.5})
    text = page(records, tmp_path)
    rows = [cells(row) for row in lines_of(text, r"auc\_hard")[2:]]
    told = [row[0].split(",")[0] for row in rows]
    assert told == ["FedAvg", "FedYogi", "text alone", "**published", "FedYogi"]
    assert rows[2][1:3] == ["23.26", ""]  # once, and nothing where no record holds it
    assert cells(lines_of(text, "slake: open")[-1])[-1] == "31.50"
    assert "floor" not in text


def test_models_are_never_mixed(tmp_path):
    text = page([record("fedavg", "alpha_05", 70.0), record("fedavg", "alpha_05", 80.0, model="Large")], tmp_path)
    tiny, large = text.split("#### Model: Large")[0], text.split("#### Model: Large")[1]
    assert "70.00" in tiny and "80.00" not in tiny and "80.00" in large.split("## What stands behind")[0]


def test_hidden_modalities_and_failures_have_tables_of_their_own(tmp_path):
    text = page([record("fedavg", "alpha_05", 70.0)], tmp_path)
    assert "50.00" in lines_of(text, r"auc\_hard, text only: what test samples show")[2]
    head, _, row = lines_of(text, "Rounds, bytes, failures")
    told = dict(zip(cells(head), cells(row), strict=True))
    assert told["failed"] == "1" and told[r"bytes\_up"] == "8,000,000"


def test_the_largest_lora_gap_is_shown_of_older_records_too(tmp_path):
    """They hold that of the last round, where the rate has fallen to next to nothing, and the curve."""
    older, newer = record("fedavg", "alpha_05", 70.0), record("fedyogi", "alpha_05", 70.0)
    older.metrics["lora_gap"], newer.metrics["lora_gap_largest"] = 1e-6, 0.25
    for one in (older, newer):
        one.curves["LoRA gap"] = [[1.0, 0.125], [2.0, 0.25], [3.0, 1e-6]]
    whole = page([older, newer, record("fedadam", "alpha_05", 70.0)], tmp_path)
    head, _, *rows = lines_of(whole, "Rounds, bytes, failures")
    column = cells(head).index("largest LoRA gap")
    assert [cells(row)[column] for row in rows] == ["0.25", "", "0.25"]
    assert r"#### lora\_gap" not in whole


def test_which_layers_lora_trains_stands_behind_the_numbers(tmp_path):
    one = record("fedavg", "alpha_05", 70.0)
    one.data["lora"] = "24 modules in 6 of 24 layers"
    assert "- LoRA: 24 modules in 6 of 24 layers" in page([one], tmp_path)


def test_rates_and_wording_stand_beside_the_rows(tmp_path):
    records = [
        record("fedyogi", "alpha_05", 70.0),
        record("fedyogi", "missing_50", 60.0),
        record("fedavg", "missing_50", 60.0, rate=0.001),
    ]
    head, _, *rows = lines_of(page(records, tmp_path), "What was chosen")
    assert cells(head) == ["row", "settings", "client's rate", "batch", "LoRA", "server", "wording"]
    chosen = ["16", "rank 8, alpha 16, dropout 0.0", "eta 0.05, tau 0.02", "own, short"]
    assert [cells(row) for row in rows] == [
        ["FedAvg", "missing 50 %", "0.001", *chosen],
        ["FedYogi", "alpha .5, missing 50 %", "0.003", *chosen],
    ]


def test_other_federations_keep_the_long_table(tmp_path):
    skeleton = record("sds_cl", "xsub", 50.0)
    skeleton.config.pop("model")
    assert "| row | measure | last epoch |" in page([skeleton, record("fedavg", "alpha_05", 70.0)], tmp_path)
