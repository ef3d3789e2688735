"""Where the time of a workload goes: torch's profiler over one call."""

import time
from typing import Any

from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from benchmarks.harness import Workload, ready

SHOWN = 12


def profile(workload: Workload, threads: int) -> dict[str, Any]:
    """The operators in which one call of ours spends most, by their own time."""
    with ready(workload, workload.sizes[0], threads) as case:
        case.ours()
        begun = time.perf_counter()
        with profiler(activities=[ProfilerActivity.CPU]) as seen:
            case.ours()
        seconds = time.perf_counter() - begun
    events = sorted(seen.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    top = [
        {"name": event.key, "share": event.self_cpu_time_total / total, "calls": event.count}
        for event in events[:SHOWN]
    ]
    return {"title": f"{workload.sizes[0]} {workload.unit}, {workload.title}", "seconds": seconds, "operators": top}
