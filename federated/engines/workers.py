"""Several clients at the same time on this machine: each in a process with a resident module of its own.

Not threads: a client's fit seeds torch's, numpy's and Python's global generators, which threads would share.
"""

import multiprocessing
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from safetensors.torch import load, save

from datamodules.errors import InputError
from federated.client import Client, ClientFailure, ClientTask, ClientUpdate, Outcome
from federated.making import configured_device, make_resident, make_workload
from tracking.build import factory

# Seconds that a place has beside its client's own: to start, read the data and load the model, and to end a batch.
GRACE = 900.0
GOODBYE = 10.0  # seconds that a process has to end by itself


@dataclass
class Place:
    """A worker process, the pipe to it, the task it has and since when (on the monotonic clock)."""

    process: BaseProcess
    pipe: Connection
    task: ClientTask | None = None
    since: float = 0.0

    def end(self) -> None:
        """See its process off, one that hangs too."""
        self.process.join(GOODBYE)
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Workers:
    """Engine of `places` processes. Each has the bytes of the sequential engine at its number of threads.

    make: the client of a place, given its torch device; called in that place's process, so it must be picklable.
    devices: one a place. threads: torch threads a place; None divides this process's among the places.
    time_limit: seconds that a client itself keeps to. A place that hangs for GRACE beyond it is ended; None: never.
    A place that dies (out of memory, a crash in native code) is a failed client, as is one that hangs; it is filled
    again.
    """

    secure = False

    def __init__(
        self,
        make: Callable[[str], Client],
        devices: list[str],
        threads: int | None = None,
        time_limit: float | None = None,
    ):
        if not devices:
            raise InputError("federation: expected one place for clients or more, found none: raise engine.places")
        self._make, self._devices = make, devices
        self._threads = threads or max(1, torch.get_num_threads() // len(devices))
        self._time_limit = time_limit
        self._places: list[Place] = []
        self.capacity = len(devices)

    def submit(self, task: ClientTask) -> None:
        """Send the task to an idle place, opened if need be; raises RuntimeError where all are taken."""
        while len(self._places) < self.capacity:
            self._places.append(self._open(self._devices[len(self._places)]))
        idle = next((place for place in self._places if place.task is None), None)
        if idle is None:
            raise RuntimeError(f"client {task.client}: all {self.capacity} places are taken")
        packed = replace(task, state=save(task.state))  # type: ignore[arg-type]
        try:
            idle.pipe.send(packed)
        except OSError:  # it died while it waited
            idle = self._reopened(idle)
            idle.pipe.send(packed)
        idle.task, idle.since = task, time.monotonic()

    def collect(self) -> Outcome:
        """Wait for any client; raises InputError for what ends a federation, RuntimeError where none was submitted."""
        busy = {place.pipe: place for place in self._places if place.task is not None}
        if not busy:
            raise RuntimeError("no client was submitted")
        oldest = min(busy.values(), key=lambda place: place.since)
        ready = next(iter(wait(list(busy), self._left(oldest))), None)
        if ready is None:
            return self._overdue(oldest)
        assert isinstance(ready, Connection)
        place = busy[ready]
        task, place.task = place.task, None
        assert task is not None
        try:
            kind, content = place.pipe.recv()
        except (EOFError, OSError):
            return self._lost(place, task)
        if kind == "error":
            raise InputError(content)
        if isinstance(content, ClientUpdate):
            return replace(content, state=load(content.state))  # type: ignore[arg-type]
        return content

    def close(self) -> None:
        """End the workers, those at work included."""
        for place in self._places:
            place.process.terminate()
        for place in self._places:
            place.end()
        self._places = []

    def _left(self, place: Place) -> float | None:
        """Seconds until the place is overdue, None for no end."""
        if self._time_limit is None:
            return None
        return max(0.0, place.since + self._time_limit + GRACE - time.monotonic())

    def _open(self, device: str) -> Place:
        # Not fork: a forked process inherits torch's thread pools and CUDA contexts in a broken state.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, self._make, device, self._threads))
        process.start()
        theirs.close()
        return Place(process, ours)

    def _reopened(self, place: Place) -> Place:
        """A new worker where one died."""
        place.end()
        number = self._places.index(place)
        self._places[number] = self._open(self._devices[number])
        return self._places[number]

    def _lost(self, place: Place, task: ClientTask) -> ClientFailure:
        self._reopened(place)
        told = f"its process ended with status {place.process.exitcode}"
        return ClientFailure(task.client, "WorkerDied", told, 0.0)

    def _overdue(self, place: Place) -> ClientFailure:
        task, took = place.task, time.monotonic() - place.since
        assert task is not None
        place.process.kill()
        self._reopened(place)
        told = f"no answer {took:.0f} s after the task, time_limit is {self._time_limit:g} s: its process was ended"
        return ClientFailure(task.client, "WorkerHung", told, took)


@factory
def configured(config: Mapping[str, Any], client: Client, places: int = 2, threads: int | None = None) -> Workers:
    """Places for the clients of a resolved configuration, on GPUs one after the other; `client` stays at home."""
    if config["trainer"].get("devices", 1) != 1:
        raise InputError("federation: expected one device a client beside workers, found more: set trainer.devices=1")
    gpus = torch.cuda.device_count() if configured_device(config) != "cpu" else 0
    devices = [f"cuda:{place % gpus}" if gpus else "cpu" for place in range(places)]
    limit = config["federated"]["time_limit"]
    return Workers(partial(configured_client, dict(config)), devices, threads, limit)


def configured_client(config: Mapping[str, Any], device: str) -> Client:
    """The client of a configuration in a process of its own."""
    return make_resident(config, make_workload(config), device).client


def work(pipe: Connection, make: Callable[[str], Client], device: str, threads: int) -> None:
    """A worker's life: tasks in, outcomes out, until the pipe is closed. States travel as safetensors.

    What ends the federation (InputError: a frozen parameter that changed, missing data) is told as an error.
    """
    torch.set_num_threads(threads)
    client: Client | None = None
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            client = client or make(device)
            outcome = client.run(replace(task, state=load(task.state)))
        except InputError as error:
            pipe.send(("error", str(error)))
        except Exception:
            pipe.send(("error", f"federation: a worker failed: {traceback.format_exc()}"))
        else:
            if isinstance(outcome, ClientUpdate):
                outcome = replace(outcome, state=save(outcome.state))  # type: ignore[arg-type]
            pipe.send(("outcome", outcome))
