"""SkeletonCLR's and AimCLR's augmentations against slow readings and closed forms, and their views."""

import math

import pytest
import torch
import torch.nn.functional as F
from mutants import Mutant, caught

from datamodules.errors import InputError
from datamodules.randomness import generator, take_rows
from datamodules.topology import NTU25
from datamodules.transforms.extreme import AxisMask, GaussianBlur, GaussianNoise
from datamodules.transforms.spatial import Flip, Rotate, Shear
from datamodules.transforms.streams import bone, motion
from datamodules.transforms.temporal import ReflectedCrop
from datamodules.transforms.views import (
    ExtremeView,
    ResizedView,
    extreme_augmentations,
    normal_augmentations,
)

FRAMES = 50
NOISE = GaussianNoise(topology="ntu25", frames=FRAMES, bodies=2)
ALL = [ReflectedCrop(), NOISE, GaussianBlur(), AxisMask()]


def clips(n: int = 6, frames: int = FRAMES) -> torch.Tensor:
    return torch.randn(n, 3, frames, 25, 2, generator=generator(21, n, frames))


def slow_crop(clip: torch.Tensor, place: float, added: int) -> torch.Tensor:
    """Of one clip (C, T, V, M), frame by frame."""
    frames = list(clip.unbind(1))
    longer = frames[:added][::-1] + frames + frames[len(frames) - added :][::-1]
    start = int(place * (2 * added + 1))
    return torch.stack(longer[start : start + len(frames)], dim=1)


def slow_blur(clip: torch.Tensor, deviation: float) -> torch.Tensor:
    """Of one clip (C, T, V, M), frame by frame."""
    frames, out = clip.shape[1], []
    for t in range(frames):
        near = [s for s in range(frames) if abs(s - t) <= 7]
        weights = [math.exp(-((s - t) ** 2) / (2 * deviation**2)) for s in near]
        out.append(sum(w * clip[:, s] for w, s in zip(weights, near, strict=True)) / sum(weights))
    return torch.stack(out, dim=1)


def errors() -> dict[str, float]:
    """Of the crop, the blur and the axis, against the slow readings."""
    joints, found = clips(6, 20).double(), {}
    for augmentation in (ReflectedCrop(), GaussianBlur(probability=1.0), AxisMask(probability=1.0)):
        drawn = augmentation.draw(6, generator(20))
        got = augmentation.apply(joints, drawn)
        if isinstance(augmentation, ReflectedCrop):
            rows = [slow_crop(*pair, 3) for pair in zip(joints, drawn["place"].tolist(), strict=True)]
        elif isinstance(augmentation, GaussianBlur):
            rows = [slow_blur(*pair) for pair in zip(joints, drawn["deviation"].tolist(), strict=True)]
        else:
            kept = torch.tensor([[float(axis != lost) for axis in range(3)] for lost in drawn["axis"]])
            rows = [clip * row[:, None, None, None] for clip, row in zip(joints, kept, strict=True)]
        found[named(augmentation)] = float((got - torch.stack(rows)).abs().max())
    return found


def named(augmentation) -> str:
    return type(augmentation).__name__


@pytest.mark.parametrize("augmentation", ALL, ids=named)
def test_each_clip_has_its_own_numbers_and_keeps_them_in_any_batch(augmentation):
    joints, drawn = clips(8), augmentation.draw(8, generator(2))
    before, whole = joints.clone(), augmentation.apply(joints, drawn)
    assert torch.equal(joints, before)
    for row in range(8):
        rows = slice(row, row + 1)
        assert torch.allclose(augmentation.apply(joints[rows], take_rows(drawn, rows)), whole[rows], atol=1e-6)
    for name, numbers in augmentation.draw(64, generator(3)).items():
        if name != "applied":
            assert len(numbers.unique(dim=0)) > 1, name


