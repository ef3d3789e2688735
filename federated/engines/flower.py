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
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from datamodules.errors import InputError
from federated.client import Client, ClientFailure, ClientTask, Outcome
from federated.engines.base import Engine
from federated.engines.meeting import AGREED, FACTS, ChangedError, Roster, check, held, holdings
from federated.engines.secure import Masking, SecureFlower, is_masked, masked, masking
from federated.engines.wire import (
    FOREVER,
    PAUSE,
    Header,
    headless,
    not_answered,
    not_sent,
    one_line,
    outcome_content,
    outcome_of,
    pushed,
    task_content,
    task_of,
    trusted,
)
from federated.making import make_resident, make_workload
from federated.sites import Own, Sited, at_sites, discreetly
from federated.state import num_bytes
from federated.workloads.base import Workload
from tracking import identity
from tracking.build import factory
from tracking.doors import CONF, summary

EVERYBODY = 2**31  # places: as many as a round has clients
ROOM = 2  # times the bytes that were sent may come back: enough for another type of number, whose name is then told


# --- the engine -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sent:
    """A task on its way: whose it is, when it was sent, how many bytes of tensors may come back."""

    client: int
    began: float
    limit: int


class Flower:
    """Engine whose clients train on the nodes of a grid, `capacity` of them at the same time.

    node: client -> id of its node. samples: how many a client holds. header: client -> records that travel with its
    tasks. reply_seconds: that a client has to answer. A node that is lost, fails, says nothing for so long or answers
    what no client of that size would is a failed client.
    """

    secure = False

    def __init__(
        self,
        grid: Grid,
        node: Callable[[int], int],
        capacity: int,
        samples: Callable[[int], int],
        header: Header = headless,
        reply_seconds: float = FOREVER,
    ):
        self._grid, self._node, self._samples, self._header = grid, node, samples, header
        self._patience = reply_seconds
        self._sent: dict[str, Sent] = {}
        self._replies: list[Message] = []
        self._failed: list[Outcome] = []
        self.capacity = capacity

    def submit(self, task: ClientTask) -> None:
        """Send the task to its node; one that the SuperLink does not take is a failed client."""
        content = task_content(task)
        content.update(self._header(task.client))
        node = self._node(task.client)
        name = pushed(self._grid, Message(content, node, "train", group_id=str(task.round_number)), self._patience)
        if name is None:
            self._failed.append(ClientFailure(task.client, "NotSent", not_sent(node), 0.0))
        else:
            self._sent[name] = Sent(task.client, time.monotonic(), ROOM * num_bytes(task.state))

    def collect(self) -> Outcome:
        """The outcome of whoever is through first; raises RuntimeError where no client was submitted."""
        if not self._sent and not self._failed:
            raise RuntimeError("no client was submitted")
        while not self._replies and not self._failed:  # all those that came since are in it
            self._replies = list(self._grid.pull_messages(list(self._sent)))
            if not self._replies:
                self._failed = self._overdue()
                time.sleep(0 if self._failed else PAUSE)
        return self._failed.pop(0) if self._failed else self._outcome(self._replies.pop(0))

    def close(self) -> None:
        """The grid belongs to whoever made it."""

    def _overdue(self) -> list[Outcome]:
        """The clients that are waited for no longer."""
        late = [name for name, sent in self._sent.items() if time.monotonic() - sent.began > self._patience]
        gone, told = [self._sent.pop(name) for name in late], not_answered(self._patience)
        return [ClientFailure(sent.client, "NoReply", told, time.monotonic() - sent.began) for sent in gone]

    def _outcome(self, reply: Message) -> Outcome:
        sent = self._sent.pop(reply.metadata.reply_to_message_id)
        seconds = time.monotonic() - sent.began
        if reply.has_error():
            return ClientFailure(sent.client, "NodeError", one_line(reply.error.reason), seconds)
        samples = self._samples(sent.client)
        return trusted(lambda: outcome_of(reply.content, sent.limit), sent.client, samples, seconds)


# --- on a node ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """What a node trains: its client of the federation, and what both sides must agree on.

    masking: of its changes, None where the server may see them. schema, samples, miniature: of its data, told where
    they are its own.
    """

    client: Client
    number: int
    settings: str
    data: str
    base_model: str
    masking: Masking | None = None
    schema: str = ""
    samples: int = 0
    miniature: bool = False


def client_app(site: Callable[[Message, Context], Site]) -> ClientApp:
    """The node's side: who it is (`query`), and training (`train`)."""
    app = ClientApp()

    @app.query()
    def describe(message: Message, context: Context) -> Message:
        own = site(message, context)
        told = {name: getattr(own, name) for name in FACTS}
        return Message(RecordDict({"site": ConfigRecord(told)}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        def own() -> tuple[Client, Masking | None]:
            found = site(message, context)
            held(message.content, found)
            return found.client, found.masking

        try:
            if is_masked(message):
                return masked(message, context, own)
            client, hidden = own()
        except ChangedError as error:
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(error)), reply_to=message)
        if hidden is not None:
            raise InputError("secure aggregation: expected the server to ask for masked changes, found a plain request")
        return Message(outcome_content(client.run(task_of(message.content))), reply_to=message)

    return app


def configured_site(message: Message, context: Context) -> Site:
    """The site of a node whose prepared data lie on its own disk.

    The message brings the run's overrides; the node composes them with its own conf/ and with what its --node-config
    holds: `partition-id`, its client, and `overrides`, where its files are (raw=..., paths.root=...).
    """
    run: Any = message.content["run"]
    own = shlex.split(str(context.node_config.get("overrides", "")))
    return _prepared((*run["overrides"], *own), int(context.node_config["partition-id"]), context.run_id)


