"""Flower: what travels arrives bit by bit, local and deployed federations are the in-process one."""

import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import test_federate_door as door_tests
import torch
from toy_federation import Toy, dataset, federation, same, shares

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

import federate
from datamodules.errors import InputError
from federated.adapter import Adapter
from federated.client import Client, ClientFailure, ClientTask, ClientUpdate
from federated.data import PartitionedData
from federated.engines import flower

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
    found = flower.from_record(wire(RecordDict({"s": flower.to_record(state)}))["s"])
    assert list(found) == list(state)
    assert all(found[name].dtype == dtype and torch.equal(found[name], state[name]) for name in state)


def test_tasks_and_outcomes_arrive():
    state = {"w": torch.randn(2, 3)}
    task = ClientTask(3, 1, state, 0.5, 2**31 + 7)
    found = flower.task_of(wire(flower.task_content(task)))
    assert vars(found) | {"state": 0} == vars(task) | {"state": 0} and same(found.state, state)
    update = ClientUpdate(1, 30, 4, state, {"train/loss": 0.1}, 1.5)
    found = flower.outcome_of(wire(flower.outcome_content(update)))
    assert vars(found) | {"state": 0} == vars(update) | {"state": 0} and same(found.state, state)
    failure = ClientFailure(2, "Boom", "no more", 0.5)
    assert flower.outcome_of(wire(flower.outcome_content(failure))) == failure


def toy_client() -> tuple[Toy, Adapter, Client]:
    module = Toy()
    adapter = Adapter(module)
    return module, adapter, Client(module, adapter, PartitionedData(dataset(), shares(4), batch_size=8), device="cpu")


def test_messages_around_the_resident_client_change_no_byte():
    alone = federation(rounds=2).run()
    module, adapter, client = toy_client()
    messaged = federation(module=module, adapter=adapter, engine=flower.simulated({}, client), rounds=2).run()
    assert same(alone.models["global"], messaged.models["global"])


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
                        "state": ArrayRecord({"w": Array("float32", (9,), flower.RAW, b"1234")}),
                        "metrics": flower.MetricRecord({}),
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
    engine = flower.Flower(nodes(answering(reply)), lambda client: 0, 1)
    engine.submit(ClientTask(0, 0, {"w": torch.zeros(9)}, 1.0, 3))
    outcome = engine.collect()
    assert isinstance(outcome, ClientFailure) and outcome.error == kind and "\n" not in outcome.message


def site(number: int, **other: str) -> ClientApp:
    agreed = {"settings": "s" * 64, "data": "d" * 64, "base_model": ""} | other
    return flower.client_app(lambda message, context: flower.Site(toy_client()[2], number, **agreed))


def test_nodes_are_met_and_must_agree():
    header = {"run": ConfigRecord({"overrides": ["a=b"]})}
    ours = ("s" * 64, "d" * 64, "")
    flower.check(flower.meet(nodes(site(1), site(0)), 2, header), *ours)
    with pytest.raises(InputError, match=r"clients 0 to 1, found \[1, 1\]; give each its number"):
        flower.check(flower.meet(nodes(site(1), site(1)), 2, header), *ours)
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
    told = [f"os.environ['FLWR_{name}']" for name in ("TELEMETRY_ENABLED", "DISABLE_UPDATE_CHECK")]
    line = [sys.executable, "-c", f"import federated.engines.flower, os; print({', '.join(told)})"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
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


@pytest.mark.slow
def test_a_superlink_and_two_supernodes_compute_the_in_process_federation(root, tmp_path):
    """Two rounds over real sockets, a process a message; the model equals that of federate.py bit by bit."""
    common = [*door_tests.SMALL, f"raw={root}/raw", "federated/partition=iid", "federated.partition.clients=2"]
    own = [f"paths.root={tmp_path}", f"paths.stores={root}/stores"]
    alone = federate.main.run(door_tests.config("federate", root, door_tests.BY_CAMERA, *common))
    port = free_port()
    (tmp_path / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    off = {"FLWR_HOME": str(tmp_path), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    folder = Path(sys.executable).parent
    path = {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment = os.environ | off | path
    with ExitStack() as services:
        link = [folder / "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", port]
        link += ["--disable-runtime-dependency-installation"]
        services.enter_context(running(list(map(str, link)), tmp_path / "link.log", environment))
        limit = time.monotonic() + 180
        while not answers(port):
            assert time.monotonic() < limit, (tmp_path / "link.log").read_text()
            time.sleep(0.5)
        for number in range(2):
            node = [
                folder / "flower-supernode",
                "--insecure",
                "--superlink",
                f"127.0.0.1:{port}",
                "--port",
                free_port(),
            ]
            node += ["--node-config", f'partition-id={number} overrides="{" ".join(own)}"']
            services.enter_context(running(list(map(str, node)), tmp_path / f"node{number}.log", environment))
        overrides = " ".join([door_tests.BY_CAMERA, *common, *own])
        run = [folder / "flwr", "run", ROOT / "deployment", "here", "--stream"]
        run += ["--run-config", f'nodes=2 overrides="{overrides}"']
        ended = subprocess.run(
            list(map(str, run)), env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=1200
        )
    logs = ended.stdout + ended.stderr + "".join(log.read_text()[-3000:] for log in tmp_path.glob("*.log"))
    (deployed,) = tmp_path.glob("runs/*/global.ckpt")
    states = [torch.load(path, weights_only=True)["state_dict"] for path in (alone["checkpoint"]["global"], deployed)]
    assert same(*states), logs
    assert f"key: {alone['key']}" in ended.stdout, logs
