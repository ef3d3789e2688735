"""Every number of the released SDS-CL beside ours, in eval and in train mode, with gradients."""

import numpy as np
import torch
import torch.nn.functional as F
from goldens import errors, read, repeated
from torch import Tensor

from datamodules.batch import collate
from datamodules.transforms.temporal import drop_empty
from lightning_modules.encoders.dsta import DSTANet
from lightning_modules.released_checkpoints import SDS_CL, released_name, translate
from lightning_modules.schedules import Constant
from lightning_modules.sds_cl import SDSCL, Squeezed

LAYERS = [[8, 8, 4, 1], [8, 16, 4, 2], [16, 16, 8, 1]]
# goldens -> switches of the encoder that they were made with
SWITCHES = {"sds_cl": {}, "sds_cl_temporal": {"temporal_attention": True, "global_temporal": True}}


def released_state(golden: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name[6:]: torch.from_numpy(value) for name, value in golden.items() if name.startswith("state/")}


def build(name: str, golden: dict[str, np.ndarray]) -> SDSCL:
    """The small SDS-CL of the golden `name`, with its weights."""
    encoder = DSTANet("ntu25", LAYERS, subsets=2, num_frames=12, **SWITCHES[name])
    module = SDSCL(encoder, torch.optim.SGD, Constant(), seed=0)
    module.load_state_dict(translate(released_state(golden), module, SDS_CL))
    return module


def outputs(module: SDSCL, golden: dict[str, np.ndarray], times: int = 1) -> dict[str, Tensor]:
    """Features, loss terms and logits by their golden name, from one forward pass in the mode the module is in.

    times: the batch is given so often over. Every copy is contrasted by itself, the loss terms are their means.
    """
    streams = [torch.from_numpy(golden[f"in/{name}"]).repeat(times, 1, 1, 1, 1) for name in ("joint", "motion")]
    classifier = (torch.from_numpy(golden[f"state/fc.{part}"]) for part in ("weight", "bias"))
    views = module.views(*streams)
    copies = zip(*(zip(*(part.chunk(times) for part in view), strict=True) for view in views), strict=True)
    each = [module.terms(Squeezed(*joint), Squeezed(*motion)) for joint, motion in copies]
    found = {name: torch.stack([terms[name] for terms in each]).mean() for name in each[0]}
    found["total"] = torch.stack(list(found.values())).sum()
    for stream, view in zip(("joint", "motion"), views, strict=True):
        found[f"{stream}_intra_temporal"], found[f"{stream}_inter_temporal"] = view.intra_joints, view.inter_joints
        found[f"{stream}_intra_spatial"], found[f"{stream}_inter_spatial"] = view.intra_frames, view.inter_frames
        found[f"{stream}_global"] = view.clip
    pooled = module.pooled(*streams)
    found["joint_pooled"], found["motion_pooled"] = pooled.unbind(1)
    found["logits"] = F.linear(pooled, *classifier).sum(1)
    return found


def compare(name: str, times: int = 1) -> dict[str, float]:
    """Error of every feature, loss and gradient of the golden `name`, its batch given so many times over."""
    golden = read(name)
    module = build(name, golden)
    found = {f"out/eval/{key}": value for key, value in outputs(module.eval(), golden, times).items()}
    trained = outputs(module.train(), golden, times)
    found |= {f"out/train/{key}": value for key, value in trained.items()}
    trained["total"].backward()
    gradients = {f"grad/{released_name(key, SDS_CL.names)}": p.grad for key, p in module.named_parameters()}
    found |= {key: value for key, value in gradients.items() if key in golden}
    missed = {key for key in golden if key.startswith(("out/", "grad/"))} - found.keys()
    assert not missed, f"golden values that are not compared: {missed}"
    return errors(found, repeated(golden, times))


def keys_of(frames: np.ndarray, length: int, count: int) -> Tensor:
    """(count,) keys under which `SampleFrames` takes exactly `frames` of a clip of `length` frames."""
    copies = -(-len(frames) // length)
    keys = torch.ones(count)
    for frame, times in zip(*np.unique(frames, return_counts=True), strict=True):
        keys[frame * copies : frame * copies + times] = 0
    return keys


def compare_streams() -> dict[str, float]:
    """Error of the joint and motion clips that enter the encoder, in testing and for the training frames given."""
    golden = read("sampling")
    lengths = (1, 20, 50, 120)
    rows = np.arange(len(lengths))
    batch = collate([golden[f"T{length}/in"].transpose(1, 3, 2, 0) for length in lengths], rows, rows, max_bodies=2)
    module = SDSCL(DSTANet("ntu25", LAYERS, subsets=2), torch.optim.SGD, Constant(), seed=0)
    _, left = drop_empty(batch.joints, batch.num_frames)

    def drawn(transform, n, view):
        frames = [golden[f"T{length}/train/{('joint', 'motion')[view]}_frames"] for length in lengths]
        keys = [keys_of(*chosen, transform.longest) for chosen in zip(frames, left.tolist(), strict=True)]
        return torch.stack(keys)

    module.draw = drawn
    found = {}
    for mode in ("test", "train"):
        for name, stream in zip(("joint", "motion"), module.train(mode == "train").streams(batch), strict=True):
            found |= {f"T{length}/{mode}/{name}": clip for length, clip in zip(lengths, stream, strict=True)}
    # The motion of a clip of one frame is 0 throughout, which has no relative error.
    still = {name: float(found.pop(name).abs().max()) for name in ("T1/test/motion", "T1/train/motion")}
    return errors(found, golden) | still
