"""Every number of the released PSP beside ours, in eval and in train mode, with gradients."""

from functools import partial

import numpy as np
import torch
from goldens import errors, read
from torch import Tensor

from lightning_modules.encoders.dsta import DSTANet
from lightning_modules.psp import PSP as Method
from lightning_modules.released_checkpoints import PSP, released_name, translate
from lightning_modules.schedules import Constant

LAYERS = [[8, 8, 4, 1], [8, 16, 4, 2], [16, 16, 8, 1]]
LEVELS = ("body", "part", "joint")


def small(topology: str = "ntu25", frames: int = 12, classes: int = 6, seed: int = 0, lr: float = 0.05) -> Method:
    """A PSP of the goldens' size."""
    encoder = DSTANet(topology, LAYERS, subsets=2, num_frames=frames)
    optimizer = partial(torch.optim.SGD, lr=lr, momentum=0.9, nesterov=True)
    return Method(encoder, topology, classes, optimizer, Constant(), seed)


def build(golden: dict[str, np.ndarray], **settings) -> Method:
    """The small PSP with the golden's weights and running statistics."""
    module = small(**settings)
    state = {name[6:]: torch.from_numpy(value) for name, value in golden.items() if name.startswith("state/")}
    module.load_state_dict(translate(state, module, PSP))
    return module


def outputs(module: Method, golden: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Features, loss terms and scores by their golden name, from one step in the mode the module is in."""
    names = ("labelled_joint", "labelled_motion", "unlabelled_joint", "unlabelled_motion")
    views = module.views(*(torch.from_numpy(golden[f"in/{name}"]) for name in names))
    terms = module.terms(views, torch.from_numpy(golden["in/labels"]).long())
    found = {"cross_entropy": terms["cross_entropy"], "total": torch.stack(list(terms.values())).sum()}
    found |= {f"ccl_{level}": terms[f"ccl_{level}"] / module.weight for level in LEVELS}
    found["joint_labelled"], found["motion_labelled"] = views.known.unbind(1)
    found["logits"] = module.scores(views.known)
    for stream, levels in (("joint", views.joint), ("motion", views.motion)):
        found |= {stream: levels.joint, f"{stream}_part": levels.part, f"{stream}_body": levels.body}
    return found


def compare() -> dict[str, float]:
    """Error of every feature, loss and gradient of `psp.npz`."""
    golden = read("psp")
    found = {f"out/eval/{key}": value for key, value in outputs(build(golden).eval(), golden).items()}
    module = build(golden).train()
    trained = outputs(module, golden)
    found |= {f"out/train/{key}": value for key, value in trained.items()}
    trained["total"].backward()
    gradients = {f"grad/{released_name(name, PSP.names)}": p.grad for name, p in module.named_parameters()}
    found |= {name: gradient for name, gradient in gradients.items() if name in golden}
    missed = {key for key in golden if key.startswith(("out/", "grad/"))} - found.keys()
    assert not missed, f"golden values that are not compared: {missed}"
    return errors(found, golden)
