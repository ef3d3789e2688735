"""The most memory that a job held at once, on the machine and on the GPU."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
KIBI = 1024


def reset_peak() -> None:
    """Begin to count anew. Where the system cannot, the peak stays that of the whole process."""
    with suppress(OSError):
        CLEAR.write_text("5")  # Linux: the peak of the resident set becomes what is resident now
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak() -> dict[str, float]:
    """Bytes since `reset_peak`: `peak_memory` of this process and, where there is a GPU, `peak_gpu_memory`."""
    found = {"peak_memory": float(_resident())}
    if torch.cuda.is_available():
        found["peak_gpu_memory"] = float(torch.cuda.max_memory_allocated())
    return found


def _resident() -> int:
    if STATUS.exists():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * KIBI
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * KIBI
