"""Augmentations against the released numbers and slow readings of their definitions, and what they must leave alone."""

import math

import pytest
import torch
import torch.nn.functional as F
from goldens import BOUND
from goldens_a2mc import augmentation_errors, view_errors

from datamodules.errors import InputError
from datamodules.randomness import generator, take_rows
from datamodules.topology import NTU25, TOPOLOGIES, UCLA20
from datamodules.transforms.augmentation import Compose
from datamodules.transforms.spatial import Flip, Rotate, Shear, SpatialMask, TemporalMask, Tilt
from datamodules.transforms.streams import bone, motion
from datamodules.transforms.views import CroppedView, published_augmentations

PUBLISHED = published_augmentations("ntu25")
ALL = [*PUBLISHED, Tilt()]


def clips(n: int = 6, frames: int = 64, joints: int = 25) -> torch.Tensor:
    return torch.randn(n, 3, frames, joints, 2, generator=generator(11, n, frames))


def certain(augmentation_class, **settings):
    return augmentation_class(probability=1.0, **settings)


def test_every_augmentation_and_crop_equals_the_released_code():
    found = augmentation_errors() | view_errors()
    assert max(found.values()) < BOUND, max(found.items(), key=lambda item: item[1])


@pytest.mark.parametrize("augmentation", ALL, ids=lambda a: type(a).__name__)
def test_half_of_the_clips_are_left_exactly_as_they_were(augmentation):
    joints = clips(400, 64)
    drawn = augmentation.draw(400, generator(1))
    got = augmentation.apply(joints, drawn)
    same = (got == joints).flatten(1).all(1)
    assert torch.equal(same, ~drawn["applied"])
    assert 160 < same.sum() < 240


@pytest.mark.parametrize("augmentation", ALL, ids=lambda a: type(a).__name__)
def test_each_clip_has_its_own_numbers_and_keeps_them_in_any_batch(augmentation):
    joints, drawn = clips(8), augmentation.draw(8, generator(2))
    whole = augmentation.apply(joints, drawn)
    for row in range(8):
        rows = slice(row, row + 1)
        assert torch.equal(augmentation.apply(joints[rows], take_rows(drawn, rows)), whole[rows])
    for name, numbers in augmentation.draw(64, generator(3)).items():
        assert len(numbers.unique(dim=0)) > 1, name


@pytest.mark.parametrize("augmentation", ALL, ids=lambda a: type(a).__name__)
def test_the_input_is_not_written_to(augmentation):
    joints = clips()
    before = joints.clone()
    augmentation.apply(joints, augmentation.draw(len(joints), generator(4)))
    assert torch.equal(joints, before)


def bits(joints: torch.Tensor) -> torch.Tensor:
    """The numbers as they are stored, so that 0 and -0 differ and NaN equals itself."""
    return joints.contiguous().view({4: torch.int32, 8: torch.int64}[joints.element_size()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(9, 3, 64, 25, 2), (9, 3, 64, 25, 1)], ids=["two bodies", "one"])
@pytest.mark.parametrize("augmentation", ALL, ids=lambda a: type(a).__name__)
def test_clips_changed_in_place_have_the_bits_of_a_change_clip_by_clip(augmentation, size, dtype):
    joints = torch.randn(size, generator=generator(6), dtype=dtype)
    joints[3, :, 5, :, 0] = -0.0
    drawn = augmentation.draw(len(joints), generator(16))
    assert 0 < drawn["applied"].sum() < len(joints)
    expected = joints.clone()
    for row in drawn["applied"].nonzero()[:, 0].tolist():
        one = slice(row, row + 1)
        expected[one] = augmentation.change(joints[one], {name: part[one] for name, part in drawn.items()})
    for whole in (joints, joints.transpose(3, 4).contiguous().transpose(3, 4)):
        assert torch.equal(bits(augmentation.apply(whole, drawn)), bits(expected))
        assert torch.equal(bits(augmentation.applied(whole.clone(), drawn, owned=True)), bits(expected))


@pytest.mark.parametrize("mask", PUBLISHED[-2:], ids=lambda a: type(a).__name__)
def test_a_mask_leaves_neither_sign_nor_nan_and_passes_gradients(mask):
    joints = clips(8)
    drawn = mask.draw(8, generator(17))
    hidden = mask.hidden(joints, drawn) & drawn["applied"][:, None, None, None]
    hidden = hidden.expand(8, 3, 64, 50).reshape(joints.shape)
    assert hidden.any() and (joints[hidden] < 0).any()
    spoilt = joints.masked_fill(hidden, -torch.nan)
    expected = bits(torch.where(hidden, 0, joints))
    assert torch.equal(bits(mask.applied(spoilt.clone(), drawn, owned=True)), expected)
    assert torch.equal(bits(mask.apply(spoilt, drawn)), expected)
    leaf = joints.clone().requires_grad_()
    (slope,) = torch.autograd.grad(mask.applied(leaf * 1, drawn, owned=True).sum(), leaf)
    assert torch.equal(slope, (~hidden).float())


