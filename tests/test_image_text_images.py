"""Image files: whatever is wrong with one is known before training."""

import hashlib
import io
import json
import re
import struct
import zlib

import pytest
from PIL import Image

from datamodules.image_text import images
from datamodules.image_text.images import Pictures, decode, look_at
from datamodules.readers import MalformedFile


def encoded(form="PNG", size=(8, 6), mode="RGB") -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 90).convert(mode).save(file, form)
    return file.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"0")]
    framed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def test_sound_images_of_every_format_and_mode(tmp_path):
    contents = {"a.png": encoded(), "b.jpg": encoded("JPEG", (300, 200)), "c.gif": encoded("GIF", mode="P")}
    contents |= {"d.webp": encoded("WEBP"), "e.png": encoded(mode="RGBA"), "f.png": encoded(mode="L")}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    looks = look_at([tmp_path / name for name in contents], tmp_path)
    assert {path.name: look.digest for path, look in looks.items()} == {
        name: hashlib.sha256(content).hexdigest() for name, content in contents.items()
    }
    assert {decode(path).mode for path in looks} == {"RGB"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no known image format"),
        (b"<html>404</html>", "no known image format"),
        (encoded(size=(64, 64))[:-300], "no whole image"),
        (encoded("JPEG", (400, 300))[:-2000], "no whole image"),
        (png_claiming(60_000, 60_000), "no whole image: Image size"),
        (png_claiming(9_000, 9_000), "has 9000 x 9000 pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no known image format"),  # would start a program
    ],
)
def test_damage_is_a_reason_not_a_crash(tmp_path, content, reason):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    look = look_at([path], tmp_path)[path]
    assert re.search(reason, look.reason) and not look.digest


def test_missing_files_folders_links_and_giants(tmp_path, monkeypatch):
    inner = tmp_path / "img"
    inner.mkdir()
    (tmp_path / "outside.png").write_bytes(encoded())
    (inner / "link.png").symlink_to(tmp_path / "outside.png")
    (inner / "dangling.png").symlink_to(inner / "nothing.png")
    (inner / "folder.png").mkdir()
    (inner / "giant.png").write_bytes(encoded(size=(99, 99)))
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    names = ("gone", "link", "dangling", "folder", "giant")
    looks = look_at([inner / f"{name}.png" for name in names], tmp_path)
    reasons = {path.stem: look.reason for path, look in looks.items()}
    assert reasons["gone"] == "is missing" and "leaves the raw folder" in reasons["link"]
    assert "cannot be read" in reasons["dangling"] and "regular" in reasons["folder"]
    assert "expected at most 1000" in reasons["giant"]


def test_the_cache_spares_the_second_look_and_sees_a_change(tmp_path, monkeypatch):
    paths = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "gone.png"]
    paths[0].write_bytes(encoded())
    paths[1].write_bytes(b"no image")
    cache = tmp_path / "cache" / "images.json"
    first = look_at(paths, tmp_path, cache)
    seen = []
    look = images._look
    monkeypatch.setattr(images, "_look", lambda path: seen.append(path.name) or look(path))
    assert look_at(paths, tmp_path, cache) == first and seen == ["gone.png"]  # that may have come
    paths[1].write_bytes(encoded(size=(20, 20)))
    assert not look_at(paths, tmp_path, cache)[paths[1]].reason


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a|1|2": {"digest": 1, "more": 2}}'])
def test_a_damaged_cache_is_an_empty_one(tmp_path, content):
    path, cache = tmp_path / "a.png", tmp_path / "images.json"
    path.write_bytes(encoded())
    cache.write_text(content)
    assert look_at([path], tmp_path, cache)[path].digest
    assert len(json.loads(cache.read_text())) == 1


def test_pictures_are_kept_while_memory_lasts(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        path.write_bytes(encoded(size=(10, 10)))
    pictures = Pictures(memory=2 * 300)
    first = [pictures(path) for path in paths]
    second = [pictures(path) for path in paths]
    assert [one is other for one, other in zip(first, second, strict=True)] == [True, True, False]
    assert first[2].tobytes() == second[2].tobytes()


def test_an_image_that_changed_since_is_named(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"gone bad")
    with pytest.raises(MalformedFile, match=r"a\.png: is no image any more: no known image format"):
        decode(path)
