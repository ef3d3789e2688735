"""Secure aggregation on Flower: the server reads the sum of the clients' changes and none of them (SecAgg+).

Bell et al., CCS 2020, by Flower's own mod on the node and its workflow on the server. Both were written for Flower's
older API: the mod looks for a reply in the form of a FitRes, the workflow for a strategy of that time. Here the mod is
called around our client, whose reply is given that form, and the workflow's four stages are called one by one.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitIns, FitRes, Parameters, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.constant import ErrorCode
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS
from flwr.common.secure_aggregation.secaggplus_constants import Key as Step
from flwr.compat.common import recorddict_compat
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import WorkflowState
from flwr.serverapp import Grid

from datamodules.errors import InputError
from federated.client import Client, ClientFailure, ClientTask, ClientUpdate, Outcome
from federated.engines.wire import (
    FOREVER,
    PAUSE,
    Header,
    headless,
    not_answered,
    not_sent,
    one_line,
    pushed,
    task_content,
    task_of,
    trusted,
)
from federated.state import State
from tracking.build import build

LEVELS = 2**22  # of a client's number between -clip and clip
MODULUS = 2**32  # of the masked sum, the largest that Flower takes
MOST = (MODULUS - 1) // LEVELS  # clients a round: the sum of more of them can come round to small numbers again
METRIC = "metric "  # begins the names of metrics among the facts that travel in the clear


@dataclass(frozen=True)
class Masking:
    """clip: largest change of any number in a round; beyond it a client fails. The sum is rounded to clip / 2^21.

    threshold: share of a round's clients that must stay to its end, else nobody can read the sum. weighted: whether
    clients count by their samples.
    """

    clip: float
    threshold: float
    weighted: bool

    def __post_init__(self) -> None:
        if not (self.clip > 0 and 0 < self.threshold <= 1):
            found = f"clip {self.clip} and threshold {self.threshold}"
            raise InputError(f"secure aggregation: expected clip above 0, threshold above 0 and up to 1, found {found}")


def masking(config: Mapping[str, Any]) -> Masking | None:
    """What a resolved configuration says of it, None where it does not."""
    federated = config.get("federated", {})
    if (settings := federated.get("secure_aggregation")) is None:
        return None
    return Masking(**settings, weighted=build(federated["strategy"]).weighted)


# --- on a node ------------------------------------------------------------------------------------------------------


class DroppedOut(Exception):
    """A client has nothing to add to the sum."""


def is_masked(message: Message) -> bool:
    """Whether a request to train is one of the protocol's."""
    return RECORD_KEY_CONFIGS in message.content.config_records


def masked(message: Message, context: Context, site: Callable[[], tuple[Client, Masking | None]]) -> Message:
    """The answer to one stage of the protocol; in the third the client trains.

    site: the node's client and what its own settings say; asked only where they are needed.
    """
    try:
        return secaggplus_mod(message, context, lambda request, _: _trained(request, *site()))
    except DroppedOut as error:
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(error)), reply_to=message)


def _trained(request: Message, client: Client, hidden: Masking | None) -> Message:
    """What the client adds, in the form that the mod looks for: its change, its weight, and facts in the clear."""
    if hidden is None:
        raise InputError("secure aggregation: expected it in the settings of this node, found it in none")
    task = task_of(request.content)
    outcome = client.run(task)
    if isinstance(outcome, ClientFailure):
        raise DroppedOut(f"{outcome.error}: {outcome.discreet().message}")
    change = {name: outcome.state[name].double() - task.state[name].double() for name in sorted(task.state)}
    largest = max(float(part.abs().max()) for part in change.values() if part.numel())
    if largest > hidden.clip:
        told = f"expected changes of at most {hidden.clip}, found {largest:.3g}"
        raise DroppedOut(f"{told}: raise federated.secure_aggregation.clip")
    facts = {name: getattr(outcome, name) for name in ("client", "num_samples", "steps", "seconds")}
    facts |= {METRIC + name: value for name, value in outcome.metrics.items()}
    weight = outcome.num_samples if hidden.weighted else 1
    arrays = ndarrays_to_parameters([part.numpy() for part in change.values()])
    reply = FitRes(Status(Code.OK, ""), arrays, weight, facts)
    return Message(recorddict_compat.fitres_to_recorddict(reply, False), reply_to=request)


# --- on the server --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """What the workflow asks of a proxy."""

    node_id: int


