"""What bfloat16 does to k-NN and linear results of SDS-CL on real NW-UCLA, seed by seed beside float32.

python -m benchmarks.precision RAW [--seeds 1 2 3 ...] [--scale mini] [--out docs/results/bf16_seeds.json]

Of every seed two networks are trained, in float32 and in bfloat16 (runs that are there are found), and three pairs of
results measured: float32 throughout, the same weights embedded in bfloat16, and weights trained in bfloat16.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from scipy.stats import t as students_t
from torch import Tensor

from datamodules.batch import SkeletonBatch
from eval import Evaluation, subjects
from lightning_modules.base import SkeletonModule
from tracking.build import build
from tracking.identity import commit

ROOT = Path(__file__).parents[1]
PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}
PROTOCOLS = ("knn", "linear")
FAIR = 0.3  # points
COMPARED = ("embedded in bfloat16", "trained in bfloat16")


class InHalf:
    """A network whose `embed` computes as trainer.precision=bf16-mixed does; what it gives is float32 again."""

    def __init__(self, network: SkeletonModule):
        self._network = network

    def eval(self) -> "InHalf":
        self._network.eval()
        return self

    def to(self, device: torch.device) -> "InHalf":
        self._network.to(device)
        return self

    def embed(self, batch: SkeletonBatch) -> Tensor:
        """(N, D) float32."""
        with torch.autocast(batch.joints.device.type, torch.bfloat16):
            return self._network.embed(batch).float()


def overrides(raw: str, scale: str, seed: int, precision: str) -> list[str]:
    """What both doors are given."""
    data = ["experiment=ucla/sds_cl", f"scale={scale}", f"raw={raw}", "knn_every=0"]
    return [*data, f"seed={seed}", f"trainer.precision={PRECISIONS[precision]}"]


def trained(arguments: list[str]) -> None:
    """The run that these arguments give, trained in a process of its own or found."""
    subprocess.run([sys.executable, "train.py", *arguments], cwd=ROOT, check=True)


def accuracies(arguments: list[str], half: bool) -> dict[str, float]:
    """Headline of each protocol (%) on the trained network of a run; half: embedded in bfloat16."""
    found = {}
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"), tempfile.TemporaryDirectory() as folder:
        for protocol in PROTOCOLS:
            config = compose("eval", [*arguments, f"protocol={protocol}", "protocol.rows=[trained]"])
            (subject,) = subjects(Evaluation.of(config))
            if half:
                make = subject.make_backbone
                assert make is not None
                subject = replace(subject, folder=Path(folder), make_backbone=lambda make=make: InHalf(make()))
            found[protocol] = build(config.protocol.measure).measure(subject).metrics[config.protocol.headline]
    return found


def of_seed(raw: str, scale: str, seed: int) -> dict[str, Any]:
    """The three pairs of results of one seed."""
    whole, half = (overrides(raw, scale, seed, precision) for precision in PRECISIONS)
    for arguments in (whole, half):
        trained(arguments)
    measured = accuracies(whole, False), accuracies(whole, True), accuracies(half, False)
    return {"seed": seed} | dict(zip(("float32", *COMPARED), measured, strict=True))


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Mean and half of its 95 % confidence interval (Student's t) of two differences or more."""
    count = len(differences)
    wide = students_t.ppf(0.975, count - 1) * statistics.stdev(differences) / count**0.5
    return statistics.fmean(differences), float(wide)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """For each comparison and protocol `mean` and `half_width` of the differences from float32, in points."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for what in COMPARED:
        for protocol in PROTOCOLS:
            mean, wide = interval([row[what][protocol] - row["float32"][protocol] for row in rows])
            found.setdefault(what, {})[protocol] = {"mean": mean, "half_width": wide}
    return found


def verdict(points: dict[str, float]) -> str:
    """Whether the whole interval lies within the .3 points that are a fair price of half the bits."""
    return "within .3: shown" if abs(points["mean"]) + points["half_width"] <= FAIR else "within .3: not shown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", help="folder of NW-UCLA's all_sqe")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(1, 9)), help="two or more")
    parser.add_argument("--scale", default="mini")
    parser.add_argument("--out", type=Path, default=Path("docs/results/bf16_seeds.json"))
    asked = parser.parse_args()
    rows = [of_seed(str(Path(asked.raw).resolve()), asked.scale, seed) for seed in asked.seeds]
    command = (
        f"python -m benchmarks.precision .../all_sqe --seeds {' '.join(map(str, asked.seeds))} --scale {asked.scale}"
    )
    told = {"command": command, "commit": commit(), "torch": torch.__version__, "scale": asked.scale}
    found = summary(rows)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps({**told, "seeds": rows, "summary": found}, indent=1) + "\n")
    for what, protocols in found.items():
        for protocol, points in protocols.items():
            print(f"{what}, {protocol}: {points['mean']:+.2f} +- {points['half_width']:.2f} points, {verdict(points)}")


if __name__ == "__main__":
    main()
