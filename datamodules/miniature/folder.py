"""A miniature's folder: written whole or not at all, marked as made up, and found again as long as nothing changed."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.alone import alone_in
from datamodules.errors import InputError

BANNER = "miniature, not {}"
MARK = "MINIATURE"  # no suffix: readers find raw files by theirs

Files = Callable[[], Iterator[tuple[str, bytes]]]


def fill(folder: Path, made_by: Mapping[str, Any], generators: Sequence[Path], files: Files) -> None:
    """Write `files()` (relative name, content) beside `folder` and rename it, unless `folder` holds the same already.

    made_by: what the content is a function of, beside the code of `generators` (their source files); it stands in the
    folder's mark. Of two processes that want the same, the second waits and finds what the first has written.
    Raises InputError if the folder holds anything else than a miniature.
    """
    mark: dict[str, Any] = json.loads(json.dumps({**made_by, "generator": _digest(generators)}))
    if _holds(folder, mark):
        return
    with alone_in(folder.parent):
        if not _holds(folder, mark):  # nobody made it while this process waited
            _write(folder, mark, files)


def _write(folder: Path, mark: dict[str, Any], files: Files) -> None:
    if folder.exists() and not (folder / MARK).is_file() and not _is_empty(folder):
        raise InputError(f"expected a miniature or nothing at {folder}, found other files: choose another folder")
    unfinished = folder.with_name(f".{folder.name}.writing")  # a killed run's is cleared away
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        listing = {}
        for name, content in files():
            path = unfinished / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            listing[name] = len(content)
        (unfinished / MARK).write_text(json.dumps(mark | {"files": listing}, indent=1))
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def is_miniature(folder: Path) -> bool:
    """Whether a raw folder is made up; it stays so wherever it lies."""
    return (Path(folder) / MARK).is_file()


def _holds(folder: Path, made_by: dict) -> bool:
    """Whether `folder` is a whole miniature made by the same generator from the same arguments."""
    try:
        mark = json.loads((folder / MARK).read_text())
        paths = (path for path in folder.rglob("*") if path.is_file())
        found = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
        found.pop(MARK)
        return mark.pop("files") == found and mark == made_by
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and next(folder.iterdir(), None) is None


def _digest(sources: Sequence[Path]) -> str:
    """SHA-256 of the code that draws the set, so that a set of an older one is written anew."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
