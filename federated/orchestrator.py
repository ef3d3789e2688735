"""The round loop: sample, dispatch, fold, evaluate, commit.

Zero-shot is 0 rounds, centralised training the pooled partition, local training a strategy: no special cases here.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytorch_lightning as pl
import torch

from datamodules.errors import InputError
from federated.adapter import Adapter
from federated.client import ClientFailure, ClientTask, Outcome
from federated.device import kept_modes
from federated.engines.base import Engine
from federated.ledger import Ledger, Progress
from federated.lora_gap import MOST_BYTES, LoraGap
from federated.privacy import ClientLevelPrivacy
from federated.schedule import AllClients, ConstantRate
from federated.seeding import EVALUATION, seed_of, seeded
from federated.state import State, distance, num_bytes
from federated.strategies.base import Strategy
from federated.strategies.fold import OrderedMean
from federated.transport import Exact

log = logging.getLogger(__name__)

Metrics = dict[str, float]


class TooManyFailuresError(InputError):
    """More clients of a round failed than the configuration allows."""


@dataclass(frozen=True)
class FederatedResult:
    """metrics: of the last evaluation; by_model: the same for each model ("global", or one a client where clients keep
    tensors of their own); models: their full states; records: one plain dict a round; seconds: of all rounds, of those
    before a resumption too, or where there is none of the evaluation."""

    metrics: Metrics
    by_model: dict[str, Metrics]
    models: dict[str, State]
    records: list[dict]
    seconds: float


@dataclass
class Orchestrator:
    """A federation of `clients` clients that train `module` over `rounds` rounds.

    adapter: of the same resident module that the engine's clients train; sample: (round, clients) -> client ids;
    rate: (round, rounds) -> factor on the clients' learning rate; evaluate: gives the module's metrics, called after
    every `evaluate_every` rounds (0: after the last alone) with the global state loaded.
    max_failed: the largest share of a round's clients that may fail; above it the run stops with TooManyFailuresError
    and a relaunch repeats the round. track_gap: log how far mean(BA) is from mean(B) mean(A); it keeps the LoRA factors
    of a round's clients until its end, and where these would exceed MOST_BYTES there is none. privacy: of the clients'
    updates; what clients measured is not recorded with it. What is told in the clear of updates, the gap and each
    client's `drift` (L2 distance of the trained parameters from those it was sent), is not logged where they are kept
    from the server, or noise is added to them.
    transport: that of the engine's clients; bytes are counted as they travel.
    """

    module: pl.LightningModule
    adapter: Adapter
    engine: Engine
    strategy: Strategy
    clients: int
    rounds: int
    seed: int
    sample: Callable[[int, int], list[int]] = field(default_factory=AllClients)
    rate: Callable[[int, int], float] = field(default_factory=ConstantRate)
    evaluate: Callable[[pl.LightningModule], Metrics] | None = None
    evaluate_every: int = 1
    max_failed: float = 0.5
    ledger: Ledger | None = None
    track_gap: bool = True
    privacy: ClientLevelPrivacy | None = None
    transport: Exact = field(default_factory=Exact)
    initial: State = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.privacy:
            self.privacy.covered(self.adapter, self._personal())
        if self.engine.secure and (self.privacy or self._personal()):
            found = "noise on each client's update" if self.privacy else "tensors that clients keep"
            raise InputError(f"secure aggregation: expected clients of whom the server reads the sum, found {found}")
        if self.engine.secure and self.transport != Exact():
            found = f"found {type(self.transport).__name__}, whose rounded answers have no sum"
            raise InputError(f"secure aggregation: expected federated.transport=exact, {found}")

    def run(
        self, on_round: Callable[[dict], None] | None = None, on_client: Callable[[dict], None] | None = None
    ) -> FederatedResult:
        """Run or resume; `on_round` is given the record of every round as it is committed, `on_client` what became of
        every client as it comes back.

        Leaves the final global state in the module, and in `initial` what it held before, resumed or not. Raises
        TooManyFailuresError, and InputError as the ledger does.
        """
        self.initial = self.adapter.extract()
        progress = (self.ledger.resume() if self.ledger else None) or self._begin()
        self.adapter.validate(progress.shared | progress.fresh)
        while progress.next_round < self.rounds:
            record = self._round(progress, on_client)
            if self.ledger:
                self.ledger.commit(progress)
            if on_round:
                on_round(record)
        models = self._models(progress)
        start = time.monotonic()
        by_model = progress.records[-1]["by_model"] if progress.records else self._metrics(models, 0)
        seconds = sum(record["seconds"] for record in progress.records) or time.monotonic() - start
        self.adapter.load(progress.shared | progress.fresh)
        return FederatedResult(_mean(by_model), by_model, models, progress.records, seconds)

    def _begin(self) -> Progress:
        state, personal = self.adapter.extract(), self._personal()
        shared = {name: tensor for name, tensor in state.items() if name not in personal}
        return Progress(shared, fresh={name: tensor for name, tensor in state.items() if name in personal})

    def _round(self, progress: Progress, on_client: Callable[[dict], None] | None = None) -> dict:
        start, number = time.monotonic(), progress.next_round
        chosen = self.sample(number, self.clients)
        rate = self.rate(number, self.rounds)
        sent = self.transport.pack(progress.shared, self.adapter.trained)
        bytes_down = num_bytes(sent)
        gap = self._gap(progress, chosen)
        mean, outcomes, bytes_up = self._train(progress, sent, chosen, rate, gap, on_client)
        self._stop_if_too_many_failed(number, outcomes)
        if mean is None:
            log.warning("round %d: no client came back, the global state stays as it was", number)
        else:
            self._advance(progress, mean)
        progress.next_round += 1
        by_model = self._metrics(self._models(progress), number) if self._evaluates(progress.next_round) else {}
        record = {
            "round": number,
            "rate": rate,
            "outcomes": outcomes,
            "updated": mean is not None,
            "bytes_down": bytes_down * len(chosen),
            "bytes_up": bytes_up,
            "lora_gap": gap.of(mean) if gap and mean is not None else None,
            "epsilon": self._epsilon(progress.records, outcomes),
            "metrics": _mean(by_model),
            "by_model": by_model,
            "seconds": time.monotonic() - start,
        }
        progress.records.append(record)
        return record

    def _train(
        self,
        progress: Progress,
        sent: State,
        chosen: list[int],
        rate: float,
        gap: LoraGap | None,
        on_client: Callable[[dict], None] | None = None,
    ) -> tuple[State | None, list[dict], int]:
        """Mean of the survivors (None without one), what became of each client, bytes received.

        sent: the shared state as it travels. gap: told what the clients send.
        """
        fold = OrderedMean(chosen, seen=gap.add if gap else None)
        waiting, outcomes, bytes_up = sorted(chosen), {}, 0
        personal = self._personal()
        for _ in chosen:
            while waiting and len(chosen) - len(waiting) - fold.settled < self.engine.capacity:
                self.engine.submit(self._task(progress, sent, waiting.pop(0), rate))
            outcome, received = self._received(self.engine.collect(), progress, personal)
            outcomes[outcome.client] = told = self._told(outcome) | self._drift(progress, outcome)
            if on_client:
                on_client(told)
            if isinstance(outcome, ClientFailure):
                fold.drop(outcome.client)
                continue
            shared = {name: tensor for name, tensor in outcome.state.items() if name not in personal}
            if personal:
                progress.personal[outcome.client] = {name: outcome.state[name] for name in sorted(personal)}
            bytes_up += received
            if self.privacy:
                fold.add(outcome.client, self.privacy.bounded(shared, progress.shared), 1)
            else:
                fold.add(outcome.client, shared, outcome.num_samples if self.strategy.weighted else 1)
        mean = fold.result()
        if self.privacy and mean is not None:
            mean = self.privacy.released(mean, fold.folded, progress.shared, len(chosen))
        return mean, [outcomes[client] for client in sorted(outcomes)], bytes_up

    def _gap(self, progress: Progress, chosen: list[int]) -> LoraGap | None:
        """What measures this round's gap, None where it is not to be; the first round says if it is too large."""
        if not self.track_gap or self._private:
            return None
        needed = LoraGap.bytes_for(progress.shared, len(chosen))
        if needed <= MOST_BYTES:
            return LoraGap()
        if progress.next_round == 0:
            told = "LoRA gap: not measured, the factors of %d clients are %.1f GB, more than the %.1f kept for it"
            log.warning(told, len(chosen), needed / 2**30, MOST_BYTES / 2**30)
        return None

    def _task(self, progress: Progress, sent: State, client: int, rate: float) -> ClientTask:
        state = sent | progress.personal.get(client, progress.fresh)
        return ClientTask(progress.next_round, client, state, rate, self.seed)

    def _told(self, outcome: Outcome) -> dict:
        """What the record says of a client: under privacy nothing that it measured on its own data, or may quote."""
        if self.privacy:
            if isinstance(outcome, ClientFailure):
                log.warning("client %d failed, %s: %s", outcome.client, outcome.error, outcome.message)
                outcome = outcome.discreet()
            else:
                outcome = replace(outcome, metrics={})
        return {key: value for key, value in vars(outcome).items() if key != "state"}

    def _drift(self, progress: Progress, outcome: Outcome) -> dict[str, float]:
        """How far a client went from where it began; nothing of a failure, and nothing under privacy."""
        if isinstance(outcome, ClientFailure) or self._private:
            return {}
        sent = progress.shared | progress.personal.get(outcome.client, progress.fresh)
        return {"drift": distance(outcome.state, sent, sorted(self.adapter.trained))}

    def _received(self, outcome: Outcome, progress: Progress, personal: frozenset[str]) -> tuple[Outcome, int]:
        """The outcome with the client's state, and the bytes of it that travelled.

        An update that does not fit is a failure, whoever sent it.
        """
        if isinstance(outcome, ClientFailure):
            return outcome, 0
        received = num_bytes({name: tensor for name, tensor in outcome.state.items() if name not in personal})
        try:
            state = self.transport.result(outcome.state, progress.shared)
            self.adapter.validate(state)
        except InputError as error:
            return ClientFailure(outcome.client, type(error).__name__, str(error), outcome.seconds), 0
        return replace(outcome, state=state), received

    def _advance(self, progress: Progress, mean: State) -> None:
        """The strategy moves the parameters; buffers take the mean."""
        trained = [name for name in mean if name in self.adapter.trained]
        parameters = {name: progress.shared[name].to(torch.float64) for name in trained}
        moved, progress.memory = self.strategy.step(parameters, {name: mean[name] for name in trained}, progress.memory)
        progress.shared = {name: (mean | moved)[name].to(old.dtype) for name, old in progress.shared.items()}

    def _epsilon(self, earlier: list[dict], outcomes: list[dict]) -> float | None:
        """Spent with this round, None without privacy and without noise."""
        if self.privacy is None or self.privacy.noise == 0:
            return None
        rounds = [*(record["outcomes"] for record in earlier), outcomes]
        return self.privacy.epsilon([outcome["client"] for outcome in outcomes] for outcomes in rounds)

    def _stop_if_too_many_failed(self, number: int, outcomes: list[dict]) -> None:
        failed = [outcome for outcome in outcomes if "error" in outcome]
        if len(failed) > self.max_failed * len(outcomes):
            first = failed[0]
            raise TooManyFailuresError(
                f"round {number}: expected at most {self.max_failed:.0%} of {len(outcomes)} clients to fail, found "
                f"{len(failed)}; mend the first cause: client {first['client']}, {first['error']}: {first['message']}"
            )

    @property
    def _private(self) -> bool:
        return self.privacy is not None or self.engine.secure

    def _personal(self) -> frozenset[str]:
        return self.strategy.personal(self.adapter.names) | self.adapter.local

    def _models(self, progress: Progress) -> dict[str, State]:
        if not progress.personal:
            return {"global": progress.shared | progress.fresh}
        return {f"client {client}": progress.shared | progress.personal[client] for client in sorted(progress.personal)}

    def _evaluates(self, completed: int) -> bool:
        return completed == self.rounds or (self.evaluate_every > 0 and completed % self.evaluate_every == 0)

    def _metrics(self, models: dict[str, State], number: int) -> dict[str, Metrics]:
        if self.evaluate is None:
            return {}
        found = {}
        for name, state in models.items():
            self.adapter.load(state)
            with kept_modes(self.module), seeded(seed_of(self.seed, number, EVALUATION)):
                found[name] = {key: float(value) for key, value in self.evaluate(self.module).items()}
        return found


def _mean(by_model: dict[str, Metrics]) -> Metrics:
    """Each metric's mean over the models: the Local row is the mean over the single-client models."""
    keys = dict.fromkeys(key for metrics in by_model.values() for key in metrics)
    return {key: sum(metrics[key] for metrics in by_model.values()) / len(by_model) for key in keys}
