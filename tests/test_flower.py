"""Flower: what travels arrives bit by bit, local and deployed federations are the in-process one."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import test_federate_door as door_tests
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

ROOT = Path(__file__).parents[1]
root = door_tests.root


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
    assert travels.outcome_of(wire(travels.outcome_content(failure))) == failure


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


def site(number: int, **other: str) -> ClientApp:
    agreed = {"settings": "s" * 64, "data": "d" * 64, "base_model": ""} | other
    return flower.client_app(lambda message, context: flower.Site(toy_client()[2], number, **agreed))


def test_nodes_are_met_and_must_agree():
    header = {"run": ConfigRecord({"overrides": ["a=b"]})}
    ours = (2, "s" * 64, "d" * 64, "")
    flower.check(flower.meet(nodes(site(1), site(0)), 2, header), *ours)
    with pytest.raises(InputError, match=r"clients 0 to 1, found \[1, 1\]; give each its number"):
        flower.check(flower.meet(nodes(site(1), site(1)), 2, header), *ours)
    with pytest.raises(InputError, match="expected 3 nodes, one a client of the partition, found 2: set nodes=3"):
        flower.check(flower.meet(nodes(site(0), site(1)), 2, header), 3, *ours[1:])
    for name in ("settings", "data", "base_model"):
        sites = flower.meet(nodes(site(0), site(1, **{name: "other"})), 2, header)
        with pytest.raises(InputError, match=f"the server's {name}, found another at client 1"):
            flower.check(sites, *ours)
    with pytest.raises(InputError, match="expected 3 nodes, found 2 after 0 s; start them"):
        flower.meet(nodes(site(0), site(1)), 3, header, wait=0.0)
    broken = answering(lambda message: Message(Error(code=0, reason="no data here"), reply_to=message))
    with pytest.raises(InputError, match="a node cannot take part: no data here"):
        flower.meet(nodes(site(0), broken), 2, header)


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
        os.killpg(process.pid, 15)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
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


def deployed(overrides: list[str], own: list[list[str]], folder: Path, guard: Guard | None = None) -> tuple[str, str]:
    """Runs federate.py on a SuperLink and a SuperNode for each of `own`, the settings of that node alone.

    Over real sockets of this machine, a process a message. Returns what the run printed, and that with all logs.
    """
    guard, port = guard or Guard(), free_port()
    (folder / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\n{guard.run}\n'
    )
    off = {"FLWR_HOME": str(folder), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    tools = Path(sys.executable).parent
    path = {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment = os.environ | off | path
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
        for number, settings in enumerate(own):
            node = [*guard.node(number), "--superlink", f"127.0.0.1:{port}", "--port", free_port()]
            node += ["--node-config", f'partition-id={number} overrides="{" ".join(settings)}"']
            log = folder / f"node{number}.log"
            services.enter_context(running(line(tools / "flower-supernode", *node), log, environment))
        run = ["run", ROOT / "deployment", "here", "--stream"]
        run += ["--run-config", f'nodes={len(own)} overrides="{" ".join(overrides)}"']
        ended = subprocess.run(
            line(tools / "flwr", *run), env=environment, cwd=folder, capture_output=True, text=True, timeout=1200
        )
    logs = "".join(log.read_text()[-3000:] for log in folder.glob("*.log"))
    return ended.stdout, ended.stdout + ended.stderr + logs


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
