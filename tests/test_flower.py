"""Flower: what travels arrives bit by bit, local and deployed federations are the in-process one."""

import http.client
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import test_federate_door as door_tests
import test_sites
import torch
import toy_mllm
from hydra import compose, initialize_config_dir
from toy_federation import Toy, dataset, federation, same, shares

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

import federate
from datamodules.errors import InputError
from federated.adapter import Adapter
from federated.client import Client, ClientFailure, ClientTask, ClientUpdate
from federated.data import PartitionedData
from federated.engines import flower
from federated.engines import wire as travels
from federated.engines.in_process import InProcess
from federated.ledger import Ledger
from tracking import records

ROOT = Path(__file__).parents[1]
root, clips, captions = door_tests.root, test_sites.clips, test_sites.captions


def wire(content: RecordDict) -> RecordDict:
    """What the other side reads: through the bytes of Flower's own serialisation."""

    return recorddict_from_proto(
        type(recorddict_to_proto(content)).FromString(recorddict_to_proto(content).SerializeToString())
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_a_state_arrives_bit_by_bit(dtype):
    source = torch.Generator().manual_seed(0)
    tensor = torch.randn(3, 4, generator=source).mul(100).to(dtype)
    state = {"a": tensor, "transposed": tensor.T, "scalar": tensor[0, 0], "empty": tensor[:0]}
    found = travels.from_record(wire(RecordDict({"s": travels.to_record(state)}))["s"])
    assert list(found) == list(state)
    assert all(found[name].dtype == dtype and torch.equal(found[name], state[name]) for name in state)


def test_tasks_and_outcomes_arrive():
    state = {"w": torch.randn(2, 3)}
    task = ClientTask(3, 1, state, 0.5, 2**31 + 7)
    found = travels.task_of(wire(travels.task_content(task)))
    assert vars(found) | {"state": 0} == vars(task) | {"state": 0} and same(found.state, state)
    update = ClientUpdate(1, 30, 4, state, {"train/loss": 0.1}, 1.5)
    found = travels.outcome_of(wire(travels.outcome_content(update)))
    assert vars(found) | {"state": 0} == vars(update) | {"state": 0} and same(found.state, state)
    failure = ClientFailure(2, "InputError", "no more", 0.5)
    assert travels.outcome_of(wire(travels.outcome_content(failure))) == failure.discreet() != failure


def toy_client(dtype: torch.dtype = torch.float32) -> tuple[Toy, Adapter, Client]:
    module = Toy().to(dtype)
    adapter = Adapter(module)
    data = PartitionedData(dataset(), shares(4), batch_size=8)
    return module, adapter, Client(module, adapter, data, device="cpu", options=PRECISIONS[dtype])


PRECISIONS = {torch.float32: {}, torch.bfloat16: {"precision": "bf16-true"}}


@pytest.mark.parametrize("dtype", list(PRECISIONS))
def test_messages_around_the_resident_client_change_no_byte(dtype):
    found = []
    for make in (lambda client: InProcess(client), lambda client: flower.simulated({}, client)):
        module, adapter, client = toy_client(dtype)
        run = federation(module=module, adapter=adapter, engine=make(client), rounds=2).run()
        found.append(run.models["global"])
    assert same(*found) and all(tensor.dtype == dtype for tensor in found[0].values())


def nodes(*apps: ClientApp) -> flower.LocalGrid:
    contexts = [
        Context(run_id=1, node_id=n, node_config={}, state=RecordDict(), run_config={}) for n in range(len(apps))
    ]
    return flower.LocalGrid(dict(enumerate(zip(apps, contexts, strict=True))))


def answering(reply) -> ClientApp:
    app = ClientApp()
    app.train()(lambda message, context: reply(message))
    app.query()(lambda message, context: reply(message))
    return app


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (lambda message: Message(Error(code=0, reason="lost\nthe node"), reply_to=message), "NodeError"),
        (lambda message: Message(RecordDict({}), reply_to=message), "KeyError"),
        (
            lambda message: Message(
                RecordDict(
                    {
                        "state": ArrayRecord({"w": Array("float32", (9,), travels.RAW, b"1234")}),
                        "metrics": MetricRecord({}),
                        "update": ConfigRecord({"client": 0, "num_samples": 1, "steps": 1, "seconds": 0.0}),
                    }
                ),
                reply_to=message,
            ),
            "RuntimeError",
        ),
    ],
)
def test_whatever_a_node_sends_is_at_most_a_failed_client(reply, kind):
    outcome = answer(reply)
    assert isinstance(outcome, ClientFailure) and outcome.error == kind and "\n" not in outcome.message


