"""Measures one workload: ours beside a plain implementation, found equal first, timed in turn, memory apart.

Every measurement runs in a process of its own that has imported the packages and computed nothing.
"""

import ctypes
import gc
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import add, truediv
from pathlib import Path
from typing import Any, Literal

import torch

from tracking import memory

MMAP_THRESHOLD = -3  # of mallopt
PAGES = 1 << 16  # bytes: what is freed of larger pieces goes back to the system, so that a peak is a peak
SIDES = ("ours", "plain")
SPREAD = {"ours": "spread", "plain": "plain_spread"}
MEASURED = (*SIDES, "plain_share", "spread", "plain_spread", "rounds")


@dataclass(frozen=True)
class Setting:
    """Where and how a workload runs. folder: of its own, for files; small: on tiny sizes, for tests."""

    folder: Path
    device: str = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    small: bool = False

    def autocast(self) -> torch.autocast:
        """What a trainer of this precision computes under."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")


@dataclass(frozen=True)
class Case:
    """A workload at one size, ready to run.

    ours, plain: a call does the whole work once. check: raises AssertionError unless both give the same.
    plain_share: part of the work that a call of plain does; its seconds are divided by it, and the table says so.
    facts: numbers that the row holds besides.
    """

    ours: Callable[[], Any]
    plain: Callable[[], Any] | None = None
    check: Callable[[], None] = lambda: None
    plain_share: float = 1.0
    facts: Mapping[str, float] = field(default_factory=dict)


# What a goal may measure: the numbers it takes of a point, of the row's facts or of the goal, and what is made of them.
MEASURES: dict[str, tuple[tuple[str, ...], Callable[..., float]]] = {
    "ratio": (("plain", "ours"), truediv),
    "bf16": (("plain", "ours_bf16"), truediv),
    "rate": (("size", "ours"), truediv),
    "amount": (("ours",), float),
    "overhead": (("ours", "plain"), lambda ours, plain: ours / plain - 1),
    "share": (("ours", "of"), truediv),
    "peak": (("ours_peak", "beside"), add),
}


@dataclass(frozen=True)
class Goal:
    """What is aimed at: a measure of the row at one of its sizes, and its bound.

    measure: `ratio` (plain / ours), `bf16` (plain in float32 / ours in bf16), `rate` (units a second, ours), `amount`
    (seconds or bytes, ours), `overhead` (ours / plain - 1), `share` (ours / the fact `of`, which is of the first size),
    `peak` (bytes that ours holds at most, its inputs included). size: None for the first. beside: bytes of the inputs,
    which the peak of a row leaves out.
    """

    measure: Literal["ratio", "bf16", "rate", "amount", "overhead", "share", "peak"]
    bound: float
    least: bool
    text: str
    size: int | None = None
    beside: float = 0.0

    def of(self, row: Mapping[str, Any]) -> float | None:
        """The measure in a row of the table; None where that was not measured."""
        size = self.size or row["points"][0]["size"]
        point = next((point for point in row["points"] if point["size"] == size), {})
        known = {**row["facts"], "beside": self.beside, **point}
        names, made = MEASURES[self.measure]
        numbers = [known.get(name) for name in names]
        return None if None in numbers else made(*numbers)

    def met(self, row: Mapping[str, Any]) -> bool | None:
        """Whether the measure is within the bound; None where it was not measured."""
        found = self.of(row)
        if found is None:
            return None
        return found >= self.bound if self.least else found <= self.bound


@dataclass(frozen=True)
class Workload:
    """A row of the table.

    title: what is done; against: what the plain side does instead, empty where there is none.
    make: (size, setting) -> Case. unit: what a size counts. sizes: the first is the row's, all make its curve.
    tiny: the size of tests. value: whether a call is timed or returns the measurement itself.
    rounds: calls of either side whose median counts, after one of each that does not if `warm`. threads: of torch, None
    for all cores.
    precisions: `bf16` where ours can compute in it. gpu: whether its tensors can live on a GPU.
    memory: whether peaks are measured.
    """

    name: str
    group: str
    title: str
    against: str
    make: Callable[[int, Setting], Case]
    unit: str
    sizes: tuple[int, ...]
    tiny: int
    value: Literal["time", "seconds", "bytes"] = "time"
    rounds: int = 5
    warm: bool = True
    threads: int | None = None
    precisions: tuple[Literal["fp32", "bf16"], ...] = ("fp32",)
    gpu: bool = False
    memory: bool = True
    goals: tuple[Goal, ...] = ()


def measured(workload: Workload, small: bool, threads: int) -> dict[str, Any]:
    """The workload's points: one a size, with medians of ours and plain, peaks, and ours in bf16 and on a GPU."""
    sizes = (workload.tiny,) if small else workload.sizes
    points, facts = [], {}
    for size in sizes:
        found = apart(sides, workload, size, "cpu", "fp32", small, threads)
        facts = facts or found.pop("facts")
        point = {"size": size, **{name: found[name] for name in MEASURED if name in found}}
        if workload.memory:
            point |= {
                f"{side}_peak": apart(peak, workload, size, side, "cpu", small, threads)
                for side in SIDES
                if side in found
            }
        points.append(point)
    if "bf16" in workload.precisions:
        points[0]["ours_bf16"] = apart(sides, workload, sizes[0], "cpu", "bf16", small, threads)["ours"]
    if torch.cuda.is_available() and workload.gpu:
        points[0] |= on_gpu(workload, sizes[0], small, threads)
    return {"points": points, "facts": facts}


