"""Each job of a sweep is a process of its own, several at a time; torchrun starts those of several devices."""

import ctypes
import os
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
from tracking.processes import device_count

DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux
GRACE = 10.0  # seconds between asking a job to end and ending it
VISIBLE, THREADS = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"


class JobFailed(UsageError):
    """A job's process ended with an error."""


@dataclass
class Job:
    """One job: where its output goes, the GPUs it may have, and its process while it runs.

    gpus: how many of those that are free, or the names of its own; environment: in which it starts.
    """

    number: int
    name: str
    overrides: Sequence[str]
    command: list[str]
    log: Path
    gpus: int | Sequence[str]
    environment: dict[str, str]
    held: Sequence[str] = ()
    began: float = field(default_factory=time.monotonic)
    process: subprocess.Popen | None = None

    def fits(self, free: Sequence[str]) -> bool:
        """Whether its GPUs are among the free ones."""
        return len(free) >= self.gpus if isinstance(self.gpus, int) else set(free) >= set(self.gpus)

    def start(self, free: Sequence[str]) -> None:
        """Start it on GPUs that are `free`; it sees its own alone, unless it numbers them itself."""
        environment = dict(self.environment)
        if isinstance(self.gpus, int):
            self.held = free[: self.gpus]
            if self.held:
                environment[VISIBLE] = ",".join(self.held)
        else:
            self.held = self.gpus
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                self.command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                preexec_fn=end_with_us,
            )
        self.began = time.monotonic()
        self.tell(f"started on GPU {','.join(self.held)}" if self.held else "started")

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
    """Starts `python <door> <overrides>` for every job; output goes to a folder a launch, `<number>.log` in it.

    jobs: how many run at the same time. gpus: how many each has for itself, None for `trainer.devices` of them; a job
    starts when as many are free. 0: none is kept for anybody, every job sees all. Where several run at the same time
    they share the cores, unless OMP_NUM_THREADS says how many threads a process has.
    A job that fails or is killed leaves the others alone; they end with this process (on Linux also if it is killed).
    """

    def __init__(self, jobs: int = 1, gpus: int | None = None):
        if jobs < 1:
            raise UsageError(f"hydra.launcher.jobs: expected 1 or more, found {jobs}")
        if gpus is not None and gpus < 0:
            raise UsageError(f"hydra.launcher.gpus: expected 0 or more, found {gpus}")
        self.jobs, self.gpus = jobs, gpus
        self.context: Any = None
        self.config = DictConfig({})
        self.began = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{os.getpid()}"  # no other launch's

    def setup(self, *, hydra_context, task_function, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        jobs = zip(names(job_overrides), job_overrides, strict=True)
        waiting = [self._job(number, *job) for number, job in enumerate(jobs, initial_job_idx)]
        running: list[Job] = []
        results: dict[int, JobReturn] = {}
        gpus = visible() if any(job.gpus for job in waiting) else []
        print(f"logs: {waiting[0].log.parent}", flush=True)
        previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            while waiting or running:
                while waiting and len(running) < self.jobs and waiting[0].fits(free := left(gpus, running)):
                    running.append(waiting.pop(0))
                    running[-1].start(free)
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
        folder = Path(config.hydra.sweep.dir) / self.began
        folder.mkdir(parents=True, exist_ok=True)
        # What says that there is a sweep is not the job's.
        own = [override for override in overrides if not override.startswith(("sweep=", "hydra/", "hydra."))]
        command = [*interpreter(config), sys.argv[0], *own]
        return Job(number, name, own, command, folder / f"{number}.log", self._gpus(config), self._environment(config))

    def _gpus(self, config: DictConfig) -> int | list[str]:
        """How many GPUs a job has for itself, or which; raises UsageError where they are not there."""
        if self.gpus == 0 or not uses_gpus(config) or not (there := visible()):
            return 0
        devices = config.trainer.get("devices", 1)
        if OmegaConf.is_list(devices):  # numbers of what is visible to us, and to the job
            if missing := [device for device in devices if device not in range(len(there))]:
                raise UsageError(f"trainer.devices: expected GPUs of 0 to {len(there) - 1}, found {missing}")
            return [there[device] for device in devices]
        count = self.gpus or processes_of(config)
        if count > len(there):
            todo = "lower trainer.devices or hydra.launcher.gpus, or take trainer.accelerator=cpu"
            raise UsageError(f"expected {count} GPUs for a job, found {len(there)}: {todo}")
        return count

    def _environment(self, config: DictConfig) -> dict[str, str]:
        """Ours; of several jobs at a time each has a share of the cores, or every one's torch would take all."""
        if self.jobs == 1 or THREADS in os.environ:
            return dict(os.environ)
        return os.environ | {THREADS: str(max(1, cores() // (self.jobs * processes_of(config))))}


def left(gpus: Sequence[str], running: Sequence[Job]) -> list[str]:
    """Those GPUs that no job holds."""
    held = {gpu for job in running for gpu in job.held}
    return [gpu for gpu in gpus if gpu not in held]


def visible() -> list[str]:
    """The GPUs that jobs may have, by the names they have in CUDA_VISIBLE_DEVICES."""
    import torch  # not above: doors without a trainer need none

    count = torch.cuda.device_count()
    given = os.environ.get(VISIBLE)
    return [name.strip() for name in given.split(",")][:count] if given else [str(gpu) for gpu in range(count)]


def uses_gpus(config: DictConfig) -> bool:
    """Whether a door trains, and not on the CPU."""
    trainer = config.get("trainer")
    return trainer is not None and trainer.get("accelerator", "auto") in ("auto", "gpu", "cuda")


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes_of(config: DictConfig) -> int:
    """How many processes a job has on its machine, one a device; raises UsageError where no number is given."""
    devices = OmegaConf.select(config, "trainer.devices", default=1)
    count = device_count(devices)
    if count is None:
        raise UsageError(f"expected trainer.devices as a number in a sweep, found {devices!r}: name how many")
    return count


def interpreter(config: DictConfig) -> list[str]:
    """What starts the door: Python, or torchrun with a process a device."""
    if OmegaConf.select(config, "trainer.num_nodes", default=1) != 1:
        raise UsageError("expected jobs of one machine, found trainer.num_nodes: take hydra/launcher=slurm")
    count = processes_of(config)
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