def answer(reply):
    """What the server makes of a node's reply to client 1's task, which has 30 samples."""
    engine = flower.Flower(nodes(answering(reply)), lambda client: 0, 1, lambda client: 30)
    engine.submit(ClientTask(0, 1, {"w": torch.zeros(9)}, 1.0, 3))
    return engine.collect()


GOOD = {"client": 1, "num_samples": 30, "steps": 4, "seconds": 1.5}


def updating(state=None, metrics=None, **facts):
    """A node that sends an update, right but for these facts; None leaves one out."""
    told = {name: value for name, value in (GOOD | facts).items() if value is not None}
    records = {"state": travels.to_record(state or {"w": torch.zeros(9)}), "update": ConfigRecord(told)}
    records["metrics"] = MetricRecord(metrics or {"train/loss": 0.5})
    return lambda message: Message(RecordDict(records), reply_to=message)


def test_a_right_answer_is_taken():
    assert isinstance(answer(updating()), ClientUpdate)


def test_more_bytes_than_a_state_has_are_not_looked_at():
    """Of another type they are told by name later on, and 100 times as many before anything is made of them."""
    assert isinstance(answer(updating(state={"w": torch.zeros(9, dtype=torch.float64)})), ClientUpdate)
    outcome = answer(updating(state={"w": torch.zeros(900)}))
    assert isinstance(outcome, ClientFailure) and "expected tensors of at most 72 bytes, found 3600" in outcome.message


class Silent(flower.LocalGrid):
    """A grid whose node 0 never answers, and which knows no node 9."""

    def push_messages(self, messages):
        messages = list(messages)
        named = super().push_messages(messages)
        return [None if sent.metadata.dst_node_id == 9 else name for name, sent in zip(named, messages, strict=True)]

    def pull_messages(self, message_ids):
        answering = (name for name in message_ids if self._waiting[name].metadata.dst_node_id != 0)
        return super().pull_messages(answering)


def test_who_does_not_answer_in_time_is_a_failed_client_and_the_others_are_heard():
    grid = Silent(nodes(*[answering(updating())] * 2)._apps)
    engine = flower.Flower(grid, lambda client: {0: 0, 1: 1, 2: 9}[client], 3, lambda client: 30, reply_seconds=0.3)
    for client in range(3):
        engine.submit(ClientTask(0, client, {"w": torch.zeros(9)}, 1.0, 3))
    ttl = [sent.metadata.ttl for sent in grid._waiting.values()]
    assert ttl == [travels.GRACE + 0.3] * 3, "Flower itself has to forget the message, or a node trains for nobody"
    lost, heard, late = (engine.collect() for _ in range(3))
    assert isinstance(heard, ClientUpdate) and heard.client == 1
    assert (lost.client, lost.error) == (2, "NotSent") and "takes no message for node 9" in lost.message
    assert (late.client, late.error) == (0, "NoReply") and late.seconds >= 0.3
    assert "no answer within 0.3 s" in late.message and "raise federated.engine.reply_seconds" in late.message
    with pytest.raises(RuntimeError):
        engine.collect()


