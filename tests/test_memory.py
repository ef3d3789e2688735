"""The peak is that of the job, not of what the process did before it."""

import sys

import pytest

from tracking import memory


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can begin a peak anew")
def test_the_peak_sees_what_was_held_in_between_and_forgets_what_was_before():
    large = 64 * 2**20
    memory.reset_peak()
    before = memory.peak()["peak_memory"]
    held = bytearray(b"x") * large
    during = memory.peak()["peak_memory"]
    assert during - before > 0.9 * large
    del held
    assert memory.peak()["peak_memory"] == pytest.approx(during, rel=0.02)
    memory.reset_peak()
    assert memory.peak()["peak_memory"] < during - 0.9 * large
