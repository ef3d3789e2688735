"""A2MC and SCD-Net: terms, warm-up, memories after a step, every switch alone, resume, ranks, published size."""

import copy
import json
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from goldens import GOLDEN
from toys_a2mc import BODIES, OURS, RELEASED, TERMS, a2mc, clips, full, scd_net, step, terms_of, train

from datamodules.batch import SkeletonBatch
from datamodules.errors import InputError
from datamodules.topology import TOPOLOGIES
from datamodules.transforms.views import CroppedView
from lightning_modules.a2mc import A2MC
from lightning_modules.contrast.attack import Attack, frozen_statistics
from lightning_modules.contrast.cross_level import PAIRS
from lightning_modules.encoders.hierarchical import LEVELS, HierarchicalEncoder
from lightning_modules.scd_net import SCDNet
from lightning_modules.schedules import StepDecay

# ---- the objective


@pytest.mark.parametrize(
    ("preset", "warm", "after"),
    [(RELEASED, [], ["mixing"]), (OURS, ["head"], ["head"])],
    ids=["released", "ours"],
)
def test_terms_in_warm_up_and_after(preset, warm, after):
    module = a2mc(preset)
    assert terms_of(module.objective(clips())) == [*TERMS, *warm]
    outputs = full(module).objective(clips())
    assert terms_of(outputs) == [*TERMS, *after]
    views = len(module.attacks)
    for level in LEVELS:
        assert outputs[f"query_{level}"].shape == (4, views, 6) and outputs[f"key_{level}"].shape == (4, 6)
    assert all(value.isfinite().all() for value in outputs.values())


@pytest.mark.parametrize("make", [a2mc, scd_net])
@pytest.mark.parametrize("topology", list(TOPOLOGIES))
def test_a_step_on_any_skeleton(make, topology):
    """With the real encoder, through the warm-up and beyond."""
    encoder = HierarchicalEncoder(topology, 16, BODIES, width=8, token_width=8, heads=2)
    module = make(topology=topology, encoder=encoder, memory_size=6)
    batch = clips(joints=TOPOLOGIES[topology].num_joints)
    optimizer = module.configure_optimizers()["optimizer"]
    for number in range(3):
        outputs = step(module, optimizer, batch, number)
    assert all(value.isfinite().all() for value in outputs.values())


def test_released_terms_are_info_nce_of_the_attacked_view_and_the_linear_term():
    """The whole objective rebuilt from its parts, with one attacked view and the label from a pass of its own."""
    module, batch = full(a2mc(RELEASED)), clips()
    module.train()
    state = copy.deepcopy(module.state_dict())
    got = module.objective(batch)
    assert all(torch.equal(module.banks[level].weight, state[f"banks.{level}.weight"]) for level in LEVELS)
    module.load_state_dict(state)
    first, second = module.views(batch)
    keys = module.encoders.keys(second)
    labels = module.head(module.encoders.query(first)).argmax(1)
    attacked = module.attacks[0](first, module.logits, module, labels)
    query = module.encoders.query(attacked)
    mixing = 0.0
    for source, target in PAIRS:
        q, k, bank = getattr(query, source), getattr(keys, target), module.banks[target].directions
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ bank], dim=1) / 0.07
        assert torch.allclose(got[f"{source}_{target}"], F.cross_entropy(logits, torch.zeros(4, dtype=torch.long)))
        own = torch.stack([q[j % 4] @ bank[:, j] for j in range(10)])
        mixing += 0.7 / 0.07 * (own - 1).mean() / 4
    assert torch.allclose(got["mixing"], mixing, atol=1e-5)


def test_objective_changes_no_state_but_the_statistics_of_its_own_two_passes():
    """Two attacked views: the query's batch norm counts two batches, the key's one, the attack's passes none."""
    module = full(a2mc(label_pass=True)).train()
    state = copy.deepcopy(module.state_dict())
    module.objective(clips())
    for name, value in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert value - state[name] == (2 if ".query." in name else 1), name
        elif "running" not in name:
            assert torch.equal(value, state[name]), name
    assert all(p.grad is None for p in module.parameters())


def test_objective_is_a_function_of_seed_epoch_and_step():
    module = full(a2mc()).eval()
    one, again = module.objective(clips()), module.objective(clips())
    assert all(torch.equal(one[name], again[name]) for name in one)
    module.place.step = 1
    assert not torch.equal(module.objective(clips())["temporal_instance"], one["temporal_instance"])


def test_query_and_key_views_have_numbers_of_their_own():
    query, key = a2mc().views(clips())
    assert query.shape == key.shape == (4, 3, 16, 25, BODIES)
    assert all(not torch.equal(query[row], key[row]) for row in range(4))


