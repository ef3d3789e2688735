"""The peak is that of the job, not of what the process did before it."""

import subprocess
import sys
from pathlib import Path

import pytest

LARGE = 64 * 2**20
JOB = f"""
from tracking import memory
held = bytearray(b"x") * {2 * LARGE}
del held
memory.reset_peak()
print(memory.peak()["peak_memory"])
held = bytearray(b"x") * {LARGE}
print(memory.peak()["peak_memory"])
del held
print(memory.peak()["peak_memory"])
memory.reset_peak()
print(memory.peak()["peak_memory"])
"""


def begins_anew() -> bool:
    """Whether this system lets a process set its peak back: Linux does, some containers on it do not."""
    ask = """
held = bytearray(b"x") * 2**26
del held
open("/proc/self/clear_refs", "w").write("5")
found = dict(line.split(":", 1) for line in open("/proc/self/status") if line.startswith("Vm"))
peak, now = (int(found[key].split()[0]) for key in ("VmHWM", "VmRSS"))
raise SystemExit(peak - now > 2**14)
"""
    asked = subprocess.run([sys.executable, "-c", ask], capture_output=True, check=False)
    return asked.returncode == 0


def test_the_peak_sees_what_was_held_in_between_and_forgets_what_was_before():
    if not begins_anew():
        pytest.skip("this system does not let a process set its peak back")
    ran = subprocess.run(  # a process of its own: here other tests' threads hold and release memory meanwhile
        [sys.executable, "-c", JOB], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    before, during, after, anew = (float(line) for line in ran.stdout.split())
    assert during - before > 0.9 * LARGE
    assert after == pytest.approx(during, rel=0.02)
    assert anew < during - 0.9 * LARGE
