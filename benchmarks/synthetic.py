"""Made-up data for the benchmarks, of the sizes of NTU RGB+D: 60 to 100 frames, a second body in every fifth clip."""

from pathlib import Path

import numpy as np
import torch

from datamodules.batch import SkeletonBatch
from datamodules.store import StoreIndex, read_manifest, write_store

FRAMES = (60, 101)
LENGTHS = (100, 50, 300)  # frames of a clip in the curves over frames; NTU RGB+D has none of more than 300
TWO_BODIES = 5  # every so-manyth file or stored clip has a second body
SHARE = 11 / 60  # of the clips of a batch that have one, and at least one: classes of NTU RGB+D


def ntu_files(folder: Path, count: int, seed: int = 0, length: int | None = None) -> list[Path]:
    """Files in the NTU format: random walks; length: frames of each, None for 60 to 100."""
    rng = np.random.default_rng(seed)
    paths = []
    for number in range(count):
        frames, bodies = length or int(rng.integers(*FRAMES)), 2 if number % TWO_BODIES == 4 else 1
        start = rng.normal(scale=0.4, size=(1, bodies, 25, 3)) + np.array((0, 0, 3))
        joints = start + rng.normal(scale=0.01, size=(frames, bodies, 25, 3)).cumsum(axis=0)
        rest = rng.normal(scale=300, size=(frames, bodies, 25, 8))
        lines = [str(frames)]
        for frame in range(frames):
            lines.append(str(bodies))
            for body in range(bodies):
                lines += [f"{72057594037931000 + body} 0 1 1 1 1 0 0.01 0.02 2", "25"]
                table = np.concatenate([joints[frame, body], rest[frame, body]], axis=1)
                lines += [" ".join(f"{value:.7g}" for value in row) + " 2" for row in table.tolist()]
        path = folder / f"S001C001P{number % 40 + 1:03}R{number // 40 + 1:03}A001.skeleton"
        path.write_text("\n".join(lines) + "\n")
        paths.append(path)
    return paths


def batch(clips: int, frames: int = 100, seed: int = 0) -> SkeletonBatch:
    """Random walks (N, 3, frames, 25, 2); the second body is there in the last clips, their SHARE."""
    source = torch.Generator().manual_seed(seed)
    joints = torch.randn(clips, 3, frames, 25, 2, generator=source).mul(0.1).cumsum(2)
    joints[: clips - max(1, round(clips * SHARE)), ..., 1] = 0
    labels = torch.arange(clips) % 60
    return SkeletonBatch(joints, torch.full((clips,), frames), labels, torch.arange(clips))


def stores(folder: Path, clips: int, recipe: str, seed: int = 0) -> int:
    """A raw store below `folder` and one of `recipe` with the same random walks; returns the bytes of the clips."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(*FRAMES, clips)
    bodies = np.where(np.arange(clips) % TWO_BODIES == TWO_BODIES - 1, 2, 1)
    sizes = frames * bodies * 75
    index = StoreIndex(
        names=np.array([f"clip{row:06d}" for row in range(clips)]),
        offsets=np.cumsum(sizes) - sizes,
        frames=frames,
        bodies=bodies,
        labels=np.arange(clips) % 60,
        performers=np.where(np.arange(clips) % 3 < 2, 1, 3),  # 1 trains, 3 tests in ntu60_xsub
        cameras=np.arange(clips) % 3 + 1,
        setups=np.ones(clips, dtype=np.int64),
        replications=np.ones(clips, dtype=np.int64),
    )
    facts = {"dataset": "benchmark", "miniature": True, "topology": "ntu25"}
    data = [rng.normal(scale=0.1, size=size).astype(np.float32) for size in sizes]
    ids = (np.zeros(cells, dtype=np.int64) for cells in frames * bodies)
    write_store(folder / "raw", index, data, ids, facts | {"recipe": None, "raw_digest": None})
    digest = read_manifest(folder / "raw")["digest"]
    write_store(folder / recipe, index, data, None, facts | {"recipe": recipe, "raw_digest": digest})
    return int(4 * sizes.sum())