def on_gpu(workload: Workload, size: int, small: bool, threads: int) -> dict[str, float | None]:
    """Of ours in each precision and plain in float32, both on the GPU: `SIDE_gpu_PRECISION`; and `SIDE_gpu_peak`."""
    point: dict[str, float | None] = {}
    for precision in workload.precisions:
        found = apart(sides, workload, size, "cuda", precision, small, threads)
        point |= {f"{side}_gpu_{precision}": found[side] for side in SIDES if side in found}
    if workload.memory:
        there = [side for side in SIDES if f"{side}_gpu_fp32" in point]
        point |= {f"{side}_gpu_peak": apart(peak, workload, size, side, "cuda", small, threads) for side in there}
    return point


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments) in a process of its own; what it raises is raised here."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.workloads"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def sides(workload: Workload, size: int, device: str, precision: str, small: bool, threads: int) -> dict[str, Any]:
    """Medians of ours and plain after the check, the spread of each (largest - smallest) / median, and the facts.

    The two sides are on the same device and take turns, so that a busy machine slows both; in bf16 ours is alone.
    """
    with ready(workload, size, threads, device=device, precision=precision, small=small) as case:
        full = precision == "fp32"
        if full:
            case.check()
        calls = {"ours": case.ours} | ({"plain": case.plain} if case.plain and full else {})
        if workload.value == "time" and workload.warm:
            for call in calls.values():
                call()  # what is made once, such as kernels, is not the workload
        taken: dict[str, list[float]] = {side: [] for side in calls}
        for _ in range(1 if small else workload.rounds):
            for side, call in calls.items():
                taken[side].append(amount(call, workload.value))
        found: dict[str, Any] = {side: statistics.median(values) for side, values in taken.items()}
        found |= {SPREAD[side]: (max(values) - min(values)) / found[side] for side, values in taken.items()}
        if "plain" in found:
            found["plain_share"] = case.plain_share
            if workload.value == "time":
                found["plain"] /= case.plain_share
        return found | {"rounds": len(taken["ours"]), "facts": dict(case.facts)}


def amount(call: Callable[[], Any], value: str) -> float:
    """Seconds of a call, or what it returns. What a GPU has still to do from before is not the call's."""
    synchronize()
    begun = time.perf_counter()
    result = call()
    synchronize()
    return time.perf_counter() - begun if value == "time" else float(result)


def synchronize() -> None:
    """Wait until the GPU, where there is one, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak(workload: Workload, size: int, side: str, device: str, small: bool, threads: int) -> float | None:
    """Bytes that one call of a side holds at most beyond what was there before; None where the system cannot tell.

    On cuda of the GPU's memory, in tensors, otherwise of this process's.
    """
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(MMAP_THRESHOLD, PAGES)  # before anything of the case is made
    with ready(workload, size, threads, device=device, small=small) as case:
        call = getattr(case, side)
        gc.collect()
        return peak_on_gpu(call) if device == "cuda" else peak_of_process(call, libc)


def peak_on_gpu(call: Callable[[], Any]) -> float:
    """Bytes of tensors on the GPU at most during a call, beyond those before it."""
    synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    synchronize()
    return float(torch.cuda.max_memory_allocated() - before)


def peak_of_process(call: Callable[[], Any], libc: ctypes.CDLL) -> float | None:
    """Bytes resident at most during a call, beyond those before it; None where the peak cannot begin anew."""
    libc.malloc_trim(0)
    memory.reset_peak()
    before = memory.peak()["peak_memory"]
    if before - resident() > 1 << 24:  # some containers do not let a process begin its peak anew
        return None
    call()
    return memory.peak()["peak_memory"] - before


@contextmanager
def ready(workload: Workload, size: int, threads: int, **setting: Any) -> Iterator[Case]:
    """The workload's case, with its threads and a folder that is gone afterwards."""
    torch.set_num_threads(workload.threads or threads_here(threads))
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        yield workload.make(size, Setting(Path(folder), **setting))


def threads_here(asked: int) -> int:
    """Threads of torch: as asked, 0 for all cores that this process may use."""
    return asked or len(os.sched_getaffinity(0))


def resident() -> int:
    """Bytes of memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