@dataclass
class Legacy:
    """What the workflow asks of a strategy: who takes part, and to be given the result."""

    nodes: list[int]
    results: dict[int, FitRes] = field(default_factory=dict)

    def configure_fit(self, *_: Any) -> list[tuple[Node, FitIns]]:
        """Every node, with nothing to do: the tasks are put in the place of these."""
        return [(Node(node), FitIns(Parameters([], ""), {})) for node in self.nodes]

    def aggregate_fit(self, number: int, results: list[tuple[Node, FitRes]], failures: list) -> tuple[None, dict]:
        """Keep what each node told, by its id; nothing is aggregated."""
        self.results = {node.node_id: result for node, result in results}
        return None, {}


class Stages:
    """A grid as the workflow sees it: of a node that leaves a stage unanswered or fails in it, `lost` holds the reason.

    In the place of Flower's own `send_and_receive`, which looks every three seconds, and which a node that the
    SuperLink does not know breaks.
    """

    def __init__(self, grid: Grid):
        self._grid = grid
        self.lost: dict[int, str] = {}

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float) -> list[Message]:
        """The answers to one stage that came within `timeout` seconds, without errors."""
        waiting: dict[str, int] = {}
        answers, limit, stage = [], time.monotonic() + timeout, ""
        for message in messages:
            node, stage = message.metadata.dst_node_id, str(message.content[RECORD_KEY_CONFIGS][Step.STAGE])
            if (name := pushed(self._grid, message, timeout)) is None:
                self.lost[node] = f"{stage}: {not_sent(node)}"
            else:
                waiting[name] = node
        while waiting:
            replies = list(self._grid.pull_messages(list(waiting)))
            for reply in replies:
                node = waiting.pop(reply.metadata.reply_to_message_id)
                if reply.has_error():
                    self.lost[node] = f"{stage}: {one_line(reply.error.reason)}"
                else:
                    answers.append(reply)
            if not replies:  # nodes in this process work while they are asked, each for as long as it takes
                if time.monotonic() > limit:
                    break
                time.sleep(PAUSE)
        self.lost |= {node: f"{stage}: {not_answered(timeout)}" for node in waiting.values()}
        return answers


class SecureFlower:
    """Engine that trains all clients of a round at once and reads their sum alone.

    Every client that stayed comes back with the mean of all of them as its state, so that whoever folds these gets the
    mean. One that stayed but told in the clear what its node may not fails all: its change is in the sum for good.
    node, capacity, samples, header: as in `Flower`. reply_seconds: that a node has to answer each of the four stages,
    of which the third is the training. Who is not heard in one of the first three is a failed client, and the sum that
    of the others; it can be read as long as `threshold` of the round's clients answer the last.
    """

    secure = True

    def __init__(
        self,
        grid: Grid,
        node: Callable[[int], int],
        capacity: int,
        hidden: Masking,
        samples: Callable[[int], int],
        header: Header = headless,
        reply_seconds: float = FOREVER,
    ):
        self._grid, self._node, self._header = grid, node, header
        self._hidden, self._samples, self._patience = hidden, samples, reply_seconds
        self._tasks: list[ClientTask] = []
        self._outcomes: list[Outcome] = []
        self.capacity = capacity

    def submit(self, task: ClientTask) -> None:
        """Take the task; the round begins when its first outcome is asked for."""
        self._tasks.append(task)

    def collect(self) -> Outcome:
        """The next outcome of the round; raises RuntimeError where no client was submitted."""
        if not self._outcomes:
            if not self._tasks:
                raise RuntimeError("no client was submitted")
            tasks, self._tasks = self._tasks, []
            self._outcomes = self._aggregated(tasks)
        return self._outcomes.pop(0)

    def close(self) -> None:
        """The grid belongs to whoever made it."""

    def _aggregated(self, tasks: list[ClientTask]) -> list[Outcome]:
        if len(tasks) < 2:
            raise InputError("secure aggregation: expected two clients a round or more, found one: its sum is itself")
        if len(tasks) > MOST:
            found = f"found {len(tasks)}, whose sum would wrap: set federated.per_round={MOST} or lower"
            raise InputError(f"secure aggregation: expected at most {MOST} clients a round, {found}")
        nodes = {task.client: self._node(task.client) for task in tasks}  # of the whole round: a new one has no keys
        results, lost, trouble = self._protocol(tasks, nodes)
        back = {task.client: result for task in tasks if (result := results.get(nodes[task.client]))}
        outcomes: list[Outcome] = []
        for task in tasks:
            if task.client in back:
                outcomes.append(self._read(task, back[task.client]))
            elif reason := lost.get(task.client):
                outcomes.append(ClientFailure(task.client, "DroppedOut", reason, 0.0))
            else:
                outcomes.append(ClientFailure(task.client, "UnreadSum", trouble, 0.0))
        wrong = [found for found in outcomes if isinstance(found, ClientFailure) and found.client in back]
        return [_spoilt(found, wrong[0]) for found in outcomes] if wrong else outcomes

    def _read(self, task: ClientTask, result: FitRes) -> Outcome:
        samples = self._samples(task.client)
        return trusted(
            lambda: _update(task, result, samples if self._hidden.weighted else 1), task.client, samples, 0.0
        )

    def _protocol(
        self, tasks: list[ClientTask], nodes: Mapping[int, int]
    ) -> tuple[dict[int, FitRes], dict[int, str], str]:
        """Run the four stages; nodes: client -> node.

        Returns what the nodes sent in the clear, by node, with the mean as the arrays of each, and nothing where it
        cannot be read; why clients were lost, by client; and, in one line, why the sum cannot be read if so.
        """
        contents = {nodes[task.client]: task_content(task) for task in tasks}
        for client, node in nodes.items():
            contents[node].update(self._header(client))
        weights = [self._samples(task.client) if self._hidden.weighted else 1 for task in tasks]
        workflow = SecAggPlusWorkflow(
            num_shares=1.0,
            reconstruction_threshold=self._hidden.threshold,
            max_weight=float(max(weights)),
            clipping_range=self._hidden.clip,
            quantization_range=LEVELS,
            modulus_range=MODULUS,
            timeout=self._patience,
        )
        legacy, state, stages = Legacy(list(contents)), WorkflowState(), Stages(self._grid)
        grid: Any = stages
        context: Any = LegacyContext(_round_context(tasks[0].round_number), strategy=legacy)  # type: ignore[arg-type]
        broken = ""
        try:
            with told_of_trouble_alone():
                done = workflow.setup_stage(grid, context, state)
                state.nid_to_fitins = contents  # in place of its own: ours hold names and types
                done = done and workflow.share_keys_stage(grid, context, state)
                _forget_who_left(state)
                done = done and workflow.collect_masked_vectors_stage(grid, context, state)
                done = done and workflow.unmask_stage(grid, context, state)
        except InputError:
            raise
        except Exception as error:  # a node may send anything
            broken = f"a reply broke the protocol: {type(error).__name__}: {error}"
        lost = {task.client: reason for task in tasks if (reason := stages.lost.get(nodes[task.client]))}
        gone = "; ".join(f"client {client}: {reason}" for client, reason in lost.items())
        few = f"expected {state.threshold} of {len(tasks)} clients to stay to the end, lost {len(lost)}: {gone}"
        return {} if broken else legacy.results, lost, one_line(broken or few)


