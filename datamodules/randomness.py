"""Randomness as a function: what is drawn depends on where one stands in the run, never on who drew before.

A resumed run, another number of workers or ranks therefore draws the same numbers (design contract 3).
"""

import numpy as np
import torch


def generator(*key: int) -> torch.Generator:
    """A CPU generator for `key`, usually (seed, epoch, step, view); neighbouring keys give independent streams."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def take_rows(drawn, rows: slice):
    """Rows of everything a transform drew: a tensor, or a dict or tuple of such, first axis the sample."""
    if isinstance(drawn, torch.Tensor):
        return drawn[rows]
    if isinstance(drawn, dict):
        return {name: take_rows(part, rows) for name, part in drawn.items()}
    return tuple(take_rows(part, rows) for part in drawn)
