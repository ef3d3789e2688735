"""What every reader asks of the raw folder: its candidate files, and what is in one of them without surprises."""

import json
import stat
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.readers import MalformedFile

# A joint beyond this cannot be a distance in metres, and its square would overflow in later float32 arithmetic.
FARTHEST = 1e6


def candidates(raw: Path, pattern: str, expected: str) -> list[Path]:
    """Everything in the folder `raw` that matches `pattern`, sorted by name.

    Raises InputError if there is no such folder or nothing in it matches; `expected` says what should be there.
    """
    if not raw.is_dir():
        found = "a file" if raw.exists() else "nothing of that name"
        raise InputError(f"expected the folder {raw} with {expected}, found {found}: give the folder that holds them")
    paths = sorted(raw.glob(pattern))
    if not paths:
        entries = sorted(entry.name for entry in raw.iterdir())
        found = f"{len(entries)} other entries, first {entries[:3]}" if entries else "an empty folder"
        raise InputError(f"expected {expected} in {raw}, found {found}: give the folder that holds them")
    return paths


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of one raw file; a link out of its folder, no regular file, or a larger one is a MalformedFile."""
    try:
        if path.is_symlink() and not path.resolve().is_relative_to(path.parent.resolve()):
            raise MalformedFile(path, None, "is a link that leaves the raw folder")
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise MalformedFile(path, None, "is not a regular file")
        if status.st_size > limit:
            raise MalformedFile(path, None, f"has {status.st_size} bytes, expected at most {limit}")
        return path.read_bytes()
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError before Python 3.13
        raise MalformedFile(path, None, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """The JSON object that one raw file is; anything else, NaN and infinity too, is a MalformedFile."""

    def refuse(constant: str):
        raise MalformedFile(path, None, f"holds {constant}, expected finite numbers")

    try:
        content = json.loads(read_bytes(path, limit), parse_constant=refuse)
    except MalformedFile:
        raise
    except json.JSONDecodeError as error:
        raise MalformedFile(path, error.lineno, f"is not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise MalformedFile(path, None, f"is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise MalformedFile(path, None, f"expected a JSON object, found {type(content).__name__}")
    return content