def test_views_are_averaged_over_the_attacks():
    both = full(a2mc()).eval()
    weak, strong = (full(a2mc(attacks=[attack])).eval() for attack in both.attacks)
    for other in (weak, strong):
        other.load_state_dict(both.state_dict())
    got, first, second = (module.objective(clips()) for module in (both, weak, strong))
    for name in TERMS:
        assert torch.allclose(got[name], (first[name] + second[name]) / 2, atol=1e-5)
        assert not torch.equal(first[name], second[name])


# ---- switches, each alone


def test_every_switch_changes_the_step_and_nothing_else_is_needed_to_turn_it():
    def after(**switch) -> dict[str, torch.Tensor]:
        module = full(a2mc(RELEASED, dropout=0.1, **switch))
        optimizer = module.configure_optimizers()["optimizer"]
        step(module, optimizer, clips(), 0)
        return {name: value for name, value in module.state_dict().items() if not name.startswith("head")}

    released = after()
    switches = {name: make("ntu25") for name, make in OURS.items()}
    switches |= {"learnt_head": True, "label_pass": False, "aliased_bank": False}
    assert switches.keys() == RELEASED.keys()
    changed = {name: after(**{name: value}) for name, value in switches.items()}
    for name, state in changed.items():
        assert any(not torch.equal(state[key], released[key]) for key in released), name
    assert all(torch.equal(value, released[key]) for key, value in after().items())


def test_how_the_banks_climb_can_be_set_and_is_published_else():
    told = {"temperature": 0.5, "learning_rate": 0.1, "momentum": 0.2, "weight_decay": 0.3}
    published = {"temperature": 0.03, "learning_rate": 3.0, "momentum": 0.9, "weight_decay": 1e-4}
    for module, expected in (
        (a2mc(**{f"bank_{name}": value for name, value in told.items()}), told),
        (a2mc(), published),
    ):
        for bank in module.banks.values():
            assert {name: getattr(bank, name) for name in expected} == expected


def test_label_pass_draws_dropout_of_its_own():
    """The two passes of the released code see different dropout; without the first the attack's own pass labels."""
    module = full(a2mc(RELEASED, dropout=0.5)).train()
    passes, graphs = [], []
    module.head.register_forward_hook(lambda *args: passes.append(args[1][0].features.detach()))
    module.encoders.query.encoder.norm.register_forward_hook(lambda *args: graphs.append(args[2]))
    module.attacked(torch.randn(4, 3, 16, 25, BODIES))
    assert len(passes) == 2 and not torch.equal(passes[0], passes[1]) and len(graphs) == 1
    module.label_pass = False
    passes.clear()
    module.attacked(torch.randn(4, 3, 16, 25, BODIES))
    assert len(passes) == 1


@pytest.mark.parametrize("steps", [[1], [2, 1]])
def test_the_label_pass_is_that_of_the_whole_network_dropout_included(steps):
    """What both passes share is computed once; labels, draws and attacked clips are those of two whole passes."""
    attacks = [Attack("ntu25", number, 1e-3) for number in steps]
    module = full(a2mc(RELEASED, dropout=0.5, attacks=attacks)).double().train()
    module.head.fc.bias.zero_()  # which alone would name all clips alike
    views = clips(8).joints.double()[:, :, :16]
    torch.manual_seed(5)
    ours = module.attacked(views)
    torch.manual_seed(5)
    with frozen_statistics(module), torch.no_grad():
        labels = module.logits(views).argmax(1)
    plain = [attack(views, module.logits, module, labels) for attack in attacks]
    assert labels.unique().numel() > 1
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-10)
    other = [attack(views, module.logits, module, (labels + 1) % 5) for attack in attacks]
    assert not torch.allclose(ours[0], other[0], atol=1e-6)


# ---- warm-up, memories, key encoder


