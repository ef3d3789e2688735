"""Clients in this process, one after the other, on one resident module."""

from collections.abc import Mapping
from typing import Any

from federated.client import Client, ClientTask, Outcome


class InProcess:
    """Engine of one place: a submitted client runs when its outcome is collected.

    config: the configuration from which other engines make clients; not needed here.
    """

    capacity = 1
    secure = False

    def __init__(self, client: Client, config: Mapping[str, Any] | None = None):
        self._client = client
        self._task: ClientTask | None = None

    def submit(self, task: ClientTask) -> None:
        """Take the task; raises RuntimeError while another is held."""
        if self._task is not None:
            raise RuntimeError(f"client {self._task.client} holds the only place")
        self._task = task

    def collect(self) -> Outcome:
        """Run the task that was taken, here and now; raises RuntimeError where none was."""
        if self._task is None:
            raise RuntimeError("no client was submitted")
        task, self._task = self._task, None
        return self._client.run(task)

    def close(self) -> None:
        """Nothing is held."""
