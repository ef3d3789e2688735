"""Each job of a sweep is a process of its own, several at a time; torchrun starts those of several devices."""

import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.skelfed_sweeps.grid import names
from tracking.errors import UsageError

DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux
GRACE = 10.0  # seconds between asking a job to end and ending it


class JobFailed(UsageError):
    """A job's process ended with an error."""


@dataclass
class Job:
    """One job: where its output goes, and its process while it runs."""

    number: int
    name: str
    overrides: Sequence[str]
    command: list[str]
    log: Path
    began: float = field(default_factory=time.monotonic)
    process: subprocess.Popen | None = None

    def start(self) -> None:
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                self.command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, preexec_fn=end_with_us
            )
        self.began = time.monotonic()
        self.tell("started")

    def tell(self, what: str) -> None:
        print(f"job {self.number} ({self.name}): {what}", flush=True)

    def settle(self) -> JobReturn | None:
        """What became of the job, None while it runs."""
        assert self.process is not None
        status = self.process.poll()
        if status is None:
            return None
        took = f"{time.monotonic() - self.began:.0f} s"
        if status == 0:
            self.tell(f"done in {took}")
            return JobReturn(overrides=self.overrides, status=JobStatus.COMPLETED)
        error = JobFailed(f"{self.reason(status)}, see {self.log}")
        self.tell(f"failed after {took}: {error}")
        return JobReturn(overrides=self.overrides, status=JobStatus.FAILED, _return_value=error)

    def reason(self, status: int) -> str:
        """The first line in which the job names an error, or how it ended."""
        lines = self.log.read_text(errors="replace").splitlines()
        told = next((line for line in lines if line.startswith("error")), None)
        return told or (f"ended by signal {-status}" if status < 0 else f"ended with status {status}")


class Processes(Launcher):
    """Starts `python <door> <overrides>` for every job; output goes to `<hydra.sweep.dir>/<number>.log`.

    jobs: how many run at the same time. A job that fails or is killed leaves the others alone; they end with this
    process (on Linux also if it is killed).
    """

    def __init__(self, jobs: int = 1):
        if jobs < 1:
            raise UsageError(f"hydra.launcher.jobs: expected 1 or more, found {jobs}")
        self.jobs = jobs
        self.context: Any = None
        self.config = DictConfig({})

    def setup(self, *, hydra_context, task_function, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        jobs = zip(names(job_overrides), job_overrides, strict=True)
        waiting = [self._job(number, *job) for number, job in enumerate(jobs, initial_job_idx)]
        running: list[Job] = []
        results: dict[int, JobReturn] = {}
        previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    running.append(waiting.pop(0))
                    running[-1].start()
                time.sleep(0.1)
                settled = {job.number: result for job in running if (result := job.settle())}
                running = [job for job in running if job.number not in settled]
                results |= settled
        finally:
            signal.signal(signal.SIGTERM, previous)
            end([job.process for job in running if job.process])
        return [results[number] for number in sorted(results)]

    def _job(self, number: int, name: str, overrides: Sequence[str]) -> Job:
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        # What says that there is a sweep is not the job's.
        own = [override for override in overrides if not override.startswith(("sweep=", "hydra/", "hydra."))]
        return Job(number, name, own, [*interpreter(config), sys.argv[0], *own], folder / f"{number}.log")


def interpreter(config: DictConfig) -> list[str]:
    """What starts the door: Python, or torchrun with a process a device."""
    if OmegaConf.select(config, "trainer.num_nodes", default=1) != 1:
        raise UsageError("expected jobs of one machine, found trainer.num_nodes: take hydra/launcher=slurm")
    devices = OmegaConf.select(config, "trainer.devices", default=1)
    count = len(devices) if OmegaConf.is_list(devices) else devices
    if not isinstance(count, int) or count < 1:
        raise UsageError(f"expected trainer.devices as a number in a sweep, found {devices!r}: name how many")
    if count == 1:
        return [sys.executable]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]


def end_with_us() -> None:
    """Between fork and exec: let the job get SIGTERM when its parent dies, where the system can do that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGTERM)


def end(processes: Sequence[subprocess.Popen]) -> None:
    """Ask the processes to end, then end them."""
    for process in processes:
        process.terminate()
    limit = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(max(0.0, limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
