"""One client of one round: one short Lightning fit; what goes wrong in it is a value, not an exception."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytorch_lightning as pl
from torch.optim import Optimizer

from datamodules.errors import InputError
from federated.adapter import Adapter, NotFiniteError
from federated.data import ClientData, own_share
from federated.device import ALONE, SameStart, Team, check_options, kept_modes, quiet, trainer
from federated.garbage import cleared
from federated.seeding import keyed, seed_of, seeded
from federated.state import State
from federated.terms import Term, TermGradients
from federated.transport import Exact, rounded

log = logging.getLogger(__name__)

WITHHELD = "its message stays in the log of where it happened"


@dataclass(frozen=True)
class ClientTask:
    """What the server sends: the state to begin from, the factor on the learning rate, the seed of the federation."""

    round_number: int
    client: int
    state: State
    rate: float
    seed: int


@dataclass(frozen=True)
class ClientUpdate:
    """What comes back: the trained state, the samples and optimiser steps it rests on, the last logged metrics."""

    client: int
    num_samples: int
    steps: int
    state: State
    metrics: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class ClientFailure:
    """Why nothing came back: the kind of error (its class) and its message, one line."""

    client: int
    error: str
    message: str
    seconds: float

    def discreet(self) -> "ClientFailure":
        """As it leaves a node: the message, which may quote a sample whoever wrote the code, stays in the log."""
        return replace(self, message=WITHHELD)


Outcome = ClientUpdate | ClientFailure


class ClientTimeout(Exception):
    """A client trained longer than it may."""


class ScaledRate(pl.Callback):
    """Multiplies the learning rates by a factor during each step, so that any scheduler goes on untouched."""

    def __init__(self, factor: float):
        self._factor = factor
        self._rates: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hook the factor into every optimiser."""
        for optimizer in trainer.optimizers:
            optimizer.register_step_pre_hook(self._scale)
            optimizer.register_step_post_hook(self._restore)

    def _scale(self, optimizer: Optimizer, args, kwargs) -> None:
        self._rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * self._factor

    def _restore(self, optimizer: Optimizer, args, kwargs) -> None:
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate


class Deadline(pl.Callback):
    """Raises ClientTimeout at the first batch after `seconds`; a single batch is never interrupted."""

    def __init__(self, seconds: float):
        self._seconds, self._end = seconds, float("inf")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The clock starts."""
        self._end = time.monotonic() + self._seconds

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Raises ClientTimeout where the time is over."""
        if time.monotonic() > self._end:
            raise ClientTimeout(f"more than {self._seconds} s at batch {batch_idx}")


class Client:
    """Trains the one resident module as any client of the federation, with a fresh optimiser each time.

    module: any LightningModule. Where it holds a `seed` that keys its draws (SkeletonModule), the seed of (seed,
    round, client) stands in its place during the fit.
    options: of Lightning's Trainer (one epoch by default). time_limit: seconds, None for no limit.
    team: the processes that train every client together, each with its rows of every batch; all of them run alike.
    Where the module says `skips_parameters`, some of its batches do not use all that is trained.
    transport: how states come and go; what came rounded goes rounded.
    Raises InputError for options that would give a client a logger or more than one device.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        adapter: Adapter,
        data: ClientData,
        terms: Sequence[Term] = (),
        device: str = "auto",
        time_limit: float | None = None,
        options: dict | None = None,
        team: Team = ALONE,
        transport: Exact = Exact(),  # noqa: B008 - frozen
    ):
        check_options(options or {})
        if team.world > 1 and time_limit is not None:
            raise InputError("federation: expected no time_limit where processes train together, one would stop alone")
        self._team = team
        self._module, self._adapter, self._data = module, adapter, data
        self._terms, self._device, self._time_limit = list(terms), device, time_limit
        self._options, self._transport = {"max_epochs": 1} | (options or {}), transport

    def num_samples(self, client: int) -> int:
        """How many samples the client holds."""
        return self._data.num_samples(client)

    def run(self, task: ClientTask) -> Outcome:
        """Train on from the task's state. Every Exception becomes a ClientFailure; SystemExit and the like do not.

        Raises InputError if the module changed a frozen parameter: the clients after it would not be what they should;
        and for what fails in one process of a team, whose others wait for it in the middle of a step.
        """
        with cleared():
            outcome = self._attempt(task, time.monotonic())
        self._adapter.check_frozen()
        return outcome

    def _attempt(self, task: ClientTask, start: float) -> Outcome:
        try:
            begin = self._transport.unpack(task.state, self._adapter.live())
            steps, metrics = self._fit(task, begin, seed_of(task.seed, task.round_number, task.client))
            state = self._adapter.extract()
            self._adapter.validate(state)
            state = self._transport.answer(state, begin, rounded(task.state, begin))
        except Exception as error:
            log.warning("round %d: client %d failed", task.round_number, task.client, exc_info=True)
            message = " ".join(str(error).split())[:500]
            if self._team.world > 1 and not isinstance(error, NotFiniteError):  # of which all have the same
                where = f"client {task.client} in process {self._team.rank} of {self._team.world}"
                raise InputError(f"federation: {where} failed, {type(error).__name__}: {message}") from error
            return ClientFailure(task.client, type(error).__name__, message, time.monotonic() - start)
        samples = self._data.num_samples(task.client)
        return ClientUpdate(task.client, samples, steps, state, metrics, time.monotonic() - start)

    def _fit(self, task: ClientTask, begin: State, seed: int) -> tuple[int, dict[str, float]]:
        callbacks: list[pl.Callback] = [ScaledRate(task.rate)]
        if self._terms:
            callbacks.append(TermGradients(self._terms, self._adapter))
        if self._time_limit is not None:
            callbacks.append(Deadline(self._time_limit))
        if self._team.world > 1:
            callbacks.insert(0, SameStart(self._adapter.live))
        own = (seed + self._team.rank) % 2**32  # of dropout, apart for each row of a batch
        unused = getattr(self._module, "skips_parameters", False)
        with quiet(), kept_modes(self._module), keyed(self._module, seed), seeded(own):
            fit = trainer(self._device, callbacks, self._team, unused, **self._options)
            try:
                self._adapter.load(begin)
                loader = self._data.train_dataloader(task.client, seed)
                if self._team.world > 1:
                    loader = own_share(loader, self._team.rank, self._team.world)
                fit.fit(self._module, loader)
                if fit.global_step == 0:
                    raise InputError("federation: expected an optimiser step, found none; take smaller batches")
                return fit.global_step, {name: float(value) for name, value in fit.callback_metrics.items()}
            finally:
                self._let_go(fit)

    def _let_go(self, fit: pl.Trainer) -> None:
        """Cut the ties by which this fit's optimiser, loader and gradients would outlive it."""
        fit.strategy.optimizers = []
        self._module.trainer = None
        self._module.zero_grad(set_to_none=True)
