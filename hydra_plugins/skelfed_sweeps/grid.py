"""Hydra's grid of overrides, told at its end which jobs failed: every one by its overrides, whatever launched them."""

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from tracking.doors import one_line
from tracking.errors import UsageError


class FailedJobs(UsageError):
    """Some jobs of a sweep failed; the others ran."""


def names(jobs: Sequence[Sequence[str]]) -> list[str]:
    """What tells each job from the others: the overrides that not all have."""
    common = set(jobs[0]).intersection(*jobs[1:]) if len(jobs) > 1 else set()
    return [",".join(override for override in job if override not in common) for job in jobs]


class Naming:
    """A launcher whose failed jobs become one error when all jobs are done."""

    def __init__(self, launcher: Launcher):
        self._launcher = launcher

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        results = self._launcher.launch(job_overrides, initial_job_idx)
        failed = [
            f"({name}) {one_line(job._return_value)}"
            for name, job in zip(names(job_overrides), results, strict=True)
            if job.status != JobStatus.COMPLETED
        ]
        if failed:
            told = f"{len(failed)} of {len(results)} jobs failed, launch again to run what is missing: "
            raise FailedJobs(told + "; ".join(failed))
        return results


class Grid(BasicSweeper):
    """Every combination of the comma-separated values, those of a preset in conf/sweep/ included."""

    def setup(self, **context) -> None:
        super().setup(**context)
        self.launcher = Naming(self.launcher)  # type: ignore[assignment, arg-type]
