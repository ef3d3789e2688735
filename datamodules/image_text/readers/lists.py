"""The lists that come with images: JSON, JSON lines and tab-separated tables, read within bounds, blamed by line."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from datamodules.errors import InputError
from datamodules.readers import MalformedFile
from datamodules.readers.files import read_bytes

MAX_BYTES = 256 << 20
MAX_TEXT = 20_000  # characters of a caption, question or answer

Row = dict[str, Any]


def folder_with(raw: Path, names: Sequence[str], inner: Sequence[str], title: str) -> Path:
    """The first of `raw` and its folders `inner` that holds all of `names`. Raises InputError for what is missing."""
    raw = Path(raw)
    if not raw.is_dir():
        found = "a file" if raw.exists() else "nothing of that name"
        raise InputError(f"{title}: expected the folder {raw}, found {found}: give the folder that holds {names[0]}")
    folders = [raw, *(raw / name for name in inner)]
    best = min(folders, key=lambda folder: sum(not (folder / name).exists() for name in names))
    missing = [name for name in names if not (best / name).exists()]
    if missing:
        raise InputError(f"{title}: expected {', '.join(names)} in {best}, found no {missing[0]}: complete the folder")
    return best


def json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    """Number and object of each line that is not blank. Raises MalformedFile."""
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            row = _parsed(path, line, number)
            if not isinstance(row, dict):
                raise MalformedFile(path, number, "expected a JSON object")
            yield number, row


def json_rows(path: Path) -> list[Row]:
    """A JSON list of objects. Raises MalformedFile; a bad item is blamed by its place in the list, from 1."""
    rows = _parsed(path, _text(path))
    if not isinstance(rows, list):
        raise MalformedFile(path, None, f"expected a JSON list, found {type(rows).__name__}")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise MalformedFile(path, None, f"item {number}: expected a JSON object, found {type(row).__name__}")
    return rows


def json_value(path: Path) -> Any:
    """Whatever JSON the file holds. Raises MalformedFile."""
    return _parsed(path, _text(path))


def table(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Number and row of each line after the header of a tab-separated file, quotation marks taken as they stand.

    Raises MalformedFile where a column of `columns` is missing or a line has more or fewer fields than the header.
    """
    lines = _text(path).split("\n")
    header = lines[0].rstrip("\r").split("\t")
    missing = [name for name in columns if name not in header]
    if missing:
        raise MalformedFile(path, 1, f"expected the column {missing[0]}, found {', '.join(header)[:200]}")
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        fields = line.rstrip("\r").split("\t")
        if len(fields) != len(header):
            raise MalformedFile(path, number, f"expected {len(header)} fields, found {len(fields)}")
        yield number, dict(zip(header, fields, strict=True))


def text_of(row: Row, name: str, where: tuple[Path, int | None, str]) -> str:
    """The string under `name`, numbers spelt out, blanks around it taken off. Raises MalformedFile.

    where: file, line, and how to call the row where a line says nothing ("item 3: ").
    """
    path, line, item = where
    value = row.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise MalformedFile(path, line, f"{item}expected text under {name!r}, found {_shown(value)}")
    if len(value) > MAX_TEXT:
        raise MalformedFile(path, line, f"{item}{name!r} has {len(value)} characters, expected at most {MAX_TEXT}")
    return value.strip()


def one_of(value: Any, allowed: Sequence, name: str, where: tuple[Path, int | None, str]) -> int:
    """The place of a value among those allowed. Raises MalformedFile."""
    path, line, item = where
    if isinstance(value, bool) or value not in allowed:
        raise MalformedFile(path, line, f"{item}expected {name} of {_listed(allowed)}, found {_shown(value)}")
    return allowed.index(value)


def within(folder: Path, name: str) -> Path | None:
    """The file of that name below `folder`; None for a name that would leave it."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if not name or parts.is_absolute() or ".." in parts.parts or "\0" in name or re.match(r"[A-Za-z]:", name):
        return None
    return folder / parts


def _text(path: Path) -> str:
    data = read_bytes(path, MAX_BYTES)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise MalformedFile(path, line, "is not UTF-8 text") from None


def _parsed(path: Path, text: str, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = error.lineno if line is None else line
        raise MalformedFile(path, place, f"is not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise MalformedFile(path, line, f"is not JSON: {str(error)[:100]}") from None


def _listed(allowed: Sequence) -> str:
    return ", ".join(map(str, allowed)) if len(allowed) < 10 else f"{len(allowed)} known values"


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:60]
