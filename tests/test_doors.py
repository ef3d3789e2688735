"""A door tells a user's mistake in one line and fails; it shows a mistake of ours in full."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tracking import doors
from tracking.errors import UsageError

CONFIG = """
defaults:
  - method: one
  - override hydra/job_logging: none
  - override hydra/hydra_logging: none
  - _self_
hydra:
  output_subdir: null
  run: {dir: .}
  sweep: {dir: ../sweep}
n: 1
nested: {must: '???'}
who: ${method.name}
"""


class Mistake(ValueError):
    pass


class Surprise(Exception):
    pass


def work(cfg):
    """What a door does."""
    if cfg.n == 2:
        raise Mistake("expected\nanother n,   found 2")
    if cfg.n == 3:
        raise Surprise("a slip of ours")
    if cfg.n == 4:
        raise UsageError("no such thing")
    must = cfg.nested.must if cfg.n == 5 else None
    return {"n": cfg.n, "accuracy": 1 / 3, "knn": {"k1": 76.25, "k5": must}, "report": Path("reports/x.md")}


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run the door in a folder of its own as the command line would; gives status, stdout, stderr."""
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    (tmp_path / "conf" / "go.yaml").write_text(CONFIG)
    for name in ("one", "two"):
        (tmp_path / "conf" / "method" / f"{name}.yaml").write_text(f"name: {name}\n")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # so that it is put back
    main = doors.door("go", expected=(Mistake,), conf=tmp_path / "conf")(work)

    def call(*overrides):
        monkeypatch.setattr(sys, "argv", ["go.py", *overrides])
        status = 0
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
        return status, *capsys.readouterr()

    return call


def test_the_result_is_printed_at_the_end(call):
    status, out, err = call("method=two")
    assert status == 0 and err == ""
    assert out.splitlines() == ["n: 1", "accuracy: 0.3333", "knn.k1: 76.25", "report: reports/x.md"]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("n=2", "error: expected another n, found 2"),
        ("n=4", "error: no such thing"),
        ("n=5", "error: Missing mandatory value: nested.must"),
        ("nn=1", "error: Could not override 'nn'. To append to your config use +nn=1"),
        ("nested.nn=1", "error: Could not override 'nested.nn'. To append to your config use +nested.nn=1"),
        ("method=tow", "error: In 'go': Could not find 'method/tow' Available options in 'method': one two"),
    ],
)
def test_a_mistake_of_the_user_is_one_line_and_leaves_nothing(call, tmp_path, override, line):
    before = sorted(tmp_path.rglob("*"))
    status, out, err = call(override)
    assert (status, out, err) == (2, "", line + "\n")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_preset_that_is_no_yaml_is_named_with_its_line(call, tmp_path):
    (tmp_path / "conf" / "method" / "torn.yaml").write_text("name: [1,\n  2\nwho: me\n")
    status, _, err = call("method=torn")
    assert status == 2 and "torn.yaml" in err and "line 3" in err and err.count("\n") == 1


@pytest.mark.parametrize("override", ["n=[", "method=one,two", "-cn=other"])
def test_grammar_slips_are_one_line_too(call, override):
    status, out, err = call(override)
    assert status == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1


def test_a_slip_of_ours_keeps_its_traceback(call):
    with pytest.raises(Surprise) as caught:
        call("n=3")
    assert any(frame.name == "work" for frame in caught.traceback)


def test_a_sweep_runs_on_and_fails_at_the_end(call):
    status, out, err = call("-m", "n=1,2,4,6")
    assert status == 2
    assert [line for line in out.splitlines() if line.startswith("n:")] == ["n: 1", "n: 6"]
    assert "error in job 1 (n=2): expected another n, found 2\n" in err
    assert "error in job 2 (n=4): no such thing\n" in err
    assert "Traceback" not in err


def test_a_sweep_without_failures_succeeds(call):
    status, out, _ = call("-m", "n=1,6", "method=one,two")
    assert status == 0 and out.count("accuracy") == 4


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"])
def test_only_the_first_process_prints(call, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    assert call() == (0, "", "")


def test_the_function_stays_callable(tmp_path):
    main = doors.door("go", expected=(), conf=tmp_path)(work)
    assert main.run(OmegaConf.create({"n": 7}))["n"] == 7
    assert main.__doc__ == "What a door does."


def test_as_a_command(call, tmp_path):
    script = tmp_path / "go.py"
    script.write_text(
        "from pathlib import Path\n"
        "from tracking.doors import door\n"
        "@door('go', expected=(LookupError,), conf=Path(__file__).parent / 'conf')\n"
        "def main(cfg):\n"
        "    raise (LookupError if cfg.n == 1 else RuntimeError)(f'n is {cfg.n}')\n"
        "main()\n"
    )
    root = Path(doors.__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": str(root)}

    def run(*overrides):
        line = [sys.executable, str(script), *overrides]
        return subprocess.run(line, cwd=tmp_path / "here", env=environment, capture_output=True, text=True)

    mistake, slip = run(), run("n=9")
    assert (mistake.returncode, mistake.stdout, mistake.stderr) == (2, "", "error: n is 1\n")
    assert slip.returncode == 1 and slip.stderr.rstrip().endswith("RuntimeError: n is 9")
    assert "Traceback" in slip.stderr
