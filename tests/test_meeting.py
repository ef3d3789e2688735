"""The meeting of a server and its nodes: who takes part, who comes later, and that each keeps what it told."""

import json
import time
from dataclasses import replace

import pytest
from test_flower import answering, nodes, toy_client

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from datamodules.errors import InputError
from federated.client import ClientFailure, ClientTask, ClientUpdate
from federated.engines import flower, meeting
from federated.engines.secure import Masking, SecureFlower

AGREED = {"settings": "s" * 64, "data": "d" * 64, "base_model": ""}
QUESTION = {"run": ConfigRecord({"overrides": ["a=b"]})}


def site(number: int, **other: str) -> ClientApp:
    """A node that is this client and has AGREED, but for what is named."""
    return having(flower.Site(toy_client()[2], number, **(AGREED | other)))


def having(*sites: flower.Site) -> ClientApp:
    """A node that has the first of these when it is asked first, and so on; the last for good."""
    left = list(sites)
    return flower.client_app(lambda message, context: left.pop(0) if len(left) > 1 else left[0])


def told(message: Message) -> Message:
    """The answer of client 1."""
    facts = {"number": 1, "samples": 0, "miniature": False, "schema": "", **AGREED}
    return Message(RecordDict({"site": ConfigRecord(facts)}), reply_to=message)


def failing(reason: str) -> ClientApp:
    return answering(lambda message: Message(Error(code=0, reason=reason), reply_to=message))


class Coming(flower.LocalGrid):
    """A grid whose nodes come and go: those of `here` are connected, those of `mute` say nothing."""

    def __init__(self, *apps: ClientApp, here=(), mute=()):
        super().__init__(nodes(*apps)._apps)
        self.here, self.mute, self.asked = set(here), set(mute), []

    def get_node_ids(self):
        return sorted(self.here)

    def push_messages(self, messages):
        messages = list(messages)
        self.asked += [message.metadata.dst_node_id for message in messages if message.metadata.message_type == "query"]
        return super().push_messages(messages)

    def pull_messages(self, message_ids):
        named = [name for name in message_ids if self._waiting[name].metadata.dst_node_id not in self.mute]
        for name in named:
            if self._waiting[name].metadata.dst_node_id not in self.here:
                lost = self._waiting.pop(name)
                return [Message(Error(code=3, reason="Node Unavailable"), reply_to=lost)]
        return super().pull_messages(named)


def met(grid: flower.LocalGrid, clients: int = 2, seconds: float = 5.0, memory=None) -> meeting.Roster:
    roster = meeting.Roster(grid, clients, QUESTION, seconds)
    roster.meet(memory)
    return roster


# --- the meeting ----------------------------------------------------------------------------------------------------


def test_nodes_are_met_and_must_agree():
    roster = met(nodes(site(1), site(0)))
    meeting.check(roster.told, AGREED)
    assert [roster.node(client) for client in (0, 1)] == [1, 0]
    for name in AGREED:
        with pytest.raises(InputError, match=f"the server's {name}, found another at client 1"):
            meeting.check(met(nodes(site(0), site(1, **{name: "other"}))).told, AGREED)
    with pytest.raises(InputError, match=r"clients 0 to 1, found \[1, 1\]: 2 nodes are client 1; give each its number"):
        met(nodes(site(1), site(1)))
    with pytest.raises(InputError, match=r"clients 0 to 2, found \[0, 1\]: nobody is client 2: start its node"):
        met(nodes(site(0), site(1)), 3, seconds=0.0)
    with pytest.raises(InputError, match="nobody is client 1: a node cannot take part: no data here"):
        met(nodes(site(0), failing("no data\nhere")))
    for answer in ({}, {"site": ConfigRecord({"number": "1"})}, {"site": ConfigRecord({"number": 1, "settings": 3})}):
        strange = answering(lambda message, answer=answer: Message(RecordDict(dict(answer)), reply_to=message))
        with pytest.raises(InputError, match="expected number, samples, miniature, settings, .* of a node, found"):
            met(nodes(site(0), strange))


def test_as_many_nodes_as_clients_of_the_partition():
    flower._seated(3, 3)
    with pytest.raises(InputError, match="expected 3 nodes, one a client of the partition, found 2: set nodes=3"):
        flower._seated(2, 3)


def test_nodes_beside_the_clients_are_left_aside():
    """One that fails, one that is no client of this run, one that hangs."""
    grid = Coming(failing("boom"), site(7), site(0), site(1), site(1), here=range(5), mute=[4])
    began = time.monotonic()
    roster = met(grid, seconds=0.5)
    assert [roster.node(client) for client in (0, 1)] == [2, 3] and time.monotonic() - began < 3


def test_a_first_meeting_needs_everybody_and_a_later_one_those_it_does_not_know(tmp_path):
    memory = tmp_path / "meetings/one.json"
    with pytest.raises(InputError, match="nobody is client 1"):
        met(nodes(site(0)), seconds=0.0, memory=memory)
    first = met(nodes(site(0), site(1)), memory=memory)
    first.remember(memory)
    assert [row["node"] for row in json.loads(memory.read_text())] == [0, 1]

    grid = Coming(site(0), site(1), here=[0])
    roster = met(grid, seconds=0.0, memory=memory)
    assert roster.told == first.told and [roster.node(client) for client in (0, 1)] == [0, 1]
    engine = flower.Flower(grid, roster.node, 2, lambda client: 30)
    engine.submit(task(1))
    lost = engine.collect()
    assert isinstance(lost, ClientFailure) and (lost.client, lost.message) == (1, "Node Unavailable")

    for changed in (site(0, data="other"), site(0, settings="other")):
        with pytest.raises(InputError, match="nobody is client 1"):
            met(Coming(changed, here=[0]), seconds=0.0, memory=memory)


