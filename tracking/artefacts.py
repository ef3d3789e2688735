"""What stands beside a record and is too heavy for it: confusion matrices, points of embeddings, clips to play.

One JSON file a part in a folder named like the record: `records/knn-0123456789ab.json` has `records/knn-0123456789ab/`.

parts
    confusion: {"matrix": clips by (true label, answer)}
    points: {"method", "xy" (N, 2), "labels" (N), "names" (N), "of": clips they were drawn from}
    samples: {"bones", "joints", "up", "upward", "clips": [{"title", "note", "joints" (T, M, V, 3), "maps", "twins",
        "neighbours"}]}, coordinates in thousandths of the recipe's unit
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracking.errors import UsageError
from tracking.records import Record


def folder_of(record: Record, records: Path) -> Path:
    """Where the parts of a record stand."""
    return records / f"{record.kind}-{record.id}"


def write(record: Record, records: Path, parts: Mapping[str, Any]) -> None:
    """Write each part whole or not at all. ValueError for a number that is not finite."""
    folder = folder_of(record, records)
    for name, content in parts.items():
        text = json.dumps(content, allow_nan=False, separators=(",", ":"))
        folder.mkdir(parents=True, exist_ok=True)
        path, temporary = folder / f"{name}.json", folder / f".{name}.json.{os.getpid()}"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)


def read(record: Record, records: Path) -> dict[str, Any]:
    """Every part of a record by name, none if there is none; UsageError names a file that is no JSON."""
    parts = {}
    for path in sorted(folder_of(record, records).glob("*.json")):
        try:
            parts[path.stem] = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be read ({error}): delete it, or run its command again") from error
    return parts


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no finite number")
