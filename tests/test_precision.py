"""bf16: losses, similarities and softmaxes stay in float32 under autocast; a step is near one without it."""

import copy
import re
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from toys import ToyMethod, toy_data, write_toy_stores
from toys_a2mc import OURS, RELEASED, a2mc, clips, full, scd_net

from datamodules.precision import in_float32
from datamodules.transforms.views import CroppedView
from lightning_modules.contrast.cross_level import Pair
from lightning_modules.contrast.mixer import LinearMixer, SoftmaxMixer
from lightning_modules.contrast.pseudo_labels import PrototypeHead, balanced_codes
from lightning_modules.encoders.dsta import DSTANet
from lightning_modules.encoders.hierarchical import HierarchicalEncoder, Projected
from lightning_modules.evaluation.subject import Subject
from lightning_modules.fitting import fit
from lightning_modules.heads import unit
from lightning_modules.losses.ccl import ccl
from lightning_modules.losses.d3m import d3m
from lightning_modules.losses.gl import gl
from lightning_modules.losses.info_nce import info_nce, similarities
from lightning_modules.losses.mined_info_nce import mined_info_nce
from lightning_modules.losses.nt_xent import nt_xent
from lightning_modules.losses.pairings import paired_nt_xent
from lightning_modules.schedules import Constant
from lightning_modules.sds_cl import SDSCL
from tracking import records

DOCS = Path(__file__).parents[1] / "docs"
T = 0.07
CPU_HALF = partial(torch.autocast, "cpu", torch.bfloat16)


def random(*shape: int, key: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(key))


def rows(key: int, n: int = 6, dim: int = 16) -> torch.Tensor:
    return F.normalize(random(n, dim, key=key), dim=1)


MEMORY = rows(9, 20).T
PAIR = Pair(rows(1), rows(2), MEMORY)
LEVELS = Projected(random(6, 4), rows(1), rows(2), rows(3))
torch.manual_seed(0)
HEAD = PrototypeHead(16, 5)

