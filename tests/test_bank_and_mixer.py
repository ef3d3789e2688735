"""Memories of negatives and the mixer: released numbers, slow readings of their equations, any batch, any rank."""

import copy

import pytest
import torch
import torch.nn.functional as F
from goldens import BOUND
from goldens_a2mc import mixing_errors
from torch import nn

from lightning_modules.contrast.adversarial_bank import AdversarialBank
from lightning_modules.contrast.cross_level import PAIRS, Pair, contrast_terms, cross_level
from lightning_modules.contrast.mixer import LinearMixer, SoftmaxMixer, own_slots
from lightning_modules.contrast.momentum import MomentumEncoder, as_buffers
from lightning_modules.contrast.queue import Queue
from lightning_modules.encoders.hierarchical import LEVELS, Projected
from lightning_modules.losses.info_nce import info_nce
from lightning_modules.losses.mixing import linear_mixing

T = 0.07
SIZES = [(4, 12), (5, 12), (1, 7), (9, 7), (7, 7)]  # batch and slots: divisible, partial, alone, more queries, as many


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=1)


def pair(n: int, slots: int, dim: int = 8, seed: int = 0) -> Pair:
    return Pair(unit(n, dim, seed=seed), unit(n, dim, seed=seed + 1), unit(slots, dim, seed=seed + 2).T.contiguous())


def four(n: int, slots: int) -> dict[str, Pair]:
    return {f"{source}_{target}": pair(n, slots, seed=10 * i) for i, (source, target) in enumerate(PAIRS)}


def test_logits_losses_gradients_banks_and_velocities_equal_the_released_ones():
    found = mixing_errors()
    assert max(found.values()) < BOUND, max(found.items(), key=lambda item: item[1])


def test_info_nce_against_its_definition_and_in_closed_form():
    p = pair(3, 5)
    expected = 0.0
    for n in range(3):
        positive = (p.query[n] @ p.key[n] / T).exp()
        negatives = sum((p.query[n] @ p.memory[:, j] / T).exp() for j in range(5))
        expected -= (positive / (positive + negatives)).log() / 3
    assert info_nce(p.positive, p.negatives, T) == pytest.approx(float(expected))
    same = torch.zeros(2, 7)
    assert info_nce(same[:, 0], same, T) == pytest.approx(float(torch.tensor(8.0).log()))
    absent = torch.cat([p.negatives, torch.full((3, 2), -torch.inf)], dim=1)
    assert torch.equal(info_nce(p.positive, absent, T), info_nce(p.positive, p.negatives, T))


def test_levels_meet_as_published():
    queries, keys = (Projected(torch.zeros(2, 4), *(unit(2, 3, seed=s + i) for i in range(3))) for s in (0, 10))
    memory = {level: unit(5, 3, seed=20 + i).T for i, level in enumerate(LEVELS)}
    pairs = cross_level(queries, keys, memory)
    assert set(pairs) == {"temporal_instance", "spatial_instance", "instance_temporal", "instance_spatial"}
    assert torch.equal(pairs["temporal_instance"].positive, (queries.temporal * keys.instance).sum(1))
    assert torch.equal(pairs["instance_spatial"].positive, (queries.instance * keys.spatial).sum(1))
    for name, pair in pairs.items():
        source, target = name.split("_")
        torch.testing.assert_close(pair.negatives, getattr(queries, source) @ memory[target], rtol=0, atol=1e-15)
        torch.testing.assert_close(pair.negatives, pair._replace(product=None).negatives, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("n", "slots"), SIZES)
def test_every_slot_has_the_owner_of_its_number_modulo_the_batch(n, slots):
    owned, exists = own_slots(n, slots)
    listed = {row: owned[row][exists[row]].tolist() for row in range(n)}
    assert listed == {row: [j for j in range(slots) if j % n == row] for row in range(n)}


@pytest.mark.parametrize(("n", "slots"), SIZES)
def test_linear_mixer_against_mixed_features(n, slots):
    """Every mixture built and multiplied out, slot by slot; the mean over the four terms."""
    pairs = four(n, slots)
    expected = 0.0
    for p in pairs.values():
        for j in range(slots):
            q, d = p.query[j % n], p.memory[:, j]
            positive, negative = 0.8 * q + 0.2 * d, 0.1 * q + 0.9 * d
            expected += (q @ negative - q @ positive) / T / slots / 4
    terms = LinearMixer()(pairs, T)
    assert terms.pop("mixing") == pytest.approx(float(expected))
    assert all(torch.equal(terms[name], value) for name, value in contrast_terms(pairs, T).items())


def test_with_a_divisible_bank_that_is_the_mean_over_own_slots_then_queries():
    p = pair(4, 12)
    own = torch.stack([(p.query[n] @ p.memory[:, n::4] - 1) * 0.7 / T for n in range(4)])
    assert LinearMixer()({"one": p}, T)["mixing"] == pytest.approx(own.mean(1).mean().item())


