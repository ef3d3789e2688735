"""Which of several processes of a job this is, told from the environment, before any of them has met the others."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

# Set by torchrun, by Lightning for the processes it starts, and by SLURM.
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
SIZES = ("WORLD_SIZE", "SLURM_NTASKS")


def rank(environment: Mapping[str, str] = os.environ) -> int:
    """0 in the only or first process of a job, more in the others."""
    return max(int(environment.get(name, "0")) for name in RANKS)


def started_together(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun or SLURM started this process together with others."""
    return any(int(environment.get(name, "1")) > 1 for name in SIZES)


def device_count(devices: Any) -> int | None:
    """How many devices `trainer.devices` asks for, as a number or a list; None where the machine would decide."""
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return len(devices) or None
    return devices if isinstance(devices, int) and devices > 0 else None