# --- later on -------------------------------------------------------------------------------------------------------


def task(client: int, number: int = 0) -> ClientTask:
    return ClientTask(number, client, toy_client()[1].extract(), 1.0, 3)


def test_a_client_that_comes_back_as_another_node_is_found():
    """As a SuperNode without a key does; its old node stays unavailable for good."""
    grid = Coming(site(0), site(1), site(0), site(1), here=[0, 1])
    roster = met(grid)
    engine = flower.Flower(grid, roster.node, 2, flower_samples())
    outcomes = []
    for here in ({0, 1}, {0}, {0, 2}, {0, 2, 3}, {0, 3}):
        grid.here = here
        engine.submit(task(1))
        outcomes.append(engine.collect())
    assert [isinstance(outcome, ClientUpdate) for outcome in outcomes] == [True, False, False, True, True]
    assert [roster.node(client) for client in (0, 1)] == [0, 3]
    assert grid.asked == [0, 1, 2, 3], "each is asked once: a question costs a node a process"


def flower_samples():
    return toy_client()[2].num_samples


def test_a_new_node_that_says_nothing_is_waited_for_once():
    grid = Coming(site(0), site(1), site(1), here=[0, 1], mute=[2])
    roster = met(grid, seconds=0.4)
    grid.here = {0, 2}
    spent = []
    for _ in range(2):
        began = time.monotonic()
        assert roster.node(1) == 1
        spent.append(time.monotonic() - began)
    assert spent[0] >= 0.4 > spent[1] and grid.asked == [0, 1, 2]


def test_a_node_that_could_not_take_part_is_asked_again_when_it_comes_back():
    broken = iter([Error(code=0, reason="no data")])

    def mended(message: Message) -> Message:
        error = next(broken, None)
        return Message(error, reply_to=message) if error else told(message)

    grid = Coming(site(0), site(1), answering(mended), here=[0, 1])
    roster = met(grid)
    for here, node in (({0, 2}, 1), ({0}, 1), ({0, 2}, 2)):
        grid.here = here
        assert roster.node(1) == node


@pytest.mark.parametrize("name", sorted(AGREED))
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
def test_a_node_whose_data_or_settings_change_trains_no_longer(name, masked):
    """After its first round; the second is refused in one line, and the others go on."""
    hidden = Masking(4.0, 0.67, weighted=True) if masked else None
    agreed = AGREED | {"base_model": "b" * 64}
    same = [flower.Site(toy_client()[2], number, **agreed, masking=hidden) for number in range(3)]
    changed = replace(same[1], **{name: "c" * 64})
    grid = nodes(having(same[0]), having(same[1], same[1], changed), having(same[2]))
    roster = met(grid, 3)

    def header(client: int) -> dict[str, ConfigRecord]:
        return {meeting.AGREED: ConfigRecord({key: roster.told[client][key] for key in AGREED})}

    if hidden:
        engine = SecureFlower(grid, roster.node, 3, hidden, flower_samples(), header)
    else:
        engine = flower.Flower(grid, roster.node, 3, flower_samples(), header)
    for number in range(2):
        for client in range(3):
            engine.submit(task(client, number))
        outcomes = {outcome.client: outcome for outcome in (engine.collect() for _ in range(3))}
        lost = [client for client, outcome in outcomes.items() if isinstance(outcome, ClientFailure)]
        assert lost == [1] * number, outcomes
    expected = f"expected the {name} agreed at the start ({agreed[name][:12]}), found cccccccccccc, since changed: put"
    assert expected in outcomes[1].message and "\n" not in outcomes[1].message


def test_every_digest_of_the_agreement_is_one_that_a_node_has():
    own = flower.Site(toy_client()[2], 0, **AGREED)
    for name in meeting.NAMES:
        with pytest.raises(meeting.ChangedError, match=f"expected the {name} agreed"):
            meeting.held({meeting.AGREED: ConfigRecord({name: "other"})}, own)
    meeting.held({meeting.AGREED: ConfigRecord(AGREED)}, own)


def test_masks_of_a_round_are_those_of_one_node_a_client():
    """A client whose node is another before the round ends is still the one that was asked."""
    hidden = Masking(4.0, 0.67, weighted=True)
    grid = nodes(*[having(flower.Site(toy_client()[2], number % 2, **AGREED, masking=hidden)) for number in range(4)])
    asked = []

    def node(client: int) -> int:
        asked.append(client)
        return client + 2 * (asked.count(client) - 1)

    engine = SecureFlower(grid, node, 2, hidden, flower_samples())
    for client in range(2):
        engine.submit(task(client))
    assert all(isinstance(engine.collect(), ClientUpdate) for _ in range(2)) and asked == [0, 1]
