"""Who takes part: which of the grid's nodes trains which client, and what each told of itself.

A run begins when every client has told what it holds. Later it may be lost and come back, by another node too: who is
not there is a failed client, as long as what it told is known.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from datamodules.errors import InputError
from federated.engines.wire import PAUSE, one_line, pushed
from federated.sites import Holding

log = logging.getLogger(__name__)

NAMES = ("settings", "schema", "data", "base_model")  # digests by which a node tells what it has
FACTS: dict[str, type] = {"number": int, "samples": int, "miniature": bool, **dict.fromkeys(NAMES, str)}
AGREED = "agreed"  # names the record of digests that travels with every task

Told = Mapping[str, Any]  # FACTS of a node


class ChangedError(InputError):
    """A node has something else than what was agreed when the run began."""


# --- on a node ------------------------------------------------------------------------------------------------------


def held(content: Mapping[str, Any], own: Any) -> None:
    """Raises ChangedError unless a node's own digests, by NAMES, are those that its task was sent for.

    What is not among those that were sent is not looked at: in one process nobody meets.
    """
    for name, expected in content.get(AGREED, {}).items():
        if name in NAMES and getattr(own, name) != expected:
            found = f"found {getattr(own, name)[:12] or 'none'}, since changed"
            do = "put back what was there, or start the run again"
            raise ChangedError(f"federation: expected the {name} agreed at the start ({expected[:12]}), {found}: {do}")


# --- on the server --------------------------------------------------------------------------------------------------


class Roster:
    """Which node of `grid` trains which client: each that connects is asked once who it is.

    clients: how many there are, from 0 on. question: records that go with it. seconds: that nodes have to connect and
    to answer. told: what each client's node told. A node that cannot answer, or is none of the clients, is left aside.
    """

    def __init__(self, grid: Grid, clients: int, question: Mapping[str, ConfigRecord], seconds: float):
        self._grid, self._clients, self._question, self._seconds = grid, clients, dict(question), seconds
        self._connected: set[int] = set()
        self._asked: dict[str, int] = {}  # message -> node
        self._answers: dict[int, Told] = {}  # node -> what it told
        self._trouble: dict[int, str] = {}  # node -> why it cannot take part
        self._nodes: dict[int, int] = {}  # client -> node
        self.told: dict[int, Told] = {}

    def meet(self, memory: Path | None = None) -> None:
        """Wait until as many nodes as there are clients have answered.

        memory: of an earlier meeting of the same run. A client that was there and now has no node keeps its place,
        unless another has changed since. Raises InputError where a client has no place, or two nodes.
        """
        self._wait(lambda: len(self._answers) + len(self._trouble) >= self._clients)
        for client in range(self._clients):
            if len(nodes := self._claiming(client)) > 1:
                raise InputError(f"{self._numbers()}: {len(nodes)} nodes are client {client}; give each its number")
            if nodes:
                self._nodes[client], self.told[client] = nodes[0], self._answers[nodes[0]]
        missing = [client for client in range(self._clients) if client not in self._nodes]
        earlier = remembered(memory, self.told) if memory and missing else {}
        if any(client not in earlier for client in missing):
            raise InputError(self._found(missing[0]))
        for client in missing:
            self._nodes[client], self.told[client] = earlier[client]
            log.warning("client %d has no node after %g s; it fails until one connects", client, self._seconds)

    def node(self, client: int) -> int:
        """The client's node; where that is not connected, nodes that came since are asked whether they are.

        If none is, the one that it had.
        """
        if self._nodes[client] not in set(self._grid.get_node_ids()):
            self._wait(lambda: True)
            if nodes := self._claiming(client):
                self._nodes[client] = nodes[0]
                log.info("client %d is back, as node %d", client, nodes[0])
        return self._nodes[client]

    def remember(self, memory: Path) -> None:
        """Write down who is who, for a later meeting; a file that is there is replaced whole."""
        rows = [{"node": self._nodes[client], "told": self.told[client]} for client in range(self._clients)]
        memory.parent.mkdir(parents=True, exist_ok=True)
        half_written = memory.with_suffix(".part")
        half_written.write_text(json.dumps(rows, indent=1) + "\n")
        os.replace(half_written, memory)

    def _wait(self, enough: Callable[[], bool]) -> None:
        """Until all who were asked have answered and it is enough, or the time is over."""
        limit = time.monotonic() + self._seconds
        self._listen()
        while (self._asked or not enough()) and time.monotonic() < limit:
            time.sleep(PAUSE)
            self._listen()
        self._trouble |= {node: f"no answer within {self._seconds:g} s" for node in self._asked.values()}
        self._asked.clear()

    def _listen(self) -> None:
        """Ask the nodes that are new, and hear those that have answered."""
        self._connected = set(self._grid.get_node_ids())
        self._trouble = {node: why for node, why in self._trouble.items() if node in self._connected}
        for node in sorted(self._connected - {*self._answers, *self._trouble, *self._asked.values()}):
            name = pushed(self._grid, Message(RecordDict(dict(self._question)), node, "query"), self._seconds)
            if name is not None:  # else it has left again
                self._asked[name] = node
        while self._asked and (replies := list(self._grid.pull_messages(list(self._asked)))):
            for reply in replies:
                self._hear(self._asked.pop(reply.metadata.reply_to_message_id), reply)

    def _hear(self, node: int, reply: Message) -> None:
        try:
            if reply.has_error():
                raise InputError(f"a node cannot take part: {one_line(reply.error.reason)}")
            told = self._answers[node] = described(reply.content)
            log.info("node %d is client %d", node, told["number"])
        except InputError as error:
            self._trouble[node] = str(error)
            log.warning("node %d: %s", node, error)

    def _claiming(self, client: int) -> list[int]:
        """The connected nodes that told they are this client."""
        return [node for node, told in self._answers.items() if told["number"] == client and node in self._connected]

    def _found(self, nobody: int) -> str:
        """Why a client without a place has none."""
        if self._trouble:
            return f"{self._numbers()}: nobody is client {nobody}: {'; '.join(self._trouble.values())}"
        do = f"start its node within {self._seconds:g} s, and give it that number"
        return f"{self._numbers()}: nobody is client {nobody}: {do}"

    def _numbers(self) -> str:
        found = sorted(told["number"] for node, told in self._answers.items() if node in self._connected)
        return f"federation: expected clients 0 to {self._clients - 1}, found {found}"


def described(content: Mapping[str, Any]) -> Told:
    """What a node told of itself; raises InputError unless that is all of FACTS."""
    told: Mapping[str, Any] = content.get("site", {})
    if any(type(told.get(name)) is not kind for name, kind in FACTS.items()):
        found = ", ".join(sorted(told))[:200] or "nothing"
        raise InputError(f"federation: expected {', '.join(FACTS)} of a node, found {found}; install the same")
    return {name: told[name] for name in FACTS}


def remembered(memory: Path, present: Mapping[int, Told]) -> dict[int, tuple[int, Told]]:
    """Node and facts of every client at an earlier meeting; of none unless all `present` told the same then."""
    try:
        rows = json.loads(memory.read_text())
    except FileNotFoundError:
        return {}
    if any(rows[client]["told"] != told for client, told in present.items()):
        return {}
    return {client: (row["node"], described({"site": row["told"]})) for client, row in enumerate(rows)}


def check(told: Mapping[int, Told], agreed: Mapping[str, str]) -> None:
    """Raises InputError unless the settings, data, ... of every client's node are those `agreed` by name."""
    for client, facts in told.items():
        for name, ours in agreed.items():
            if facts[name] != ours:
                found = f"found another at client {client} ({facts[name][:12]}, ours {ours[:12]})"
                raise InputError(f"federation: expected the server's {name}, {found}; install and prepare the same")


def holdings(told: Mapping[int, Told]) -> list[Holding]:
    """What each client's node told of its data, in the order of the clients."""
    return [
        Holding.told(number, facts["samples"], facts["data"], facts["miniature"])
        for number, facts in sorted(told.items())
    ]
