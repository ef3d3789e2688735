"""Evaluation beyond the run's own data: supervised rows, transfer to another set, streams trained apart and fused."""

import json
from pathlib import Path

import pytest
import torch
from test_chain import config
from test_loggers import contents

import eval as evaluation
import prepare
import train
from datamodules.errors import InputError
from datamodules.miniature import skeletons
from lightning_modules.evaluation.embedding import load
from lightning_modules.evaluation.measured import top1
from tracking import records

FEW = {"performers": (1, 3), "replications": 1, "frames": (12, 20)}
TINY = [
    "scale=mini",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
    "batch_size=8",
    "linear.epochs=3",
    "finetune.epochs=1",
    "finetune.test_every=1",
    "knn_every=0",
]
DSTA = ["method.encoder.num_frames=8", "method.encoder.layers=[[8,8,4,2]]"]
SDS_CL = ["experiment=ntu60/sds_cl_xsub", *TINY, *DSTA]
SCD_NET = [
    "experiment=ntu60/scd_net_xsub",
    *TINY,
    "data.max_bodies=1",
    "method.memory_size=16",
    "method.view.frames=16",
    "method.encoder.num_frames=16",
    "method.encoder.width=8",
    "method.encoder.token_width=16",
]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Outputs of two prepared sets of 60 clips, `raw` and `other`, and one of another skeleton, `ucla`."""
    root = tmp_path_factory.mktemp("root")
    for name, seed in (("raw", 0), ("other", 1)):
        skeletons.write_ntu(root / name, seed=seed, **FEW)
        prepare.main.run(config("prepare", root, "data=ntu60", f"raw={root / name}", "workers=1"))
    skeletons.write_ucla(root / "ucla", performers=(1,), replications=1)
    prepare.main.run(config("prepare", root, "data=ucla", f"raw={root / 'ucla'}", "workers=1"))
    return root


def run(door, root: Path, *overrides: str):
    name = "train" if door is train else "eval"
    settings = [o for o in overrides if name == "eval" or not o.startswith(("protocol", "fuse"))]
    return door.main.run(config(name, root, f"raw={root / 'raw'}", *settings))


def found(root: Path, **wanted) -> records.Record:
    (record,) = records.find(root / "records", **wanted)
    return record


@pytest.fixture(scope="module")
def trained(sets):
    run(train, sets, *SDS_CL)
    return sets


def test_the_supervised_row_alone_is_that_of_fine_tuning(trained):
    alone = run(evaluation, trained, *SDS_CL, "protocol=supervised")
    assert set(alone) == {"supervised only"}
    row = found(trained, kind="finetune")
    scores = load(evaluation.scores_of(row, trained / "records"), row.key)
    assert len(scores.labels) == 30 and top1(scores) == row.metrics["top1"]
    assert (row.variant, row.setting, row.metrics["labels"]) == ("supervised only", "100 % of the labels", 30)
    both = run(evaluation, trained, *SDS_CL, "protocol=finetune", "protocol.rows=[trained,untrained]")
    assert both["supervised only"] == alone["supervised only"] and "trained" in both
    assert found(trained, kind="finetune", variant="supervised only").created == row.created


def test_the_supervised_row_needs_no_pre_training_and_the_others_do(trained):
    untrained = [*SDS_CL, "seed=9"]
    assert set(run(evaluation, trained, *untrained, "protocol=supervised")) == {"supervised only"}
    with pytest.raises(InputError, match=r"run python train\.py"):
        run(evaluation, trained, *untrained, "protocol=finetune")
    with pytest.raises(InputError, match="expected some of trained, untrained, coordinates, found random"):
        run(evaluation, trained, *SDS_CL, "protocol=knn", "protocol.rows=[random]")


@pytest.mark.parametrize("protocol", ["linear", "finetune", "semi"])
def test_transfer_measures_on_the_target_and_says_where_the_weights_are_from(trained, protocol, capsys):
    target = ["data@target=ntu60", f"target.raw={trained / 'other'}", "target.data.split=ntu60_xview"]
    rows = run(evaluation, trained, *SDS_CL, f"protocol={protocol}", *target)
    assert capsys.readouterr().out.count("*** miniature, not NTU RGB+D 60") == 2  # of the source, and of the target
    assert "trained" in rows and "coordinates" in rows
    for name in rows:
        record = next(
            r
            for r in records.find(trained / "records", kind="transfer", variant="" if name == "trained" else name)
            if r.setting.startswith(f"{protocol}, ")
        )
        assert record.setting.endswith("pre-trained on miniature, not NTU RGB+D 60, ntu60_xsub")
        assert record.data["split"] == "ntu60_xview" == record.config["data"]["split"]
        assert record.config["pretrained_on"]["split"] == "ntu60_xsub"
        assert str(trained) not in json.dumps(record.config)


def test_transfer_to_another_skeleton_is_refused(trained):
    with pytest.raises(InputError, match="expected a target with ntu25 as ntu60 has, found ucla with ucla20"):
        run(evaluation, trained, *SDS_CL, "protocol=linear", "data@target=ucla", f"target.raw={trained / 'ucla'}")


def test_a_target_that_is_not_prepared_names_the_command(trained):
    with pytest.raises(InputError, match=r"run python prepare\.py data=ntu60"):
        run(evaluation, trained, *SDS_CL, "data@target=ntu60", f"target.raw={trained / 'nowhere'}")


@pytest.fixture(scope="module")
def streams(sets):
    for stream in ("joint", "motion", "bone"):
        run(train, sets, *SCD_NET, f"stream={stream}")
    return sets


def test_streams_are_trained_apart_and_their_scores_added(streams, monkeypatch):
    rows = run(evaluation, streams, *SCD_NET, "protocol=linear", "fuse=three_streams")
    assert set(rows) == {"3 streams", "3 streams, random initialisation"}
    folder = streams / "records"
    record = found(streams, kind="linear", method="scd_net", variant="3 streams")
    assert record.config["fuse"] == {"joint": 0.6, "motion": 0.6, "bone": 0.4}
    assert record.setting == "100 % of the labels"
    apart = [found(streams, key=key) for key in record.parents]
    assert [r.setting for r in apart] == [
        "100 % of the labels",
        "100 % of the labels, motion stream",
        "100 % of the labels, bone stream",
    ]
    scores = [load(evaluation.scores_of(r, folder), r.key) for r in apart]
    total = 0.6 * scores[0].vectors + 0.6 * scores[1].vectors + 0.4 * scores[2].vectors
    assert record.metrics["top1"] == pytest.approx(100 * (total.argmax(1) == scores[0].labels).float().mean().item())
    assert not torch.equal(scores[0].vectors, scores[1].vectors)

    monkeypatch.setattr(evaluation, "build", None)  # nothing is measured again
    assert run(evaluation, streams, *SCD_NET, "protocol=linear", "fuse=three_streams", "fuse.bone=0.1")


def test_neighbours_are_fused_too_and_watched(streams):
    protocol = ["protocol=knn", "protocol.rows=[trained]", "logger.mode=offline"]
    rows = run(evaluation, streams, *SCD_NET, *protocol, "fuse=three_streams")
    assert set(rows) == {"3 streams"}
    (file,) = streams.rglob("fused-*/wandb/offline-run-*/*.wandb")
    watched, _, history, exits = contents(file.parents[2])
    assert (watched.job_type, exits) == ("knn", [0]) and "joint, motion, bone" in watched.tags
    assert [row["k1"] for row in history if "k1" in row] == [rows["3 streams"]]


def test_a_method_of_several_streams_at_once_has_none_to_fuse(trained):
    with pytest.raises(InputError, match="sds_cl has no single streams to fuse"):
        run(evaluation, trained, *SDS_CL, "fuse=three_streams")


def test_one_checkpoint_is_not_fused_with_itself(streams):
    with pytest.raises(InputError, match="leave checkpoint out"):
        run(evaluation, streams, *SCD_NET, "fuse=three_streams", f"checkpoint={streams}/any.ckpt")


def test_a_stream_that_is_not_trained_names_the_command(streams):
    with pytest.raises(InputError, match=r"run python train\.py"):
        run(evaluation, streams, *SCD_NET, "protocol=linear", "fuse=three_streams", "seed=5")


def test_a_one_stage_method_is_not_fine_tuned_and_its_probe_says_what_it_was_trained_with(sets):
    overrides = ["experiment=ntu60/psp_xsub", "scale=mini", *DSTA, "trainer.max_epochs=1", "trainer.accelerator=cpu"]
    overrides += ["batch_size=6", "labelled.batch_size=3", "labelled.steps=2", "labelled.fraction=0.4"]
    with pytest.raises(InputError, match="psp has no settings `finetune`"):
        run(evaluation, sets, *overrides, "protocol=semi")
    run(train, sets, *overrides)
    assert set(run(evaluation, sets, *overrides, "protocol=linear", "linear.epochs=2")) > {"trained"}
    row = found(sets, kind="linear", method="psp", variant="")
    assert row.setting == "100 % of the labels, network trained with 40 % of the labels"
    run(train, sets, *overrides, "labelled.fraction=1.0")
    assert found(sets, kind="finetune", method="psp").metrics["labels"] == 30
