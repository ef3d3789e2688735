"""InfoNCE, STL, TSL and GL: released values, slow loops, closed forms, numerical gradients."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_modules.losses.nt_xent import nt_xent

GOLDEN = Path(__file__).parent / "golden"


def error(got: torch.Tensor, golden: np.ndarray) -> float:
    return np.abs(got.detach().numpy() - golden).max() / np.abs(golden).max()


@pytest.mark.parametrize(("a", "b", "loss"), [("a", "b", "loss"), ("c", "d", "loss_batch")])
def test_nt_xent_equals_the_released_values_and_gradients(a, b, loss):
    golden = np.load(GOLDEN / "nt_xent.npz")
    left, right = (torch.from_numpy(golden[f"in/{name}"]).requires_grad_() for name in (a, b))
    value = nt_xent(left, right, 0.07)
    value.backward()
    assert error(value, golden[f"out/{loss}"]) < 1e-4
    assert error(left.grad, golden[f"grad/{a}"]) < 1e-4
    assert error(right.grad, golden[f"grad/{b}"]) < 1e-4
