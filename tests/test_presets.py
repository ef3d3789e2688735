"""Every preset composes, builds at its published size without memory for it, and takes a step at the mini size."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from datamodules.batch import SkeletonBatch
from datamodules.topology import TOPOLOGIES
from tracking.build import build

CONF = Path(__file__).parents[1] / "conf"
# FedMLLM's presets are looked at in test_fedmllm_presets.py: a language model is not built here.
EXPERIMENTS = sorted(
    f"{path.parent.name}/{path.stem}" for path in CONF.glob("experiment/*/*.yaml") if path.parent.name != "fedmllm"
)
METHODS = sorted(path.stem for path in CONF.glob("method/*.yaml") if path.stem != "fedmllm")


def composed(door: str, *overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(door, list(overrides))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_preset_builds_at_published_size(experiment):
    config = composed("eval", f"experiment={experiment}", "protocol=linear")
    with torch.device("meta"):
        module = build(config.method)
    assert sum(p.numel() for p in module.parameters()) > 5e5
    assert config.data.recipe in config.data.recipes
    build(config.data.reader)
    build(config.protocol.measure)


@pytest.mark.parametrize("scale", ["mini", "cpu"])
def test_every_method_has_its_small_sizes(scale):
    # The choice is optional in conf/train.yaml, so a missing file would train at the published size without a word.
    assert sorted(path.stem for path in (CONF / "size" / scale).glob("*.yaml")) == sorted([*METHODS, "fedmllm"])


def often(experiment: str) -> bool:
    """One preset a method and skeleton; the others build the same modules and are for the slow tests."""
    return experiment in {f"ntu60/{method}_xsub" for method in METHODS} or experiment.startswith("kinetics/")


@pytest.mark.parametrize(
    "experiment", [pytest.param(one, marks=() if often(one) else pytest.mark.slow) for one in EXPERIMENTS]
)
def test_two_steps_on_one_batch_at_mini_size(experiment):
    config = composed("train", f"experiment={experiment}", "scale=mini")
    torch.manual_seed(0)
    module = build(config.method).train()
    clips = random_clips(config)
    batch = {"labelled": clips, "unlabelled": clips} if config.labelled else clips
    optimizer = module.configure_optimizers()["optimizer"]
    losses = []
    for _ in range(3):  # the same draws every time, because the place of the run does not move
        loss = sum(value for value in module.objective(batch).values() if value.ndim == 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    assert module.eval().embed(clips).shape[0] == 6


def random_clips(config) -> SkeletonBatch:
    source = torch.Generator().manual_seed(1)
    joints = torch.randn(
        6, 3, 70, TOPOLOGIES[config.data.topology].num_joints, config.data.max_bodies, generator=source
    )
    return SkeletonBatch(joints, torch.full((6,), 70), torch.arange(6), torch.arange(6))