def test_a_superlink_has_this_engine_and_its_settings():
    assert flower.on_flower(["a=b"]) == ["federated/engine=flower", "a=b"]
    assert flower.on_flower(["a=b", "federated/engine=flower"]) == ["a=b", "federated/engine=flower"]
    with pytest.raises(InputError, match="expected federated/engine=flower on a SuperLink, found federated/engine=wo"):
        flower.on_flower(["federated/engine=workers"])
    for more in ([], ["federated/privacy=secure_aggregation"]):
        settings = [door_tests.BY_CAMERA, "federated.engine.reply_seconds=7", *more]
        config = flower.composed(flower.on_flower(settings))
        engine = flower.engine_of(flower.resolved(config), nodes(), int, 1, int)
        assert engine._patience == 7 and engine.secure == bool(more)


@pytest.mark.parametrize(
    "wrong",
    [
        {"client": 77},
        {"client": 0},
        {"client": -1},
        {"client": True},
        {"client": "1"},
        {"num_samples": 10**18},
        {"num_samples": 0},
        {"num_samples": 30.0},
        {"steps": 0},
        {"seconds": "long"},
        {"seconds": float("nan")},
        {"seconds": None},
        {"extra": 1},
        {"metrics": {"train/loss": float("inf")}},
        {"metrics": {"train/loss": [0.5]}},
    ],
    ids=str,
)
def test_facts_that_are_not_the_clients_are_a_failed_client(wrong):
    outcome = answer(updating(**wrong))
    assert isinstance(outcome, ClientFailure) and outcome.client == 1 and outcome.message
    assert isinstance(outcome.seconds, float)


def test_what_a_node_measured_has_few_and_short_names():
    """They end in the logs, the record and the tables of the server."""
    many = {f"metric {number}": 0.5 for number in range(101)}
    for metrics, told in ((many, "at most 100, found '101'"), ({"x" * 101: 0.5}, "at most 100 characters")):
        outcome = answer(updating(metrics=metrics))
        assert isinstance(outcome, ClientFailure) and told in outcome.message
    few = dict(list(many.items())[1:]) | {"metric 1": 0.5}
    assert len(few) == 100 and isinstance(answer(updating(metrics=few)), ClientUpdate)
    assert isinstance(answer(updating(metrics={"x" * 100: 0.5})), ClientUpdate)


@pytest.mark.parametrize("wrong", [{"client": 0}, {"seconds": "long"}, {"extra": 1}, {"message": None}], ids=str)
def test_a_failure_is_told_of_the_client_that_was_asked(wrong):
    facts = {"client": 1, "error": "Boom", "message": "no\nmore", "seconds": 0.5} | wrong
    told = {name: value for name, value in facts.items() if value is not None}
    outcome = answer(lambda message: Message(RecordDict({"failure": ConfigRecord(told)}), reply_to=message))
    assert isinstance(outcome, ClientFailure) and outcome.client == 1 and outcome.error != "Boom"


def test_bytes_that_are_not_there_are_no_tensor():
    record = ArrayRecord({"w": Array("float32", (9,), travels.RAW, b"")})
    with pytest.raises((ValueError, RuntimeError)):
        travels.from_record(record)


def test_telemetry_and_update_checks_are_off():
    """In Flower's own eyes: it reads the one when it is imported, the other whenever it would look."""
    script = "import federated.engines.flower, os; from flwr.supercore import telemetry; "
    script += "print(telemetry.FLWR_TELEMETRY_ENABLED, os.environ['FLWR_DISABLE_UPDATE_CHECK'])"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    line = [sys.executable, "-c", script]
    assert subprocess.check_output(line, cwd=ROOT, env=clean, text=True).split() == ["0", "1"]


