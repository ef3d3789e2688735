"""Image files: each looked at once, wholly, before training, so that none can end an epoch in its middle."""

import hashlib
import io
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image, ImageFile

from datamodules.readers import MalformedFile
from datamodules.readers.files import read_bytes

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP")
MAX_BYTES = 64 << 20
MAX_PIXELS = 64_000_000  # a decoded image of that size takes 0.2 GB
THREADS = 8


@dataclass(frozen=True)
class Look:
    """What one look at a file found: SHA-256 of its bytes, or why it cannot be used."""

    digest: str = ""
    reason: str = ""


def look_at(paths: Iterable[Path], folder: Path, cache: Path | None = None) -> dict[Path, Look]:
    """Looks at image files of `folder`, each read and decoded once.

    cache: a file that remembers the looks by name, size and time of change; read and written where given.
    """
    wanted = sorted(set(paths))
    known = _read_cache(cache)
    marks = {path: _mark(path, folder) for path in wanted}
    fresh = [path for path in wanted if marks[path] not in known]
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:  # decoding lets other threads run
        looks = dict(zip(fresh, pool.map(_look, fresh), strict=True))
    found = {path: looks[path] if path in looks else known[marks[path]] for path in wanted}
    if fresh and cache is not None:
        _write_cache(cache, known | {marks[path]: look for path, look in found.items() if not _is_gone(path)})
    return found


def decode(path: Path) -> Image.Image:
    """An image as RGB. Raises MalformedFile where it changed since it was looked at and is none any more."""
    data = read_bytes(path, MAX_BYTES)
    try:
        return _opened(data, path).convert("RGB")
    except Exception as error:
        raise MalformedFile(path, None, f"is no image any more: {_short(error)}") from error


class Pictures:
    """Decoded images; as many as `memory` bytes hold are kept, the others are decoded each time."""

    def __init__(self, memory: int = 512 << 20):
        self._left = memory
        self._kept: dict[Path, Image.Image] = {}

    def __call__(self, path: Path) -> Image.Image:
        """The image as RGB; not to be changed in place."""
        if path in self._kept:
            return self._kept[path]
        image = decode(path)
        size = 3 * image.width * image.height
        if size <= self._left:
            self._left -= size
            self._kept[path] = image
        return image


def _look(path: Path) -> Look:
    if _is_gone(path):
        return Look(reason="is missing")
    try:
        data = read_bytes(path, MAX_BYTES)
        image = _opened(data, path)
        image.draft("RGB", (1, 1))  # a JPEG is read to its end all the same, and costs an eighth
        image.load()
    except MalformedFile as error:
        return Look(reason=error.reason)
    except Exception as error:  # damage makes Pillow's decoders raise anything
        return Look(reason=f"is no whole image: {_short(error)}")
    return Look(digest=hashlib.sha256(data).hexdigest())


def _opened(data: bytes, path: Path) -> ImageFile.ImageFile:
    """The header alone is read."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise MalformedFile(path, None, f"has {image.width} x {image.height} pixels, more than {MAX_PIXELS}")
    return image


def _short(error: Exception) -> str:
    return "no known image format" if "cannot identify" in str(error) else str(error)[:100]


def _is_gone(path: Path) -> bool:
    return not os.path.lexists(path)


def _mark(path: Path, folder: Path) -> str:
    """Name, size and time of change in one line."""
    try:
        status = path.stat()
        return f"{path.relative_to(folder).as_posix()}|{status.st_size}|{status.st_mtime_ns}"
    except OSError:
        return f"{path.relative_to(folder).as_posix()}|gone"


def _read_cache(cache: Path | None) -> dict[str, Look]:
    """A cache that is absent or damaged is an empty one: it only saves time."""
    try:
        return {mark: Look(**look) for mark, look in json.loads(cache.read_bytes()).items()} if cache else {}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write_cache(cache: Path, looks: dict[str, Look]) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    unfinished = cache.with_name(f".{cache.name}.{os.getpid()}")
    unfinished.write_text(json.dumps({mark: asdict(look) for mark, look in looks.items()}))
    unfinished.replace(cache)