@pytest.mark.parametrize(("n", "slots"), SIZES)
def test_softmax_mixer_against_mixed_features(n, slots):
    pairs = four(n, slots)
    terms = SoftmaxMixer(0.3)(pairs, T)
    for name, p in pairs.items():
        expected = 0.0
        for row in range(n):
            q = p.query[row]
            mixtures = [0.3 * q + 0.7 * p.memory[:, j] for j in range(slots) if j % n == row]
            negatives = [q @ p.memory[:, j] for j in range(slots)] + [q @ mixture for mixture in mixtures]
            logits = torch.stack([q @ p.key[row], *negatives]) / T
            expected += float(logits.logsumexp(0) - logits[0]) / n
        assert terms[name] == pytest.approx(expected)


def test_a_harder_slot_counts_more_in_the_softmax_and_alike_in_the_linear_mixer():
    p = pair(1, 6)
    memory = p.memory.clone().requires_grad_()
    for mixer, hardest_pulls in ((SoftmaxMixer(), True), (LinearMixer(), False)):
        terms = mixer({"one": p._replace(memory=memory)}, T)
        own = terms["one"] - info_nce(p.positive, p.query @ memory, T) if hardest_pulls else terms["mixing"]
        (gradient,) = torch.autograd.grad(own, memory)
        sizes = gradient.norm(dim=0)
        assert torch.allclose(sizes, sizes[0].expand(6)) != hardest_pulls


@pytest.mark.parametrize("mixer", [LinearMixer(), SoftmaxMixer()])
@pytest.mark.parametrize(("n", "slots"), [(6, 18), (6, 20), (6, 4)])
def test_ranks_together_compute_what_one_process_would(mixer, n, slots):
    pairs = four(n, slots)
    whole = mixer(pairs, T)
    for name, value in whole.items():
        shares = []
        for rank in range(2):
            rows = slice(3 * rank, 3 * rank + 3)
            own = {key: Pair(p.query[rows], p.key[rows], p.memory) for key, p in pairs.items()}
            shares.append(mixer(own, T, rank=rank, world=2)[name])
        assert torch.stack(shares).mean() == pytest.approx(float(value), abs=1e-12)


