"""Values of the authors' released code: where they lie, how far ours are, what counts as equal."""

from pathlib import Path

import numpy as np
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
BOUND = 1e-4  # correct float32 code stays below 1e-5; a bound per element would fail on gradients near zero


def read(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def repeated(golden: dict[str, np.ndarray], times: int) -> dict[str, np.ndarray]:
    """What the outputs are when the batch is given so many times over: rows again, losses and gradients as they are."""
    return {
        name: np.concatenate([array] * times) if name.startswith("out/") and array.ndim else array
        for name, array in golden.items()
    }


def error(got: Tensor, golden: np.ndarray) -> float:
    """max|got - golden| / max|golden|."""
    if tuple(got.shape) != golden.shape:
        raise ValueError(f"shape {tuple(got.shape)} for {golden.shape}")
    return float(np.abs(got.detach().numpy() - golden).max() / np.abs(golden).max())


def errors(got: dict[str, Tensor], golden: dict[str, np.ndarray]) -> dict[str, float]:
    """Error of everything in `got`, by its name in the golden file."""
    return {name: error(value, golden[name]) for name, value in got.items()}