LOSSES = {
    "nt_xent of a batch": lambda: nt_xent(rows(1), rows(2), T),
    "nt_xent of tokens": lambda: nt_xent(random(3, 5, 16), random(3, 5, 16, key=1), T),
    "pairings": lambda: paired_nt_xent(*(random(3, 5, 16, key=key) for key in range(4)), T),
    "gl": lambda: gl(rows(1), rows(2), T),
    "ccl": lambda: torch.stack(ccl([rows(1), rows(2)], [rows(3), rows(4)], T)),
    "similarities": lambda: similarities(rows(1), MEMORY),
    "info_nce": lambda: info_nce((rows(1) * rows(2)).sum(1), similarities(rows(1), MEMORY), T),
    "mined": lambda: mined_info_nce(random(6), similarities(rows(1), MEMORY), similarities(rows(1), MEMORY) > 0.3, T),
    "d3m": lambda: d3m(similarities(rows(1), MEMORY), similarities(rows(2), MEMORY), T),
    "linear mixer": lambda: torch.stack(list(LinearMixer()({"one": PAIR}, T).values())),
    "softmax mixer": lambda: torch.stack(list(SoftmaxMixer()({"one": PAIR}, T).values())),
    "codes": lambda: balanced_codes(similarities(rows(1), MEMORY)),
    "logits of prototypes": lambda: HEAD(LEVELS),
    "loss of prototypes": lambda: HEAD.loss_terms(LEVELS, random(6, 5), 0)["head"],
    "cross-entropy": lambda: F.cross_entropy(random(6, 5), torch.arange(6) % 5),
    "unit vectors": lambda: unit(random(6, 16)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_under_autocast_a_loss_is_computed_in_float32_to_the_bit(name):
    expected = LOSSES[name]()
    with CPU_HALF():
        assert torch.equal(LOSSES[name](), expected) and expected.dtype == torch.float32


def test_views_are_augmented_in_float32_to_the_bit():
    view, batch = CroppedView("ntu25"), clips(6)
    drawn = view.draw(6, torch.Generator().manual_seed(0))
    expected = view.apply(batch.joints, drawn, batch.num_frames)
    with CPU_HALF():
        assert torch.equal(view.apply(batch.joints, drawn, batch.num_frames), expected)


def test_bfloat16_similarities_would_not_do():
    """What the rule is for: their error is a hundredth, and divided by the temperature a seventh of a nat."""
    with CPU_HALF():
        plain = rows(1) @ MEMORY
    assert (plain.float() - rows(1) @ MEMORY).abs().max() / T > 0.01


@pytest.mark.parametrize("product", ["convolution", "matrices", "batch of matrices"])
def test_products_of_bfloat16_are_summed_in_float32_and_rounded_once(product):
    """Of 4096 terms: summed in bfloat16 they would stop growing at 256."""
    one, two = 1 + random(8, 4096, key=1).bfloat16() / 8, 1 + random(16, 4096, key=2).bfloat16() / 8
    found = {
        "convolution": lambda: F.conv2d(one[:, :, None, None], two[:, :, None, None])[:, :, 0, 0],
        "matrices": lambda: one @ two.T,
        "batch of matrices": lambda: (one[None] @ two.T[None])[0],
    }[product]()
    exact = one.double() @ two.double().T
    assert found.dtype == torch.bfloat16 and exact.min() > 4000
    half_a_digit = exact.log2().floor().exp2() / 2**8
    assert ((found.double() - exact).abs() <= half_a_digit * 1.001).all()


def test_half_precision_arguments_are_widened_and_wider_ones_left():
    seen = []
    function = in_float32(lambda *given: seen.extend(x.dtype for x in given) or given[0])
    function(random(2).bfloat16(), random(2).half(), random(2), random(2).double())
    assert seen == [torch.float32, torch.float32, torch.float32, torch.float64]
    half = random(3, 5, 16).bfloat16()
    assert torch.equal(nt_xent(half, half.flip(0), T), nt_xent(half.float(), half.float().flip(0), T))


def test_gradients_flow_back_in_the_type_they_came_from():
    half = random(6, 16).bfloat16().requires_grad_()
    nt_xent(half, rows(1).bfloat16(), T).backward()
    assert half.grad.dtype == torch.bfloat16 and half.grad.abs().sum() > 0


def test_the_softmax_of_a_transformer_is_that_of_float32():
    """Attention of bfloat16 queries and keys is what float32 makes of the same numbers, but for its last rounding."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(16, 2, 16, dropout=0.0, batch_first=True)
    seen: list[torch.Tensor] = []
    original = F.scaled_dot_product_attention

    def watched(query, key, value, *args, **kwargs):
        out = original(query, key, value, *args, **kwargs)
        exact = original(query.double(), key.double(), value.double(), *args, **kwargs)
        seen.append((out.double() - exact).abs().max() / exact.abs().max())
        return out

    with pytest.MonkeyPatch.context() as patch, CPU_HALF():
        patch.setattr(F, "scaled_dot_product_attention", watched)
        layer.train()(4 * random(3, 40, 16))
    assert seen and max(seen) < 1 / 256


METHODS = {
    "a2mc": lambda encoder: full(a2mc(OURS, encoder=encoder())),
    "a2mc_released": lambda encoder: full(a2mc(RELEASED, encoder=encoder())),
    "scd_net": lambda encoder: scd_net(encoder=encoder()),
}


def encoder() -> HierarchicalEncoder:
    return HierarchicalEncoder("ntu25", 16, 2, width=8, token_width=16, heads=2, dropout=0.0)


def sds_cl() -> SDSCL:
    torch.manual_seed(0)
    network = DSTANet("ntu25", [[8, 8, 4, 1], [8, 16, 4, 2]], subsets=2, num_frames=12)
    return SDSCL(encoder=network, optimizer=partial(torch.optim.SGD, lr=0.1), schedule=Constant(), seed=3)


@pytest.mark.parametrize(("name", "least"), [*((method, 0.9) for method in METHODS), ("sds_cl", 0.99)])
def test_a_step_in_mixed_precision_trains_every_parameter_near_that_of_float32(name, least):
    plain = (sds_cl() if name == "sds_cl" else METHODS[name](encoder)).train()
    half, batch, found = copy.deepcopy(plain), clips(6), []
    for module, enabled in ((plain, False), (half, True)):
        with CPU_HALF(enabled=enabled):
            outputs = module.objective(batch)
        losses = {key: value for key, value in outputs.items() if value.ndim == 0}
        assert all(value.dtype == torch.float32 for value in losses.values())
        torch.stack(list(losses.values())).sum().backward()
        gradients = {key: p.grad for key, p in module.named_parameters()}
        module.after_step({key: value.detach() for key, value in outputs.items() if value.ndim > 0})
        found.append((losses, gradients))
    (losses, gradients), (half_losses, half_gradients) = found
    for key, value in losses.items():
        assert half_losses[key].item() == pytest.approx(value.item(), rel=0.1, abs=0.1)
    assert {k for k, g in gradients.items() if g is not None} == {k for k, g in half_gradients.items() if g is not None}
    whole, rounded = (
        torch.cat([gradient.flatten() for gradient in one.values() if gradient is not None])
        for one in (gradients, half_gradients)
    )
    assert F.cosine_similarity(whole, rounded, dim=0) > least
    assert rounded.norm() / whole.norm() == pytest.approx(1, abs=0.1)
    for key, value in plain.state_dict().items():
        assert half.state_dict()[key].dtype == value.dtype


def test_a_fit_follows_the_precision_of_the_trainer_and_an_embedding_is_always_float32(tmp_path):
    data = toy_data(write_toy_stores(tmp_path / "store"))
    trainer = {"max_epochs": 1, "accelerator": "cpu", "precision": "bf16-mixed"}
    module = ToyMethod()
    seen = []
    module.encoder.register_forward_hook(lambda layer, given, out: seen.append(out.dtype))
    fit(module, data, tmp_path / "run", trainer, 3, "toy")
    assert set(seen) == {torch.bfloat16}
    seen.clear()
    subject = Subject("", "key", tmp_path, tmp_path, data, 3, trainer, lambda **_: data, lambda: module)
    assert subject.embedding("test").vectors.dtype == torch.float32 and set(seen) == {torch.float32}


def test_what_the_page_says_of_training_in_bf16_stands_in_its_records():
    page = (DOCS / "performance.md").read_text()
    rows = re.findall(
        r"^\| (float32|float32, again|bf16) \| ([^\[]*) \| "
        r"\[training\]\((.*)\), \[1-NN\]\((.*)\), \[linear\]\((.*)\) \|$",
        page,
        flags=re.MULTILINE,
    )
    assert [row[0] for row in rows] == ["float32", "float32, again", "bf16"]
    nearest, probed, keys, commits = [], [], [], []
    for name, numbers, *files in rows:
        trained, knn, linear = (records.read(DOCS / file) for file in files)
        k1, top1 = knn.metrics["k1"], linear.metrics["top1"]
        assert numbers == f"{trained.seconds:.0f} | {trained.metrics['train/loss']:.2f} | {k1:.1f} | {top1:.1f}"
        precision = "bf16-mixed" if name == "bf16" else "32-true"
        assert trained.config["trainer"]["precision"] == precision and trained.seeds == {"seed": 1}
        assert not trained.data["miniature"] and trained.config["scale"] == "cpu"
        assert trained.key in knn.parents and trained.key in linear.parents and not knn.variant + linear.variant
        nearest.append(k1)
        probed.append(top1)
        keys.append(trained.key)
        commits.append(trained.commit)
    assert keys[0] == keys[1] != keys[2] and commits[0] != commits[1] == commits[2]
    told = " ".join(page.split())
    assert f"bf16 is {nearest[1] - nearest[2]:.1f} points lower by 1-NN and {probed[2] - probed[1]:.1f} higher" in told
    assert f"lie {nearest[1] - nearest[0]:.1f} points apart by 1-NN" in told
