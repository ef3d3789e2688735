"""How far a workload is from the machine's limit: the products of one call, and how fast the machine multiplies."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.harness import SIDES, Workload, amount, apart, ready, threads_here

aten = torch.ops.aten
# By operator; torch has no formula for attention that is fused on the CPU, which multiplies what it does elsewhere.
FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
}
# Seconds of a row's point, and where and in what they are computed.
COMPUTED = {
    "ours": ("cpu", "fp32"),
    "ours_bf16": ("cpu", "bf16"),
    "ours_gpu_fp32": ("cuda", "fp32"),
    "ours_gpu_bf16": ("cuda", "bf16"),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WIDTHS = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}  # of square matrices; a GPU needs more to be busy
CALLS = 20  # of each width: the fastest counts, so that a busy moment does not lower the limit


class Products(TorchDispatchMode):
    """Counts the operations of products while it is entered, backward passes included.

    operations: a multiplication and its addition are two. Of matrices, convolutions and attention; biases and whatever
    else goes number by number are not counted. Shapes alone count: the same in every precision and on every device.

    torch's FlopCounterMode has the same formulas, but also hooks on modules, under which `torch.autograd.grad` of a
    leaf fails here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, formula = kwargs or {}, FORMULAS.get(function._overloadpacket)
        if formula is None:  # in inference mode a Linear arrives whole
            with self:
                parts = function.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = function(*args, **kwargs)
        if formula is not None:
            self.operations += formula(*args, **kwargs, out_val=out)
        return out


def products(workload: Workload, size: int, small: bool, threads: int, side: str = "ours") -> int:
    """Operations of the products in one call of a side, in float32 on the CPU."""
    with ready(workload, size, threads, small=small) as case, Products() as seen:
        getattr(case, side)()
    return seen.operations


def rate(device: str, precision: str, small: bool, threads: int) -> float:
    """Operations a second of the fastest of several square products: the device's peak in that precision."""
    torch.set_num_threads(threads_here(threads))
    if device == "cuda":  # convolutions there round to TF32 unasked, and a limit must hold for them too
        torch.set_float32_matmul_precision("high")
    best = 0.0
    for width in (64,) if small else WIDTHS[device]:
        left, right = (torch.randn(width, width, dtype=DTYPES[precision], device=device) for _ in range(2))
        multiply = partial(torch.mm, left, right, out=torch.empty_like(left))
        best = max(best, 2 * width**3 / min(amount(multiply, "time") for _ in range(CALLS)))
    return best


def peaks(threads: int, small: bool) -> dict[str, float]:
    """Operations a second by the names of COMPUTED, on the GPU where there is one; each in a process of its own."""
    return {
        name: apart(rate, device, precision, small, threads)
        for name, (device, precision) in COMPUTED.items()
        if device == "cpu" or torch.cuda.is_available()
    }


def limit(
    workload: Workload, small: bool, threads: int, measured: Callable[[int], Mapping[str, float]]
) -> dict[str, Any]:
    """For rows that compute in bf16 too, `limit`: operations of both sides at the first size, and the peaks.

    measured: threads -> peaks, kept in the row because rows may be of several runs.
    """
    if "bf16" not in workload.precisions:
        return {}
    size = workload.tiny if small else workload.sizes[0]
    ours, plain = (apart(products, workload, size, small, threads, side) for side in SIDES)
    return {"limit": {"flops": ours, "plain_flops": plain, "peaks": dict(measured(workload.threads or threads))}}
