"""The thin entry points: Hydra around a function that returns a plain dict, one line for every mistake of the user."""

import functools
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import (
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from tracking import processes
from tracking.errors import UsageError
from tracking.extras import installed_by

Task = Callable[[DictConfig], dict[str, Any]]

# What Hydra and OmegaConf raise for a slip in an override or a preset. Their other errors are slips of ours.
CONFIGURATION_ERRORS: tuple[type[Exception], ...] = (
    HydraException,
    MissingMandatoryValue,
    InterpolationResolutionError,
    ValidationError,
    yaml.YAMLError,
)
USER_ERROR = 2  # exit status, as argparse has it
CONF = Path(__file__).resolve().parents[1] / "conf"


def door(
    config_name: str, expected: tuple[type[Exception], ...], conf: Path = CONF
) -> Callable[[Task], Callable[[], None]]:
    """Decorator: the function becomes a command that composes `conf/<config_name>.yaml` with the overrides given.

    The function gets the composed configuration and returns what it found and where it lies, printed at the end. Called
    from Python it stays reachable: `main.run(cfg)`.

    A slip in the overrides, a UsageError or one of `expected` ends the command with one line `error: ...` and status 2;
    every other exception keeps its traceback. In a sweep (`--multirun`) each job that fails says so, the others run on,
    and the command fails at the end.
    """
    mistakes: tuple[type[Exception], ...] = (UsageError, *expected, *CONFIGURATION_ERRORS)

    def decorate(run: Task) -> Callable[[], None]:
        @functools.wraps(run)
        def job(cfg: DictConfig) -> dict[str, Any]:
            try:
                _check_sweep()
                result = run(cfg)
            except mistakes as error:
                if _in_sweep():
                    _complain(error, _job())
                    raise  # the launcher marks the job as failed and goes on
                # Hydra lets SystemExit pass; an exception it would precede with a line of its own.
                _complain(error)
                raise SystemExit(USER_ERROR) from error
            except Exception:
                if _in_sweep():
                    print(f"error{_job()}:\n{traceback.format_exc()}", file=sys.stderr)
                raise
            if processes.rank() == 0:
                print(summary(result))
            return result

        @functools.wraps(run)
        def main() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach us, with their traceback
            try:
                hydra.main(version_base="1.3", config_path=str(conf.resolve()), config_name=config_name)(job)()
            except mistakes as error:
                _complain(error)
                sys.exit(USER_ERROR)

        main.run = run  # type: ignore[attr-defined]
        return main

    return decorate


def summary(result: Mapping[str, Any]) -> str:
    """The result as lines `name: value`, nested names joined by dots, numbers to four digits, None left out."""
    lines = []
    for name, value in result.items():
        if isinstance(value, Mapping):
            lines += [f"{name}.{line}" for line in summary(value).splitlines()]
        elif value is not None:
            lines.append(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
    return "\n".join(lines)


def _in_sweep() -> bool:
    return HydraConfig.get().mode == RunMode.MULTIRUN


def _job() -> str:
    """Which job of a sweep this is."""
    return f" in job {HydraConfig.get().job.num} ({HydraConfig.get().job.override_dirname})"


def _check_sweep() -> None:
    """Raises UsageError for a preset of conf/sweep/ in a single run, where it would be passed over."""
    preset = HydraConfig.get().runtime.choices.get("sweep")
    if preset and not _in_sweep():
        raise UsageError(f"sweep={preset} is for a sweep: add -m")


def _complain(error: Exception, where: str = "") -> None:
    where += f" in process {processes.rank()}" if processes.rank() else ""
    print(f"error{where}: {one_line(error)}", file=sys.stderr)


def one_line(error: Exception) -> str:
    """What the user can use of an error's message, on one line."""
    text = str(error)
    if isinstance(error, OmegaConfBaseException):
        text = text.split("\n")[0]  # below stand the node's path again and the type of its container
    # Hydra shows where it looked; the options it found before that are the help.
    text = text.split("Config search path:")[0]
    if "Could not load 'hydra/launcher/submitit" in text:  # a preset that comes with its package
        return f"hydra/launcher=slurm needs the package 'submitit': {installed_by('submitit')}"
    return " ".join(text.split()) or type(error).__name__
