"""How many NTU files a second one core prepares, beside a plain line-by-line reader with plain loops.

`python -m benchmarks.preparation [--raw DIR] [--files N] [--rounds N] [--out docs/results/preparation.json]`; without
`--raw` it writes N random files in the NTU format. Seconds are CPU seconds of this one process, the best of the rounds.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.plain.ntu_reader import read_plainly
from benchmarks.plain.recipes import agcn_plainly, dsta_plainly
from datamodules.normalise import RECIPES
from datamodules.readers.ntu_rgbd import NTUReader

PLAIN = {"agcn": agcn_plainly, "dsta": dsta_plainly}
READER = NTUReader(actions=120)


def ours(path: Path, recipe: str | None) -> None:
    sample = READER.read(path)
    if recipe:
        RECIPES[recipe](sample.joints, sample.body_ids, READER.topology)


def plain(path: Path, recipe: str | None) -> None:
    joints, body_ids = read_plainly(path)
    if recipe:
        PLAIN[recipe](joints, body_ids)


def measure(paths: list[Path], rounds: int) -> list[dict]:
    """One row for each stage: files a second of one core, ours and plain, and their ratio."""
    rows = []
    for recipe in (None, *PLAIN):
        seconds: dict[Callable, float] = {ours: np.inf, plain: np.inf}
        for _ in range(rounds):
            for prepare in seconds:  # in turn, so that a busy machine slows both
                started = time.process_time()
                for path in paths:
                    prepare(path, recipe)
                seconds[prepare] = min(seconds[prepare], time.process_time() - started)
        rows.append(
            {
                "stage": f"parse + {recipe}" if recipe else "parse",
                "files_per_second": round(len(paths) / seconds[ours], 1),
                "plain_files_per_second": round(len(paths) / seconds[plain], 1),
                "ratio": round(seconds[plain] / seconds[ours], 2),
            }
        )
    return rows


def write_files(folder: Path, count: int, seed: int = 0) -> None:
    """Files in the NTU format: 60 to 100 frames of random walks, every fifth with a second body."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        frames, bodies = int(rng.integers(60, 101)), 2 if number % 5 == 4 else 1
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
        name = f"S001C001P{number % 40 + 1:03}R{number // 40 + 1:03}A001.skeleton"
        (folder / name).write_text("\n".join(lines) + "\n")


def report(paths: list[Path], rounds: int, generated: bool) -> dict:
    shapes = [READER.read(path).joints.shape for path in paths]
    return {
        "command": f"python -m benchmarks.preparation --files {len(paths)} --rounds {rounds}"
        + ("" if generated else " --raw DIR"),
        "data": "random files in the NTU format" if generated else "genuine files",
        "files": len(paths),
        "rounds": rounds,
        "mean_frames": round(float(np.mean([shape[0] for shape in shapes])), 1),
        "mean_bodies": round(float(np.mean([shape[1] for shape in shapes])), 2),
        "machine": {"processor": processor(), "python": platform.python_version(), "numpy": np.__version__},
        "rows": measure(paths, rounds),
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(result: dict) -> str:
    lines = [
        "{files} files, {mean_frames} frames and {mean_bodies} bodies on average, one core\n".format(**result),
        "| stage | files/s | plain, files/s | ratio |",
        "|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append("| {stage} | {files_per_second} | {plain_files_per_second} | {ratio} |".format(**row))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, help="folder of .skeleton files")
    parser.add_argument("--files", type=int, default=100, help="files to write, or to use of --raw")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        if options.raw is None:
            write_files(Path(scratch), options.files)
        paths = READER.files(options.raw or Path(scratch))[: options.files]
        result = report(paths, options.rounds, generated=options.raw is None)
    print(table(result))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main()
