"""From raw files to two augmented views: parsing, recipes, views, the loader, the store's memory."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import synthetic
from benchmarks.harness import Case, Goal, Setting, Workload, resident
from benchmarks.plain.ntu_reader import read_plainly
from benchmarks.plain.recipes import agcn_plainly, dsta_plainly
from benchmarks.plain.views import two_views
from datamodules.batch import SkeletonBatch
from datamodules.normalise import RECIPES
from datamodules.randomness import generator
from datamodules.readers.ntu_rgbd import NTUReader
from datamodules.skeleton import Clips, SkeletonDataModule
from datamodules.store import SkeletonStore
from datamodules.topology import NTU25
from datamodules.transforms.views import CroppedView

PLAIN = {"agcn": agcn_plainly, "dsta": dsta_plainly}
READER = NTUReader(actions=120)
RELEASED_FEEDER = 1340  # clips a second and core, two views each, measured on the released code
LONGEST = 300  # frames to which the released feeders pad every clip
VIEW = CroppedView("ntu25")
BATCH = 64


def by_frames(make: Callable[[int, Setting, int], Case], count: int, size: int, setting: Setting) -> Case:
    """`make` of `count` files or clips, fewer on tiny sizes, of `size` frames each."""
    return make(3 if setting.small else count, setting, size)


def parse(size: int, setting: Setting, frames: int | None = None) -> Case:
    """Read `size` files; frames: of each, None for the synthetic ones' own."""
    paths = synthetic.ntu_files(setting.folder, size, length=frames)

    def check() -> None:
        for path in paths:
            sample, (joints, ids) = READER.read(path), read_plainly(path)
            assert np.array_equal(sample.joints, joints) and np.array_equal(sample.body_ids, ids)

    return Case(lambda: [READER.read(path) for path in paths], lambda: [read_plainly(path) for path in paths], check)


def prepare(recipe: str, size: int, setting: Setting, frames: int | None = None) -> Case:
    """Read `size` files and normalise them; frames: as in `parse`."""
    paths = synthetic.ntu_files(setting.folder, size, length=frames)

    def ours(path: Path) -> np.ndarray:
        sample = READER.read(path)
        return RECIPES[recipe](sample.joints, sample.body_ids, READER.topology)

    def plain(path: Path) -> np.ndarray:
        return PLAIN[recipe](*read_plainly(path))

    def check() -> None:
        for path in paths:
            np.testing.assert_allclose(ours(path), plain(path), atol=1e-5)

    return Case(lambda: [ours(path) for path in paths], lambda: [plain(path) for path in paths], check)


def drawn(clips: int, step: int) -> list[dict]:
    """Numbers of both views of a batch."""
    return [VIEW.draw(clips, generator(1, step, view)) for view in (0, 1)]


def views(size: int, setting: Setting, frames: int = 100) -> Case:
    """Two augmented views of `size` clips of so many frames that are in memory."""
    clips = synthetic.batch(size, frames)
    alone = clips.joints.numpy()

    def ours() -> list[torch.Tensor]:
        return [VIEW.apply(clips.joints, numbers, clips.num_frames) for numbers in drawn(size, 0)]

    def plain() -> list[list[np.ndarray]]:
        numbers = drawn(size, 0)
        return [two_views(alone[row], int(clips.num_frames[row]), numbers, row, NTU25) for row in range(size)]

    def check() -> None:
        for view, fast in enumerate(ours()):
            np.testing.assert_allclose(fast, np.stack([pair[view] for pair in plain()]), atol=1e-4)

    return Case(ours, plain, check)


def padded(store: SkeletonStore) -> np.ndarray:
    """All clips (N, C, 300, V, 2) as the released feeders keep them."""
    whole = np.zeros((len(store), 3, LONGEST, 25, 2), dtype=np.float32)
    for row in range(len(store)):
        clip = store.clip(row)
        whole[row, :, : len(clip), :, : clip.shape[1]] = clip.transpose(3, 0, 2, 1)
    return whole


