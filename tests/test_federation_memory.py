"""A federation keeps nothing from one round to the next: resident memory of a process of its own, round by round."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RANK, CLIENTS, ROUNDS = 256, 3, 6
STATE = 4 * 4 * RANK * (2 * (128 + 128) + 2 * (128 + 64)) / 2**20  # MB: float32 pairs on q, o, k, v of four layers
MEASURE = f"""
import json, sys
from pathlib import Path
from benchmarks.memory import by_round
print(json.dumps(by_round({ROUNDS}, {CLIENTS}, Path(sys.argv[1]), {RANK})))
"""
# One state a round is the least that can be kept of it.
KEEPING = """
from federated.orchestrator import Orchestrator
advance, kept = Orchestrator._advance, []

def keeping(self, progress, mean):
    advance(self, progress, mean)
    kept.append(progress.shared)

Orchestrator._advance = keeping
"""


def growth(folder: Path, before: str = "") -> float:
    """MB from rounds two and three to the last two, the smaller of each; before: code that is run first."""
    ran = subprocess.run(
        [sys.executable, "-c", before + MEASURE, str(folder)],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},  # what is freed goes back to the system
        capture_output=True,
        text=True,
        check=True,
    )
    memory = json.loads(ran.stdout.splitlines()[-1])
    return min(memory[-2:]) - min(memory[1:3])


@pytest.mark.slow
def test_rounds_keep_no_state_and_would_be_seen_to_keep_one(tmp_path):
    for name in ("plain", "kept"):
        (tmp_path / name).mkdir()
    bound = 0.5 * (ROUNDS - 3) * STATE
    assert growth(tmp_path / "plain") < bound < growth(tmp_path / "kept", KEEPING)
