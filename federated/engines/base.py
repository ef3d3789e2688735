"""What the orchestrator asks of the place where clients run."""

from typing import Protocol

from federated.client import ClientTask, Outcome


class Engine(Protocol):
    """Runs up to `capacity` clients at once; their outcomes come back in any order.

    secure: whether the server cannot see a client's state: every client of a round then has the mean of all as its own.
    """

    capacity: int
    secure: bool

    def submit(self, task: ClientTask) -> None:
        """Start a client; never more than `capacity` are started and not yet folded or dropped."""

    def collect(self) -> Outcome:
        """Wait for the outcome of any started client."""

    def close(self) -> None:
        """Let go of what runs clients."""
