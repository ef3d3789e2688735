"""How long a door takes from the start of its process to its first step, on the miniature."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarks.harness import Case, Goal, Setting, Workload

ROOT = Path(__file__).parents[2]
# Door -> what it is started with, and the function whose first call is its first step.
DOORS = {
    "prepare": (["data=ucla"], "prepare", "prepare"),
    "train": (["experiment=ucla/sds_cl", "scale=mini"], "lightning_modules.sds_cl", "SDSCL.objective"),
    "eval": (
        ["experiment=ucla/sds_cl", "scale=mini", "protocol=knn", "protocol.rows=[untrained]"],
        "lightning_modules.evaluation.subject",
        "embed",
    ),
    "federate": (
        ["experiment=ucla/sds_cl", "scale=mini", "federated/partition=by_performer"],
        "lightning_modules.sds_cl",
        "SDSCL.objective",
    ),
    "report": (["name=ucla"], "tracking.report", "write"),
}
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
    overrides, module, function = DOORS[door]
    script = SCRIPT.format(door=door, module=module, function=function)
    environment = os.environ | {"SKELFED_OUTPUTS": str(folder / "outputs")}
    command = [sys.executable, "-c", script, *overrides]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    told = [line for line in ran.stdout.splitlines() if line.startswith("first step after ")]
    if not told:
        raise RuntimeError(f"{door} made no first step: {ran.stderr[-2000:]}")
    return float(told[0].split()[-1])


def starting(door: str, size: int, setting: Setting) -> Case:
    """One start of a door, its data prepared before."""
    environment = os.environ | {"SKELFED_OUTPUTS": str(setting.folder / "outputs")}
    command = [sys.executable, "prepare.py", "data=ucla"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return Case(lambda: start(door, setting.folder))


WORKLOADS = [
    Workload(
        f"start_{door}", "start",
        f"`{' '.join([f'{door}.py', *DOORS[door][0][:1]])}` from the start of its process to its first step", "",
        partial(starting, door), "starts", (1,), 1, value="seconds", rounds=2, memory=False,
        goals=(Goal("amount", 6, False, "under 6 s"),),
    )
    for door in DOORS
]  # fmt: skip
