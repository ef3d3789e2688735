"""SDS-CL: released values in both modes, batch statistics, SIIA's maps, what is drawn, published size, a fit."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from goldens import BOUND
from goldens_sds_cl import LAYERS, SWITCHES, compare, compare_streams
from test_dsta import PUBLISHED
from torch import Tensor, nn
from torch.utils.data import DataLoader
from toys import toy_data, write_toy_stores

from datamodules.batch import SkeletonBatch
from datamodules.errors import InputError
from datamodules.randomness import generator
from datamodules.transforms.spatial import Tilt
from lightning_modules.attention.siia import SIIA, attend
from lightning_modules.base import Place
from lightning_modules.classifier import Classifier
from lightning_modules.encoders.dsta import DSTANet
from lightning_modules.fitting import CHECKPOINT, fit
from lightning_modules.heads import pool
from lightning_modules.schedules import Constant
from lightning_modules.sds_cl import SDSCL


def random(*shape: int, key: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(11, key))


def module(lr: float = 0.01, **options) -> SDSCL:
    torch.manual_seed(0)
    encoder = DSTANet("ntu25", LAYERS, subsets=2, num_frames=12)
    return SDSCL(encoder, partial(torch.optim.SGD, lr=lr, momentum=0.9, nesterov=True), Constant(), seed=3, **options)


def batch(clips: int = 4, frames: int = 30) -> SkeletonBatch:
    joints = random(clips, 3, frames, 25, 2, key=1).cumsum(2)
    return SkeletonBatch(joints, torch.full((clips,), frames), torch.full((clips,), -1), torch.arange(clips))


@pytest.mark.parametrize("name", SWITCHES)
def test_every_feature_loss_and_gradient_equals_the_released_ones(name):
    found = compare(name)
    assert len(found) == 41
    assert max(found.values()) < BOUND, max(found.items(), key=lambda item: item[1])


def test_the_clips_that_enter_the_encoder_equal_the_released_ones():
    found = compare_streams()
    assert len(found) == 16
    assert max(found.values()) < BOUND


def test_a_training_step_moves_running_statistics_of_the_encoder_once_by_both_streams():
    model = module().train()
    joint, motion = random(4, 3, 12, 25, 2), random(4, 3, 12, 25, 2, key=1)
    stem, norm = model.encoder.stem
    norm.running_mean.fill_(0.5), norm.running_var.fill_(2.0)
    convolved = stem(torch.cat([joint, motion]).permute(0, 4, 1, 2, 3).flatten(0, 1))
    model.views(joint, motion)
    torch.testing.assert_close(norm.running_mean, 0.9 * 0.5 + 0.1 * convolved.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, 0.9 * 2.0 + 0.1 * convolved.var((0, 2, 3)))
    assert norm.num_batches_tracked == 1


def test_a_training_step_moves_running_statistics_of_siia_once_a_stream_joint_first():
    model = module().train()
    clips = random(4, 3, 12, 25, 2), random(4, 3, 12, 25, 2, key=1)
    attention = model.siia.intra_spatial
    convolution, norm = attention.feed_forward
    expected = norm.running_mean.clone()
    for stream in model.backbone(*clips):
        queries, keys, values = attention.heads(stream, stream)
        attended = attend(((queries.flatten(2, 3).mT @ keys.flatten(2, 3)) / (8 * 6)).tanh(), values)
        expected = 0.9 * expected + 0.1 * convolution(attended).mean((0, 2, 3))
    model.views(*clips)
    torch.testing.assert_close(norm.running_mean, expected, rtol=1e-4, atol=1e-4)
    assert norm.num_batches_tracked == 2


def test_augmentations_change_each_stream_by_its_own_numbers_and_training_alone():
    plain, augmented = module(), module(augmentations=[Tilt(probability=1.0)])
    for before, after in zip(plain.eval().streams(batch()), augmented.eval().streams(batch()), strict=True):
        assert torch.equal(before, after)
    degrees = []
    for before, after in zip(plain.train().streams(batch()), augmented.train().streams(batch()), strict=True):
        flat, turned = (stream[0].flatten(1).double() for stream in (before, after))
        turn = turned @ torch.linalg.pinv(flat)
        torch.testing.assert_close(turn @ turn.T, torch.eye(3, dtype=turn.dtype), atol=1e-5, rtol=0)
        degrees.append(turn)
    assert (degrees[0] - degrees[1]).abs().max() > 1e-2, "joint and motion turn apart"


def slow_maps(queries: Tensor, keys: Tensor) -> Tensor:
    """tanh(q_u . k_v / (d L)) of (S, d, L, P) heads, one pair of positions after the other."""
    heads, width, length, positions = queries.shape
    maps = torch.zeros(heads, positions, positions)
    for head in range(heads):
        for u in range(positions):
            for v in range(positions):
                product = (queries[head, :, :, u] * keys[head, :, :, v]).sum()
                maps[head, u, v] = (product / (width * length)).tanh()
    return maps


def test_siia_returns_the_maps_it_attends_with():
    torch.manual_seed(0)
    siia, heads = SIIA(8, heads=2).eval(), 2
    own, other = random(1, 8, 3, 4), random(1, 8, 3, 4, key=1)
    maps = siia.maps(own, other)
    for name, shared in maps._asdict().items():
        axis, kind = name.split("_")
        attention = getattr(siia, f"{kind}_{axis}")
        x, source = (s if axis == "spatial" else s.transpose(2, 3) for s in (own, own if kind == "intra" else other))
        if kind == "intra":
            queries, keys, values = attention.query_key_value(x).chunk(3, dim=1)
        else:
            queries, (keys, values) = attention.query(x), attention.key_value(source).chunk(2, dim=1)
        queries, keys, values = (part[0].unflatten(0, (heads, 4)) for part in (queries, keys, values))
        expected = slow_maps(queries, keys)
        torch.testing.assert_close(shared[0], expected, rtol=1e-4, atol=1e-6)
        attended = torch.zeros_like(values)
        for u in range(expected.shape[1]):
            for v in range(expected.shape[2]):  # the sum runs over the key index v
                attended[..., u] += expected[:, u, v, None, None] * values[..., v]
        out = nn.functional.leaky_relu(x + attention.feed_forward(attended.flatten(0, 1)[None]), 0.1)
        got = getattr(siia(own, other), name)
        torch.testing.assert_close(got if axis == "spatial" else got.transpose(2, 3), out, rtol=1e-4, atol=1e-6)


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(InputError, match="3 heads and 16 channels"):
        SIIA(16, heads=3)


def test_the_objective_has_three_terms_and_joint_and_motion_are_drawn_apart():
    model = module().train()
    terms = model.objective(batch())
    assert list(terms) == ["stl", "tsl", "gl"]
    assert all(term.ndim == 0 and term.requires_grad and term > 0 for term in terms.values())
    # A clip whose coordinates are squares of the frame: its motion is 2 t + 1, so that both streams tell their frames.
    time = torch.arange(1.0, 41)[None, None, :, None, None]
    clips = SkeletonBatch((time**2).expand(2, 3, 40, 25, 2), torch.tensor([40, 30]), *torch.zeros(2, 2).long())
    joint, motion = (stream[:, 0, :, 0, 0] for stream in model.streams(clips))
    joint_frames = joint.sqrt() - 1
    motion_frames = torch.where(motion == 0, torch.tensor([[39.0], [29.0]]), (motion - 1) / 2 - 1)
    for frames in (joint_frames, motion_frames):
        assert (frames.diff() > 0).all() and (frames.max(1).values < torch.tensor([40, 30])).all()
    assert (joint_frames != motion_frames).any(1).all()


def test_what_is_drawn_depends_on_the_place_in_the_run_alone():
    model, clips = module().train(), batch()
    first = model.streams(clips)
    torch.rand(3)
    assert all(torch.equal(a, b) for a, b in zip(first, model.streams(clips), strict=True))
    for place in (Place(epoch=1), Place(step=1)):
        model.place = place
        assert not any(torch.equal(a, b) for a, b in zip(first, model.streams(clips), strict=True))


def test_features_are_pooled_streams_of_evenly_spread_frames():
    model, clips = module().eval(), batch()
    features = model.features(clips)
    assert features.shape == (4, 2, 16) and model.embed(clips).shape == (4, 32)
    assert torch.equal(model.embed(clips), features.flatten(1))
    frames = torch.arange(12) * 30 // 12
    joint = clips.joints[:, :, frames]
    motion = torch.cat([clips.joints.diff(dim=2), torch.zeros(4, 3, 1, 25, 2)], dim=2)[:, :, frames]
    for stream, expected in zip((joint, motion), features.unbind(1), strict=True):
        assert (pool(model.encoder(stream), bodies=2) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_the_published_size_builds_and_runs_without_memory():
    with torch.device("meta"):
        # Which bodies are absent is a question to the data, and on the meta device there are none.
        model = SDSCL(DSTANet("ntu25", PUBLISHED, absent_once=False), torch.optim.SGD, Constant(), seed=0)
        streams = torch.empty(16, 3, 50, 25, 2), torch.empty(16, 3, 50, 25, 2)
        assert model.pooled(*streams).shape == (16, 2, 256)
        joint, motion = model.views(*streams)
        shapes = [tuple(part.shape) for part in joint]
        assert shapes == [(16, 13, 256)] * 2 + [(16, 25, 256)] * 2 + [(16, 1024)]
        assert all(term.shape == () for term in model.terms(joint, motion).values())


def test_a_fit_of_a_few_steps_lowers_the_loss():
    model = module(lr=0.002)
    losses = []

    class Losses(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            losses.append(outputs["loss"].item())

    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(max_epochs=10, accelerator="cpu", callbacks=[Losses()], **quiet)
    trainer.fit(model, DataLoader([batch()] * 2, batch_size=None))
    assert len(losses) == 20
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])


def fine_tuned() -> Classifier:
    rate = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
    return Classifier(module(), 3, rate, Constant(), seed=3)


@pytest.mark.parametrize("make", [module, fine_tuned])
def test_resumed_is_bitwise_the_whole(make, tmp_path):
    stores = write_toy_stores(tmp_path / "stores")

    def states(folder: str, epochs: int) -> dict[str, Tensor]:
        settings = {"accelerator": "cpu", "devices": 1, "max_epochs": epochs}
        fit(make(), toy_data(stores), tmp_path / folder, settings, 3, "sds_cl")
        return torch.load(tmp_path / folder / CHECKPOINT, weights_only=True)["state_dict"]

    whole, half, resumed = states("whole", 2), states("parts", 1), states("parts", 2)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert any(not torch.equal(whole[name], half[name]) for name in whole)