# --- a SuperLink and two SuperNodes on loopback ---------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(line: list[str], log: Path, environment: dict[str, str]):
    """A process and the children it starts, all of them ended afterwards."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            line, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=log.parent, start_new_session=True
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class Guard:
    """Options by which SuperLink, SuperNodes and whoever starts runs know each other; by default not at all."""

    link: list = field(default_factory=lambda: ["--insecure"])
    node: Callable[[int], list] = lambda number: ["--insecure"]
    run: str = "insecure = true"
    keys: list[Path] = field(default_factory=list)
    door: Callable[[int], int] = lambda port: port  # by which nodes come to the SuperLink of this port


def certified(folder: Path, nodes: int) -> Guard:
    """Certificates of a server on this machine and keys of its nodes, made as docs/deployment.md makes them."""
    page = (ROOT / "docs/deployment.md").read_text()
    server = next(block for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if block.startswith("openssl"))
    (key,) = re.findall(r"`(ssh-keygen [^`]*) -f node`", page)
    more = [f"{key} -q -f node{number}" for number in range(nodes)]
    subprocess.run(["bash", "-euc", "\n".join([server, *more])], cwd=folder, check=True, capture_output=True)
    authority = folder / "ca.crt"
    link = ["--ssl-ca-certfile", authority]
    link += ["--ssl-certfile", folder / "server.crt", "--ssl-keyfile", folder / "server.key"]
    return Guard(
        [*link, "--enable-supernode-auth"],
        lambda number: ["--root-certificates", authority, "--auth-supernode-private-key", folder / f"node{number}"],
        f'root-certificates = "{authority}"',
        [folder / f"node{number}.pub" for number in range(nodes)],
    )


def surroundings(folder: Path) -> dict[str, str]:
    """Environment of Flower's programs."""
    off = {"FLWR_HOME": str(folder), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | off | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def deployed(
    overrides: list[str],
    own: list[list[str]],
    folder: Path,
    guard: Guard | None = None,
    meanwhile: Callable[[list[subprocess.Popen]], None] = lambda nodes: None,
) -> tuple[str, str]:
    """Runs federate.py on a SuperLink and a SuperNode for each of `own`, the settings of that node alone.

    Over real sockets of this machine, a process a message. meanwhile: is given the nodes when the run has been started.
    Returns what the run printed, and that with all logs.
    """
    guard, port = guard or Guard(), free_port()
    (folder / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\n{guard.run}\n'
    )
    tools, environment = Path(sys.executable).parent, surroundings(folder)
    link = [*guard.link, "--host", "127.0.0.1", "--port", port, "--disable-runtime-dependency-installation"]
    with ExitStack() as services:
        services.enter_context(running(line(tools / "flower-superlink", *link), folder / "link.log", environment))
        limit = time.monotonic() + 180
        while not answers(port):
            assert time.monotonic() < limit, (folder / "link.log").read_text()
            time.sleep(0.5)
        for key in guard.keys:
            register = line(tools / "flwr", "supernode", "register", key, "here")
            subprocess.run(register, env=environment, cwd=folder, check=True, capture_output=True, timeout=120)
        nodes, door = [], guard.door(port)
        for number, settings in enumerate(own):
            node = [*guard.node(number), "--superlink", f"127.0.0.1:{door}", "--port", free_port()]
            node += ["--node-config", f'partition-id={number} overrides="{" ".join(settings)}"']
            log = folder / f"node{number}.log"
            nodes.append(services.enter_context(running(line(tools / "flower-supernode", *node), log, environment)))
        run = ["run", ROOT / "deployment", "here", "--stream"]
        run += ["--run-config", f'nodes={len(own)} overrides="{" ".join(overrides)}"']
        told = folder / "run.log"
        ending = services.enter_context(running(line(tools / "flwr", *run), told, environment))
        meanwhile(nodes)
        ending.wait(1200)
    logs = "".join(log.read_text()[-3000:] for log in folder.glob("*.log"))
    return told.read_text(), logs


def line(*words) -> list[str]:
    return list(map(str, words))


@pytest.mark.slow
def test_a_superlink_and_two_supernodes_compute_the_in_process_federation(root, tmp_path):
    """Two rounds of a skeleton method; the model equals that of federate.py bit by bit."""
    common = [*door_tests.SMALL, f"raw={root}/raw", "federated/partition=iid", "federated.partition.clients=2"]
    own = [f"paths.root={tmp_path}", f"paths.stores={root}/stores"]
    alone = federate.main.run(door_tests.config("federate", root, door_tests.BY_CAMERA, *common))
    said, logs = deployed([door_tests.BY_CAMERA, *common, *own], [own, own], tmp_path)
    (model,) = tmp_path.glob("runs/*/global.ckpt")
    states = [torch.load(path, weights_only=True)["state_dict"] for path in (alone["checkpoint"]["global"], model)]
    assert same(*states), logs
    assert f"key: {alone['key']}" in said, logs


@pytest.mark.slow
def test_a_supernode_killed_in_a_round_is_left_out(root, tmp_path, monkeypatch):
    """SIGKILL in the second of three rounds: the others' mean goes on, as if that client had failed from then on."""
    common = [*door_tests.SMALL, f"raw={root}/raw", "federated/partition=iid", "federated.partition.clients=2"]
    common += ["federated.rounds=3", "seed=11"]
    own = [f"paths.root={tmp_path}", f"paths.stores={root}/stores"]

    def kill(nodes: list[subprocess.Popen]) -> None:
        limit = time.monotonic() + 600
        while not list(tmp_path.glob("runs/*/ledger.safetensors")):  # the first round is committed
            assert time.monotonic() < limit and all(node.poll() is None for node in nodes)
            time.sleep(0.05)
        os.killpg(nodes[1].pid, signal.SIGKILL)

    patient = "federated.engine.reply_seconds=150"
    _, logs = deployed([door_tests.BY_CAMERA, *common, *own, patient], [own, own], tmp_path, meanwhile=kill)
    (path,) = (tmp_path / "records").glob("*.json")
    record = records.read(path)
    ledger = Ledger(next(tmp_path.glob("runs/*/ledger.safetensors")), record.key).resume()
    fates = [[outcome.get("error", "") for outcome in told["outcomes"]] for told in ledger.records]
    assert fates[0] == ["", ""] and [first for first, _ in fates] == [""] * 3, logs
    assert {second for _, second in fates[1:]} <= {"NodeError", "NoReply"}, logs
    assert record.metrics["failed"] == 2 and record.metrics["rounds"] == 3
    reasons = [told["outcomes"][1] for told in ledger.records[1:]]
    assert all(reason["message"] and reason["seconds"] < 180 for reason in reasons), reasons

    runs = Client.run
    lost = ClientFailure(1, "Boom", "lost", 0.0)
    monkeypatch.setattr(Client, "run", lambda c, task: lost if task.round_number and task.client else runs(c, task))
    alone = federate.main.run(door_tests.config("federate", root, door_tests.BY_CAMERA, *common))
    assert alone["key"] == record.key and alone["failed"] == 2
    assert same(ledger.shared, Ledger(Path(alone["folder"]) / "ledger.safetensors", alone["key"]).resume().shared)


# --- sites with data of their own, behind a door of one way ---------------------------------------------------------


class OneWay(BaseHTTPRequestHandler):
    """Passes on what nodes ask (/v1/fleet/) to the SuperLink of `behind`, and nothing else."""

    behind: tuple[int, ssl.SSLContext]
    passed: ClassVar[set[str]] = set()
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        status, headers, content = 403, [], b""
        if self.path.startswith("/v1/fleet/"):
            self.passed.add(self.path)
            port, trust = self.behind
            inner = http.client.HTTPSConnection("127.0.0.1", port, context=trust, timeout=120)
            inner.request("POST", self.path, body, dict(self.headers))
            reply = inner.getresponse()
            status, headers, content = reply.status, reply.getheaders(), reply.read()
            inner.close()
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """The SuperLink tells enough."""


@contextmanager
def one_way(keys: Path):
    """Guard of a SuperLink to which nodes come by a proxy that ends their TLS, with its own certificate."""
    guard = certified(keys, 2)
    theirs = ssl.create_default_context(cafile=keys / "ca.crt")
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(keys / "server.crt", keys / "server.key")
    door = ThreadingHTTPServer(("127.0.0.1", 0), OneWay)
    door.socket = ours.wrap_socket(door.socket, server_side=True)

    def opened(port: int) -> int:
        OneWay.behind = port, theirs
        threading.Thread(target=door.serve_forever, daemon=True).start()
        return door.server_port

    guard.door = opened
    try:
        yield guard, theirs
    finally:
        door.shutdown()


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("openssl") and shutil.which("ssh-keygen")), reason="no openssl or ssh-keygen")
def test_supernodes_with_data_of_their_own_come_by_a_door_that_starts_no_runs(clips, tmp_path):
    """Each has a folder of its own and the server the test side; the model is that of the pooled data, bit by bit."""
    root, settings = clips
    (tmp_path / "keys").mkdir()
    alone = federate.federate(test_sites.config([*settings, *test_sites.pooled(root, captions=False)]))
    own = [test_sites.place(root, name, captions=False) for name in test_sites.SEPARATE]
    tried = []

    with one_way(tmp_path / "keys") as (guard, trust):

        def start_a_run(nodes: list[subprocess.Popen]) -> None:
            outside = http.client.HTTPSConnection("127.0.0.1", guard.door(OneWay.behind[0]), context=trust, timeout=60)
            for path in ("/v1/control/start-run", "/v1/control/list-runs", "/v1/runtime/pull-messages"):
                outside.request("POST", path, b"")
                reply = outside.getresponse()
                tried.append(reply.status)
                reply.read()

        said, logs = deployed([*settings, test_sites.AT_SITES, *own[2]], own[:2], tmp_path, guard, start_a_run)
    assert tried == [403, 403, 403]
    assert "2 clients by site" in said, logs
    assert OneWay.passed, "the nodes went another way"
    (ledger,) = (root / "server").glob("runs/*/ledger.safetensors")
    (record,) = records.find(root / "server/records")
    pooled = Ledger(Path(alone["folder"]) / "ledger.safetensors", alone["key"]).resume().shared
    assert same(pooled, Ledger(ledger, record.key).resume().shared), logs
    assert [site["samples"] for site in record.data["sites"]] == [30, 30]
    started = "flwr run deployment --run-config 'nodes=2 overrides=\"federated/engine=flower experiment=federated/"
    assert record.command.startswith(started) and "token" not in record.command, record.command
    assert "paths.root=.../server " in record.command and str(root) not in record.command, record.command


