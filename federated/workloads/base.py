"""What the door asks of whatever is federated: a module, the clients' data, a measurement, a way to keep models."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl

from federated.data import ClientData
from federated.orchestrator import Metrics, Orchestrator
from federated.state import State
from federated.strategies.base import Strategy


class Workload(Protocol):
    """Built with `config`, the whole resolved configuration.

    fingerprint: of the data, who holds what included; schema: of what sites must share that each hold data of their own
    (kind, skeleton, answer options); base_model: of the weights that training starts from ("": from none). miniature:
    whether the data are made up; counts: samples by name, for records; tested: names of those measured on.
    rejected: (file or id, reason) of what was left out of raw files, described: one line on what they hold; None and ""
    where prepare.py has read them before and told it.
    manifest: who holds what, with `sizes` (samples a client), and where they are known `skew` and `floor` (metrics that
    need no model, learnt from the training side). clients: their batches.
    rate: (round, rounds) -> factor on the clients' learning rate.
    """

    fingerprint: str
    schema: str
    base_model: str
    miniature: bool
    counts: Mapping[str, int]
    rejected: Sequence[tuple[str, str]] | None
    described: str
    tested: Sequence[str]

    @property
    def manifest(self) -> dict[str, Any]: ...

    @property
    def clients(self) -> ClientData: ...

    @property
    def rate(self) -> Callable[[int, int], float]: ...

    def module(self) -> pl.LightningModule:
        """The model as every client gets it in the first round; its weights are a function of the seed."""

    def evaluate(self, module: pl.LightningModule) -> Metrics:
        """Rates in per cent on the test data."""

    def row(self, strategy: Strategy, clients: int) -> dict[str, str]:
        """How a record names the result: `method`, and where it needs them `variant` and `setting`."""

    def samples(self) -> list[dict[str, Any]]:
        """Some test samples and what the model of the last `evaluate` answers, for the eye; none where there are none.

        A dict of plain values a sample, all with the same names, and `image` (PIL) or None.
        """

    def save(self, folder: Path, orchestrator: Orchestrator, models: dict[str, State]) -> None:
        """Keep every model below `folder`, each whole or not at all."""

    def saved(self, folder: Path) -> dict[str, str]:
        """Path of each kept model by name: `global`, or one a client where clients keep tensors of their own."""