def _forget_who_left(state: WorkflowState) -> None:
    """Take those who are not there after the keys were shared out of the workflow.

    Nobody holds a share of their keys and nobody adds a mask for them. The workflow would ask for both in its last
    stage, and no node would answer.
    """
    state.sampled_node_ids = set(state.active_node_ids)
    near = state.nid_to_neighbours
    state.nid_to_neighbours = {node: near[node] & state.sampled_node_ids for node in state.sampled_node_ids}


@contextmanager
def told_of_trouble_alone() -> Iterator[None]:
    """Flower's log without the lines of every round, which speak of a client manager that is not there."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _round_context(number: int) -> Context:
    records = RecordDict(
        {MAIN_CONFIGS_RECORD: ConfigRecord({Key.CURRENT_ROUND: number}), MAIN_PARAMS_RECORD: ArrayRecord()}
    )
    return Context(run_id=0, node_id=0, node_config={}, state=records, run_config={})


def _spoilt(outcome: Outcome, wrong: ClientFailure) -> ClientFailure:
    """The failure of a client whose sum holds the change of one that cannot be trusted."""
    if isinstance(outcome, ClientFailure):
        return outcome
    told = f"the sum holds the change of client {wrong.client}, whose reply cannot be trusted: {wrong.message}"
    return ClientFailure(outcome.client, "SpoiltSum", told, outcome.seconds)


def _update(task: ClientTask, result: FitRes, weight: int) -> ClientUpdate:
    """The mean of all as one client's update; raises InputError unless it told its weight."""
    if result.num_examples != weight:
        raise InputError(f"secure aggregation: expected a weight of {weight}, found {result.num_examples!r:.50}")
    facts: dict[str, Any] = dict(result.metrics)
    changes = parameters_to_ndarrays(result.parameters)
    state: State = {
        name: (task.state[name].double() + torch.from_numpy(change).double()).to(task.state[name].dtype)
        for name, change in zip(sorted(task.state), changes, strict=True)
    }
    metrics = {name.removeprefix(METRIC): facts.pop(name) for name in list(facts) if name.startswith(METRIC)}
    return ClientUpdate(state=state, metrics=metrics, **facts)
