"""Clients on other machines, by Flower's messages (flwr 1.41): the rounds, rules and ledger stay ours.

The orchestrator runs inside a ServerApp and this engine sends its tasks to nodes; a node's ClientApp trains the same
`Client` as every other engine.
"""

import copy
import os
import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from datamodules.errors import InputError
from federated.client import Client, ClientFailure, ClientTask, Outcome
from federated.engines.base import Engine
from federated.engines.secure import Masking, SecureFlower, is_masked, masked, masking
from federated.engines.wire import outcome_content, outcome_of, task_content, task_of, trusted
from federated.making import make_resident, make_workload
from tracking import identity
from tracking.build import factory
from tracking.doors import CONF, summary

PAUSE = 0.2  # seconds between two looks for replies
WAIT = 600.0  # seconds to wait for the nodes
EVERYBODY = 2**31  # places: as many as a round has clients


# --- the engine -----------------------------------------------------------------------------------------------------


class Flower:
    """Engine whose clients train on the nodes of a grid, `capacity` of them at the same time.

    node: client -> id of its node. samples: how many a client holds. header: records that travel with every task. A
    node that is lost, fails or answers what no client of that size would is a failed client.
    """

    secure = False

    def __init__(
        self,
        grid: Grid,
        node: Callable[[int], int],
        capacity: int,
        samples: Callable[[int], int],
        header: Mapping[str, ConfigRecord] | None = None,
    ):
        self._grid, self._node, self._samples, self._header = grid, node, samples, dict(header or {})
        self._sent: dict[str, tuple[int, float]] = {}
        self._replies: list[Message] = []
        self.capacity = capacity

    def submit(self, task: ClientTask) -> None:
        content = task_content(task)
        content.update(self._header)
        message = Message(content, self._node(task.client), "train", group_id=str(task.round_number))
        (sent,) = self._grid.push_messages([message])
        self._sent[sent] = task.client, time.monotonic()

    def collect(self) -> Outcome:
        if not self._sent:
            raise RuntimeError("no client was submitted")
        while not self._replies:  # all those that came since are in it
            self._replies = list(self._grid.pull_messages(list(self._sent)))
            if not self._replies:
                time.sleep(PAUSE)
        return self._outcome(self._replies.pop(0))

    def close(self) -> None:
        """The grid belongs to whoever made it."""

    def _outcome(self, reply: Message) -> Outcome:
        client, began = self._sent.pop(reply.metadata.reply_to_message_id)
        if reply.has_error():
            reason = " ".join(str(reply.error.reason).split())[:500]
            return ClientFailure(client, "NodeError", reason, time.monotonic() - began)
        seconds = time.monotonic() - began
        return trusted(lambda: outcome_of(reply.content), client, self._samples(client), seconds)


