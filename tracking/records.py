"""One JSON file a result: the numbers, and all that is needed to judge and repeat them."""

import json
import math
import os
import re
import tempfile
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tracking import identity
from tracking.errors import UsageError

SCHEMA = 1
ADDED = {"curves", "cost"}  # since schema 1; older records lack them


@dataclass
class Record:
    """One result.

    kind: the job that gave it (pretrain, knn, linear, semi, finetune, ...), lower-case letters, digits, `_` and `-`.
    key: run key of the job (`identity.run_key`).
    experiment: preset or group the run belongs to. method: as the configuration names it (sds_cl, coordinates, ...).
    metrics: after the last epoch, the headline. Accuracies and rates in per cent, as the field prints them.
    config: the resolved configuration, plain containers.
    data: `name` (NTU RGB+D; "miniature, not NTU RGB+D"), `fingerprint`, `miniature` (bool), `split`, `counts` (dict).
    seeds: every seed by its name. seconds: wall time of the job.
    best: the same metrics at the best test epoch, empty where no epoch was chosen by the test set.
    variant: what stands beside the method in its row: empty for the trained encoder, "random initialisation", ...
    setting: what tells apart results of one kind and split: "10 %", "k = 5", ...
    parents: keys of the runs this one builds on.
    curves: name -> [[epoch or round, value], ...]; "train/loss @ client 3" is the train/loss of client 3.
    cost: what the job took beside `seconds`, in bytes: peak_memory, ...

    Raises ValueError for a number that is not finite and for a malformed kind or data.
    """

    kind: str
    key: str
    experiment: str
    method: str
    metrics: dict[str, float]
    config: dict[str, Any]
    data: dict[str, Any]
    seeds: dict[str, int]
    seconds: float
    best: dict[str, float] = field(default_factory=dict)
    variant: str = ""
    setting: str = ""
    parents: list[str] = field(default_factory=list)
    curves: dict[str, list[list[float]]] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=identity.versions)
    commit: str | None = field(default_factory=identity.commit)
    command: str = field(default_factory=identity.command)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        self.metrics = {name: float(value) for name, value in self.metrics.items()}
        self.best = {name: float(value) for name, value in self.best.items()}
        self.cost = {name: float(value) for name, value in self.cost.items()}
        self.curves = {name: [[float(x), float(y)] for x, y in curve] for name, curve in self.curves.items()}
        self.seconds = float(self.seconds)
        numbers = [*self.metrics.items(), *self.best.items(), *self.cost.items(), ("seconds", self.seconds)]
        numbers += [(name, value) for name, curve in self.curves.items() for point in curve for value in point]
        for name, value in numbers:
            if not math.isfinite(value):
                raise ValueError(f"a record holds finite numbers, {name} is {value}")
        if not re.fullmatch(r"[a-z0-9_-]+", self.kind):
            raise ValueError(f"kind is lower-case letters, digits, _ and -, found {self.kind!r}")
        lacking = {"name", "fingerprint", "miniature", "split", "counts"} - self.data.keys()
        if lacking:
            raise ValueError(f"data lacks {', '.join(sorted(lacking))}")

    @property
    def id(self) -> str:
        """12 hex digits, the same for the same result computed again; one job may give several results."""
        return identity.digest([self.kind, self.key, self.method, self.variant, self.setting, self.data["split"]])[:12]


def write(record: Record, folder: Path) -> Path:
    """Write `folder/<kind>-<id>.json`, whole or not at all; a result computed again takes the old one's place."""
    text = json.dumps(asdict(record), indent=1, sort_keys=True, allow_nan=False) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.kind}-{record.id}.json"
    # Not in place: a reader, or a machine that stops now, must never see half a file.
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=folder)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def read(path: Path) -> Record:
    """The record in `path`; raises UsageError naming the file if it is torn, foreign, or of another schema."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no readable record ({error}): delete it and run its command again") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if not isinstance(schema, int):
        raise UsageError(f"{path} is no record: expected a JSON object with a schema number; move it elsewhere")
    if schema != SCHEMA:
        todo = "update this checkout" if schema > SCHEMA else "run its command again"
        raise UsageError(f"{path} has schema {schema}, this version reads {SCHEMA}: {todo}")
    names = {f.name for f in fields(Record)}
    if not names - ADDED <= content.keys() <= names:
        different = ", ".join(sorted((content.keys() ^ names) - ADDED))
        raise UsageError(f"{path} is no complete record (see {different}): delete it and run its command again")
    try:
        return Record(**content)
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is no valid record ({error}): delete it and run its command again") from error


def find(folder: Path, **wanted: Any) -> list[Record]:
    """The records of `folder`, sorted by file name, whose fields equal `wanted`: `find(folder, key=key, kind="knn")`.

    An absent folder holds no record. Raises UsageError as `read` does, never skips a file.
    """
    records = [read(path) for path in sorted(folder.glob("*.json"))]
    return [record for record in records if all(getattr(record, name) == value for name, value in wanted.items())]


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no finite number")