def test_a_view_changes_no_clip_that_it_was_given():
    joints, num_frames = clips(6, 64), torch.full((6,), 64)
    before = joints.clone()
    for stream in ("joint", "motion", "bone"):
        view = CroppedView("ntu25", stream)
        view.apply(joints, view.draw(6, generator(18)), num_frames)
    assert torch.equal(joints, before)


def test_rotation_turns_clockwise_about_x_then_y_then_z():
    degrees = torch.tensor([[25.0, 10.0, 70.0]], dtype=torch.float64)
    joints = clips(1, 4).double()
    got = certain(Rotate).apply(joints, {"applied": torch.tensor([True]), "degrees": degrees})
    expected = joints.clone()
    for axis, angle in enumerate((degrees[0] * math.pi / 180).tolist()):
        c, s = math.cos(angle), math.sin(angle)
        x, y, z = (expected[:, i].clone() for i in range(3))
        if axis == 0:
            expected[:, 1], expected[:, 2] = c * y + s * z, c * z - s * y
        elif axis == 1:
            expected[:, 0], expected[:, 2] = c * x - s * z, s * x + c * z
        else:
            expected[:, 0], expected[:, 1] = c * x + s * y, c * y - s * x
    assert torch.allclose(got, expected, atol=1e-12)
    assert torch.allclose(got.norm(dim=1), joints.norm(dim=1))


def test_one_main_axis_and_no_negative_angle():
    degrees = Rotate().draw(3000, generator(5))["degrees"]
    assert degrees.min() >= 0 and degrees.max() < 30
    assert ((degrees > 1).sum(1) <= 1).all()
    main = degrees[(degrees > 1).any(1)]
    counts = (main > 1).sum(0)
    assert (counts > 800).all(), "every axis is the main one of a third of the clips"
    assert abs(main.max(1).values.mean() - 15.5) < 0.6


def test_tilt_turns_every_axis_either_way_by_the_rotation_of_the_same_degrees():
    degrees = Tilt(reach=18.0).draw(3000, generator(5))["degrees"]
    assert -18 <= degrees.min() < -17.9 and 17.9 < degrees.max() <= 18 and degrees.mean(0).abs().max() < 0.5
    joints, drawn = clips(2, 4).double(), {"applied": torch.tensor([True, True]), "degrees": degrees[:2]}
    assert torch.equal(certain(Tilt).apply(joints, drawn), certain(Rotate).apply(joints, drawn))


def test_flip_swaps_sides_without_mirroring_and_is_its_own_inverse():
    flip = certain(Flip, topology="ntu25")
    joints, drawn = clips(2), {"applied": torch.tensor([True, True])}
    got = flip.apply(joints, drawn)
    for left, right in NTU25.mirror:
        assert torch.equal(got[:, :, :, left], joints[:, :, :, right])
    centre = [joint for joint in range(25) if joint not in sum(NTU25.mirror, ())]
    assert torch.equal(got[:, :, :, centre], joints[:, :, :, centre])
    assert torch.equal(flip.apply(got, drawn), joints)


def test_shear_matrix_is_laid_out_row_by_row():
    s = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]], dtype=torch.float64)
    joints = clips(1, 2).double()
    x, y, z = joints.unbind(1)
    got = certain(Shear).apply(joints, {"applied": torch.tensor([True]), "shear": s})
    expected = torch.stack([x + 0.1 * y + 0.2 * z, 0.3 * x + y + 0.4 * z, 0.5 * x + 0.6 * y + z], dim=1)
    assert torch.allclose(got, expected, atol=1e-12)
    drawn = Shear().draw(4000, generator(6))["shear"]
    assert -1 <= drawn.min() < -0.99 and 0.99 < drawn.max() <= 1 and drawn.mean().abs() < 0.02


@pytest.mark.parametrize("topology", ["ntu25", "ucla20"])
def test_spatial_mask_hides_the_eight_joints_with_most_short_walks(topology):
    skeleton = TOPOLOGIES[topology]
    mask = certain(SpatialMask, topology=topology)
    drawn = mask.draw(40, generator(7))
    got = mask.apply(torch.ones(40, 3, 2, skeleton.num_joints, 1), drawn)
    neighbours = [{joint} for joint in range(skeleton.num_joints)]
    for child, parent in skeleton.bones:
        neighbours[child].add(parent)
        neighbours[parent].add(child)
    for row, seeds in enumerate(drawn["joints"].tolist()):
        scores = [0] * skeleton.num_joints
        for seed in seeds:
            for first in neighbours[seed]:
                for second in neighbours[first]:
                    scores[second] += 1
        hidden = sorted(range(len(scores)), key=lambda joint: -scores[joint])[:8]
        assert (got[row, 0, 0, :, 0] == 0).nonzero().flatten().tolist() == sorted(hidden)
        assert torch.equal(got[row], got[row, :1, :1].expand_as(got[row])), "all frames and axes alike"


