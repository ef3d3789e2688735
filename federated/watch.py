"""What is seen of a federation while it runs: bars in a terminal, a line a round elsewhere, and the loggers."""

import time
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from pytorch_lightning.loggers import Logger
from rich import get_console
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from federated.curves import client_means, values

DAY = 24 * 3600.0  # a round may take hours, and the time left is told from the last rounds


class Watch:
    """A context around `Orchestrator.run(watch, watch.client)`.

    clients: that a round asks. sinks: are given what each round measured.
    """

    def __init__(self, title: str, rounds: int, clients: int, sinks: list[Logger], console: Console | None = None):
        self._title, self._rounds, self._clients, self._sinks = title, rounds, clients, sinks
        self._console = console or get_console()  # the one of other bars: they are drawn below ours
        self._began, self._seen = time.monotonic(), 0
        self._bars: Progress | None = None
        self._closing = ExitStack()

    def __enter__(self) -> "Watch":
        if self._console.is_terminal:
            columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()
            options: dict[str, Any] = {"console": self._console, "transient": True, "speed_estimate_period": DAY}
            self._bars = Progress(*columns, TimeRemainingColumn(), **options)
            self._closing.enter_context(self._bars)
            self._bars.add_task(f"{self._title}: rounds", total=self._rounds)
            self._bars.add_task("clients", total=self._clients)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closing.close()

    def client(self, outcome: dict) -> None:
        """A client came back, or failed."""
        if self._bars is None:
            return
        told = outcome.get("error") or _shown(outcome["metrics"])
        self._bars.update(self._bars.task_ids[1], advance=1, description=f"client {outcome['client']}  {told}".rstrip())

    def __call__(self, record: dict) -> None:
        """A round is committed."""
        self._seen += 1
        done = record["round"] + 1
        measured = loss_of(record) | record["metrics"]
        if self._bars is None:
            print(f"{self._title}: {self._line(record, done, measured)}", flush=True)
        else:
            self._advance(record, done, measured)
        for sink in self._sinks:
            sink.log_metrics(values(record), step=record["round"])
            sink.save()

    def _line(self, record: dict, done: int, measured: dict[str, float]) -> str:
        left = (time.monotonic() - self._began) / self._seen * (self._rounds - done)
        failed, chosen = _failed(record), " ".join(str(outcome["client"]) for outcome in record["outcomes"])
        why = "".join(f" (client {outcome['client']}: {outcome['error']})" for outcome in failed)
        shown = f"clients {chosen}  {_shown(measured)}".rstrip()
        return f"round {done}/{self._rounds}  {shown}  failed {len(failed)}{why}  {left:.0f} s left"

    def _advance(self, record: dict, done: int, measured: dict[str, float]) -> None:
        assert self._bars is not None
        rounds, clients = self._bars.task_ids
        self._bars.update(rounds, completed=done, description=f"{self._title}: rounds  {_shown(measured)}".rstrip())
        self._bars.reset(clients, total=self._clients, description="clients")
        for outcome in _failed(record):
            told = f"round {done}: client {outcome['client']} failed, {outcome['error']}: {outcome['message']}"
            self._console.print(told, markup=False, highlight=False)


def loss_of(record: dict) -> dict[str, float]:
    """Mean loss of a round's clients by their samples; empty where none came back."""
    return {name: value for name, value in client_means(record).items() if name == "train/loss"}


def _failed(record: dict) -> list[dict]:
    return [outcome for outcome in record["outcomes"] if "error" in outcome]


def _shown(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name.split('/')[-1]} {value:.3f}" for name, value in metrics.items())
