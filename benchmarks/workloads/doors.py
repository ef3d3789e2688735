"""How long a door takes from the start of its process to its first step, on the miniature."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import Case, Goal, Setting, Workload
from datamodules.miniature.picture_questions import vocabulary_texts
from lightning_modules.mllm import tiny_model

ROOT = Path(__file__).parents[2]


class Start(NamedTuple):
    """What a door is started with and the function whose first call is its first step.

    prepared: what prepare.py is called with before; base: whether a base model is made before.
    """

    door: str
    overrides: list[str]
    module: str
    function: str
    prepared: tuple[str, ...] = ("data=ucla",)
    base: bool = False


DOORS = {
    "prepare": Start("prepare", ["data=ucla"], "prepare", "prepare"),
    "train": Start("train", ["experiment=ucla/sds_cl", "scale=mini"], "lightning_modules.sds_cl", "SDSCL.objective"),
    "eval": Start(
        "eval",
        ["experiment=ucla/sds_cl", "scale=mini", "protocol=knn", "protocol.rows=[untrained]"],
        "lightning_modules.evaluation.subject",
        "embed",
    ),
    "federate": Start(
        "federate",
        ["experiment=ucla/sds_cl", "scale=mini", "federated/partition=by_performer"],
        "lightning_modules.sds_cl",
        "SDSCL.objective",
    ),
    "fedmllm": Start(
        "federate",
        ["experiment=fedmllm/hateful_memes_alpha_05", "scale=mini", "method.family.source=${paths.root}/base"],
        "lightning_modules.mllm.module",
        "MultimodalModule.training_step",
        ("corpus=hateful_memes",),
        base=True,
    ),
    "report": Start("report", ["name=ucla"], "tracking.report", "write"),
}


def untrained_base(folder: Path) -> None:
    """The tiny model with random weights: minutes of training would change no time of a start."""
    size = tiny_model.Size()
    words = tiny_model.tokenizer(vocabulary_texts(), size.vocabulary)
    tiny_model.save(folder, tiny_model.model(words, size, seed=0), tiny_model.processor(words, size))


# Runs a door and ends where its first step would begin, telling the seconds since the process began.
SCRIPT = """
import os, sys, time
import {door} as door
import importlib
holder = importlib.import_module({module!r})
*path, name = {function!r}.split(".")
for part in path:
    holder = getattr(holder, part)

def first_step(*args, **kwargs):
    ticks = float(open("/proc/self/stat").read().rsplit(")", 1)[1].split()[19])
    up = float(open("/proc/uptime").read().split()[0])
    print("first step after", up - ticks / os.sysconf("SC_CLK_TCK"), flush=True)
    os._exit(0)

setattr(holder, name, first_step)
door.main()
"""


def start(door: str, folder: Path) -> float:
    """Seconds from the start of the process to the first step of a door."""
    begun = DOORS[door]
    script = SCRIPT.format(door=begun.door, module=begun.module, function=begun.function)
    environment = os.environ | {"SKELFED_OUTPUTS": str(folder / "outputs")}
    command = [sys.executable, "-c", script, *begun.overrides]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    told = [line for line in ran.stdout.splitlines() if line.startswith("first step after ")]
    if not told:
        raise RuntimeError(f"{door} made no first step: {ran.stderr[-2000:]}")
    return float(told[0].split()[-1])


def starting(door: str, size: int, setting: Setting) -> Case:
    """One start of a door; its data are prepared before, and its base, if it has one, is there."""
    begun, environment = DOORS[door], os.environ | {"SKELFED_OUTPUTS": str(setting.folder / "outputs")}
    command = [sys.executable, "prepare.py", *begun.prepared]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    if begun.base:
        untrained_base(setting.folder / "outputs" / "base")
    return Case(lambda: start(door, setting.folder))


WORKLOADS = [
    Workload(
        f"start_{door}", "start",
        f"`{begun.door}.py {begun.overrides[0]}` from the start of its process to its first step", "",
        partial(starting, door), "starts", (1,), 1, value="seconds", rounds=2, memory=False,
        goals=(Goal("amount", 6, False, "under 6 s"),),
    )
    for door, begun in DOORS.items()
]  # fmt: skip