@pytest.mark.parametrize("n", [4, 5, 10, 16])
def test_warm_up_fills_the_banks_with_keys_and_then_resets_the_key_encoder(n):
    """K = 10 slots, batches that divide it, do not, are it, exceed it."""
    module = a2mc(momentum=0.5)
    optimizer = module.configure_optimizers()["optimizer"]
    seen, steps = {level: [] for level in LEVELS}, -(-10 // n)
    for number in range(steps):
        assert not module.full
        outputs = step(module, optimizer, clips(n, seed=number), number)
        for level in LEVELS:
            seen[level].append(outputs[f"key_{level}"])
        same = [
            torch.equal(module.encoders.key.get_buffer(name), p) for name, p in module.encoders.query.named_parameters()
        ]
        assert all(same) == (number == steps - 1)
    assert module.full and int(module.filled) == 10
    for level in LEVELS:
        assert torch.equal(module.banks[level].weight, torch.cat(seen[level])[:10].T)
        assert not module.banks[level].velocity.any()


def test_warm_up_neither_attacks_nor_mixes(monkeypatch):
    module = a2mc(RELEASED)
    monkeypatch.setattr(A2MC, "attacked", lambda *_: pytest.fail("attacked in warm-up"))
    outputs = module.objective(clips())
    query = module.encoders.query(module.views(clips())[0])
    assert torch.allclose(outputs["query_instance"][:, 0], query.instance, atol=1e-5)


@pytest.mark.parametrize("aliased", [True, False])
def test_banks_climb_with_the_queries_of_every_view(aliased):
    module = full(a2mc(aliased_bank=aliased))
    expected = copy.deepcopy(module.banks)
    outputs = step(module, module.configure_optimizers()["optimizer"], clips(), 0)
    query = {level: outputs[f"query_{level}"].detach().transpose(0, 1).flatten(0, 1) for level in LEVELS}
    key = {level: outputs[f"key_{level}"].repeat(2, 1) for level in LEVELS}
    expected["instance"].climb([(query["temporal"], key["instance"]), (query["spatial"], key["instance"])])
    expected["temporal"].climb([(query["instance"], key["temporal"])])
    expected["spatial"].climb([(query["instance"], key["spatial"])])
    for level in LEVELS:
        assert torch.allclose(module.banks[level].weight, expected[level].weight, atol=1e-5)
        assert torch.allclose(module.banks[level].velocity, expected[level].velocity, atol=1e-5)


@pytest.mark.parametrize("make", [lambda: full(a2mc(momentum=0.75)), lambda: scd_net(momentum=0.75)])
def test_key_encoder_follows_after_the_optimiser_step(make):
    module = make()
    before = copy.deepcopy(module.encoders.key.state_dict())
    step(module, module.configure_optimizers()["optimizer"], clips(), 0)
    for name, p in module.encoders.query.named_parameters():
        assert torch.allclose(module.encoders.key.get_buffer(name), 0.75 * before[name] + 0.25 * p, atol=1e-6), name


def test_queues_of_scd_net_take_the_keys_and_terms_are_info_nce():
    module = scd_net()
    start = {level: queue.keys.clone() for level, queue in module.queues.items()}
    outputs = step(module, module.configure_optimizers()["optimizer"], clips(), 0)
    assert terms_of(outputs) == TERMS
    for level, queue in module.queues.items():
        assert torch.equal(queue.keys[:, :4], outputs[f"key_{level}"].T)
        assert torch.equal(queue.keys[:, 4:], start[level][:, 4:]) and int(queue.head) == 4


@pytest.mark.parametrize("n", [3, 1, 13])
def test_a_partial_last_batch_of_any_size(n):
    for module in (full(a2mc()), full(a2mc(RELEASED)), scd_net()):
        outputs = step(module, module.configure_optimizers()["optimizer"], clips(n), 0)
        assert all(value.isfinite().all() for value in outputs.values())


# ---- resume


@pytest.mark.parametrize("make", [a2mc, partial(a2mc, RELEASED), scd_net], ids=["ours", "released", "scd_net"])
@pytest.mark.parametrize("before", [1, 3])  # in the middle of the warm-up, after it
def test_n_and_m_steps_are_n_stop_m_bitwise(make, before):
    whole = make(memory_size=6)
    optimizer = train(whole, range(before))
    checkpoint = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    resumed = make(memory_size=6)
    resumed.load_state_dict(checkpoint[0])
    resumed_optimizer = resumed.configure_optimizers()["optimizer"]
    resumed_optimizer.load_state_dict(checkpoint[1])
    for number in range(before, 4):
        step(whole, optimizer, clips(seed=number), number)
        step(resumed, resumed_optimizer, clips(seed=number), number)
    state = resumed.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.state_dict().items())


def test_banks_velocities_key_encoder_and_fill_are_in_the_state():
    names = set(a2mc().state_dict())
    assert {"filled"} | {f"banks.{level}.{part}" for level in LEVELS for part in ("weight", "velocity")} <= names
    assert {name.replace("query", "key") for name in names if name.startswith("encoders.query.")} <= names
    assert {f"queues.{level}.{part}" for level in LEVELS for part in ("keys", "head")} <= set(scd_net().state_dict())


# ---- features and streams


@pytest.mark.parametrize("make", [a2mc, scd_net])
def test_features_are_both_branches_of_the_centre_crop(make):
    module, batch = make(), clips()
    module.eval()
    features = module.features(batch)
    assert features.shape == (4, 1, module.feature_width) and features.requires_grad
    crop = module.view.crop.apply(batch.joints, None, batch.num_frames)
    assert torch.equal(features[:, 0], torch.cat(module.encoders.query.encoder(crop), dim=1))
    module.place.step = 9
    assert torch.equal(module.features(batch), features), "nothing random"
    assert module.embed(batch).shape == (4, module.feature_width)


