"""A training step of each method at its published size, and the parts of it that were made faster."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor, nn

from benchmarks import synthetic
from benchmarks.harness import Case, Goal, Setting, Workload
from benchmarks.plain import contrast
from benchmarks.plain.networks import every_body, published
from benchmarks.plain.ppa import polymerised_joint_map
from datamodules.batch import SkeletonBatch
from lightning_modules.attention.ppa import PPA, broadcast
from lightning_modules.attention.siia import SIIA, Decoupled
from lightning_modules.base import SkeletonModule
from lightning_modules.contrast.adversarial_bank import AdversarialBank
from lightning_modules.contrast.cross_level import PAIRS, cross_level
from lightning_modules.contrast.mixer import SoftmaxMixer
from lightning_modules.encoders.hierarchical import LEVELS, Projected
from tracking.build import build

CONF = Path(__file__).parents[2] / "conf"
CHECKED = 4  # clips of the check, which is in float64: three of one body, which copies spare, and one of two
BOUND = 1e-6  # largest difference / largest value
ROUNDING = 1e-11  # of float64, behind a network
PLAIN: dict[str, Callable[[Any, Any], dict[str, Tensor]]] = {
    "sds_cl": contrast.sds_cl,
    "psp": contrast.psp,
    "scd_net": contrast.scd_net,
    "a2mc": contrast.a2mc,
    "a2mc_released": contrast.a2mc,
    "skeleton_clr": contrast.skeleton_clr,
    "aim_clr": contrast.aim_clr,
}


def configured(method: str, setting: Setting, *overrides: str) -> DictConfig:
    """The settings of a method on NTU RGB+D 60: published, or miniature with two bodies."""
    small = ["scale=mini", "data.max_bodies=2"] if setting.small else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [f"experiment=ntu60/{method}_xsub", *small, *overrides])


def built(method: str, setting: Setting, *overrides: str) -> SkeletonModule:
    """The method in training mode, with weights of a seed; A2MC with full banks, AimCLR where it mines."""
    torch.manual_seed(1)
    module = build(configured(method, setting, *overrides).method).train().to(setting.device)
    if method.startswith("a2mc"):
        for bank in module.banks.values():
            bank.weight.copy_(F.normalize(bank.weight, dim=0))
        module.filled.fill_(module.memory_size)
    if method == "aim_clr":
        module.place.epoch = module.mine_from
    return module


def moved(batch: Any, setting: Setting, dtype: torch.dtype = torch.float32) -> Any:
    """A batch where it is computed."""
    if isinstance(batch, dict):
        return {name: moved(part, setting, dtype) for name, part in batch.items()}
    joints, *rest = (part.to(setting.device) for part in batch)
    return SkeletonBatch(joints.to(dtype), *rest)


def batch_of(method: str, clips: int) -> Any:
    """PSP's batch holds labelled clips besides, one to ten as published and one at least."""
    whole = synthetic.batch(clips)
    if method != "psp":
        return whole
    return {"labelled": synthetic.batch(max(2, clips // 10), seed=1), "unlabelled": whole}


def objective(module: SkeletonModule, batch: Any) -> dict[str, Tensor]:
    return module.objective(batch)


def plainly(method: str, module: SkeletonModule, batch: Any) -> dict[str, Tensor]:
    with published(module):
        return PLAIN[method](module, batch)


def terms_and_gradients(terms: dict[str, Tensor], module: nn.Module) -> list[Tensor]:
    """Every number that a step computes."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    losses = [value for value in terms.values() if value.ndim == 0]
    gradients = torch.autograd.grad(torch.stack(losses).sum(), parameters, allow_unused=True)
    return [*losses, *(gradient for gradient in gradients if gradient is not None)]


def without_dropout(module: nn.Module) -> nn.Module:
    """In float64, and no dropout, whose numbers the two sides draw in another order.

    Biases of batch norms leave zero: a joint that never moves would stand on the kink of the rectifier behind one,
    where the gradient is a matter of the last bit. Where nothing is attacked all vectors and CTR-GCN's graphs leave
    their start, behind whose zeros and 1e-6 the gradients of what comes before are next to nothing. An attack goes by
    the direction of a gradient however small: it stays at the start, where what is nothing is exactly that.
    """
    module = copy.deepcopy(module).double()
    source = torch.Generator().manual_seed(2)
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    leaving = [norm.bias for norm in norms if norm.bias is not None]
    if not hasattr(module, "attacks"):
        leaving = [one for name, one in module.named_parameters() if one.ndim == 1 or name.endswith("PA")]
    for parameter in leaving:
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=source, dtype=torch.float64).to(parameter)
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if isinstance(part, nn.MultiheadAttention):
            part.dropout = 0.0
    return module


def assert_alike(ours: list[Tensor], plain: list[Tensor]) -> None:
    """Each tensor of ours is that of plain, up to 1e-6 of its largest number and rounding of the largest of all."""
    assert len(ours) == len(plain)
    sizes = [float(tensor.detach().abs().max()) for tensor in plain]
    for one, other, size in zip(ours, plain, sizes, strict=True):
        assert one.shape == other.shape
        difference = float((one - other).detach().abs().max())
        assert difference <= BOUND * size + ROUNDING * max(sizes), (difference, size)


def step(method: str, overrides: tuple[str, ...], size: int, setting: Setting) -> Case:
    """Objective, gradients, optimiser and what follows it, on a batch of `size` clips."""
    module = built(method, setting, *overrides)
    twin, batch = copy.deepcopy(module), moved(batch_of(method, size), setting)
    ours, plain = stepped(module, objective, batch, setting), stepped(twin, partial(plainly, method), batch, setting)

    def check() -> None:
        few = moved(batch_of(method, CHECKED), setting, torch.float64)
        exact = [without_dropout(module) for _ in range(2)]
        ours = terms_and_gradients(exact[0].objective(few), exact[0])
        assert_alike(ours, terms_and_gradients(plainly(method, exact[1], few), exact[1]))

    return Case(ours, plain, check)


def stepped(
    module: SkeletonModule, made: Callable[[SkeletonModule, Any], dict[str, Tensor]], batch: Any, setting: Setting
) -> Callable[[], None]:
    """A step whose terms are `made`."""
    optimizer = module.configure_optimizers()["optimizer"]

    def one() -> None:
        with setting.autocast():
            outputs = made(module, batch)
            loss = torch.stack([value for value in outputs.values() if value.ndim == 0]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            module.after_step({name: value.detach() for name, value in outputs.items() if value.ndim > 0})

    return one


def absent_bodies(size: int, setting: Setting) -> Case:
    """A step of SDS-CL; plain: the same code, absent bodies computed like all others."""
    module, batch = built("sds_cl", setting), moved(batch_of("sds_cl", size), setting)
    twin = copy.deepcopy(module)

    def whole(module: SkeletonModule, batch: Any) -> dict[str, Tensor]:
        with every_body(module):
            return module.objective(batch)

    def check() -> None:
        few = moved(batch_of("sds_cl", CHECKED), setting, torch.float64)
        exact = [without_dropout(module) for _ in range(2)]
        terms = exact[0].objective(few), whole(exact[1], few)
        assert_alike(*(terms_and_gradients(*pair) for pair in zip(terms, exact, strict=True)))

    return Case(stepped(module, objective, batch, setting), stepped(twin, whole, batch, setting), check)


def attack(size: int, setting: Setting) -> Case:
    """The released attack of one step on a batch of `size` clips."""
    module = built("a2mc_released", setting, "method.memory_size=64")
    batch = moved(synthetic.batch(size), setting)
    clips = module.views(batch)[0]

    def ours() -> list[Tensor]:
        with setting.autocast():
            return module.attacked(clips)

    def plain() -> list[Tensor]:
        with published(module):
            return [contrast.attacked(module, one, clips) for one in module.attacks]

    def check() -> None:
        exact, few = without_dropout(module), clips[:CHECKED].double()
        with published(exact):
            expected = [contrast.attacked(exact, one, few) - few for one in exact.attacks]
        assert_alike([found - few for found in exact.attacked(few)], expected)

    return Case(ours, plain, check)


def unit(rows: int, dim: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def bank_and_mixer(size: int, setting: Setting) -> Case:
    """The four terms with mixed negatives against banks of `size` slots, gradients of the queries, the banks' step."""
    torch.manual_seed(1)
    clips, dim = (4, 8) if setting.small else (64, 128)
    mixer, banks = SoftmaxMixer(), {level: AdversarialBank(dim, size) for level in LEVELS}
    for bank in banks.values():
        bank.to(setting.device)
    apart = copy.deepcopy(banks)
    features = torch.zeros(clips, 1, device=setting.device)
    keys = Projected(features, *(unit(clips, dim, seed).to(setting.device) for seed in (1, 2, 3)))
    raw = [unit(clips, dim, seed).to(setting.device).requires_grad_() for seed in (4, 5, 6)]

    def climbing(queries: Projected, level: str) -> list[tuple[Tensor, Tensor]]:
        return [(getattr(queries, s).detach(), getattr(keys, t)) for s, t in PAIRS if t == level]

    def ours() -> list[Tensor]:
        queries = Projected(features, *raw)
        memory = {level: bank.directions for level, bank in banks.items()}
        terms = mixer(cross_level(queries, keys, memory), 0.07)
        gradients = torch.autograd.grad(torch.stack(list(terms.values())).sum(), raw)
        with torch.no_grad():
            for level, bank in banks.items():
                bank.climb(climbing(queries, level))
        return [*terms.values(), *gradients, *(bank.weight for bank in banks.values())]

    def plain() -> list[Tensor]:
        queries = Projected(features, *raw)
        memory = {level: bank.weight / bank.weight.norm(dim=0) for level, bank in apart.items()}
        terms = contrast.mixing_terms(_Mixing(mixer, 0.07), queries, keys, memory)  # type: ignore[arg-type]
        gradients = torch.autograd.grad(torch.stack(list(terms.values())).sum(), raw)
        with torch.no_grad():
            for level, bank in apart.items():
                contrast.climb(bank, climbing(queries, level))
        return [*terms.values(), *gradients, *(bank.weight for bank in apart.values())]

    return Case(ours, plain, lambda: torch.testing.assert_close(ours(), plain(), rtol=1e-4, atol=1e-5))


class _Mixing:
    """What `mixing_terms` reads of a module."""

    def __init__(self, mixer: SoftmaxMixer, temperature: float):
        self.mixer, self.temperature = mixer, temperature


def ppa_maps(gradient: bool, size: int, setting: Setting) -> Case:
    """`size` polymerised joint maps of four heads, with `gradient` also their gradient."""
    source = torch.Generator().manual_seed(0)
    joint, part, body = (torch.randn(size, 4, n, n, generator=source).requires_grad_(gradient) for n in (25, 10, 5))
    slope = torch.randn(size, 4, 25, 25, generator=source)
    ppa = PPA("ntu25", channels=4, heads=4)
    part_of, body_of = ppa.joint_in_part.argmax(1).tolist(), ppa.joint_in_body.argmax(1).tolist()

    def both(built: Callable[[], Tensor]) -> list[Tensor]:
        if not gradient:
            with torch.no_grad():
                return [built()]
        maps = built()
        return [maps.detach(), *torch.autograd.grad(maps, (joint, part, body), slope)]

    def ours() -> list[Tensor]:
        return both(lambda: joint + ppa.onto_joints(part, broadcast(body, ppa.part_in_body)))

    def plain() -> list[Tensor]:
        return both(lambda: polymerised_joint_map(joint, part, body, part_of, body_of))

    return Case(ours, plain, lambda: torch.testing.assert_close(ours(), plain(), rtol=1e-4, atol=1e-4))


def siia(size: int, setting: Setting) -> Case:
    """SIIA's four attentions of one stream over four bodies in clips of `size` frames, which the encoder quarters."""
    torch.manual_seed(1)
    channels = 16 if setting.small else 256
    module = SIIA(channels, heads=4).eval()
    streams = torch.randn(2, 4, channels, -(-size // 4), 25)

    @torch.no_grad()
    def ours() -> Decoupled:
        return module(*streams)

    @torch.no_grad()
    def plain() -> Decoupled:
        with published(module):
            return module(*streams)

    return Case(ours, plain, lambda: torch.testing.assert_close(ours(), plain(), rtol=1e-4, atol=1e-4))


# K of the released step that was measured: 7.9 s at batch 8.
K = ("method.memory_size=1024",)
EVERY_BODY = "every body, each pairing of streams by itself"
NAMES = {
    "sds_cl": ("SDS-CL", (), EVERY_BODY, (8, 2, 16)),
    "psp": ("PSP", (), f"{EVERY_BODY}, maps pair by pair", (8, 2)),
    "scd_net": ("SCD-Net, K 1,024", K, "CTR-GC on every frame, each similarity by itself", (4, 2)),
    "a2mc": ("A2MC, K 1,024", K, "gradients of all weights in each attack, mixtures as features", (4,)),
    "a2mc_released": (
        "A2MC as released, K 1,024",
        K,
        "label and gradients of all weights, mixtures as features",
        (8, 2),
    ),
    "skeleton_clr": ("SkeletonCLR", (), "joints projected for every subset, then gathered", (16, 4)),
    "aim_clr": (
        "AimCLR, mining",
        (),
        "joints projected for every subset, then gathered, each similarity by itself, EADM body after body",
        (16, 4),
    ),
}
GOALS = {
    "sds_cl": (Goal("bf16", 2.15, True, "in bf16 at least 2.15 times as fast as plain in float32"),),
    "a2mc_released": (Goal("amount", 7.9 / 2, False, "at most half of the released step's 7.9 s"),),
}

WORKLOADS = [
    *(
        Workload(
            f"step_{method}", "training", f"a training step of {title}, published network",
            against, partial(step, method, tuple(overrides)), "clips", sizes, 2,
            # Steps take seconds: the first, in which kernels are made, counts, and the median leaves it out.
            rounds=3, warm=False, precisions=("fp32", "bf16"), gpu=True, goals=GOALS.get(method, ()),
        )
        for method, (title, overrides, against, sizes) in NAMES.items()
    ),
    Workload(
        "absent_bodies", "training", "a training step of SDS-CL, published network, absent bodies computed once",
        "the same code, every body", absent_bodies, "clips", (8,), 2, rounds=3, warm=False, gpu=True,
        goals=(
            Goal("ratio", 1.6, True, "at least 1.6 times as fast: so many times fewer rows in 8 such clips (NTU: 1.7)"),
        ),
    ),
    Workload(
        "attack", "training", "the attack of A2MC as released", "gradients of every weight, thrown away", attack,
        "clips", (8,), 2, rounds=3, warm=False, precisions=("fp32", "bf16"), gpu=True,
    ),
    Workload(
        "bank_and_mixer", "training", "A2MC's terms, mixer and banks, 64 queries",
        "mixtures as features, each similarity by itself", bank_and_mixer, "slots K", (16384, 1024, 4096), 12, gpu=True,
    ),
    Workload(
        "ppa_maps", "training", "PPA's joint maps", "pair by pair", partial(ppa_maps, False), "maps", (180, 45), 2,
        threads=1, goals=(Goal("ratio", 10, True, "at least 10 times as fast"),),
    ),
    Workload(
        "ppa_maps_gradient", "training", "PPA's joint maps and their gradient", "pair by pair",
        partial(ppa_maps, True), "maps", (180, 45), 2, threads=1,
        goals=(Goal("ratio", 10, True, "at least 10 times as fast"),),
    ),
    Workload(
        "siia_frames", "training", "SIIA's four attentions on the features of four bodies in clips of so many frames",
        "the layers' equations, all heads in one product", siia, "frames", synthetic.LENGTHS, 10,
    ),
]  # fmt: skip
