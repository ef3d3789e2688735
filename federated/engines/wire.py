"""What travels between Flower's server and its nodes: states bit by bit, tasks and outcomes; and how it is sent."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from datamodules.errors import InputError
from federated.client import ClientFailure, ClientTask, ClientUpdate, Outcome
from federated.state import State

METRICS, NAME = 100, 100  # of a client, and characters of a metric's name: they go to logs, records and tables
RAW = "skelfed.little-endian"  # how our arrays are written: numpy, Flower's own way, has no bfloat16
PAUSE = 0.2  # seconds between two looks for replies
FOREVER = 43_200.0  # seconds, after which Flower itself forgets a message
GRACE = 60.0  # seconds that Flower keeps a message longer than we wait, so that it is we who tell what happened

Header = Callable[[int], Mapping[str, ConfigRecord]]  # client -> records that travel with its tasks


def to_record(state: State) -> ArrayRecord:
    """A state for the wire, bit by bit, whatever its types."""
    return ArrayRecord({name: _array(tensor) for name, tensor in state.items()})


def from_record(record: ArrayRecord, limit: float = math.inf) -> State:
    """The state that `to_record` wrote; raises InputError for arrays of another kind, or of more than `limit` bytes.

    The size is looked at before anything is made of them.
    """
    if (found := sum(len(array.data) for array in record.values())) > limit:
        told = f"expected tensors of at most {limit} bytes, found {found}"
        raise InputError(f"federation: {told}; train the same model everywhere")
    return {name: _tensor(name, array) for name, array in record.items()}


def _array(tensor: torch.Tensor) -> Array:
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return Array(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), RAW, raw.numpy().tobytes())


def _tensor(name: str, array: Array) -> torch.Tensor:
    dtype = getattr(torch, array.dtype, None)
    if array.stype != RAW or not isinstance(dtype, torch.dtype):
        found = f"found {array.stype} of {array.dtype}"
        raise InputError(f"federation: expected '{name}' as {RAW}, {found}; install the same skelfed everywhere")
    if not array.data and 0 in array.shape:
        return torch.empty(array.shape, dtype=dtype)
    return torch.frombuffer(bytearray(array.data), dtype=torch.uint8).view(dtype).reshape(array.shape)


def task_content(task: ClientTask) -> RecordDict:
    """A task as the content of a message."""
    facts: dict[str, Any] = {
        "round": task.round_number,
        "client": task.client,
        "rate": float(task.rate),
        "seed": task.seed,
    }
    return RecordDict({"state": to_record(task.state), "task": ConfigRecord(facts)})


def task_of(content: Mapping[str, Any]) -> ClientTask:
    """The task that `task_content` wrote."""
    facts, state = content["task"], from_record(content["state"])
    return ClientTask(facts["round"], facts["client"], state, facts["rate"], facts["seed"])


def outcome_content(outcome: Outcome) -> RecordDict:
    """An outcome as the content of a reply."""
    if isinstance(outcome, ClientFailure):
        return RecordDict({"failure": ConfigRecord(dict(vars(outcome.discreet())))})
    facts = {name: getattr(outcome, name) for name in ("client", "num_samples", "steps", "seconds")}
    return RecordDict(
        {
            "state": to_record(outcome.state),
            "update": ConfigRecord(facts),
            "metrics": MetricRecord(dict(outcome.metrics)),
        }
    )


def outcome_of(content: Mapping[str, Any], limit: float = math.inf) -> Outcome:
    """The outcome that a reply holds; limit: bytes that its tensors may have."""
    if "failure" in content:
        return ClientFailure(**content["failure"])
    state = from_record(content["state"], limit)
    return ClientUpdate(state=state, metrics=dict(content["metrics"]), **content["update"])


def headless(client: int) -> dict[str, ConfigRecord]:
    """Tasks that travel alone."""
    return {}


def pushed(grid: Grid, message: Message, seconds: float) -> str | None:
    """Send a message whose answer is waited for so long; its id, None where the SuperLink does not take it."""
    message.metadata.ttl = seconds + GRACE
    return next(iter(grid.push_messages([message])), None)


def not_sent(node: int) -> str:
    """Why a message to this node has no id."""
    return f"the SuperLink takes no message for node {node}: unknown to it, or the message is too large"


def not_answered(seconds: float) -> str:
    """Why a node that says nothing is waited for no longer."""
    told = f"no answer within {seconds:g} s: its node hangs, is dead or needs longer; see its log, or raise "
    return told + "federated.engine.reply_seconds"


def trusted(read: Callable[[], Outcome], client: int, samples: int, seconds: float) -> Outcome:
    """What `read` makes of a node's reply; a failure of `client` wherever that is not what its node may tell.

    samples: how many the client holds. seconds: told of the failure.
    """
    try:
        return _checked(read(), client, samples)
    except Exception as error:  # a node may send anything
        return ClientFailure(client, type(error).__name__, one_line(error), seconds)


def _checked(outcome: Outcome, client: int, samples: int) -> Outcome:
    """The outcome; raises InputError unless it is the client's own and its facts are of their kinds."""
    _expect("client", outcome.client, f"{client}", type(outcome.client) is int and outcome.client == client)
    _expect("seconds", outcome.seconds, "a number", _finite(outcome.seconds) and outcome.seconds >= 0)
    if isinstance(outcome, ClientFailure):
        return replace(outcome, error=one_line(outcome.error), message=one_line(outcome.message))
    count, steps = outcome.num_samples, outcome.steps
    _expect("metrics", len(outcome.metrics), f"at most {METRICS}", len(outcome.metrics) <= METRICS)
    longest = max(map(len, outcome.metrics), default=0)
    _expect("metrics' names", longest, f"of at most {NAME} characters", longest <= NAME)
    _expect("num_samples", count, f"{samples}", type(count) is int and count == samples)
    _expect("steps", steps, "1 or more", type(steps) is int and steps > 0)
    for name, value in outcome.metrics.items():
        _expect(f"metric '{one_line(name)}'", value, "a finite number", _finite(value))
    return outcome


def _finite(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)


def _expect(name: str, found: Any, expected: str, holds: bool) -> None:
    if not holds:
        raise InputError(f"federation: expected {name} of a node's reply as {expected}, found {one_line(found)!r:.50}")


def one_line(text: Any) -> str:
    """The text in one line of at most 500 characters: a node may send anything."""
    return " ".join(str(text).split())[:500]
