"""Which run this is: a key that two launches share exactly when they would compute the same numbers.

Beside the key stands what a record has to tell and the key must not depend on: versions, commit, command line.
"""

import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

# Raised by hand whenever a change of the code changes numbers: older results are then not found, but computed again.
RESULTS_VERSION = 1

# Where things lie. Every value below these keys is masked *before* interpolations are resolved, so that
# `data.store: ${paths.stores}/ntu60` is the same text on every machine. What lies there speaks through its fingerprint.
LOCATIONS = ("paths", "raw", "checkpoint", "hydra")
# The same further down: for a pretrained model its fingerprint stands.
NESTED_LOCATIONS = ("method.family.source", "method.family.cache")

# What changes how a run is watched or where it computes, never what it computes. Precision and batch sizes stay in.
LEFT_OUT = (
    *LOCATIONS,
    *NESTED_LOCATIONS,
    "logger",
    "clips_every",
    "show_samples",
    "client_runs",
    "fresh",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.strategy",
    "trainer.num_nodes",
    "trainer.enable_progress_bar",
    "federated.engine",
)
LEFT_OUT_ANYWHERE = ("num_workers",)
# Settings that came after the first results, with the value under which those were computed: there they stay out.
LEFT_OUT_AT: dict[str, Any] = {
    "federated.transport": "exact",
    "federated.partition.shuffle": True,
    "shares.shuffle": True,
    "method.norm_groups": None,
}

PACKAGES = (
    "skelfed",
    "torch",
    "pytorch-lightning",
    "hydra-core",
    "omegaconf",
    "numpy",
    "torchmetrics",
    "scikit-learn",
    "transformers",
    "peft",
    "bitsandbytes",
    "flwr",
    "wandb",
)


def run_key(
    config: Mapping | DictConfig, data: str, base_model: str = "", results_version: int = RESULTS_VERSION
) -> str:
    """SHA-256 (64 hex digits) of what determines a result (design contract 2).

    config: the configuration, interpolations allowed; what `stripped` leaves out does not enter.
    data: fingerprint of the data (digest of the store's manifest, of the protocol's and the label lists).
    base_model: fingerprint of the weights the run starts from, empty if it starts from none.
    """
    return digest(
        {"config": essence(config), "data": data, "base_model": base_model, "results_version": results_version}
    )


def essence(config: Mapping | DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain containers, without what `stripped` leaves out."""
    plain: Any = OmegaConf.to_container(config) if isinstance(config, DictConfig) else dict(config)
    for name in LOCATIONS:
        if name in plain:
            plain[name] = _masked(plain[name], name)
    resolved: Any = OmegaConf.to_container(OmegaConf.create(plain), resolve=True, throw_on_missing=True)
    return stripped(resolved)


def stripped(resolved: dict[str, Any]) -> dict[str, Any]:
    """A resolved configuration without what `LEFT_OUT`, `LEFT_OUT_ANYWHERE` and `LEFT_OUT_AT` name."""
    kept = _popped(without(resolved, LEFT_OUT_ANYWHERE), LEFT_OUT)
    return _popped(kept, tuple(name for name, default in LEFT_OUT_AT.items() if _at(kept, name) == default))


def unlocated(resolved: dict[str, Any]) -> dict[str, Any]:
    """A resolved configuration as records hold it: without locations."""
    return _popped(without(resolved, ()), (*LOCATIONS, *NESTED_LOCATIONS))


def _popped(kept: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The containers, changed in place, without the entries at these dotted names."""
    for dotted in names:
        *parents, last = dotted.split(".")
        node: Any = kept
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.pop(last, None)
    return kept


def _at(node: Any, dotted: str) -> Any:
    """The entry at a dotted name, None if there is none."""
    for part in dotted.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def _masked(node: Any, name: str) -> Any:
    if isinstance(node, dict):
        return {key: _masked(value, f"{name}.{key}") for key, value in node.items()}
    return f"<{name}>"


def without(node: Any, names: tuple[str, ...]) -> Any:
    """The same containers without the entries called one of `names`, at any depth."""
    if isinstance(node, dict):
        return {key: without(value, names) for key, value in node.items() if key not in names}
    if isinstance(node, list):
        return [without(value, names) for value in node]
    return node


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON: sorted keys, no spaces; ValueError for NaN, TypeError for what is no JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def versions() -> dict[str, str]:
    """Installed versions of Python and of the packages that numbers depend on; those not installed are absent."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The checkout's commit, followed by `-dirty` where tracked files differ from it; None outside a checkout."""
    ask = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(ask, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def command() -> str:
    """The command line of this process, as `shell` has it; the interpreter stands without its folder."""
    return shell([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]])


def shell(words: Sequence[str]) -> str:
    """Words of a command, ready for a shell but for locations, which are no result's.

    `raw=/data/me/nw-ucla` stands as `raw=.../nw-ucla`.
    """
    return shlex.join(map(_unlocated, words))


def _unlocated(argument: str) -> str:
    """An argument, or the value of an override, without the folders before an absolute path's last part."""
    name, equals, value = argument.rpartition("=")
    return f"{name}{equals}.../{Path(value).name}" if value.startswith(("/", "~")) else argument
