"""Loggers of one job: CSV always, W&B on request, neither ever in the way of the computation."""

import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from tracking.errors import UsageError

MODES = ("disabled", "offline", "online")
PROBE_TIMEOUT = 5.0  # seconds to reach W&B's server at all
INIT_TIMEOUT = 15.0  # seconds for W&B's server to answer before the run goes offline
FINISH_TIMEOUT = 60.0  # seconds for the last uploads; what is left stays on disk for `wandb sync`
TAG_LENGTH = 64  # W&B refuses longer tags


@contextmanager
def make(
    folder: Path,
    *,
    key: str,
    experiment: str,
    job_type: str,
    tags: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    name: str = "",
    mode: str = "disabled",
    project: str = "skelfed",
    entity: str | None = None,
) -> Iterator[list[Logger]]:
    """Loggers for `Trainer(logger=...)`, closed at the end of the block, whatever happens in it.

    CSV: `folder/metrics/version_N/metrics.csv`, a new N for every launch. Lightning's CSVLogger deletes what it finds
    in a folder it is given again, so a resumed run never reopens one; a step that two launches hold counts in the
    later one.

    W&B: mode `disabled`, `offline` or `online`, the environment's WANDB_MODE goes before `online`. The run is continued
    by its id (the first 16 digits of `key`); group = experiment; `config` is logged once, flattened to dotted keys.
    name: of the run, experiment and job type if none is given.
    `online` without an API key, or with a server that does not answer, turns into `offline`, and says so; where W&B
    cannot even write, CSV is left, and that is said too. Only rank 0 has a W&B run. The command line stays here: it
    names places of this machine.

    Raises UsageError for an unknown mode.
    """
    csv = CSVLogger(folder, name="metrics")
    run = None
    if (mode := _mode(mode)) != "disabled" and getattr(rank_zero_only, "rank", 0) == 0:
        settings = {
            "project": project,
            "entity": entity,
            "dir": str(folder),
            "id": key[:16],
            "name": name or f"{experiment} {job_type}",
            "group": experiment,
            "job_type": job_type,
            "tags": [tag[:TAG_LENGTH] for tag in tags],
            "config": flatten(config or {}),
        }
        folder.mkdir(parents=True, exist_ok=True)  # or W&B writes to the temporary folder
        run = _start(mode, settings)
    exit_code = 1
    try:
        yield [csv] if run is None else [csv, WandbLogger(experiment=run)]
        exit_code = 0
    finally:
        if run is not None:
            _finish(run, exit_code)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists stay."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _mode(mode: str) -> str:
    if mode not in MODES:
        raise UsageError(f"expected a W&B mode of {', '.join(MODES)}, found {mode!r}")
    from_environment = {"offline": "offline", "dryrun": "offline", "disabled": "disabled"}
    return from_environment.get(os.environ.get("WANDB_MODE", ""), mode) if mode == "online" else mode


def _start(mode: str, settings: dict[str, Any]) -> Any:
    """A W&B run, offline if it cannot be online; None if it cannot be at all: the computation goes on."""
    reason = ""
    if mode == "online":
        reason = _why_not_online()
        if not reason:
            try:
                run = _init(settings | {"mode": "online", "resume": "allow"})
                print(f"W&B: {run.url}")
                return run
            except Exception as error:  # whatever ails the watcher
                reason = _in_a_line(error)
                # W&B's service holds the id of the attempt, and taking the service down can hang for ever.
                settings = settings | {"id": f"{settings['id']}-offline"}
    try:
        run = _init(settings | {"mode": "offline"})
    except Exception as error:
        print(f"W&B: nothing goes there, CSV only: {reason or _in_a_line(error)}")
        return None
    if reason:
        print(f"W&B: offline instead of online: {reason}")
    print(f"W&B: offline; to send the run later: wandb sync {Path(run.dir).parent}")
    return run


def _why_not_online() -> str:
    """Empty if there is a key and the server answers; W&B itself would try a dead server for minutes."""
    import wandb  # here and below, not above: a run without W&B starts a second sooner

    try:
        # silent, or login asks the server who we are
        server = wandb.setup(wandb.Settings(silent=True)).settings.base_url
        if not wandb.login(prompt=False, verify=False):
            return "no API key, see `wandb login`"
    except Exception as error:  # settings or a key that W&B refuses, in many ways
        return _in_a_line(error)
    try:
        with urllib.request.urlopen(server, timeout=PROBE_TIMEOUT):
            return ""
    except urllib.error.HTTPError:
        return ""  # an answer, if not a kind one
    except (OSError, ValueError) as error:
        return f"{server} does not answer ({error})"


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _init(settings: dict[str, Any]) -> Any:
    import wandb

    quiet = wandb.Settings(
        silent=True,
        console="off",
        disable_code=True,
        x_disable_meta=True,  # the command line with its raw=/..., the program's path, the user's name
        init_timeout=INIT_TIMEOUT,
        finish_timeout=FINISH_TIMEOUT,
        finish_timeout_raises=True,
    )
    # create_new: a run left open elsewhere in this process would otherwise swallow this one.
    run = wandb.init(reinit="create_new", settings=quiet, **settings)
    # What WandbLogger does for runs of its own: the optimiser's step is the axis of every metric.
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return run


def _finish(run: Any, exit_code: int) -> None:
    try:
        run.finish(exit_code=exit_code)
    except Exception as error:  # most often the TimeoutError of FINISH_TIMEOUT; the results are safe on disk
        print(f"W&B: not everything was sent ({error}); to send the rest: wandb sync {Path(run.dir).parent}")