@lru_cache(maxsize=1)
def _prepared(overrides: tuple[str, ...], number: int, run: int) -> Site:
    """The site of these overrides; in one process made once a run, and anew for the next, as data may have changed."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    config = composed(list(overrides))
    plain = resolved(config)
    workload = discreetly(make_workload, plain) if at_sites(plain) else make_workload(plain)
    own = Own.of(workload, number) if at_sites(plain) else None
    if own and workload.described:
        print(workload.described)  # in the site's log: the server is told of samples, not of files
    return Site(
        make_resident(plain, workload, data=own).client,
        number,
        settings_digest(config),
        workload.fingerprint,
        workload.base_model,
        masking(plain),
        workload.schema,
        own.num_samples(number) if own else 0,
        workload.miniature,
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


def server_app(run: Callable[[DictConfig, Engine, Workload, str], Any]) -> ServerApp:
    """The server's side: `run` is federate.py with the engine, the workload and the command given.

    Run configuration: `overrides`, those of federate.py; `nodes`, how many take part, one a client.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        overrides = on_flower(shlex.split(str(context.run_config["overrides"])))
        config, common = composed(overrides), {"run": ConfigRecord({"overrides": overrides})}
        plain, count = resolved(config), int(context.run_config["nodes"])
        sited, workload = at_sites(plain), make_workload(plain)
        agreed = {"settings": settings_digest(config), "base_model": workload.base_model}
        agreed |= {"schema": workload.schema} if sited else {"data": workload.fingerprint}
        if not sited:
            _seated(count, len(workload.manifest["sizes"]))
        run_of_all = identity.digest([agreed, workload.fingerprint, count])
        memory = Path(plain["paths"]["root"]) / "meetings" / f"{run_of_all[:12]}.json"
        roster = Roster(grid, count, common, plain["federated"]["engine"]["meet_seconds"])
        roster.meet(None if plain["fresh"] else memory)
        check(roster.told, agreed)
        if sited:
            workload = Sited(workload, holdings(roster.told))
        roster.remember(memory)

        def header(client: int) -> dict[str, ConfigRecord]:
            return common | {AGREED: ConfigRecord(agreed | {"data": roster.told[client]["data"]})}

        engine = engine_of(plain, grid, roster.node, count, workload.manifest["sizes"].__getitem__, header)
        # Not this process's own command, which holds Flower's token.
        settings = f'nodes={count} overrides="{identity.shell(overrides)}"'
        command = identity.shell(["flwr", "run", "deployment", "--run-config", settings])
        print(summary(run(config, engine, workload, command)), flush=True)

    return app


def _seated(nodes: int, clients: int) -> None:
    """Raises InputError unless there is a node for every client of the partition."""
    if nodes != clients:
        do = f"set nodes={clients} and start as many, or take a partition into {nodes}"
        raise InputError(f"federation: expected {clients} nodes, one a client of the partition, found {nodes}: {do}")


def on_flower(overrides: list[str]) -> list[str]:
    """Overrides with this engine, whose settings are then there. Raises InputError for another one."""
    chosen = [override for override in overrides if override.startswith("federated/engine=")]
    if any(override != "federated/engine=flower" for override in chosen):
        raise InputError(
            f"federation: expected federated/engine=flower on a SuperLink, found {chosen[0]}: leave it out"
        )
    return overrides if chosen else ["federated/engine=flower", *overrides]


def engine_of(
    config: Mapping[str, Any],
    grid: Grid,
    node: Callable[[int], int],
    capacity: int,
    samples: Callable[[int], int],
    header: Header = headless,
) -> Engine:
    """The engine of a resolved configuration on a grid, which sees every client's change or their sum alone.

    The arguments as in `Flower`.
    """
    hidden = masking(config)
    seconds = config.get("federated", {}).get("engine", {}).get("reply_seconds", FOREVER)
    if hidden is None:
        return Flower(grid, node, capacity, samples, header, seconds)
    return SecureFlower(grid, node, capacity, hidden, samples, header, seconds)


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
        """Raises NotImplementedError: nobody starts runs here."""
        raise NotImplementedError("a local grid knows no run")

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to one node; nobody is asked to make it."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that there are."""
        return list(self._apps)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Put them aside until their replies are asked for; returns their ids, counted up."""
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
        """The replies to all of them, however long they take."""
        return [reply for name in self.push_messages(messages) for reply in self.pull_messages([name])]


class Nodes(dict):
    """A node for every number, each the same app with a memory of its own."""

    def __init__(self, app: ClientApp):
        self._app = app

    def __missing__(self, number: int) -> tuple[ClientApp, Context]:
        """The app, and a new context that this number keeps."""
        self[number] = self._app, Context(run_id=1, node_id=number, node_config={}, state=RecordDict(), run_config={})
        return self[number]


@factory
def simulated(
    config: Mapping[str, Any], client: Client, reply_seconds: float = FOREVER, meet_seconds: float = FOREVER
) -> Engine:
    """Flower's messages and apps around the one resident client, without a network or other processes.

    reply_seconds, meet_seconds: that clients have to answer and to come; here they are there and always do.
    """
    hidden = masking(config)
    site = Site(client, 0, "", "", "", hidden)
    grid = LocalGrid(Nodes(client_app(lambda message, context: site)))
    capacity = 1 if hidden is None else EVERYBODY
    return engine_of(config, grid, lambda number: number + 1, capacity, client.num_samples)
