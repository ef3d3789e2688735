"""Sweeps: the jobs that fail are named and stop no other, jobs are processes that end with their sweep."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import test_chain
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

import federate
import prepare
import report
import train
from datamodules.errors import InputError
from datamodules.miniature import skeletons
from hydra_plugins.skelfed_sweeps.processes import Processes, interpreter
from tracking import records
from tracking.build import build
from tracking.errors import UsageError
from tracking.report import text

ROOT = Path(__file__).parents[1]
DOC = ROOT / "docs/scaling.md"
SWEEPS = sorted(path.stem for path in (ROOT / "conf/sweep").glob("*.yaml"))
CONFIG = """
defaults:
  - sweep: null
  - override hydra/job_logging: none
  - override hydra/hydra_logging: none
  - override hydra/sweeper: grid
  - _self_
hydra:
  output_subdir: null
  run: {dir: .}
  sweep: {dir: sweep}
n: 1
m: 1
trainer: {devices: 1}
"""
DOOR = """
import os, signal, time
from pathlib import Path
from tracking.doors import door
from tracking.errors import UsageError

@door("go", expected=(), conf=Path(__file__).parent / "conf")
def main(cfg):
    if cfg.n == 2:
        raise UsageError("two is no number")
    if cfg.n == 3:
        raise RuntimeError("three is a slip")
    if cfg.n == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    if cfg.n == 5:
        Path(f"running-{os.getpid()}").touch()
        time.sleep(600)
    Path(f"done-{cfg.n}-{cfg.m}-of-{os.environ.get('WORLD_SIZE', 1)}-{os.environ.get('RANK', 0)}").touch()
    return {"n": cfg.n}

main()
"""


@pytest.fixture
def go(tmp_path):
    """A door with a sweeper and launchers of ours; a function that starts it."""
    (tmp_path / "conf/sweep").mkdir(parents=True)
    (tmp_path / "conf/hydra").symlink_to(ROOT / "conf/hydra")
    (tmp_path / "conf/go.yaml").write_text(CONFIG)
    (tmp_path / "conf/sweep/both.yaml").write_text("# @package hydra.sweeper\nparams: {n: '1,6', m: '1,2'}\n")
    (tmp_path / "go.py").write_text(DOOR)

    def start(*overrides: str) -> subprocess.Popen:
        line, environment = [sys.executable, "go.py", *overrides], os.environ | {"PYTHONPATH": str(ROOT)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(line, cwd=tmp_path, env=environment, **pipes)

    return start


def done(folder: Path) -> set[str]:
    return {path.name.removeprefix("done-") for path in folder.glob("done-*")}


def test_every_failed_job_is_named_and_the_others_run(go, tmp_path):
    sweep = go("-m", "n=1,2,3,6")
    _, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 2
    assert done(tmp_path) == {"1-1-of-1-0", "6-1-of-1-0"}
    assert "RuntimeError: three is a slip" in err and "Traceback" in err
    last = err.splitlines()[-1]
    assert last.startswith("error: 2 of 4 jobs failed, launch again to run what is missing: ")
    assert "(n=2) two is no number" in last and "(n=3) three is a slip" in last


def test_jobs_as_processes_even_one_that_is_killed(go, tmp_path):
    sweep = go("-m", "n=2,4,6,7", "hydra/launcher=processes", "hydra.launcher.jobs=2")
    out, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 2
    assert done(tmp_path) == {"6-1-of-1-0", "7-1-of-1-0"}
    assert "job 2 (n=6): started" in out and "job 3 (n=7): done in" in out
    assert err.count("\n") == 1 and err.startswith("error: 2 of 4 jobs failed")
    assert "(n=2) error: two is no number, see " in err and "(n=4) ended by signal 9, see " in err
    assert [path.read_text().strip() for path in tmp_path.glob("sweep/*/2.log")] == ["n: 6"]


@pytest.mark.slow
def test_every_launch_keeps_its_logs(go, tmp_path):
    for n in (6, 7):
        out, err = go("-m", f"n={n}", "hydra/launcher=processes").communicate(timeout=60)
        folder = Path(re.findall(r"^logs: (.*)", out, re.MULTILINE)[0])
        assert (tmp_path / folder / "0.log").read_text().strip() == f"n: {n}", err
    assert len(list(tmp_path.glob("sweep/*/0.log"))) == 2


FOUR_GPUS = """
import sys
from types import SimpleNamespace
sys.modules["torch"] = SimpleNamespace(cuda=SimpleNamespace(device_count=lambda: 4))
"""
SEEN = """
import json, os, time
from pathlib import Path
from tracking.doors import door