@pytest.mark.parametrize("augmentation", ALL[1:], ids=named)
def test_half_of_the_clips_are_left_exactly_as_they_were(augmentation):
    joints, drawn = clips(200), augmentation.draw(200, generator(1))
    same = (augmentation.apply(joints, drawn) == joints).flatten(1).all(1)
    assert same[~drawn["applied"]].all() and 70 < (~drawn["applied"]).sum() < 130
    assert same[drawn["applied"]].sum() < 5, "the narrowest blur changes nothing"


@pytest.mark.parametrize(("frames", "added"), [(50, 8), (12, 2), (5, 0)])
def test_every_window_of_the_reflected_clip_is_cropped(frames, added):
    crop, joints = ReflectedCrop(), clips(300, frames)
    drawn = crop.draw(300, generator(4, frames))
    got = crop.apply(joints, drawn)
    expected = torch.stack([slow_crop(*pair, added) for pair in zip(joints, drawn["place"].tolist(), strict=True)])
    assert torch.equal(got, expected)
    starts = (drawn["place"] * (2 * added + 1)).long()
    assert starts.unique().tolist() == list(range(2 * added + 1))


def test_the_last_place_stays_within_the_reflected_clip():
    joints = clips(1)
    last = {"applied": torch.tensor([True]), "place": torch.tensor([1 - 2**-53], dtype=torch.float64)}
    got = ReflectedCrop().apply(joints, last)
    assert torch.equal(got[:, :, :42], joints[:, :, 8:]) and torch.equal(got[:, :, -1], joints[:, :, 42])


def test_noise_is_added_with_the_published_deviation_apart_for_every_coordinate():
    joints, drawn = clips(40), NOISE.draw(40, generator(5))
    drawn["applied"][:] = True
    noise = NOISE.apply(joints, drawn) - joints
    assert noise.std().item() == pytest.approx(0.01, rel=0.01) and abs(noise.mean()) < 1e-4
    assert torch.allclose(noise, drawn["noise"], atol=1e-6)
    assert drawn["noise"].unique().numel() > 0.9 * noise.numel()


def test_blur_is_a_weighted_mean_of_the_fifteen_frames_around():
    found = errors()
    assert max(found.values()) < 1e-9, found
    joints, blur = clips(1, 20), GaussianBlur()
    narrow, wide = (
        {"applied": torch.tensor([True]), "deviation": torch.tensor([frames], dtype=torch.float64)}
        for frames in (0.1, 50.0)
    )
    assert torch.allclose(blur.apply(joints, narrow), joints), "a tenth of a frame blurs nothing"
    spike = torch.zeros(1, 3, 20, 25, 2)
    spike[:, :, 0] = 1
    assert blur.apply(spike, wide)[0, 0, :, 0, 0].nonzero().max() == 7, "seven frames to either side"


def test_blur_leaves_a_still_figure_still_and_draws_its_deviation_evenly():
    still = clips(1, 1).expand(4, -1, FRAMES, -1, -1).contiguous()
    blur = GaussianBlur(probability=1.0)
    assert torch.allclose(blur.apply(still, blur.draw(4, generator(6))), still, atol=1e-5)
    deviation = blur.draw(4000, generator(7))["deviation"]
    assert 0.1 <= deviation.min() < 0.11 and 1.99 < deviation.max() <= 2
    assert deviation.mean().item() == pytest.approx(1.05, abs=0.03)


def test_one_axis_is_lost_every_axis_as_often():
    joints, drawn = clips(300), AxisMask(probability=1.0).draw(300, generator(8))
    got = AxisMask().apply(joints, drawn)
    for row, axis in enumerate(drawn["axis"].tolist()):
        kept = [other for other in range(3) if other != axis]
        assert (got[row, axis] == 0).all() and torch.equal(got[row, kept], joints[row, kept])
    assert min(drawn["axis"].bincount(minlength=3)) > 75


# ---- views