def test_streams_see_different_inputs():
    streams = [a2mc(stream=stream).eval().features(clips()) for stream in ("joint", "motion", "bone")]
    assert not torch.allclose(streams[0], streams[1]) and not torch.allclose(streams[0], streams[2])


# ---- several processes


@pytest.mark.parametrize("make", [lambda: full(a2mc(RELEASED)), scd_net], ids=["a2mc_released", "scd_net"])
def test_two_ranks_compute_what_one_process_would(make, monkeypatch):
    """Mean of the ranks' losses and gradients, and the memory after the step, in float64 with statistics at rest."""
    batch = clips(6)
    halves = [SkeletonBatch(*(part[3 * rank : 3 * rank + 3] for part in batch)) for rank in range(2)]
    batch, *halves = (part._replace(joints=part.joints.double()) for part in (batch, *halves))
    whole = make().double().eval()
    ranks = [copy.deepcopy(whole) for _ in range(2)]
    outputs = whole.objective(batch)
    shares = []
    for rank, module in enumerate(ranks):
        module.place.rank, module.place.world = rank, 2
        monkeypatch.setattr(module, "gathered", lambda rows: rows)
        shares.append(module.objective(halves[rank]))
    for name in terms_of(outputs):
        assert abs((shares[0][name] + shares[1][name]) / 2 - outputs[name]) < 1e-10, name
    for part in (outputs, *shares):
        torch.stack([part[name] for name in terms_of(part)]).sum().backward()
    for p, *q in zip(*(module.parameters() for module in (whole, *ranks)), strict=True):
        if p.grad is not None:
            assert torch.allclose((q[0].grad + q[1].grad) / 2, p.grad, atol=1e-10)
    handed = [name for name, value in outputs.items() if value.ndim]
    gathered = {name: torch.cat([share[name] for share in shares]).detach() for name in handed}
    with torch.no_grad():
        whole.after_step({name: outputs[name].detach() for name in handed})
        ranks[1].after_step(gathered)
    state = ranks[1].state_dict()
    assert all(torch.allclose(value, state[name], atol=1e-10) for name, value in whole.state_dict().items())


# ---- under Lightning, and at published size


def trainer(epochs: int = 1) -> pl.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(max_epochs=epochs, accelerator="cpu", use_distributed_sampler=False, **quiet)


class Clips(torch.utils.data.Dataset):
    """14 clips, fetched a batch at a time."""

    def __len__(self) -> int:
        return 14

    def __getitems__(self, positions: list[int]) -> SkeletonBatch:
        return SkeletonBatch(*(part[positions] for part in clips(14)))


def loader(batch_size: int) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(Clips(), batch_size, drop_last=True, collate_fn=lambda batch: batch)


@pytest.mark.parametrize("make", [a2mc, scd_net])
def test_memory_larger_than_the_data_is_refused(make):
    with pytest.raises(InputError, match="slots, 15, found 14; set memory_size to at most 14"):
        trainer().fit(make(memory_size=15), loader(4))


def test_the_fill_goes_on_through_the_loader_until_the_banks_are_full():
    """14 slots, batches of 6 with the rest dropped: one epoch fills 12 slots, the second the rest."""
    module = a2mc(RELEASED, memory_size=14)
    trainer(1).fit(module, loader(6))
    assert int(module.filled) == 12 and not module.full
    trainer(2).fit(module, loader(6))
    assert module.full and module.banks["instance"].velocity.any()


def test_published_rates():
    schedules = json.loads((GOLDEN / "skeleton_schedules.json").read_text())
    for name, lr, drops in (("a2mc_default", 0.001, (100, 160)), ("scd_net", 0.01, (351,))):
        decay = StepDecay(drops)
        assert [lr * decay(epoch) for epoch in range(len(schedules[name]))] == pytest.approx(schedules[name])


@pytest.mark.parametrize("size", [16384, 8192])
def test_published_size_on_the_meta_device(size):
    with torch.device("meta"):
        common = {
            "encoder": HierarchicalEncoder("ntu25"),
            "view": CroppedView("ntu25"),
            "optimizer": partial(torch.optim.SGD, lr=0.001, momentum=0.9, weight_decay=1e-4),
            "schedule": StepDecay((100, 160)),
            "seed": 0,
        }
        if size == 16384:
            switches = {name: make("ntu25") for name, make in RELEASED.items()}
            module = A2MC(**common, **switches)
            assert module.banks["instance"].weight.shape == (128, size) and module.head.fc.weight.shape == (128, 4096)
        else:
            module = SCDNet(**common)
            assert module.queues["temporal"].keys.shape == (128, size)
    assert sum(p.numel() for p in module.parameters()) == 92_017_840
    assert module.feature_width == 4096