@pytest.mark.slow
def test_sites_with_memes_of_their_own_tune_what_the_pooled_ones_would(captions, tmp_path):
    """Each has its own memes and base model, the server the test side alone; over sockets, bit by bit."""
    root, settings = captions
    federate.federate(test_sites.config([*settings, *test_sites.pooled(root, captions=True)]))
    *own, server = [test_sites.place(root, name, captions=True) for name in test_sites.SEPARATE]
    said, logs = deployed([*settings, test_sites.AT_SITES, *server], own, tmp_path)
    assert "2 clients by site" in said, logs
    assert same(test_sites.trained(root / "all"), test_sites.trained(root / "server")), logs


@pytest.mark.slow
def test_who_may_start_runs_is_what_the_page_says(root, tmp_path):
    """Flower 1.41 as it is installed: no accounts, and nodes that trust somebody take no bundle from a folder."""
    tools = Path(sys.executable).parent
    environment = os.environ | {"FLWR_OIDC_ENABLED": "1", "FLWR_HOME": str(tmp_path)}
    link = line(tools / "flower-superlink", "--insecure", "--port", free_port())
    ended = subprocess.run(link, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode != 0 and "OIDC account authentication is unavailable" in ended.stdout + ended.stderr
    trusted = tmp_path / "trusted.yaml"
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
    trusted.write_text(f"fpk_00000000-0000-4000-8000-000000000000: '{key}'\n")
    common = [*door_tests.SMALL, f"raw={root}/raw", "federated/partition=pooled"]
    own = [f"paths.root={tmp_path}", f"paths.stores={root}/stores"]
    wary = Guard(node=lambda number: ["--insecure", "--trusted-entities", trusted])
    said, logs = deployed([door_tests.BY_CAMERA, *common, *own], [own], tmp_path, wary)
    assert "a node cannot take part" in said, logs
    assert "App verification is not supported by the connected SuperLink" in " ".join(logs.split()), logs
    assert not list(tmp_path.glob("records/*.json"))


def memes(folder: Path) -> tuple[list[str], list[list[str]], list[str]]:
    """Settings of a federation of two clients of a multimodal LLM, and where the two nodes and the server keep theirs.

    Each has its own copy of the base model on its own disk, and its own corpus.
    """
    base = toy_mllm.write_model(folder / "alone/model")
    two = ["federated.partition.clients=2", "federated.rounds=2", "federated.per_round=2"]
    places = []
    for name in ("node0", "node1", "server"):
        copied = shutil.copytree(base, folder / name / "model")
        places.append([f"paths.root={folder / name}", f"method.family.source={copied}"])
    return [*toy_mllm.overrides(folder / "alone"), *two], places[:2], places[2]


def adapters(folder: Path, key: str) -> dict[str, torch.Tensor]:
    """The global tensors of the one federation below `folder`."""
    (ledger,) = folder.glob("runs/*/ledger.safetensors")
    return Ledger(ledger, key).resume().shared


@pytest.mark.slow
def test_a_superlink_and_two_supernodes_tune_a_multimodal_model_as_this_process_would(tmp_path):
    """Two rounds; the global adapter is the in-process engine's bit by bit."""
    settings, own, server = memes(tmp_path)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        alone = federate.main.run(compose("federate", settings))
    said, logs = deployed([*settings, *server], own, tmp_path)
    assert f"key: {alone['key']}" in said, logs
    assert same(adapters(tmp_path / "alone", alone["key"]), adapters(tmp_path / "server", alone["key"])), logs


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("openssl") and shutil.which("ssh-keygen")), reason="no openssl or ssh-keygen")
def test_supernodes_hide_their_changes_from_the_superlink(tmp_path):
    """The four stages of secure aggregation over TLS, by nodes that are known by their keys: the mean, rounded."""
    settings, own, server = memes(tmp_path)
    settings.append("federated.rounds=1")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        alone = federate.main.run(compose("federate", settings))
    hidden = [*settings, *server, "federated/privacy=secure_aggregation"]
    (tmp_path / "keys").mkdir()
    said, logs = deployed(hidden, own, tmp_path, certified(tmp_path / "keys", 2))
    (key,) = (line.removeprefix("key: ") for line in said.splitlines() if line.startswith("key: "))
    assert key != alone["key"], logs
    found, plain = adapters(tmp_path / "server", key), adapters(tmp_path / "alone", alone["key"])
    assert not same(found, plain)
    torch.testing.assert_close(found, plain, rtol=0, atol=2e-6)


def test_a_node_tells_the_base_model_on_its_own_disk(tmp_path):
    """By what is in it: a copy elsewhere is the same, other weights are not."""
    settings, own, _ = memes(tmp_path)
    toy_mllm.write_model(tmp_path / "node1/model", seed=1)
    content = RecordDict({"run": ConfigRecord({"overrides": settings})})
    nodes()  # without whom no message can be written
    told = []
    for number, overrides in enumerate(own):
        node = {"partition-id": number, "overrides": " ".join(overrides)}
        context = Context(run_id=1, node_id=number, node_config=node, state=RecordDict(), run_config={})
        told.append(flower.configured_site(Message(content, number, "query"), context))
    one, other = told
    assert (one.number, other.number) == (0, 1) and one.settings == other.settings and one.data == other.data
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert one.base_model == federate.Run.of(compose("federate", settings)).workload.base_model
    assert other.base_model != one.base_model
