"""Every further set from its files to a number: prepared, trained on and looked into, in its smallest miniature."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import eval as evaluation
import prepare
import report as tables
import train
from datamodules.miniature import skeletons

CONF = str(Path(__file__).parents[1] / "conf")
TINY = [
    "scale=mini",
    "method.encoder.num_frames=8",
    "method.encoder.layers=[[8,8,4,2]]",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
    "batch_size=8",
]
SETS = {
    "ntu120_xset": ("ntu120/sds_cl_xset", skeletons.write_ntu120, {"performers": (1, 41), "replications": 1}),
    "pku1_xview": ("pku1/sds_cl_xview", skeletons.write_pku, {"phase": 1, "performers": (1, 2)}),
    "kinetics_official": ("kinetics/sds_cl", skeletons.write_kinetics, {"train": 2, "val": 1}),
}


def config(door: str, root: Path, *overrides: str):
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(door, [f"paths.root={root}", *overrides])


@pytest.mark.parametrize("split", SETS)
def test_from_files_to_a_number(split, tmp_path, capsys):
    experiment, write, sizes = SETS[split]
    report = write(tmp_path / "raw", frames=(10, 14), **sizes)
    name, raw = split.partition("_")[0], f"raw={tmp_path}/raw"
    summary = prepare.main.run(config("prepare", tmp_path, raw, f"data={name}", "workers=1"))
    assert summary["clips"] == report["clips"] and summary["rejected"] == len(report["rejected"]) > 0
    assert f"\n{split}: " in capsys.readouterr().out
    overrides = [f"experiment={experiment}", raw, *TINY]
    trained = train.main.run(config("train", tmp_path, *overrides))
    assert trained["epoch"] == 0 and trained["train/loss"] > 0
    for protocol in ("knn", "inspect"):
        rows = evaluation.main.run(config("eval", tmp_path, *overrides, f"protocol={protocol}"))
        assert all(0 <= value <= 100 for value in rows.values())
    made = tables.main.run(config("report", tmp_path, f"name={name}", f"paths.reports={tmp_path}/reports"))
    assert "miniature, not" in Path(made["report"]).read_text()
