"""Long conversions in pieces: each piece is a task that leaves one file, so that a killed run goes on where it was."""

import multiprocessing
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from datamodules.errors import InputError
from datamodules.store import durable

Task = Sequence[Any]
Convert = Callable[[Any], dict[str, np.ndarray]]


def convert_all(folder: Path, tasks: Sequence[Task], convert: Convert, workers: int, title: str) -> list[Path]:
    """Run `convert` on every task that has no file in `folder` yet; returns the files in the order of the tasks.

    A task is a sequence of items (its length is what the progress bar counts); `convert` gives the arrays to be
    written for it. With several workers both are sent to fresh processes. The files do not depend on `workers`.
    Raises InputError if a worker is killed, and whatever `convert` raises; finished files stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05d}.npz" for number in range(len(tasks))]
    waiting = [(task, path) for task, path in zip(tasks, paths, strict=True) if not _is_whole(path)]
    total = sum(map(len, tasks))
    with _progress(title, total) as advance:
        advance(total - sum(len(task) for task, _ in waiting))
        for count in _run(partial(_convert_one, convert), waiting, workers):
            advance(count)
    return paths


def _run(work: Callable[[tuple[Task, Path]], int], waiting: list[tuple[Task, Path]], workers: int) -> Iterator[int]:
    workers = min(workers, len(waiting))
    if workers <= 1:
        yield from map(work, waiting)
        return
    # Fresh processes: a fork would copy the threads' locks of whatever has been imported by then.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            for done in as_completed([pool.submit(work, item) for item in waiting]):
                yield done.result()
        except BrokenProcessPool:
            raise InputError(
                f"expected {workers} workers to finish, found one killed, perhaps for memory: "
                "run the same command again with fewer workers, it goes on where it stopped"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _convert_one(convert: Convert, item: tuple[Task, Path]) -> int:
    task, path = item
    arrays = convert(task)
    part = path.with_suffix(".part")
    with durable(part) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # no array is called allow_pickle
    part.replace(path)
    return len(task)


def _is_whole(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def array_of(path: Path, name: str) -> np.ndarray:
    """One array of a shard; the others are not read."""
    with np.load(path, allow_pickle=False) as arrays:
        return arrays[name]


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives a function to be told of items done: a bar on a terminal, a line every tenth of the way elsewhere."""
    console = Console()
    if console.is_terminal:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console) as bar:
            line = bar.add_task(title, total=total)
            yield lambda count: bar.update(line, advance=count)
        return
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        if 10 * done // total > 10 * before // total:
            print(f"{title}: {done}/{total}", flush=True)

    yield advance