@pytest.mark.parametrize("mixer", [LinearMixer(), SoftmaxMixer()])
def test_gradients_of_the_mixers_in_float64(mixer):
    p = pair(3, 7, dim=4)

    def total(query: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        return torch.stack(list(mixer({"one": Pair(query, p.key, memory)}, 0.5).values())).sum()

    leaves = p.query.clone().requires_grad_(), p.memory.clone().requires_grad_()
    assert torch.autograd.gradcheck(total, leaves)


def test_mixing_allocates_no_more_for_a_larger_batch():
    """Largest tensor of the linear term beside the contrast's similarities: about K numbers, whatever the batch."""
    sizes = []

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.append(out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    peaks = []
    for n in (8, 512):
        p = pair(n, 1024, dim=2)
        p = p._replace(product=p.negatives)
        sizes.clear()
        with Largest():
            LinearMixer()._term(p, T, 0, 1)
        peaks.append(max(sizes))
    assert peaks[0] == peaks[1] == 1024


def bank(slots: int = 6, dim: int = 4, **settings) -> AdversarialBank:
    torch.manual_seed(slots)
    return AdversarialBank(dim, slots, **settings).double()


def slope_by_autograd(weight: torch.Tensor, contrasts, temperature: float = 0.03) -> torch.Tensor:
    """Minus the gradient of the summed InfoNCE with respect to W, through the normalisation of its columns."""
    weight = weight.detach().clone().requires_grad_()
    losses = [info_nce((q * k).sum(1), q @ F.normalize(weight, dim=0), temperature) for q, k in contrasts]
    return -torch.autograd.grad(torch.stack(losses).sum(), weight)[0]


def contrasts(count: int, n: int = 5, dim: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(unit(n, dim, seed=30 + i), unit(n, dim, seed=40 + i)) for i in range(count)]


@pytest.mark.parametrize("count", [1, 2])
def test_bank_climbs_the_contrastive_loss(count):
    """Three steps against autograd: v <- .9 v + g + 1e-4 W; W <- W - 3 v."""
    ours, terms = bank(), contrasts(count)
    weight, velocity = ours.weight.clone(), ours.velocity.clone()
    for _ in range(3):
        velocity = 0.9 * velocity + slope_by_autograd(weight, terms) + 1e-4 * weight
        weight = weight - 3 * velocity
        ours.climb(terms)
        assert torch.allclose(ours.weight, weight, rtol=1e-9) and torch.allclose(ours.velocity, velocity, rtol=1e-9)


def test_ascent_raises_the_loss():
    ours, ((query, key),) = bank(learning_rate=0.01), contrasts(1)
    before = info_nce((query * key).sum(1), query @ ours.directions, 0.03)
    ours.climb([(query, key)])
    assert info_nce((query * key).sum(1), query @ ours.directions, 0.03) > before


def test_aliased_updates_divide_by_the_norm_and_decay_of_the_bank_between():
    ours, (first, second) = bank(aliased=True), contrasts(2)
    weight, velocity = ours.weight.clone(), ours.velocity.clone()
    start = weight.clone()
    for term in (first, second):
        fresh = slope_by_autograd(start, [term]) * start.norm(dim=0)  # direction of the bank before both
        velocity = 0.9 * velocity + fresh / weight.norm(dim=0) + 1e-4 * weight
        weight = weight - 3 * velocity
    ours.climb([first, second])
    assert torch.allclose(ours.weight, weight) and torch.allclose(ours.velocity, velocity)
    together = bank()
    together.climb([first, second])
    assert not torch.allclose(together.weight, weight, rtol=1e-3)


def test_aliasing_does_not_matter_to_a_bank_with_one_term():
    one, other = bank(aliased=True), bank(aliased=False)
    for part in (one, other):
        part.climb(contrasts(1))
    assert torch.equal(one.weight, other.weight)


def test_bank_starts_normal_with_no_velocity_and_is_not_trained():
    torch.manual_seed(0)
    ours = AdversarialBank(128, 256)
    assert ours.weight.std() == pytest.approx(1, abs=0.02) and ours.weight.mean().abs() < 0.02
    assert not ours.velocity.any() and not list(ours.parameters())
    assert set(ours.state_dict()) == {"weight", "velocity"}
    assert torch.allclose(ours.directions.norm(dim=0), torch.ones(256))


def test_keys_are_written_as_columns_and_the_overflow_is_left_out():
    ours, keys = bank(6), unit(4, 4)
    before = ours.weight.clone()
    ours.write(keys, 1)
    assert torch.equal(ours.weight[:, 1:5], keys.T)
    assert torch.equal(ours.weight[:, [0, 5]], before[:, [0, 5]])
    ours.write(keys, 4)
    assert torch.equal(ours.weight[:, 4:], keys[:2].T)


@pytest.mark.parametrize("batches", [[3, 3], [4, 4, 4], [5, 1, 7, 2], [9], [7, 20]])
def test_queue_holds_the_last_keys_whatever_the_batches(batches):
    torch.manual_seed(1)
    queue = Queue(3, 7)
    assert torch.allclose(queue.keys.norm(dim=0), torch.ones(7))
    pushed = [unit(n, 3, seed=i).float() for i, n in enumerate(batches)]
    start = queue.keys.T.clone()
    for keys in pushed:
        queue.push(keys)
    last = torch.cat([start, *pushed])[-7:]
    assert torch.equal(queue.keys.T.roll(-int(queue.head), 0), last)
    assert int(queue.head) == sum(batches) % 7


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        x = self.norm(self.fc(x))[:, None]
        return self.attention(x, x, x)[0][:, 0]


def test_key_encoder_is_a_copy_made_of_buffers():
    encoder = MomentumEncoder(Net(), 0.9)
    assert all(name.startswith("query.") for name, _ in encoder.named_parameters())
    names = {name.removeprefix("key.") for name in encoder.state_dict() if name.startswith("key.")}
    assert names == set(encoder.query.state_dict())
    x = torch.randn(5, 3)
    keys = encoder.keys(x)
    assert not keys.requires_grad and torch.equal(keys, encoder.query(x))
    encoder.query.requires_grad_(False)
    reloaded = MomentumEncoder(Net(), 0.9)
    reloaded.load_state_dict(encoder.state_dict())
    assert torch.equal(reloaded.keys(x), encoder.keys(x))


def test_key_follows_parameters_alone_and_is_reset_exactly():
    encoder = MomentumEncoder(Net(), 0.75)
    start = copy.deepcopy(encoder.key.state_dict())
    with torch.no_grad():
        for p in encoder.query.parameters():
            p.add_(1)
    encoder.query(torch.randn(6, 3))  # moves the query's statistics
    encoder.follow()
    for name, value in encoder.query.named_parameters():
        assert torch.allclose(encoder.key.get_buffer(name), 0.75 * start[name] + 0.25 * value, atol=1e-6)
    encoder.reset()
    for name, value in encoder.query.named_parameters():
        assert torch.equal(encoder.key.get_buffer(name), value)
    assert torch.equal(encoder.key.norm.running_mean, start["norm.running_mean"])
    assert not torch.equal(encoder.query.norm.running_mean, start["norm.running_mean"])


def test_as_buffers_leaves_nothing_to_train():
    net = as_buffers(Net())
    assert not list(net.parameters()) and net(torch.randn(4, 3)).shape == (4, 4)


def test_linear_term_of_unit_queries_in_closed_form():
    similarity, norm = torch.rand(3, 5, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    assert torch.allclose(linear_mixing(similarity, norm, T), 0.7 / T * (similarity - 1))