def loader(size: int, setting: Setting) -> Case:
    """One epoch over a store of `size` clips: batches in a shuffled order, two views of each clip."""
    synthetic.stores(setting.folder, size, "agcn")
    batches = min(BATCH, size // 2)
    data = SkeletonDataModule(setting.folder, "agcn", "ntu60_xsub", batches, seed=1, drop_last=False)
    data.rows = {"train": np.arange(size), "test": np.arange(1)}
    np.save(setting.folder / "padded.npy", padded(data.store))
    feeder = np.load(setting.folder / "padded.npy", mmap_mode="r")
    frames = data.store.index.frames

    def both(step: int, batch: SkeletonBatch) -> list[torch.Tensor]:
        return [VIEW.apply(batch.joints, numbers, batch.num_frames) for numbers in drawn(len(batch.ids), step)]

    def ours() -> list[list[torch.Tensor]]:
        return [both(step, batch) for step, batch in enumerate(data.train_dataloader())]

    def plain() -> list[list[torch.Tensor]]:
        found = []
        for step, rows in enumerate(torch.utils.data.BatchSampler(data.train_dataloader().sampler, batches, False)):
            numbers = drawn(len(rows), step)
            pairs = [
                two_views(np.array(feeder[row]), int(frames[row]), numbers, place, NTU25)
                for place, row in enumerate(rows)
            ]
            found.append([torch.stack([torch.from_numpy(pair[view].copy()) for pair in pairs]) for view in (0, 1)])
        return found

    return Case(ours, plain, lambda: torch.testing.assert_close(ours(), plain(), rtol=0, atol=1e-4))


def store_memory(size: int, setting: Setting) -> Case:
    """Bytes that a process holds after it has read every clip of `size`."""
    real = synthetic.stores(setting.folder, size, "agcn")
    np.save(setting.folder / "padded.npy", padded(SkeletonStore(setting.folder / "agcn")))

    def ours() -> int:
        before = resident()
        store = SkeletonStore(setting.folder / "agcn")
        sum(float(store.clip(row).sum()) for row in range(len(store)))
        return resident() - before

    def plain() -> int:
        before = resident()
        whole = np.load(setting.folder / "padded.npy")
        sum(float(clip.sum()) for clip in whole)
        return resident() - before

    def check() -> None:
        store, whole = SkeletonStore(setting.folder / "agcn"), np.load(setting.folder / "padded.npy", mmap_mode="r")
        clips = Clips(store, np.arange(size), store.index.labels, 2)
        batch = clips.__getitems__(list(range(min(size, 8))))
        for row, joints in enumerate(batch.joints.numpy()):
            assert (
                np.array_equal(whole[row, :, : joints.shape[1]], joints) and not whole[row, :, joints.shape[1] :].any()
            )

    return Case(ours, plain, check, facts={"of": real})


FILES = 10  # of each length

WORKLOADS = [
    Workload(
        "parse", "data", "NTU files parsed", "line by line, number by number", parse, "files", (30, 10, 90), 2,
        threads=1,
    ),
    Workload(
        "parse_frames", "data", f"{FILES} NTU files of so many frames parsed", "line by line, number by number",
        partial(by_frames, parse, FILES), "frames", synthetic.LENGTHS, 5, threads=1, rounds=3,
    ),
    *(
        Workload(
            f"prepare_{recipe}", "data", f"NTU files parsed and normalised by `{recipe}`",
            "line by line, then loops over bodies, frames and joints",
            partial(prepare, recipe), "files", (30, 10, 90), 2, threads=1, rounds=3,
            goals=(
                Goal("rate", times * released, True, f"at least {times} x {released} files/s/core, the released code"),
            ),
        )
        for recipe, times, released in (("agcn", 10, 24.6), ("dsta", 6, 46.0))
    ),
    *(
        Workload(
            f"prepare_{recipe}_frames", "data",
            f"{FILES} NTU files of so many frames parsed and normalised by `{recipe}`",
            "line by line, then loops over bodies, frames and joints",
            partial(by_frames, partial(prepare, recipe), FILES), "frames", synthetic.LENGTHS, 5, threads=1, rounds=3,
        )
        for recipe in PLAIN
    ),
    Workload(
        "views", "data", "two augmented views a clip (A2MC's), clips in memory", "clip by clip in numpy", views,
        "clips", (64, 16, 256), 3,
    ),
    Workload(
        "views_frames", "data", f"two augmented views (A2MC's) of each of {BATCH} clips of so many frames, in memory",
        "clip by clip in numpy", partial(by_frames, views, BATCH), "frames", synthetic.LENGTHS, 20,
    ),
    Workload(
        "loader", "data", "an epoch of the loader, two augmented views a clip, one core",
        "a padded array, clip by clip in numpy", loader, "clips", (640, 160), 8, threads=1, rounds=3,
        goals=(
            Goal("rate", 5 * RELEASED_FEEDER, True, "at least 5 x 1,340 clips/s/core, the released feeder elsewhere"),
            Goal("ratio", 5, True, "at least 5 times as fast as plain"),
        ),
    ),
    Workload(
        "store_memory", "data", "memory held after reading every clip of a store", "one array padded to 300 frames",
        store_memory, "clips", (2000, 500), 10, value="bytes", rounds=1, memory=False,
        goals=(Goal("share", 1.3, False, "at most 1.3 times the real frames"),),
    ),
]  # fmt: skip
