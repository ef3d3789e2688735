"""The chain a user types, on a tiny miniature: prepare, train, evaluate, report; and what it must refuse."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import eval as evaluation
import prepare
import report
import train
from datamodules.errors import InputError
from datamodules.miniature import skeletons
from tracking import records

CONF = str(Path(__file__).parents[1] / "conf")
SMALL = [
    "experiment=ntu60/sds_cl_xsub",
    "scale=mini",
    "method.encoder.num_frames=8",
    "method.encoder.layers=[[8,8,4,2]]",
    "trainer.max_epochs=2",
    "+trainer.accelerator=cpu",
    "batch_size=8",
    "finetune.epochs=2",
    "finetune.test_every=1",
    "linear.epochs=3",
    "knn_every=1",
]
FEW = {"performers": (1, 3), "replications": 1, "frames": (12, 20)}


def config(door: str, root: Path, *overrides: str):
    paths = [f"paths.root={root}", f"paths.reports={root}/reports"]
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(door, [*paths, *overrides])


def small(door: str, root: Path, raw: Path, *overrides: str):
    clean = [override.removeprefix("+") for override in SMALL]
    return config(door, root, *clean, f"raw={raw}", *overrides)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A raw folder of 60 clips and a few broken files, prepared."""
    root = tmp_path_factory.mktemp("root")
    skeletons.write_ntu(root / "raw", **FEW)
    summary = prepare.main.run(config("prepare", root, "data=ntu60", f"raw={root / 'raw'}", "workers=1"))
    return root, root / "raw", summary


def test_preparation_counts_what_it_rejects(prepared):
    _, _, summary = prepared
    assert summary["clips"] == 60 and summary["rejected"] == len(skeletons.kinect_text.BROKEN) > 0


def test_the_chain_ends_in_a_report_that_holds_every_row(prepared, capsys):
    root, raw, _ = prepared
    trained = train.main.run(small("train", root, raw))
    assert 0 <= trained["test/knn1"] <= 100 and trained["epoch"] == 1
    for protocol in ("knn", "linear", "semi", "inspect"):
        rows = evaluation.main.run(small("eval", root, raw, f"protocol={protocol}"))
        untrained = "supervised only" if protocol == "semi" else "random initialisation"
        assert set(rows) == {"trained", untrained, "coordinates"}
        assert all(0 <= value <= 100 for value in rows.values())
    result = report.main.run(config("report", root, "name=ntu60"))
    page, markdown = (Path(result[name]).read_text() for name in ("report", "tables"))
    assert page.count("<tr>") == sum(line.startswith("|") and "| --- |" not in line for line in markdown.splitlines())
    for figure in (
        "Curves</h2>",
        "test/knn1 over epoch",
        "Confusion</h2>",
        "t-SNE of 30 of 30 test clips",
        "spatial intra",
    ):
        assert figure in page, figure
    for expected in ("Nearest neighbours", "Linear evaluation", "Semi-supervised", "coordinates", "random init"):
        assert expected in page
    assert result["records"] == 1 + 4 * 3


def test_launching_twice_finds_the_result(prepared, capsys):
    root, raw, _ = prepared
    first = train.main.run(small("train", root, raw))
    capsys.readouterr()
    assert train.main.run(small("train", root, raw)) == first
    assert "found" in capsys.readouterr().out
    rows = evaluation.main.run(small("eval", root, raw, "protocol=linear"))
    count = len(records.find(root / "records"))
    assert evaluation.main.run(small("eval", root, raw, "protocol=linear")) == rows
    assert len(records.find(root / "records")) == count


def test_fine_tuning_with_other_settings_does_not_resume_the_last_one(prepared):
    root, raw, _ = prepared
    train.main.run(small("train", root, raw))
    short = evaluation.main.run(small("eval", root, raw, "protocol=semi"))
    evaluation.main.run(small("eval", root, raw, "protocol=semi", "finetune.epochs=3", "finetune.optimizer.lr=0.5"))
    again = evaluation.main.run(small("eval", root, raw, "protocol=semi", "fresh=true"))
    assert again == short


def test_evaluation_settings_do_not_change_which_run_is_meant(prepared):
    root, raw, _ = prepared
    plain = train.Run.of(small("train", root, raw))
    assert (
        train.Run.of(small("eval", root, raw, "protocol=linear", "linear.lr=7", "finetune.epochs=9")).key == plain.key
    )
    assert train.Run.of(small("train", root, raw, "method.temperature=0.2")).key != plain.key
    assert train.Run.of(small("train", root, raw, "seed=2")).key != plain.key


def test_a_result_is_never_returned_for_another_raw_folder(prepared, tmp_path):
    root, raw, _ = prepared
    skeletons.write_ntu(tmp_path / "other", seed=1, **FEW)
    other = tmp_path / "other"
    with pytest.raises(InputError, match="found none: run python prepare.py data=ntu60"):
        train.Run.of(small("train", root, other))
    prepare.main.run(config("prepare", root, "data=ntu60", f"raw={other}", "workers=1"))
    assert train.Run.of(small("train", root, other)).key != train.Run.of(small("train", root, raw)).key


def test_a_wrong_raw_folder_is_said_and_nothing_is_written(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        prepare.main.run(config("prepare", tmp_path / "root", "data=ntu60", f"raw={tmp_path / 'nowhere'}"))
    assert not (tmp_path / "root").exists()


def test_evaluation_without_a_run_names_the_command(prepared):
    root, raw, _ = prepared
    with pytest.raises(InputError, match=r"run python train\.py"):
        evaluation.main.run(small("eval", root, raw, "seed=77"))


def test_a_semi_supervised_method_records_its_share_of_labels(prepared):
    root, raw, _ = prepared
    overrides = ["method.encoder.num_frames=8", "method.encoder.layers=[[8,8,4,2]]", "method.encoder.subsets=2"]
    overrides += ["batch_size=6", "labelled.batch_size=3", "labelled.steps=2", "labelled.fraction=0.4"]
    overrides += ["trainer.max_epochs=2", "trainer.accelerator=cpu", "experiment=ntu60/psp_xsub", f"raw={raw}"]
    train.main.run(config("train", root, *overrides))
    (row,) = records.find(root / "records", kind="semi", method="psp")
    assert (
        row.setting == "40 % of the labels" and row.metrics["labels"] == 10 and row.best["top1"] >= row.metrics["top1"]
    )


def test_a_clip_longer_than_the_set_may_have_is_said_before_training(prepared):
    root, raw, _ = prepared
    with pytest.raises(InputError, match=r"at most 5 frames, found one of \d+ .*set data\.longest="):
        train.Run.of(small("train", root, raw, "data.longest=5"))
