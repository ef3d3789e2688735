"""The memory of a federation on disk: one file, replaced as a whole when a round is complete."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from datamodules.errors import InputError
from federated.state import State

VERSION = 2
RECORD = "record {}"  # name of a round's record


@dataclass
class Progress:
    """Everything the next round depends on.

    shared: global state; memory: the strategy's; fresh: what a client's personal tensors begin from; personal: those of
    the clients that trained so far, by client; records: one plain dict a completed round.
    """

    shared: State
    fresh: State = field(default_factory=dict)
    memory: State = field(default_factory=dict)
    personal: dict[int, State] = field(default_factory=dict)
    next_round: int = 0
    records: list[dict] = field(default_factory=list)


class Ledger:
    """A file that always holds the last complete round, so that kill -9 at any moment costs at most one round.

    path: the file, its folder is made; identity: what the run is (its key); another run's ledger is refused.
    writes: False in processes beside the first, which hold the same rounds.
    """

    def __init__(self, path: str | Path, identity: str, writes: bool = True):
        self._path, self._identity, self._writes = Path(path), identity, writes

    def commit(self, progress: Progress) -> None:
        """Write the round and torch's random state beside the ledger, bring it to the disk, then take its place."""
        if not self._writes:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        told = {"version": VERSION, "identity": self._identity, "next_round": progress.next_round}
        told["records"] = len(progress.records)
        # Each record apart: one text of them all, longer every round, never fits where the last one was in memory.
        records = {RECORD.format(number): json.dumps(record) for number, record in enumerate(progress.records)}
        half_written = self._path.with_name(self._path.name + ".writing")
        save_file(_flatten(progress), half_written, {"ledger": json.dumps(told)} | records)
        to_disk(half_written)
        os.replace(half_written, self._path)
        to_disk(self._path.parent)

    def resume(self) -> Progress | None:
        """The last complete round, torch's random state set to what it was then; None where nothing is recorded.

        Raises InputError for a file that is no ledger or that another run wrote.
        """
        if not self._path.exists():
            return None
        try:
            with safe_open(self._path, framework="pt") as file:
                metadata = file.metadata() or {}
                told = json.loads(metadata.get("ledger", "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"{self._path}: expected a ledger, found {error}; delete it to begin anew") from error
        self._check(told)
        torch.set_rng_state(tensors.pop("rng"))
        records = [json.loads(metadata[RECORD.format(number)]) for number in range(told["records"])]
        return _unflatten(tensors, Progress({}, next_round=told["next_round"], records=records))

    def _check(self, told: dict | None) -> None:
        if told is None or told.get("version") != VERSION:
            raise InputError(f"{self._path}: expected a ledger of version {VERSION}, found another file; delete it")
        if told["identity"] != self._identity:
            found = f"expected the ledger of run {self._identity}, found that of {told['identity']}"
            raise InputError(f"{self._path}: {found}; give this run a folder of its own")


def _flatten(progress: Progress) -> State:
    parts = {"shared": progress.shared, "fresh": progress.fresh, "memory": progress.memory}
    parts |= {f"personal/{client}": state for client, state in progress.personal.items()}
    tensors = {f"{part}/{name}": tensor for part, state in parts.items() for name, tensor in state.items()}
    return tensors | {"rng": torch.get_rng_state()}


def _unflatten(tensors: State, progress: Progress) -> Progress:
    """The tensors of `_flatten` in their places."""
    for key, tensor in tensors.items():
        part, name = key.split("/", 1)
        if part == "personal":
            client, name = name.split("/", 1)
            progress.personal.setdefault(int(client), {})[name] = tensor
        else:
            getattr(progress, part)[name] = tensor
    return progress


def to_disk(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
