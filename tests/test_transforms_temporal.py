"""Sampling, cropping and streams against the released code's numbers and against slow readings of their definitions."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from datamodules.errors import InputError
from datamodules.randomness import generator
from datamodules.topology import KINETICS18, NTU25, UCLA20
from datamodules.transforms.streams import bone, motion
from datamodules.transforms.temporal import CropResize, SampleFrames, drop_empty, resize_window, take_frames

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def sampling():
    return np.load(GOLDEN / "sampling.npz", allow_pickle=False)


@pytest.fixture(scope="module")
def augmentations():
    return np.load(GOLDEN / "augmentations.npz", allow_pickle=False)


def clips(n: int, frames: int, joints: int = 25) -> torch.Tensor:
    return torch.randn(n, 3, frames, joints, 2, generator=generator(7, n, frames))


def batch_of(arrays: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips (C, T, V, M) of several lengths as one padded batch."""
    lengths = torch.tensor([array.shape[1] for array in arrays])
    padded = torch.zeros(len(arrays), 3, int(lengths.max()), *arrays[0].shape[2:], dtype=torch.float64)
    for row, array in enumerate(arrays):
        padded[row, :, : array.shape[1]] = torch.from_numpy(array)
    return padded, lengths


def assert_close(got: torch.Tensor, expected: np.ndarray, bound: float = 1e-6) -> None:
    assert got.shape == expected.shape
    assert np.abs(got.numpy() - expected).max() <= bound * np.abs(expected).max()


LENGTHS = (1, 20, 50, 120)


@pytest.mark.parametrize("mode", ["test", "train"])
def test_clip_to_input_equals_the_released_code(sampling, mode):
    """Clips of 1, 20, 50 and 120 frames, some of them empty, in one batch."""
    joints, num_frames = drop_empty(*batch_of([sampling[f"T{t}/in"] for t in LENGTHS]))
    assert num_frames.tolist() == [1, 18, 48, 118]
    for name, stream in (("joint", joints), ("motion", motion(joints, num_frames))):
        if mode == "test":
            got = SampleFrames(frames=50).apply(stream, None, num_frames)
        else:
            listed = np.stack([sampling[f"T{t}/train/{name}_frames"] for t in LENGTHS])
            got = take_frames(stream, torch.from_numpy(listed))
        assert_close(got, np.stack([sampling[f"T{t}/{mode}/{name}"] for t in LENGTHS]))


def test_drop_empty_keeps_order_and_forgets_what_lies_behind():
    joints = clips(3, 9)
    joints[0, :, [0, 4]] = 0
    joints[1, :, 6:] = 0
    joints[1, :, 2] = 0
    num_frames = torch.tensor([9, 6, 5])  # the third clip has numbers in its padding, which must not come back
    got, left = drop_empty(joints, num_frames)
    for row, kept in enumerate(([1, 2, 3, 5, 6, 7, 8], [0, 1, 3, 4, 5], [0, 1, 2, 3, 4])):
        assert left[row] == len(kept)
        assert torch.equal(got[row, :, : len(kept)], joints[row][:, kept])
        assert not got[row, :, len(kept) :].any()


def test_clip_without_any_frame_is_named():
    joints = clips(3, 4)
    joints[1] = 0
    with pytest.raises(InputError, match="clip 1 of the batch") as error:
        drop_empty(joints, torch.tensor([4, 4, 4]))
    assert "\n" not in str(error.value)


