"""Every number of the released A2MC beside ours: encoder, attack, mixer and banks, augmentations."""

import numpy as np
import torch
from goldens import error, errors, read, repeated
from torch import Tensor, nn

from datamodules.topology import NTU25
from datamodules.transforms.spatial import Flip, Rotate, Shear, SpatialMask, TemporalMask
from datamodules.transforms.streams import bone, motion
from datamodules.transforms.views import CroppedView
from lightning_modules.contrast import cross_level
from lightning_modules.contrast.adversarial_bank import AdversarialBank
from lightning_modules.contrast.attack import Attack
from lightning_modules.contrast.cross_level import PAIRS
from lightning_modules.contrast.mixer import LinearMixer
from lightning_modules.encoders import ctr_gcn
from lightning_modules.encoders.ctr_gcn import CTRGCN
from lightning_modules.encoders.hierarchical import LEVELS, HierarchicalEncoder, Projected, ProjectedEncoder
from lightning_modules.losses.perceptual import PERCEPTUAL


def tensors(golden: dict[str, np.ndarray], prefix: str) -> dict[str, Tensor]:
    """Arrays whose name starts with the prefix, without it."""
    return {name.removeprefix(prefix): torch.from_numpy(a) for name, a in golden.items() if name.startswith(prefix)}


def load(module: nn.Module, golden: dict[str, np.ndarray]) -> None:
    """Strictly, but for the counters of batch norm, which the files leave out."""
    missing, unexpected = module.load_state_dict(tensors(golden, "state/"), strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)


def all_compared(
    found: dict[str, Tensor], golden: dict[str, np.ndarray], but: tuple[str, ...] = ()
) -> dict[str, float]:
    """Errors of `found`, which must hold every golden output and gradient."""
    missed = {name for name in golden if name.startswith(("out/", "grad/"))} - found.keys() - set(but)
    assert not missed, f"golden values that are not compared: {missed}"
    return errors(found, golden)


def ctr_gcn_errors(times: int = 1) -> dict[str, float]:
    """times: the batch is given so often over."""
    golden = read("ctr_gcn")
    graph = ctr_gcn.normalised_graph(NTU25).double()
    found = {"out/initial_graph": graph.repeat(times, 1, 1)}
    for mode in ("eval", "train"):
        network = CTRGCN("ntu25", width=12).double().train(mode == "train")
        load(network, golden)
        found[f"out/{mode}"] = network(torch.from_numpy(golden["in/x"]).double().repeat(times, 1, 1, 1, 1))
    return all_compared(found, repeated(golden, times))


def encoder_errors(times: int = 1) -> dict[str, float]:
    """In float64: a number before a ReLU is 1e-8, in float32 the number of threads moves a gradient by 1.5e-4.

    times: the batch is given so often over, its loss the mean of the copies'.
    """
    golden, found = read("a2mc_encoder"), {}
    for mode in ("eval", "train"):
        encoder = HierarchicalEncoder("ntu25", width=8, token_width=16, heads=2, dropout=0.0)
        network = ProjectedEncoder(encoder, dim=8).double().train(mode == "train")
        load(network, golden)
        features = network.encoder(torch.from_numpy(golden["in/x"]).double().repeat(times, 1, 1, 1, 1))
        projections = network.projections(*features)
        found |= {f"out/{mode}/v_{level}": v for level, v in zip(LEVELS[:2], features, strict=True)}
        found |= {f"out/{mode}/z_{level}": z for level, z in zip(LEVELS, projections, strict=True)}
    (torch.stack([z.square().sum() for z in projections]).sum() / times).backward()
    gradients = {f"grad/{name}": parameter.grad for name, parameter in network.named_parameters()}
    return all_compared(found | {name: g for name, g in gradients.items() if name in golden}, repeated(golden, times))


def mixing_errors() -> dict[str, float]:
    golden = read("a2mc_mixing")
    queries = {level: torch.from_numpy(golden[f"in/query_{level}"]).requires_grad_() for level in LEVELS}
    keys = {level: torch.from_numpy(golden[f"in/key_{level}"]) for level in LEVELS}
    banks = {level: AdversarialBank(8, 12, aliased=True) for level in LEVELS}
    for level, bank in banks.items():
        bank.load_state_dict({name: torch.from_numpy(golden[f"in/{key}_{level}"]) for name, key in BANK.items()})
    empty = torch.zeros(0)
    pairs = cross_level.cross_level(
        Projected(empty, **queries), Projected(empty, **keys), {level: bank.directions for level, bank in banks.items()}
    )
    found = {
        f"out/logits_{name}": torch.cat([pair.positive[:, None], pair.negatives], dim=1) / 0.07
        for name, pair in pairs.items()
    }
    terms = LinearMixer()(pairs, 0.07)
    found["out/loss_mix"], found["out/loss_total"] = terms["mixing"], torch.stack(list(terms.values())).sum()
    found["out/loss_total"].backward()
    found |= {f"grad/query_{level}": query.grad for level, query in queries.items()}
    for level, bank in banks.items():
        bank.climb([(queries[source].detach(), keys[target]) for source, target in PAIRS if target == level])
        found |= {f"out/{key}_{level}": value for key, value in (("bank", bank.weight), ("velocity", bank.velocity))}
    return all_compared(found, golden)