def test_spatial_seeds_are_drawn_with_replacement_from_all_joints():
    seeds = SpatialMask(topology="ucla20").draw(500, generator(8))["joints"]
    assert seeds.unique().tolist() == list(range(UCLA20.num_joints))
    assert any(len(set(row)) < 5 for row in seeds.tolist())


def test_temporal_mask_hides_six_whole_segments():
    mask = certain(TemporalMask)
    drawn = mask.draw(300, generator(9))
    hidden = (mask.apply(torch.ones(300, 3, 64, 25, 2), drawn) == 0)[:, 0, :, 0, 0].unflatten(1, (16, 4))
    assert torch.equal(hidden.any(2), hidden.all(2))
    assert (hidden.all(2).sum(1) == 6).all()
    assert torch.allclose(hidden.all(2).float().mean(0), torch.tensor(6 / 16), atol=0.12)
    for row, segments in enumerate(drawn["segments"].tolist()):
        assert hidden[row].all(1).nonzero().flatten().tolist() == sorted(segments)


def test_temporal_mask_of_another_length_is_refused():
    with pytest.raises(InputError, match="16 segments of 4 frames, found clips of 50 frames"):
        certain(TemporalMask).apply(clips(1, 50), TemporalMask().draw(1, generator(0)))


def test_compose_applies_in_order():
    parts = [certain(Shear), certain(Rotate)]
    joints, compose = clips(3), Compose(parts)
    drawn = compose.draw(3, generator(10))
    expected = parts[1].apply(parts[0].apply(joints, drawn[0]), drawn[1])
    assert torch.equal(compose.apply(joints, drawn), expected)


def test_published_augmentations_and_their_order():
    assert [type(a) for a in PUBLISHED] == [Rotate, Flip, Shear, SpatialMask, TemporalMask]
    assert all(a.probability == 0.5 for a in ALL)


@pytest.mark.parametrize("stream", ["joint", "motion", "bone"])
def test_view_crops_then_forms_the_stream_then_augments(stream):
    view = CroppedView("ntu25", stream, frames=64)
    joints, num_frames = clips(5, 120), torch.tensor([120, 90, 64, 70, 33])
    drawn = view.draw(5, generator(12))
    cropped = view.crop.apply(joints, drawn["crop"], num_frames)
    formed = {"joint": cropped, "motion": motion(cropped), "bone": bone(cropped, NTU25)}[stream]
    assert torch.equal(view.apply(joints, drawn, num_frames), view.augment.apply(formed, drawn["augment"]))


def test_testing_takes_the_centre_crop_and_augments_nothing():
    view, joints, num_frames = CroppedView("ntu25"), clips(2, 100), torch.tensor([100, 90])
    for row, (first, behind) in enumerate(((2, 98), (2, 88))):
        window = joints[row, :, first:behind].permute(0, 2, 3, 1).flatten(0, 2)[None]
        expected = F.interpolate(window, 64, mode="linear")[0].unflatten(0, (3, 25, 2)).permute(0, 3, 1, 2)
        got = view.apply(joints, None, num_frames)[row]
        assert torch.allclose(got, expected, atol=1e-5)


def test_frames_past_the_real_ones_never_enter_a_view():
    view, joints, num_frames = CroppedView("ntu25"), clips(3, 90), torch.tensor([40, 70, 90])
    drawn = view.draw(3, generator(14))
    poisoned = joints.clone()
    for row, real in enumerate(num_frames.tolist()):
        poisoned[row, :, real:] = torch.nan
    assert torch.equal(view.apply(poisoned, drawn, num_frames), view.apply(joints, drawn, num_frames))


def test_a_ranks_rows_of_the_global_draw_give_its_clips_the_same_views():
    view, joints, num_frames = CroppedView("ntu25"), clips(6, 90), torch.full((6,), 80)
    drawn = view.draw(6, generator(15))
    whole = view.apply(joints, drawn, num_frames)
    rows = slice(3, 6)
    assert torch.equal(view.apply(joints[rows], take_rows(drawn, rows), num_frames[rows]), whole[rows])


def test_unknown_stream_is_refused():
    with pytest.raises(InputError, match="joint, motion, bone, found 'speed'"):
        CroppedView("ntu25", "speed")