def test_drawn_frames_are_sorted_and_without_replacement_from_the_copies():
    sample = SampleFrames(frames=50, longest=300)
    num_frames = torch.arange(1, 301)
    chosen = sample.choose(sample.draw(300, generator(0, 1)), num_frames)
    assert chosen.shape == (300, 50)
    for row, total in zip(chosen.tolist(), num_frames.tolist(), strict=True):
        assert row == sorted(row) and row[0] >= 0 and row[-1] < total
        assert max(row.count(frame) for frame in set(row)) <= -(-50 // total)
        if 50 % total == 0:
            assert row == sorted(list(range(total)) * (50 // total))


@pytest.mark.parametrize(("total", "frames"), [(7, 5), (5, 5), (3, 5)])
def test_every_frame_is_drawn_equally_often(total, frames):
    sample = SampleFrames(frames=frames, longest=9)
    draws = 20_000
    chosen = sample.choose(sample.draw(draws, generator(3)), torch.full((draws,), total))
    counts = torch.bincount(chosen.flatten(), minlength=total) / draws
    assert torch.allclose(counts, torch.full((total,), frames / total), atol=0.02)


def test_clip_of_the_wanted_length_passes_through():
    joints, num_frames = clips(2, 60), torch.tensor([50, 50])
    sample = SampleFrames(frames=50)
    for drawn in (None, sample.draw(2, generator(1))):
        assert torch.equal(sample.apply(joints, drawn, num_frames), joints[:, :, :50])


def test_draws_do_not_depend_on_the_batch_they_are_for():
    """The rows of a global draw give a clip the same frames whatever its neighbours and its padding."""
    sample, joints, num_frames = SampleFrames(frames=12, longest=40), clips(4, 40), torch.tensor([9, 40, 12, 31])
    keys = sample.draw(4, generator(5))
    whole = sample.apply(joints, keys, num_frames)
    assert torch.equal(sample.apply(joints[2:, :, :31], keys[2:], num_frames[2:]), whole[2:])
    assert not torch.equal(sample.apply(joints, sample.draw(4, generator(6)), num_frames), whole)


def test_clip_longer_than_configured_is_refused():
    sample = SampleFrames(frames=5, longest=20)
    with pytest.raises(InputError, match="at most 20 frames, found one of 21"):
        sample.apply(clips(2, 22), sample.draw(2, generator(0)), torch.tensor([3, 21]))
    sample.apply(clips(2, 22), sample.draw(2, generator(0)), torch.tensor([3, 20]))  # padding is no frame


def test_crop_resize_equals_the_released_code(augmentations):
    crop = CropResize()
    x90, x130 = (torch.from_numpy(augmentations[name])[None] for name in ("in/x90", "in/x130"))
    share, n90, n120 = torch.tensor([0.7], dtype=torch.float64), torch.tensor([90]), torch.tensor([120])
    start, length = crop.window({"share": share, "place": torch.tensor([3.5 / 27])}, n90)
    assert (start.item(), length.item()) == (3, 64)
    golden = augmentations["out/crop_resize_frames90_scale0.7_start3"]
    assert_close(resize_window(x90, start, length, 64)[0], golden)
    golden = augmentations["out/crop_resize_frames120_length97_start5"]
    assert_close(resize_window(x130, torch.tensor([5]), torch.tensor([97]), 64)[0], golden)
    share = torch.tensor([97.5 / 120], dtype=torch.float64)
    assert crop.window({"share": share, "place": torch.tensor([0.0])}, n120)[1].item() == 97
    assert_close(crop.apply(x90, None, n90)[0], augmentations["out/center_crop_0.95"])
    assert [part.item() for part in crop.centre(n90)] == [2, 86]


def test_windows_of_every_length_equal_interpolate():
    joints = clips(6, 90)
    start, length = torch.tensor([0, 3, 89, 10, 20, 0]), torch.tensor([90, 64, 1, 7, 65, 2])
    got = resize_window(joints, start, length, 64)
    for row in range(6):
        window = joints[row, :, start[row] : start[row] + length[row]].permute(0, 2, 3, 1).reshape(1, -1, length[row])
        slow = F.interpolate(window, 64, mode="linear", align_corners=False)
        assert torch.allclose(got[row], slow.reshape(3, 25, 2, 64).permute(0, 3, 1, 2), atol=1e-5)


def test_random_windows_stay_among_the_real_frames():
    crop, num_frames = CropResize(), torch.arange(1, 301).repeat(20)
    drawn = crop.draw(len(num_frames), generator(2))
    start, length = crop.window(drawn, num_frames)
    assert (start >= 0).all() and (length >= 1).all() and (start + length <= num_frames).all()
    assert torch.equal(length[num_frames <= 64], num_frames[num_frames <= 64])
    assert (length[num_frames > 64] >= 64).all() and length.max() > 250
    edge = {"share": torch.ones(1, dtype=torch.float64), "place": torch.ones(1, dtype=torch.float64)}
    assert [part.item() for part in crop.window(edge, torch.tensor([100]))] == [0, 100]
    joints = clips(1, 30)
    spoilt = joints.clone()
    spoilt[:, :, 20:] = 1e6
    narrow = {"share": torch.tensor([0.5]), "place": torch.tensor([0.9])}
    cropped = [CropResize(frames=8).apply(x, narrow, torch.tensor([20])) for x in (joints, spoilt)]
    assert torch.equal(*cropped)


def test_starts_of_windows_are_uniform():
    crop = CropResize(frames=8)
    drawn = crop.draw(30_000, generator(4)) | {"share": torch.full((30_000,), 0.8, dtype=torch.float64)}
    start, length = crop.window(drawn, torch.full((30_000,), 10))
    assert (length == 8).all()
    assert torch.allclose(torch.bincount(start) / 30_000, torch.full((3,), 1 / 3), atol=0.02)


def test_streams_equal_the_released_code(augmentations):
    joints = torch.from_numpy(augmentations["in/x"])[None]
    assert_close(motion(joints)[0], augmentations["out/stream_motion"])
    assert_close(bone(joints, NTU25)[0], augmentations["out/stream_bone"])


def test_motion_ends_with_the_clip_and_not_with_its_padding():
    joints, num_frames = clips(3, 10), torch.tensor([10, 4, 1])
    joints *= (torch.arange(10) < num_frames[:, None])[:, None, :, None, None]
    got = motion(joints, num_frames)
    for row, total in enumerate(num_frames.tolist()):
        for t in range(10):
            expected = joints[row, :, t + 1] - joints[row, :, t] if t + 1 < total else torch.zeros(3, 25, 2)
            assert torch.equal(got[row, :, t], expected)


@pytest.mark.parametrize("topology", [NTU25, UCLA20, KINETICS18])
def test_bones_run_from_parent_to_child(topology):
    joints = clips(2, 3, topology.num_joints)
    got = bone(joints, topology)
    for child, parent in topology.bones:
        assert torch.equal(got[:, :, :, child], joints[:, :, :, child] - joints[:, :, :, parent])
    assert not got[:, :, :, topology.root].any()


def test_gradients_reach_the_clip():
    """An attack differentiates with respect to what the transforms give."""
    joints = clips(2, 12).double().requires_grad_()
    num_frames = torch.tensor([12, 9])
    drawn = {"share": torch.tensor([0.8, 0.9]), "place": torch.tensor([0.2, 0.7])}
    total = motion(CropResize(frames=5).apply(joints, drawn, num_frames)).square().sum()
    total = total + bone(SampleFrames(frames=6).apply(joints, None, num_frames), NTU25).square().sum()
    assert torch.autograd.grad(total, joints)[0].abs().sum() > 0