BANK = {"weight": "bank", "velocity": "velocity"}


def perceptual_errors() -> dict[str, float]:
    golden = read("a2mc_attack")
    attacked, clip = (torch.from_numpy(golden[f"in/{name}"]) for name in ("perturbed", "x"))
    found = {f"out/perceptual_{kind}": term(attacked, clip, NTU25) for kind, term in PERCEPTUAL.items()}
    return all_compared(found, golden, but=ATTACKS)


ATTACKS = tuple(f"out/iter{steps}_lr{size}" for steps in (1, 3) for size in (0.0001, 0.01))


def attack_faults() -> dict[str, int]:
    """How many numbers of an attack's step (x' - x) / lr are more than .01 off the released one."""
    golden, faults = read("a2mc_attack"), {}
    clip, weight = (torch.from_numpy(golden[f"in/{name}"]) for name in ("x", "weight"))
    labels = torch.from_numpy(golden["in/pseudo_label"]).long()

    def classify(x: Tensor) -> Tensor:
        return torch.einsum("nctvm,lctvm->nl", x.tanh(), weight)

    for name in ATTACKS:
        steps, size = name.removeprefix("out/iter").split("_lr")
        attacked = Attack("ntu25", int(steps), float(size))(clip, classify, nn.Identity(), labels)
        apart = (attacked - torch.from_numpy(golden[name])) / float(size)
        faults[name] = int((apart.abs() > 0.01).sum())
    return faults


ALLOWED = {name: 3 if "iter3" in name else 0 for name in ATTACKS}


def view_errors() -> dict[str, float]:
    """Crops of a batch of two equal clips through the view, none of which may be left uncropped."""
    golden, found = read("augmentations"), {}
    view = CroppedView("ntu25", augmentations=())
    crops = {
        "crop_resize_frames90_scale0.7_start3": ("in/x90", 90, 64, 3),
        "crop_resize_frames120_length97_start5": ("in/x130", 120, 97, 5),
    }
    for name, (source, frames, length, start) in crops.items():
        clips, num_frames = torch.from_numpy(golden[source])[None].repeat(2, 1, 1, 1, 1), torch.tensor([frames] * 2)
        share = torch.full((2,), (length + 0.5) / frames, dtype=torch.float64)
        place = torch.full((2,), (start + 0.5) / (frames - length + 1), dtype=torch.float64)
        views = view.apply(clips, {"crop": {"share": share, "place": place}, "augment": ()}, num_frames)
        found |= {f"{row} {name}": error(clip, golden[f"out/{name}"]) for row, clip in enumerate(views)}
    centre = view.apply(torch.from_numpy(golden["in/x90"])[None], None, torch.tensor([90]))
    return found | {"centre": error(centre[0], golden["out/center_crop_0.95"])}


def augmentation_errors() -> dict[str, float]:
    golden = {name: array for name, array in read("augmentations").items() if "crop" not in name}
    clip = torch.from_numpy(golden["in/x"])[None]
    short = clip[:, :, :64]

    def pinned(augmentation, x: Tensor, **drawn) -> Tensor:
        applied = {"applied": torch.tensor([True])}
        return augmentation.apply(x, applied | {name: torch.as_tensor(v)[None] for name, v in drawn.items()})[0]

    found = {
        "shear": pinned(Shear(), clip, shear=golden["in/shear"]),
        "flip": pinned(Flip(topology="ntu25"), clip),
        "spatial_mask": pinned(SpatialMask(topology="ntu25"), short, joints=golden["in/mask_seed_joints"]),
        "temporal_mask": pinned(TemporalMask(), short, segments=golden["in/mask_segments"]),
        "stream_bone": bone(clip, NTU25)[0],
        "stream_motion": motion(clip)[0],
    }
    for axis in range(3):
        degrees = np.full(3, golden["in/rotate_other_deg"])
        degrees[axis] = golden["in/rotate_main_deg"]
        found[f"rotate_main{axis}"] = pinned(Rotate(), clip, degrees=degrees)
    return all_compared({f"out/{name}": value for name, value in found.items()}, golden)