# --- on a node ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """What a node trains: its client of the federation, and what both sides must agree on.

    masking: of its changes, None where the server may see them.
    """

    client: Client
    number: int
    settings: str
    data: str
    base_model: str
    masking: Masking | None = None


def client_app(site: Callable[[Message, Context], Site]) -> ClientApp:
    """The node's side: who it is (`query`), and training (`train`)."""
    app = ClientApp()

    @app.query()
    def describe(message: Message, context: Context) -> Message:
        own = site(message, context)
        told = {name: getattr(own, name) for name in ("number", "settings", "data", "base_model")}
        return Message(RecordDict({"site": ConfigRecord(told)}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        def own() -> tuple[Client, Masking | None]:
            found = site(message, context)
            return found.client, found.masking

        if is_masked(message):
            return masked(message, context, own)
        client, hidden = own()
        if hidden is not None:
            raise InputError("secure aggregation: expected the server to ask for masked changes, found a plain request")
        return Message(outcome_content(client.run(task_of(message.content))), reply_to=message)

    return app


def configured_site(message: Message, context: Context) -> Site:
    """The site of a node whose prepared data lie on its own disk.

    The message brings the run's overrides; the node composes them with its own conf/ and with what its --node-config
    holds: `partition-id`, its client, and `overrides`, where its files are (raw=..., paths.root=...).
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    run: Any = message.content["run"]
    own = shlex.split(str(context.node_config.get("overrides", "")))
    config = composed([*run["overrides"], *own])
    workload = make_workload(resolved(config))
    return Site(
        make_resident(resolved(config), workload).client,
        int(context.node_config["partition-id"]),
        settings_digest(config),
        workload.fingerprint,
        workload.base_model,
        masking(resolved(config)),
    )


def composed(overrides: list[str]) -> DictConfig:
    """The configuration of federate.py with these overrides."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("federate", overrides)


def resolved(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain containers."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return plain


def settings_digest(config: DictConfig) -> str:
    """What server and nodes must share of the settings: all but where files lie and who watches."""
    return identity.digest(identity.essence(config))


# --- on the server --------------------------------------------------------------------------------------------------


def server_app(run: Callable[[DictConfig, Engine], Any]) -> ServerApp:
    """The server's side: `run` is federate.py with the engine given.

    Run configuration: `overrides`, those of federate.py; `nodes`, how many take part, one a client.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        overrides = shlex.split(str(context.run_config["overrides"]))
        config, header = composed(overrides), {"run": ConfigRecord({"overrides": overrides})}
        workload = make_workload(resolved(config))
        sizes = workload.manifest["sizes"]
        sites = meet(grid, int(context.run_config["nodes"]), header)
        check(sites, len(sizes), settings_digest(config), workload.fingerprint, workload.base_model)
        nodes = {site["number"]: node for node, site in sites.items()}
        engine = engine_of(resolved(config), grid, nodes.__getitem__, len(nodes), sizes.__getitem__, header)
        print(summary(run(config, engine)), flush=True)

    return app


def engine_of(
    config: Mapping[str, Any],
    grid: Grid,
    node: Callable[[int], int],
    capacity: int,
    samples: Callable[[int], int],
    header: Mapping[str, ConfigRecord] | None = None,
) -> Engine:
    """The engine of a resolved configuration on a grid, which sees every client's change or their sum alone.

    The arguments as in `Flower`.
    """
    hidden = masking(config)
    if hidden is None:
        return Flower(grid, node, capacity, samples, header)
    return SecureFlower(grid, node, capacity, hidden, samples, header)


def meet(grid: Grid, count: int, header: Mapping[str, ConfigRecord], wait: float = WAIT) -> dict[int, Mapping]:
    """Wait for `count` nodes and ask each who it is: node id -> what it told."""
    limit = time.monotonic() + wait
    while len(nodes := list(grid.get_node_ids())) < count:
        if time.monotonic() > limit:
            raise InputError(f"federation: expected {count} nodes, found {len(nodes)} after {wait:.0f} s; start them")
        time.sleep(PAUSE)
    questions = [Message(RecordDict(dict(header)), node, "query") for node in nodes]
    sites: dict[int, Mapping] = {}
    for reply in grid.send_and_receive(questions, timeout=wait):
        if reply.has_error():
            raise InputError(f"federation: a node cannot take part: {' '.join(str(reply.error.reason).split())}")
        sites[reply.metadata.src_node_id] = reply.content["site"]
    if len(sites) < count:
        raise InputError(f"federation: expected answers of {count} nodes, found {len(sites)}; see their logs")
    return sites


def check(sites: Mapping[int, Mapping], clients: int, settings: str, data: str, base_model: str) -> None:
    """Raises InputError unless every client has one node, with the server's settings, data and base model."""
    if len(sites) != clients:
        do = f"set nodes={clients} and start as many, or take a partition into {len(sites)}"
        raise InputError(
            f"federation: expected {clients} nodes, one a client of the partition, found {len(sites)}: {do}"
        )
    numbers = sorted(site["number"] for site in sites.values())
    if numbers != list(range(len(sites))):
        raise InputError(f"federation: expected clients 0 to {len(sites) - 1}, found {numbers}; give each its number")
    agreed = {"settings": settings, "data": data, "base_model": base_model}
    for site in sites.values():
        for name, ours in agreed.items():
            if site[name] != ours:
                found = f"found another at client {site['number']} ({site[name][:12]}, ours {ours[:12]})"
                raise InputError(f"federation: expected the server's {name}, {found}; install and prepare the same")


# --- both in this process -------------------------------------------------------------------------------------------


class LocalGrid(Grid):
    """A grid without a network: nodes are ClientApps called in this process, one after the other."""

    def __init__(self, apps: Mapping[int, tuple[ClientApp, Context]]):
        # Flower's messages ask who sends them; flwr.supercore is private, hence the pin of flwr to one minor version.
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
        self._apps = apps
        self._waiting: dict[str, Message] = {}
        self._pushed = 0

    def set_run(self, run: Any) -> None:
        """There is one run."""

    @property
    def run(self) -> Any:
        raise NotImplementedError("a local grid knows no run")

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._apps)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        names = []
        for message in messages:
            self._pushed += 1
            message.content = copy.deepcopy(message.content)  # as the wire would: who sends one twice shares nothing
            message.metadata.__dict__["_message_id"] = str(self._pushed)
            self._waiting[str(self._pushed)] = message
            names.append(str(self._pushed))
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The reply to the first of them: a node works when it is asked for."""
        for name in message_ids:
            if message := self._waiting.pop(name, None):
                app, context = self._apps[message.metadata.dst_node_id]
                return [app(message, context)]
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return [reply for name in self.push_messages(messages) for reply in self.pull_messages([name])]


class Nodes(dict):
    """A node for every number, each the same app with a memory of its own."""

    def __init__(self, app: ClientApp):
        self._app = app

    def __missing__(self, number: int) -> tuple[ClientApp, Context]:
        self[number] = self._app, Context(run_id=1, node_id=number, node_config={}, state=RecordDict(), run_config={})
        return self[number]


@factory
def simulated(config: Mapping[str, Any], client: Client) -> Engine:
    """Flower's messages and apps around the one resident client, without a network or other processes."""
    hidden = masking(config)
    site = Site(client, 0, "", "", "", hidden)
    grid = LocalGrid(Nodes(client_app(lambda message, context: site)))
    capacity = 1 if hidden is None else EVERYBODY
    return engine_of(config, grid, lambda number: number + 1, capacity, client.num_samples)
