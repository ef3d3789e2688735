"""Measure every row, or some: `python -m benchmarks [--only NAME,NAME] [--small] [--threads N] [--out FILE]`.

Writes docs/results/performance.json, row by row, and the table of docs/performance.md; with `--out FILE` FILE alone.
`--small` runs tiny sizes, to see that everything runs: what it measures is written nowhere without `--out`.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from datetime import date
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import ceiling, profiled, table
from benchmarks.harness import apart, measured, threads_here
from benchmarks.workloads import ALL
from tracking import identity

LOADAVG = Path("/proc/loadavg")
LOOKS, PAUSE = 10, 0.05  # at who wants a core, and seconds between two
PROFILED = ("step_sds_cl", "step_a2mc_released")


def processor() -> str:
    """The model name, which platform.processor() does not tell on Linux."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def load() -> float:
    """Others that want a core now, on average over half a second.

    The system's average over a minute would still count the row before. It stands in where nothing else is told.
    """
    if not LOADAVG.exists():
        return os.getloadavg()[0]
    looks = []
    for _ in range(LOOKS):
        looks.append(int(LOADAVG.read_text().split()[3].split("/")[0]))  # running or ready to, this one included
        time.sleep(PAUSE)
    return max(0.0, statistics.mean(looks) - 1)


def made(threads: int) -> dict[str, Any]:
    """How a row came about; load: as it begins."""
    return {
        "command": identity.command(),
        "commit": identity.commit(),
        "date": date.today().isoformat(),
        "processor": processor(),
        "cores": threads_here(0),
        "threads": threads_here(threads),
        "load": load(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def chosen(only: str | None) -> list[str]:
    """Names of rows; SystemExit for one that is not there."""
    if not only:
        return list(ALL)
    names = only.split(",")
    for name in names:
        if name not in ALL:
            sys.exit(f"error: expected rows of {', '.join(ALL)}, found {name!r}")
    return names


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="rows, separated by commas")
    parser.add_argument("--small", action="store_true", help="tiny sizes, nothing to measure by")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: all cores")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the table of the record")
    parser.add_argument("--out", type=Path, help="JSON file for the rows instead of the record")
    options = parser.parse_args(arguments)
    out = options.out or (None if options.small else table.RECORD)
    found = table.read(out) if out else table.nothing()
    peaks = cache(partial(ceiling.peaks, small=options.small))  # once a run, and only if a row asks
    failed = []
    for name in [] if options.table else chosen(options.only):
        about, begun = made(options.threads), time.monotonic()
        try:
            taken = measured(ALL[name], options.small, options.threads)
            taken |= ceiling.limit(ALL[name], options.small, options.threads, peaks)
            found["rows"][name] = table.row(ALL[name], taken, about)
            if name in PROFILED and not options.small:
                found["profiles"][name] = apart(profiled.profile, ALL[name], options.threads)
        except (Exception, SystemExit) as error:  # one row that cannot be measured must not cost the others
            print(f"error: {name}: {type(error).__name__}: {' '.join(str(error).split())[:500]}", file=sys.stderr)
            failed.append(name)
            continue
        told(name, found["rows"][name], time.monotonic() - begun)
        if out:
            table.write(found, out)
    if out == table.RECORD:
        table.judge(found, ALL)
        table.write(found, out)
        table.place(table.markdown(found, ALL), table.PAGE)
        print(f"table: {table.PAGE.relative_to(table.ROOT)}")
    if failed:
        sys.exit(f"error: {len(failed)} rows were not measured: {', '.join(failed)}")
    return found


def told(name: str, row: dict[str, Any], seconds: float) -> None:
    """One line of a row that has been measured."""
    point = row["points"][0]
    ratio = f"  {table.figure(point['plain'] / point['ours'])} times as fast" if "plain" in point else ""
    print(f"{name}: {table.shown(point['ours'], row)}{ratio}  ({seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
