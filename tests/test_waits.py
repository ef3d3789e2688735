"""What a training step waits for, and that the counting of it sees what it is to see."""

import pytest
import torch
from waits import Waits

from benchmarks.harness import Setting
from benchmarks.workloads import training

# For the clips without a frame: one (PSP: of either part of its batch). For absent bodies: one a network pass; SDS-CL
# and PSP, whose heads ask it of other rows than the encoder, two and three. A2MC: whether its banks are full.
WAITS = {
    "sds_cl": 1 + 2,
    "psp": 2 + 3,
    "scd_net": 2,
    "a2mc": 1 + 3,
    "a2mc_released": 1 + 2,
    "skeleton_clr": 2,
    "aim_clr": 3,
}


def waits_of(module, batch) -> Waits:
    """Of one step, but for its gradient and the optimiser."""
    with Waits(batch, list(module.parameters()), list(module.buffers())) as waits:
        outputs = module.objective(batch)
        with torch.no_grad():
            module.after_step({name: value.detach() for name, value in outputs.items() if value.ndim > 0})
    return waits


@pytest.mark.parametrize("method", training.PLAIN)
def test_a_step_waits_for_its_device_no_more_than_it_must(method, tmp_path):
    module, batch = training.built(method, Setting(tmp_path, small=True)), training.batch_of(method, 8)
    waits = waits_of(module, batch)
    assert (waits.asked, waits.sent) == (WAITS[method], 0)


def test_while_its_banks_fill_a2mc_waits_once_more(tmp_path):
    module, batch = training.built("a2mc", Setting(tmp_path, small=True)), training.batch_of("a2mc", 8)
    module.filled.zero_()
    waits = waits_of(module, batch)
    assert (waits.asked, waits.sent) == (1 + 2 + 1, 0) and int(module.filled) == 8


def test_waits_are_seen_of_the_device_alone():
    x, here = torch.arange(3.0), torch.ones(3)
    for asked, question in [
        (1, lambda y: float(y[0])), (1, lambda y: bool((y > 0).any())), (1, lambda y: (y > 0).nonzero()),
        (1, lambda y: y[y > 0]), (1, lambda y: y.tolist()), (1, lambda y: int(y.cpu().sum())), (0, lambda y: y.sum()),
    ]:  # fmt: skip
        with Waits(x) as waits:
            question(x + 1), question(here)
        assert waits.asked == asked
    for sent, sending in [(1, lambda y: y.to(x.device)), (0, lambda y: y.to(x.device, non_blocking=True))]:
        with Waits(x) as waits:
            float(sending(here)[0]), sending(x)
        assert (waits.asked, waits.sent) == (1, sent)