@door("go", expected=(), conf=Path(__file__).parent / "conf")
def main(cfg):
    began = time.time()
    time.sleep(0.5)
    seen = [began, time.time(), *[os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")]]
    Path(f"seen-{cfg.n}-{os.environ.get('RANK', 0)}").write_text(json.dumps(seen))
    return {}

main()
"""


@pytest.fixture
def seen(go, tmp_path, monkeypatch):
    """A function that runs jobs n=1,2,.. on a machine that says it has four GPUs: when each ran, GPUs and threads."""
    (tmp_path / "go.py").write_text(FOUR_GPUS + SEEN)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def run(*overrides: str, jobs: int = 4, at_once: int = 4) -> list:
        numbers = ",".join(map(str, range(jobs)))
        launcher = ["hydra/launcher=processes", f"hydra.launcher.jobs={at_once}"]
        sweep = go("-m", f"n={numbers}", *launcher, *overrides)
        _, err = sweep.communicate(timeout=120)
        assert sweep.returncode == 0, err
        return [json.loads((tmp_path / f"seen-{number}-0").read_text()) for number in range(jobs)]

    return run


def together(one, other) -> bool:
    """Whether two jobs ran at the same time."""
    return one[0] < other[1] and other[0] < one[1]


def test_each_job_has_gpus_of_its_own(seen):
    jobs = seen(jobs=6)
    assert {gpus for *_, gpus, _ in jobs[:4]} == {"0", "1", "2", "3"}
    for number, job in enumerate(jobs):
        assert not any(together(job, other) and job[2] == other[2] for other in jobs[number + 1 :])
    assert any(together(jobs[0], other) for other in jobs[1:])


def test_a_job_waits_for_its_gpus(seen):
    jobs = seen("hydra.launcher.gpus=3", jobs=2)
    assert [gpus for *_, gpus, _ in jobs] == ["0,1,2", "0,1,2"] and not together(*jobs)


def test_gpus_that_the_user_chose_are_kept_to(seen, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7a, 6,9")
    assert {gpus for *_, gpus, _ in seen("hydra.launcher.gpus=2", jobs=2)} == {"5,GPU-7a", "6,9"}


@pytest.mark.slow
def test_gpus_named_by_number_are_waited_for_and_stay_numbered(seen):
    """`trainer.devices=[3]` counts what the job sees."""
    jobs = seen("trainer.devices=[3]", jobs=2)
    assert [gpus for *_, gpus, _ in jobs] == [None, None] and not together(*jobs)


@pytest.mark.parametrize("free", ["hydra.launcher.gpus=0", "+trainer.accelerator=cpu"])
def test_no_gpu_is_kept_where_none_is_asked_for(seen, free):
    jobs = seen(free, jobs=2)
    assert [gpus for *_, gpus, _ in jobs] == [None, None]


@pytest.mark.slow
def test_jobs_share_the_cores_unless_the_user_says_how_many_threads(seen, monkeypatch):
    share = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert [threads for *_, threads in seen(jobs=2, at_once=2)] == [share, share]
    assert [threads for *_, threads in seen(jobs=1, at_once=1)] == [None], "as without a sweep"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert [threads for *_, threads in seen(jobs=2, at_once=2)] == ["7", "7"]


@pytest.mark.slow
def test_jobs_of_two_devices_have_two_gpus_each(seen):
    assert sorted(gpus for *_, gpus, _ in seen("trainer.devices=2", jobs=2)) == ["0,1", "2,3"]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("trainer.devices=5", "expected 5 GPUs for a job, found 4: lower trainer.devices"),
        ("hydra.launcher.gpus=5", "expected 5 GPUs for a job, found 4: lower trainer.devices or hydra.launcher.gpus"),
        ("trainer.devices=[1,4]", "trainer.devices: expected GPUs of 0 to 3, found [4]"),
    ],
)
def test_more_gpus_than_there_are_is_one_line(go, tmp_path, asked, told, monkeypatch):
    (tmp_path / "go.py").write_text(FOUR_GPUS + SEEN)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    sweep = go("-m", "n=1,2", asked, "hydra/launcher=processes")
    _, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 2 and err.startswith(f"error: {told}") and err.count("\n") == 1
    assert not list(tmp_path.glob("seen-*"))


def test_a_preset_gives_the_values(go, tmp_path):
    for launcher in ("basic", "processes"):
        sweep = go("-m", "sweep=both", "m=3,4", f"hydra/launcher={launcher}")
        sweep.communicate(timeout=60)
        assert sweep.returncode == 0
        assert done(tmp_path) == {f"{n}-{m}-of-1-0" for n in (1, 6) for m in (3, 4)}


def test_a_preset_without_a_sweep_is_an_error(go, tmp_path):
    single = go("sweep=both")
    assert single.communicate(timeout=60) == ("", "error: sweep=both is for a sweep: add -m\n")
    assert single.returncode == 2 and not done(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_jobs_end_with_their_sweep(go, tmp_path, how):
    sweep = go("-m", "n=5", "m=1,2", "hydra/launcher=processes", "hydra.launcher.jobs=2")
    jobs = wait_for(lambda: len(list(tmp_path.glob("running-*"))) == 2 and list(tmp_path.glob("running-*")))
    sweep.send_signal(how)
    assert sweep.wait(timeout=30) != 0
    wait_for(lambda: not any(alive(int(path.name.removeprefix("running-"))) for path in jobs))


def wait_for(condition, seconds: float = 60.0):
    limit = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < limit
        time.sleep(0.05)
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_a_job_of_several_devices_is_a_torchrun(go, tmp_path):
    sweep = go("-m", "n=6", "m=1,2", "trainer.devices=2", "hydra/launcher=processes")
    _, err = sweep.communicate(timeout=120)
    assert sweep.returncode == 0, err
    assert done(tmp_path) == {f"6-{m}-of-2-{rank}" for m in (1, 2) for rank in (0, 1)}


@pytest.mark.parametrize("door", [train, federate], ids=["train", "federate"])
def test_jobs_of_several_devices_want_a_launcher(door):
    """In one process Lightning would start the whole sweep again for each of them."""
    told = r"in a sweep .* add hydra/launcher=processes"
    for devices in ("2", "[0,3]", "-1", "auto"):
        with as_sweep(door, f"trainer.devices={devices}") as config, pytest.raises(InputError, match=told):
            door.main.run(config)
    for devices in ("1", "[3]"):
        with as_sweep(door, f"trainer.devices={devices}") as config:
            train.check_processes(config)


@contextlib.contextmanager
def as_sweep(door, *overrides: str):
    """The configuration of a job of a sweep, in the sweep's own process."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(door.__name__, [*overrides, "hydra.mode=MULTIRUN"], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    try:
        yield config
    finally:
        HydraConfig.instance().cfg = None


def test_what_a_process_per_job_cannot_do_is_said():
    with pytest.raises(UsageError, match="take hydra/launcher=slurm"):
        interpreter(OmegaConf.create({"trainer": {"num_nodes": 2, "devices": 2}}))
    with pytest.raises(UsageError, match="name how many"):
        interpreter(OmegaConf.create({"trainer": {"devices": "auto"}}))
    with pytest.raises(UsageError, match="expected 1 or more, found 0"):
        Processes(jobs=0)
    assert interpreter(OmegaConf.create({})) == [sys.executable]
    assert interpreter(OmegaConf.create({"trainer": {"devices": [2, 3]}}))[-1] == "2"
    assert interpreter(OmegaConf.create({"trainer": {"devices": [3]}})) == [sys.executable]


# A preset and a run that it is for; every key it sweeps must be one of the run's.
USED = {
    "temperature": ("train", "ntu60/sds_cl_xsub"),
    "loss_weight": ("train", "ntu60/psp_xsub"),
    "mixing_ratio": ("train", "ntu60/a2mc_xsub"),
    "attack_step": ("train", "ntu60/a2mc_xsub"),
    "label_fraction": ("train", "ntu60/psp_xsub"),
    "semi": ("eval", "ntu60/sds_cl_xsub"),
    "strategy": ("federate", "federated/sds_cl_by_camera"),
    "scenario": ("federate", "fedmllm/hateful_memes_missing_50"),
}


def test_every_preset_is_tested_and_told_with_its_command():
    assert sorted(USED) == SWEEPS
    rows = re.findall(r"^\| `(\w+)` \|.*`python (\w+)\.py -m sweep=(\w+)", DOC.read_text(), re.MULTILINE)
    assert {name: door for name, door, _ in rows} == {name: door for name, (door, _) in USED.items()}
    assert all(name == swept for name, _, swept in rows)


@pytest.mark.parametrize("preset", SWEEPS)
def test_what_a_preset_sweeps_is_there_and_changes_the_run(preset):
    door, experiment = USED[preset]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        sweep = compose(door, [f"experiment={experiment}", f"sweep={preset}"], return_hydra_config=True)
        params = sweep.hydra.sweeper.params
        assert params.seed == "1,2,3"
        swept = {key: values.split(",") for key, values in params.items()}
        first = {key: values[0] for key, values in swept.items()}
        chosen = {} if "experiment" in params else {"experiment": experiment}
        for key in (key for key, values in swept.items() if key != "seed" and len(values) > 1):
            configs = []
            for value in (swept[key][0], swept[key][-1]):
                settings = chosen | first | {key: value}
                configs.append(compose(door, [f"{name}={given}" for name, given in settings.items()]))
            assert configs[0] != configs[1] and configs[0].seed == configs[1].seed == 1, key


def test_the_mixing_ratio_arrives_in_the_mixer():
    """It is added to the configuration (++): a name that the mixer does not know would be an error here."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for ratio in (0.05, 0.4):
            config = compose("train", ["experiment=ntu60/a2mc_xsub", f"++method.mixer.negative_ratio={ratio}"])
            assert build(OmegaConf.to_container(config.method.mixer)).negative_ratio == ratio
    assert list(OmegaConf.load(ROOT / "conf/sweep/mixing_ratio.yaml").params) == [
        "++method.mixer.negative_ratio",
        "seed",
    ]


def test_the_scenarios_are_those_of_the_paper_under_its_rules():
    """Every setting of one corpus, every rule of conf/federated/strategy that the paper compares."""
    params = OmegaConf.load(ROOT / "conf/sweep/scenario.yaml").params
    settings = {f"fedmllm/{path.stem}" for path in (ROOT / "conf/experiment/fedmllm").glob("hateful_memes_*.yaml")}
    assert len(settings) == 12 and set(params.experiment.split(",")) == settings
    assert params.row.split(",") == ["fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi"]


def test_slurm_without_its_extra_is_one_line(go, tmp_path):
    hidden = "import sys\nsys.modules['hydra_plugins.hydra_submitit_launcher'] = None\n"
    (tmp_path / "go.py").write_text(hidden + DOOR)
    sweep = go("-m", "n=1,2", "hydra/launcher=slurm")
    _, err = sweep.communicate(timeout=60)
    command = "pip install -c constraints.txt -e '.[sweeps]'"
    # Before it may stand what Hydra says of a hidden plugin.
    assert err.splitlines()[-1] == f"error: hydra/launcher=slurm needs the package 'submitit': {command}"
    assert sweep.returncode == 2


def test_slurm_jobs_have_a_task_a_device():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra `sweeps` is not installed")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = ["trainer=ddp", "trainer.devices=4", "hydra/launcher=slurm", "hydra.launcher.partition=gpu"]
        launcher = compose("train", overrides, return_hydra_config=True).hydra.launcher
    assert launcher.tasks_per_node == launcher.gpus_per_node == 4 and launcher.nodes == 1
    assert launcher._target_.endswith("SlurmLauncher")


SBATCH = """#!/bin/bash
# A queue that starts an array's jobs at once, on this machine.
cp "${@: -1}" submitted.sh
last=$(grep -oP -- '--array=0-\\K[0-9]+' submitted.sh)
echo "Submitted batch job 7"
for ((job = 0; job <= last; job++)); do
    export SLURM_JOB_ID=$((7 + job)) SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$job
    bash submitted.sh > log-$job 2>&1 < /dev/null &
done
"""
SRUN = """#!/bin/bash
# The tasks of a job, beside one another.
while [[ $1 == -* ]]; do [[ $1 == *=* || $1 == --unbuffered ]] && shift || shift 2; done
for ((task = 0; task < TASKS; task++)); do
    SLURM_NTASKS=$TASKS SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 "$@" &
done
wait
"""


@pytest.mark.slow
def test_slurm_takes_the_jobs_and_starts_a_task_a_device(go, tmp_path, monkeypatch):
    """On a SLURM that is two small scripts: what is submitted asks for the tasks and GPUs, failed jobs are named."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra `sweeps` is not installed")
    for name, script in (("sbatch", SBATCH), ("srun", SRUN)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("TASKS", "2")
    sweep = go("-m", "n=2,6", "trainer.devices=2", "hydra/launcher=slurm", "hydra.launcher.partition=gpu")
    _, err = sweep.communicate(timeout=300)
    assert sweep.returncode == 2 and err.splitlines()[-1].startswith("error: 1 of 2 jobs failed")
    assert "(n=2) two is no number" in err.splitlines()[-1]
    assert len(list(tmp_path.glob("done-6-*"))) == 1
    asked = set(re.findall(r"^#SBATCH --(\S+)", (tmp_path / "submitted.sh").read_text(), re.MULTILINE))
    assert {"ntasks-per-node=2", "gpus-per-node=2", "nodes=1", "partition=gpu", "time=1440"} <= asked


@pytest.mark.slow
def test_a_sweep_killed_half_way_runs_only_what_is_missing(tmp_path):
    """Six trainings, two at a time; the report then gives means and deviations over the seeds."""
    skeletons.write_ntu(tmp_path / "raw", **test_chain.FEW)
    prepare.main.run(test_chain.config("prepare", tmp_path, "data=ntu60", f"raw={tmp_path / 'raw'}", "workers=1"))
    small = [override.removeprefix("+") for override in test_chain.SMALL]
    line = [sys.executable, "train.py", "-m", *small, f"raw={tmp_path}/raw", f"paths.root={tmp_path}"]
    line += ["method.temperature=0.05,0.07,0.1", "seed=1,2", "hydra/launcher=processes", "hydra.launcher.jobs=2"]
    sweep = subprocess.Popen(line, cwd=ROOT)
    folder = tmp_path / "records"
    wait_for(lambda: len(records.find(folder)) >= 2, seconds=300)
    sweep.kill()
    sweep.wait()
    wait_for(lambda: not any(str(tmp_path) in command for command in commands()))
    before = {path: path.read_bytes() for path in folder.glob("*.json")}
    assert 2 <= len(before) < 6
    assert subprocess.run(line, cwd=ROOT, timeout=600).returncode == 0
    assert len(records.find(folder, kind="train")) == 6
    assert all(path.read_bytes() == content for path, content in before.items())
    launches = sorted((tmp_path / "multirun").glob("*/"), key=lambda launch: launch.stat().st_mtime)
    assert len(launches) == 2
    told = [(launches[1] / f"{job}.log").read_text() for job in range(6)]
    assert sum("found: " in text for text in told) == len(before)
    page = Path(report.main.run(test_chain.config("report", tmp_path, "name=ntu60"))["tables"]).read_text()
    rows = [line for line in page.splitlines() if line.startswith("|") and text("test/knn1") in line]
    assert len(rows) == 3 and all(text("method.temperature=") in row and "±" in row for row in rows)


def commands() -> list[str]:
    """Command lines of all processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_text())
    return found
