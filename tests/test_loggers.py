"""What the loggers leave on disk: CSV that no resume overwrites, W&B files that hold what was logged."""

import csv
import json
import os
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import wandb
from pytorch_lightning.loggers import CSVLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only
from wandb.proto import wandb_internal_pb2

from tracking import loggers
from tracking.errors import UsageError

JOB = {"key": "0123456789abcdef" * 4, "experiment": "ntu60/sds_cl_xsub", "job_type": "pretrain"}


@pytest.fixture(autouse=True)
def nobody_logged_in(tmp_path, monkeypatch):
    """No key, no settings of this machine's user, no server."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / ".netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "home" / "wandb"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "home" / "cache"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")


class Tiny(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, _):
        loss = self.layer(batch).square().mean()
        self.log("train/loss", loss, on_epoch=True, on_step=False)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(logs, folder, epochs, resume=None):
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=logs,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(Tiny(), torch.utils.data.DataLoader(torch.ones(4, 1), batch_size=2), ckpt_path=resume)
    trainer.save_checkpoint(folder / "last.ckpt")


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_csv_of_an_earlier_launch_survives_a_resume(tmp_path):
    with loggers.make(tmp_path, **JOB) as logs:
        assert [type(log) for log in logs] == [CSVLogger]
        fit(logs, tmp_path, epochs=2)
    first = tmp_path / "metrics" / "version_0" / "metrics.csv"
    before = first.read_bytes()
    assert [row["epoch"] for row in table(first)] == ["0", "1"]
    with loggers.make(tmp_path, **JOB) as logs:
        fit(logs, tmp_path, epochs=3, resume=tmp_path / "last.ckpt")
    assert first.read_bytes() == before
    rows = table(tmp_path / "metrics" / "version_1" / "metrics.csv")
    assert [(row["epoch"], row["step"]) for row in rows] == [("2", "5")]


def raw_bytes(folder):
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return path.read_bytes()


def wandb_file(folder):
    """The protobuf records of a run's file: 7 bytes of header, then blocks of 32 KiB as LevelDB's log frames them."""
    data, at, buffer = raw_bytes(folder), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, part = struct.unpack("<IHB", data[at : at + 7])
        buffer += data[at + 7 : at + 7 + length]
        at += 7 + length
        if part in (1, 4):  # whole, or last part
            message = wandb_internal_pb2.Record()
            message.ParseFromString(buffer)
            buffer = b""
            yield message


def contents(folder):
    messages, patience = list(wandb_file(folder)), 300
    while not any(m.WhichOneof("record_type") == "exit" for m in messages) and patience:
        time.sleep(0.1)  # finish() returns before W&B's service has written the last bytes
        messages, patience = list(wandb_file(folder)), patience - 1
    (run,) = [m.run for m in messages if m.WhichOneof("record_type") == "run"]
    assert not any(item.nested_key for item in run.config.update), "each a key of its own, its dots and all"
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    history = [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in m.history.item}
        for m in messages
        if m.WhichOneof("record_type") == "history"
    ]
    exits = [m.exit.exit_code for m in messages if m.WhichOneof("record_type") == "exit"]
    return run, config, history, exits


def test_offline_file_holds_the_run_as_it_was(tmp_path, capsys, monkeypatch):
    config = {"method": {"name": "sds_cl", "widths": [8, 16]}, "seed": 3, "none": None}
    tags = ["sds_cl", "NTU RGB+D", "x" * 100]
    place = "/nobody/but/us/has/this/place"
    monkeypatch.setattr(sys, "argv", ["train.py", "experiment=ntu60/sds_cl", f"raw={place}"])
    with loggers.make(tmp_path, **JOB, tags=tags, config=config, mode="offline", project="lab", entity="us") as logs:
        assert [type(log) for log in logs] == [CSVLogger, WandbLogger]
        fit(logs, tmp_path, epochs=2)
    run, logged, history, exits = contents(tmp_path)
    assert (run.run_id, run.project, run.entity) == (JOB["key"][:16], "lab", "us")
    assert (run.run_group, run.job_type, run.display_name) == (
        JOB["experiment"],
        "pretrain",
        "ntu60/sds_cl_xsub pretrain",
    )
    assert sorted(run.tags) == sorted(["sds_cl", "NTU RGB+D", "x" * 64])
    logged.pop("_wandb")
    assert logged == {"method.name": "sds_cl", "method.widths": [8, 16], "seed": 3, "none": None}
    losses = [row["train/loss"] for row in history if "train/loss" in row]
    written = [float(row["train/loss"]) for row in table(tmp_path / "metrics" / "version_0" / "metrics.csv")]
    assert losses == pytest.approx(written) and len(losses) == 2
    assert [row["trainer/global_step"] for row in history if "train/loss" in row] == [1, 3]
    assert exits == [0]
    sent = [*tmp_path.glob("wandb/offline-run-*/files/**/*"), *tmp_path.glob("wandb/offline-run-*/run-*.wandb")]
    assert sent and not any(place.encode() in path.read_bytes() for path in sent if path.is_file())
    assert b"sds_cl" in raw_bytes(tmp_path), "what is there is found so"
    out = capsys.readouterr().out
    assert "wandb sync" in out and str(tmp_path) in out


def test_each_job_of_a_process_has_its_own_finished_run(tmp_path):
    for name in ("one", "two"):
        with loggers.make(tmp_path / name, **JOB | {"key": name * 8}, mode="offline") as logs:
            logs[1].log_metrics({"job": len(name)}, step=0)
        assert wandb.run is None
    for name in ("one", "two"):
        run, _, history, exits = contents(tmp_path / name)
        assert run.run_id == (name * 8)[:16] and exits == [0] and len(history) == 1


def test_a_job_within_a_job_has_its_own_run(tmp_path):
    with loggers.make(tmp_path / "outer", **JOB | {"key": "o" * 16}, mode="offline") as outer:
        with loggers.make(tmp_path / "inner", **JOB | {"key": "i" * 16}, mode="offline") as inner:
            inner[1].log_metrics({"a": 1.0}, step=0)
        outer[1].log_metrics({"b": 2.0}, step=0)
    for name, metric in (("outer", "b"), ("inner", "a")):
        run, _, history, _ = contents(tmp_path / name)
        assert run.run_id == name[0] * 16 and [metric in row for row in history] == [True]


def test_a_job_that_fails_is_finished_as_failed(tmp_path):
    with pytest.raises(ZeroDivisionError), loggers.make(tmp_path, **JOB, mode="offline"):
        raise ZeroDivisionError
    assert contents(tmp_path)[3] == [1]


def test_online_without_a_key_goes_offline_and_says_so(tmp_path, capsys):
    with loggers.make(tmp_path, **JOB, mode="online") as logs:
        logs[1].log_metrics({"a": 1.0}, step=0)
    assert "offline instead of online: no API key" in capsys.readouterr().out
    run, _, history, _ = contents(tmp_path)
    assert run.run_id == JOB["key"][:16] and [row["a"] for row in history] == [1.0]


def online(folder, **environment) -> str:
    """What a process of its own (with a W&B service of its own) prints that logs one number online; it must end."""
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tracking import loggers\n"
        f"with loggers.make(Path(sys.argv[1]), **{JOB!r}, mode='online') as logs:\n"
        "    for log in logs:\n"
        "        log.log_metrics({'a': 1.0}, step=0)\n"
        "        log.save()\n"
    )
    line = [sys.executable, "-c", script, str(folder)]
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"} | environment
    root = Path(loggers.__file__).parent.parent
    return subprocess.run(
        line, cwd=root, env=environment, capture_output=True, text=True, timeout=500, check=True
    ).stdout


def test_a_login_that_fails_goes_offline_and_says_so(tmp_path, monkeypatch, capsys):
    def fails(**_):
        raise wandb.errors.UsageError("no such\nkey")

    monkeypatch.setattr(wandb, "login", fails)
    with loggers.make(tmp_path, **JOB, mode="online") as logs:
        assert [type(log) for log in logs] == [CSVLogger, WandbLogger]
    assert capsys.readouterr().out.startswith("W&B: offline instead of online: no such key\nW&B: offline; to send")


@pytest.mark.slow
def test_online_with_a_key_that_wandb_refuses_goes_on_and_says_so(tmp_path):
    said = online(tmp_path, WANDB_API_KEY="a" * 40 + "\n")
    assert said == "W&B: nothing goes there, CSV only: API key cannot start or end with whitespace\n"
    assert table(tmp_path / "metrics" / "version_0" / "metrics.csv") == [{"a": "1.0", "step": "0"}]


def test_where_wandb_cannot_start_csv_is_left(tmp_path, monkeypatch, capsys):
    def fails(**_):
        raise wandb.errors.UsageError("no\nroom")

    monkeypatch.setattr(wandb, "init", fails)
    with loggers.make(tmp_path, **JOB, mode="offline") as logs:
        assert [type(log) for log in logs] == [CSVLogger]
    assert capsys.readouterr().out == "W&B: nothing goes there, CSV only: no room\n"


@pytest.mark.slow
def test_online_with_a_dead_server_goes_offline_and_says_so(tmp_path):
    said = online(tmp_path, WANDB_API_KEY="a" * 40)
    assert "offline instead of online: http://127.0.0.1:9 does not answer" in said
    run, _, history, _ = contents(tmp_path)
    assert run.run_id == JOB["key"][:16] and [row["a"] for row in history] == [1.0]


@pytest.mark.slow
def test_online_with_a_server_that_refuses_goes_offline_and_says_so(tmp_path):
    class Refusal(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        said = online(tmp_path, WANDB_API_KEY="a" * 40, WANDB_BASE_URL=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert "offline instead of online:" in said and "404" in said
    assert [row["a"] for row in contents(tmp_path)[2]] == [1.0]


@pytest.mark.parametrize(("variable", "types"), [("offline", 2), ("dryrun", 2), ("disabled", 1)])
def test_the_environment_goes_before_online(tmp_path, monkeypatch, variable, types):
    monkeypatch.setenv("WANDB_MODE", variable)
    monkeypatch.setattr(wandb, "login", lambda **_: pytest.fail("must not ask for a key"))
    with loggers.make(tmp_path, **JOB, mode="online") as logs:
        assert len(logs) == types


def test_disabled_means_that_wandb_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("must not start"))
    with loggers.make(tmp_path, **JOB) as logs:
        logs[0].log_metrics({"a": 1.0}, step=0)
        logs[0].save()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics"]


def test_only_rank_zero_has_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with loggers.make(tmp_path, **JOB, mode="offline") as logs:
        assert [type(log) for log in logs] == [CSVLogger]
    assert not (tmp_path / "wandb").exists()


def test_an_unknown_mode_is_named(tmp_path):
    with pytest.raises(UsageError, match="oflin"), loggers.make(tmp_path, **JOB, mode="oflin"):
        pass


def test_flatten_joins_the_names():
    assert loggers.flatten({"a": {"b": {"c": 1}, "d": []}, "e": None}) == {"a.b.c": 1, "a.d": [], "e": None}
