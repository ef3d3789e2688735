"""What bfloat16 does to k-NN and linear results of SDS-CL on real NW-UCLA, seed by seed beside float32.

python -m benchmarks.precision RAW [--seeds 1 2 3 ...] [--scale mini] [--out docs/results/bf16_seeds.json]
python -m benchmarks.precision RAW --embedded-only --probes 1 2 3 ... [--out docs/results/bf16_embedded.json]

Of every seed two networks are trained, in float32 and in bfloat16 (runs that are there are found), and three pairs of
results measured: float32 throughout, the same weights embedded in bfloat16, and weights trained in bfloat16. With
--embedded-only the last and its training are left out.

A linear probe draws its first weights and the order of its clips, and a last digit of a feature may send it elsewhere:
with --probes the linear result of a network is the mean over probes of these seeds, the same for every embedding, so
that the difference is the embedding's, not one draw's.
"""

import argparse
import json
import statistics
import subprocess
import sys
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
from lightning_modules.evaluation.linear import LinearProbe
from lightning_modules.evaluation.subject import Subject
from tracking.build import build
from tracking.identity import command, commit

ROOT = Path(__file__).parents[1]
PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}
PROTOCOLS = ("knn", "linear")
FAIR = 0.3  # points
COMPARED = ("embedded in bfloat16", "trained in bfloat16")
OUT = {False: Path("docs/results/bf16_seeds.json"), True: Path("docs/results/bf16_embedded.json")}  # by embedded_only


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


def in_half(subject: Subject) -> Subject:
    """The subject as embedded in bfloat16, in files of its own."""
    make = subject.make_backbone
    assert make is not None
    folder = subject.folder.with_name(f"{subject.folder.name} in bfloat16")
    return replace(subject, key=f"{subject.key} in bfloat16", folder=folder, make_backbone=lambda: InHalf(make()))


def subject_of(arguments: list[str], protocol: str) -> tuple[Subject, Any]:
    """The trained network of a run, and what measures it under the protocol."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("eval", [*arguments, f"protocol={protocol}", "protocol.rows=[trained]"])
        (subject,) = subjects(Evaluation.of(config))
        return subject, build(config.protocol.measure)


def accuracies(arguments: list[str], half: bool, probes: Sequence[int]) -> dict[str, Any]:
    """`knn`, `linear` and each probe's `linear_probes` (%) of the trained network of a run, embedded in half or not.

    probes: their seeds; where there are none, one of the run's own seed.
    """
    subject, neighbours = subject_of(arguments, "knn")
    subject = in_half(subject) if half else subject
    probe: LinearProbe = subject_of(arguments, "linear")[1]
    found = [replace(probe, seed=seed).measure(subject).metrics["top1"] for seed in probes or [probe.seed]]
    nearest = neighbours.measure(subject).metrics["k1"]
    return {"knn": nearest, "linear": statistics.fmean(found), "linear_probes": found}


def of_seed(raw: str, scale: str, seed: int, probes: Sequence[int], embedded_only: bool) -> dict[str, Any]:
    """Results of one seed in float32 and of each comparison."""
    whole, half = (overrides(raw, scale, seed, precision) for precision in PRECISIONS)
    for arguments in [whole] if embedded_only else [whole, half]:
        trained(arguments)
    measured = [accuracies(whole, False, probes), accuracies(whole, True, probes)]
    if not embedded_only:
        measured.append(accuracies(half, False, probes))
    return {"seed": seed} | dict(zip(("float32", *COMPARED), measured, strict=False))


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Mean and half of its 95 % confidence interval (Student's t) of two differences or more."""
    count = len(differences)
    wide = students_t.ppf(0.975, count - 1) * statistics.stdev(differences) / count**0.5
    return statistics.fmean(differences), float(wide)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """For each comparison and protocol `mean` and `half_width` of the differences from float32, in points."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for what in filter(rows[0].__contains__, COMPARED):
        for protocol in PROTOCOLS:
            mean, wide = interval([row[what][protocol] - row["float32"][protocol] for row in rows])
            found.setdefault(what, {})[protocol] = {"mean": mean, "half_width": wide}
    return found


def verdict(points: dict[str, float]) -> str:
    """Whether the whole interval lies within the .3 points that are a fair price of half the bits."""
    return "within .3: shown" if abs(points["mean"]) + points["half_width"] <= FAIR else "within .3: not shown"


def asked_for(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, with the file that is written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path, help="folder of NW-UCLA's all_sqe")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(1, 9)), help="two or more")
    parser.add_argument("--scale", default="mini")
    parser.add_argument("--embedded-only", action="store_true", help="nothing is trained in bfloat16")
    parser.add_argument("--probes", type=int, nargs="+", default=[], help="seeds of linear probes; else the network's")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(words)
    asked.out = asked.out or OUT[asked.embedded_only]
    return asked


def main() -> None:
    asked = asked_for()
    raw = str(asked.raw.resolve())
    rows = [of_seed(raw, asked.scale, seed, asked.probes, asked.embedded_only) for seed in asked.seeds]
    told = {
        "command": command(),
        "commit": commit(),
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "scale": asked.scale,
        "probes": asked.probes,
    }
    found = summary(rows)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps({**told, "seeds": rows, "summary": found}, indent=1) + "\n")
    for what, protocols in found.items():
        for protocol, points in protocols.items():
            print(f"{what}, {protocol}: {points['mean']:+.2f} +- {points['half_width']:.2f} points, {verdict(points)}")


if __name__ == "__main__":
    main()
