"""Seeds as a function of (seed, round, client), and global generators lent for the length of a block."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from datamodules.randomness import generator

EVALUATION = 2**32 - 1  # stands for the client where a round evaluates: no client has this number


def seed_of(seed: int, round_number: int, client: int) -> int:
    """A 32-bit seed of its own for every client of every round."""
    return generator(seed, round_number, client).initial_seed() % 2**32


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's, numpy's and Python's global generators inside the block; outside nobody notices, errors included.

    (Lightning's isolate_rng does not restore after an exception, and failing clients are everyday here.)
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - models may draw from the global one
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def keyed(module: torch.nn.Module, seed: int) -> Iterator[None]:
    """Where a module's own draws are keyed by its `seed` (SkeletonModule), let them be keyed by this one."""
    own = vars(module).get("seed")
    if not isinstance(own, int):
        yield
        return
    vars(module)["seed"] = seed
    try:
        yield
    finally:
        vars(module)["seed"] = own
