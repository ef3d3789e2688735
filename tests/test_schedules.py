"""Learning rate of every epoch of the four published skeleton schedules."""

import json
from functools import partial

import pytest
import torch
from goldens import GOLDEN
from torch import nn

from lightning_modules.base import SkeletonModule
from lightning_modules.schedules import Constant, StepDecay

PUBLISHED = {
    "sds_cl_pretrain": (0.001, StepDecay(milestones=(60, 90), warmup=5)),
    "sds_cl_finetune": (0.1, StepDecay(milestones=(60, 90), warmup=5)),
    "psp": (0.01, StepDecay(milestones=(60, 90), warmup=5)),
    "a2mc_default": (0.001, StepDecay(milestones=(100, 160))),
    "scd_net": (0.01, StepDecay(milestones=(351,))),
}


class Linear(SkeletonModule):
    def __init__(self, *args):
        super().__init__(*args)
        self.layer = nn.Linear(2, 2)


@pytest.mark.parametrize("name", PUBLISHED)
def test_rates_by_epoch_equal_the_released_ones(name):
    rate, schedule = PUBLISHED[name]
    golden = json.loads((GOLDEN / "skeleton_schedules.json").read_text())[name]
    configured = Linear(partial(torch.optim.SGD, lr=rate), schedule, 0).configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in golden:
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert configured["lr_scheduler"]["interval"] == "epoch"
    assert rates == pytest.approx(golden, rel=1e-9)


def test_the_golden_schedules_are_all_compared():
    golden = json.loads((GOLDEN / "skeleton_schedules.json").read_text())
    assert set(golden) - {"note"} == set(PUBLISHED)


def test_a_constant_schedule_never_changes_the_rate():
    assert {Constant()(epoch) for epoch in range(500)} == {1.0}
