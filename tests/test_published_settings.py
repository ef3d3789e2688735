"""The settings that ship are the published ones (methods §3.3, §4.2, §5.2, §6); memories fit the small sets."""

from types import SimpleNamespace

import pytest
import torch
import yaml
from test_presets import CONF, composed

from datamodules.protocols import PROTOCOLS
from tracking.build import build

# Training clips of the protocols whose counts are official, and of PKU-MMD less than those reported.
CLIPS = {name: protocol.clips[0] for name, protocol in PROTOCOLS.items() if getattr(protocol, "clips", None)}
CLIPS |= {"pku1_xsub": 18_000, "pku1_xview": 14_000, "pku2_xsub": 5_000, "pku2_xview": 4_500}


def settings(node, *names: str) -> list:
    return [node[name] for name in names]


def schedule(node) -> tuple:
    built = build(node.schedule)
    return tuple(built.milestones), built.factor, built.warmup


SDS_LAYERS = [
    [64, 64, 16, 1], [64, 64, 16, 1], [64, 128, 32, 2], [128, 128, 32, 1],
    [128, 256, 64, 2], [256, 256, 64, 1], [256, 256, 64, 1], [256, 256, 64, 1],
]  # fmt: skip


def test_sds_cl():
    config = composed("eval", "experiment=ntu60/sds_cl_xsub", "protocol=semi")
    method, tune = config.method, config.finetune
    assert [config.trainer.max_epochs, config.batch_size] == [70, 16]
    assert settings(method.optimizer, "lr", "momentum", "nesterov", "weight_decay") == [0.001, 0.9, True, 0.0005]
    assert schedule(method) == ((60, 90), 0.1, 5) and method.temperature == 0.07
    assert method.encoder.layers == SDS_LAYERS
    assert settings(method.encoder, "num_frames", "subsets") == [50, 4]
    assert settings(tune, "epochs", "batch_size", "drop_last") == [120, 32, True]
    assert settings(tune.optimizer, "lr", "momentum", "nesterov", "weight_decay") == [0.1, 0.9, True, 0.0005]
    assert schedule(tune) == ((60, 90), 0.1, 5)
    encoder = build(method).encoder
    assert all(block.spatial.attention.a0 is not None for block in encoder.blocks), "global spatial regularisation"


def test_psp():
    config = composed("train", "experiment=ntu60/psp_xsub")
    method = config.method
    assert settings(config.labelled, "fraction", "batch_size", "steps") == [0.1, 9, 500]
    assert [config.batch_size, config.trainer.max_epochs, method.weight, method.temperature] == [90, 120, 0.2, 0.07]
    assert settings(method.optimizer, "lr", "momentum", "nesterov", "weight_decay") == [0.01, 0.9, True, 0.0004]
    assert schedule(method) == ((60, 90), 0.1, 5)
    assert method.encoder.layers == SDS_LAYERS and method.encoder.num_frames == 50
    assert composed("train", "experiment=ntu60/psp_ce_xsub").method.weight == 0


def test_scd_net():
    config = composed("eval", "experiment=ntu60/scd_net_xsub", "protocol=linear")
    method = config.method
    assert [config.batch_size, config.trainer.max_epochs] == [64, 451]
    assert settings(method, "dim", "memory_size", "momentum", "temperature") == [128, 8192, 0.999, 0.2]
    assert settings(method.optimizer, "lr", "momentum", "weight_decay") == [0.01, 0.9, 1e-4]
    assert "nesterov" not in method.optimizer and schedule(method) == ((351,), 0.1, 0)
    assert settings(method.encoder, "num_frames", "width", "token_width", "heads", "dropout") == [64, 64, 2048, 8, 0.1]
    assert settings(config.linear, "lr", "batch_size", "epochs") == [2, 1024, 80]
    assert schedule(config.linear) == ((50, 70), 0.1, 0) and not config.linear.standardised
    probe = build(config.protocol.measure)
    assert (probe.weight_decay, probe.momentum) == (0, 0.9)


@pytest.mark.parametrize(("name", "epochs"), [("a2mc", 200), ("a2mc_released", 151)])
def test_a2mc(name, epochs):
    """The released run of 200 epochs saves every 50th: what is evaluated has been trained for 151."""
    config = composed("eval", f"experiment=ntu60/{name}_xsub", "protocol=linear")
    method = config.method
    assert [config.batch_size, config.trainer.max_epochs, config.linear.lr, config.linear.batch_size] == [
        256, epochs, 30, 1024,
    ]  # fmt: skip
    assert settings(method, "dim", "memory_size", "momentum", "temperature", "labels") == [128, 16384, 0.999, 0.07, 128]
    assert settings(method.optimizer, "lr", "momentum", "weight_decay") == [0.001, 0.9, 1e-4]
    assert "nesterov" not in method.optimizer and schedule(method) == ((100, 160), 0.1, 0)
    with torch.device("meta"):
        module = build(method)
    bank = module.banks["instance"]
    assert (bank.temperature, bank.learning_rate, bank.momentum, bank.weight_decay) == (0.03, 3, 0.9, 1e-4)
    assert module.mixer.negative_ratio == 0.1
    first = module.attacks[0]
    assert (first.steps, first.step_size, first.away, first.look, first.perceptual) == (1, 1e-4, 0.6, 0.4, "acc_bone")
    if name == "a2mc_released":
        assert len(module.attacks) == 1 and module.mixer.positive_ratio == 0.2 and bank.aliased


def test_psp_on_ucla_uses_a_share_of_labels_that_is_published_there():
    for name in ("psp", "psp_ce"):
        fraction = composed("train", f"experiment=ucla/{name}").labelled.fraction
        assert round(100 * fraction) in PROTOCOLS["ucla_views"].per_class


@pytest.mark.parametrize("method", ["scd_net", "a2mc", "a2mc_released", "skeleton_clr", "aim_clr"])
def test_memories_are_smaller_than_the_training_sides(method):
    size = composed("train", f"experiment=ntu60/{method}_xsub").method.memory_size
    sides = {}
    for path in CONF.glob(f"experiment/*/{method}*.yaml"):
        preset = yaml.safe_load(path.read_text())
        if {"override /method": method} in preset["defaults"]:
            split = preset.get("data", {}).get("split", f"{path.parent.name}_views")
            sides[split] = preset.get("method", {}).get("memory_size", size)
    assert sides.keys() >= CLIPS.keys()
    assert all(size <= CLIPS[split] for split, size in sides.items() if split in CLIPS)


@pytest.mark.parametrize("drop_last", [True, False])
def test_fine_tuning_leaves_out_the_last_batch_as_published(drop_last):
    config = composed("eval", "experiment=ntu60/sds_cl_xsub", "protocol=semi", f"finetune.drop_last={drop_last}")
    tune, asked = build(config.protocol.measure), {}

    class Enough(Exception):
        pass

    def make_data(**arguments):
        asked.update(arguments)
        raise Enough

    backbone = SimpleNamespace(feature_width=4, place=None)
    subject = SimpleNamespace(make_backbone=lambda: backbone, num_classes=3, make_data=make_data)
    with pytest.raises(Enough):
        tune.measure(subject)
    assert asked["drop_last"] is drop_last and asked["fraction"] == 0.1