def test_published_augmentations_and_their_order():
    assert normal_augmentations() == [ReflectedCrop(probability=1.0, share=6), Shear(probability=1.0, reach=0.5)]
    expected = [ReflectedCrop, Shear, Flip, Rotate, GaussianNoise, GaussianBlur, AxisMask]
    listed = extreme_augmentations("ntu25", 50, 2)
    assert [type(a) for a in listed] == expected
    assert [a.probability for a in listed] == [1, 1, 0.5, 1, 0.5, 0.5, 0.5]
    assert listed[4].std == 0.01 and listed[5].width == 15 and (listed[3].main, listed[3].other) == (30.0, 1.0)


@pytest.mark.parametrize("view", [ResizedView, ExtremeView])
@pytest.mark.parametrize("stream", ["joint", "motion", "bone"])
def test_view_resizes_then_augments_then_forms_the_stream(view, stream):
    extra = {"bodies": 2} if view is ExtremeView else {}
    seen = view(topology="ntu25", stream=stream, **extra)
    joints, num_frames = clips(4, 90).double(), torch.tensor([90, 50, 31, 1])
    drawn = seen.draw(4, generator(9))
    resized = torch.stack(
        [
            F.interpolate(clip[:, :real].permute(0, 2, 3, 1).flatten(0, 2)[None], 50, mode="linear")[0]
            .unflatten(0, (3, 25, 2))
            .permute(0, 3, 1, 2)
            for clip, real in zip(joints, num_frames.tolist(), strict=True)
        ]
    )
    form = {"joint": lambda x: x, "motion": motion, "bone": lambda x: bone(x, NTU25)}[stream]
    assert torch.allclose(seen.apply(joints, None, num_frames), form(resized), atol=1e-9)
    assert torch.allclose(seen.apply(joints, drawn, num_frames), form(seen.augment.apply(resized, drawn)), atol=1e-9)


def test_frames_past_the_real_ones_never_enter_a_view():
    view, joints, num_frames = ExtremeView("ntu25", 2), clips(3, 90), torch.tensor([40, 70, 90])
    drawn = view.draw(3, generator(10))
    poisoned = joints.clone()
    for row, real in enumerate(num_frames.tolist()):
        poisoned[row, :, real:] = torch.nan
    assert torch.equal(view.apply(poisoned, drawn, num_frames), view.apply(joints, drawn, num_frames))


def test_a_ranks_rows_of_the_global_draw_give_its_clips_the_same_views():
    view, joints, num_frames = ExtremeView("ntu25", 2), clips(6, 90), torch.full((6,), 80)
    drawn = view.draw(6, generator(11))
    rows = slice(3, 6)
    whole = view.apply(joints, drawn, num_frames)[rows]
    assert torch.allclose(view.apply(joints[rows], take_rows(drawn, rows), num_frames[rows]), whole, atol=1e-6)


def test_unknown_stream_is_refused():
    with pytest.raises(InputError, match="joint, motion, bone, found 'speed'"):
        ResizedView("ntu25", "speed")


MUTANTS = [
    Mutant("edge frame not repeated", ReflectedCrop, "change", "-1 - chosen", "-chosen"),
    Mutant("last frame not repeated", ReflectedCrop, "change", "2 * frames - 1 - chosen", "2 * frames - 2 - chosen"),
    Mutant("a fifth added", ReflectedCrop, "change", "frames // self.share", "frames // 5"),
    Mutant("padded by repeating", ReflectedCrop, "change", "-1 - chosen", "0 * chosen"),
    Mutant("variance for deviation", GaussianBlur, "change", '[:, None, None] ** 2', '[:, None, None]'),
    Mutant("weights not normalised", GaussianBlur, "change", "weights / weights.sum(2, keepdim=True)", "weights"),
    Mutant("seventeen frames", GaussianBlur, "change", "self.width // 2", "self.width // 2 + 1"),
    Mutant("all but one axis", AxisMask, "change", "masked_fill(hidden", "masked_fill(~hidden"),
]  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_slow_readings_notice(mutant, monkeypatch):
    caught(mutant, errors, monkeypatch)
