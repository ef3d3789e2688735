"""The store: what is written comes back, and nothing else is taken for it."""

import json
import os
import pickle
import shutil
import time

import numpy as np
import pytest

from datamodules import store as stores
from datamodules.errors import InputError
from datamodules.store import (
    SkeletonStore,
    StoreIndex,
    content_digest,
    open_derived,
    read_manifest,
    replace_store,
    write_store,
)
from datamodules.topology import UCLA20

FACTS = {"dataset": "toy", "miniature": False, "topology": "ucla20", "recipe": None, "raw_digest": None}


def clips_of(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(frames, bodies, 20, 3)).astype(np.float32) for frames, bodies in ((3, 1), (5, 2), (1, 3))]


def index_of(clips):
    sizes = np.array([clip.size for clip in clips])
    columns = {name: np.arange(len(clips)) + 10 * place for place, name in enumerate(stores.INDEX_FIELDS)}
    shapes = {"frames": [len(clip) for clip in clips], "bodies": [clip.shape[1] for clip in clips]}
    columns |= {name: np.array(values) for name, values in shapes.items()}
    return StoreIndex(**columns | {"names": np.array(["a", "b", "c"]), "offsets": np.cumsum(sizes) - sizes})


def write(path, seed=0, **facts):
    clips = clips_of(seed)
    ids = [np.full(clip.shape[:2], row).ravel() for row, clip in enumerate(clips)]
    flat = (clip.ravel() for clip in clips)
    write_store(path, index_of(clips), flat, None if facts.get("recipe") else ids, FACTS | facts)
    return path


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "raw")


def edit_manifest(path, **changes):
    file = path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_what_is_written_comes_back(path):
    store = SkeletonStore(path)
    assert len(store) == 3 and store.topology is UCLA20 and store.manifest["dataset"] == "toy"
    for row, clip in enumerate(clips_of()):
        assert store.clip(row).dtype == np.float32 and np.array_equal(store.clip(row), clip)
        assert np.array_equal(store.body_ids(row), np.full(clip.shape[:2], row))
    expected = index_of(clips_of())
    assert all(np.array_equal(getattr(store.index, name), getattr(expected, name)) for name in stores.INDEX_FIELDS)


def test_clips_are_views_that_cannot_be_written(path):
    store = SkeletonStore(path)
    assert np.shares_memory(store.clip(1), store.clip(1))
    with pytest.raises(ValueError, match="read-only"):
        store.clip(0)[:] = 0


def test_a_derived_store_has_no_body_ids(tmp_path):
    store = SkeletonStore(write(tmp_path / "dsta", recipe="dsta", raw_digest="x"))
    assert not (store.path / "body_ids.npy").exists()
    with pytest.raises(ValueError, match="derived"):
        store.body_ids(0)


def test_a_store_travels_to_workers_by_its_path(path):
    sent = pickle.dumps(SkeletonStore(path))
    assert b"joints" in sent and len(sent) < 3000 < (path / "joints.npy").stat().st_size
    assert np.array_equal(pickle.loads(sent).clip(2), clips_of()[2])


@pytest.mark.parametrize("name", ["joints.npy", "body_ids.npy", "index.npz"])
def test_changed_cut_and_missing_files_are_refused(path, name):
    file = path / name
    good = file.read_bytes()
    for place in (0, len(good) // 2, len(good) - 1):
        file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(InputError, match=rf"{name}: expected the SHA-256.*prepare.py"):
            SkeletonStore(path)
    for other in (good[:-1], good + b"\0", b""):
        file.write_bytes(other)
        with pytest.raises(InputError, match=name):
            SkeletonStore(path)
    file.unlink()
    with pytest.raises(InputError, match=rf"{name}.*no such file"):
        SkeletonStore(path)
    file.write_bytes(good)
    SkeletonStore(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "{}", '"format"', '{"format": 1}', "\udce9"])
def test_what_is_no_manifest_is_refused(path, text):
    (path / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match="manifest"):
        SkeletonStore(path)


def test_half_written_absent_and_older_stores_are_refused(path):
    edit_manifest(path, format=0)
    with pytest.raises(InputError, match=r"expected store format 1, found 0: prepare .* again"):
        SkeletonStore(path)
    (path / "manifest.json").unlink()
    with pytest.raises(InputError, match="half-written"):
        SkeletonStore(path)
    with pytest.raises(InputError, match="no such folder"):
        SkeletonStore(path.parent / "nothing")


@pytest.mark.parametrize("change", [{"miniature": True}, {"dataset": "other"}, {"digest": "0" * 64}, {"files": {}}])
def test_an_edited_manifest_is_refused(path, change):
    edit_manifest(path, **change)
    with pytest.raises(InputError, match="changed on disk"):
        SkeletonStore(path)


def test_pickles_are_not_loaded(path):
    fields = {name: np.zeros(3) for name in stores.INDEX_FIELDS} | {"names": np.array([print, 1, 2], dtype=object)}
    np.savez(path / "index.npz", **fields)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["index.npz"] = stores._summary(path / "index.npz")
    edit_manifest(path, files=manifest["files"], digest=content_digest(manifest))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        SkeletonStore(path)


def test_a_verified_store_is_not_hashed_again_until_it_moves(path, monkeypatch):
    hashed = []
    summary = stores._summary
    monkeypatch.setattr(stores, "_summary", lambda file: hashed.append(file.name) or summary(file))
    SkeletonStore(path)
    assert len(hashed) == 3 and not (path / "verified.json").exists(), "too fresh to be trusted"
    monkeypatch.setattr(stores, "RACY_NS", 0)
    time.sleep(0.02)
    SkeletonStore(path)
    assert len(hashed) == 6
    SkeletonStore(path)
    assert len(hashed) == 6

    file = path / "joints.npy"
    before, data = file.stat(), bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size, same modification time
    with pytest.raises(InputError, match="joints"):
        SkeletonStore(path)


def test_a_copied_store_is_hashed_once_more(path, monkeypatch):
    monkeypatch.setattr(stores, "RACY_NS", 0)
    time.sleep(0.02)
    SkeletonStore(path)
    copy = shutil.copytree(path, path.parent / "copy")
    (copy / "index.npz").write_bytes((copy / "index.npz").read_bytes()[:-1] + b"\1")
    with pytest.raises(InputError, match="index"):
        SkeletonStore(copy)


@pytest.mark.parametrize("stamp", ["", "[]", '{"digest": 1}', None])
def test_a_stamp_that_says_nothing_is_no_harm(path, stamp, monkeypatch):
    monkeypatch.setattr(stores, "RACY_NS", 0)
    if stamp is None:
        (path / "verified.json").mkdir()  # cannot be written, like the stamp of a read-only folder
    else:
        (path / "verified.json").write_text(stamp)
    time.sleep(0.02)
    assert len(SkeletonStore(path)) == 3
    assert sorted(file.name for file in path.iterdir() if file.name.startswith(".")) == []


def test_the_digest_is_of_the_content_alone(path, tmp_path):
    again = write(tmp_path / "elsewhere" / "raw", tool="another", rejected=[{"file": "x"}], source="y")
    digest = SkeletonStore(path).digest
    assert SkeletonStore(again).digest == digest
    for number, facts in enumerate([{"seed": 1}, {"miniature": True}, {"dataset": "other"}, {"raw_digest": "z"}]):
        assert SkeletonStore(write(tmp_path / str(number), **facts)).digest != digest


def test_the_same_clips_give_the_same_bytes(path, tmp_path):
    again = write(tmp_path / "again")
    for file in path.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes()


def test_nothing_stands_under_the_name_of_a_store_that_failed(tmp_path):
    clips = clips_of()

    def breaking():
        yield clips[0].ravel()
        raise OSError("no space left")

    for pieces, error in ((breaking(), OSError), ([clips[0].ravel()], ValueError)):
        with pytest.raises(error):
            write_store(tmp_path / "raw", index_of(clips), pieces, None, FACTS)
        assert not (tmp_path / "raw").exists()
    assert len(SkeletonStore(write(tmp_path / "raw"))) == 3


def test_replacing_leaves_one_store(path, tmp_path):
    new = write(tmp_path / "new", seed=1)
    digest = read_manifest(new)["digest"]
    replace_store(new, path)
    assert SkeletonStore(path).digest == digest and [file.name for file in tmp_path.iterdir()] == ["raw"]


def test_a_derived_store_of_other_raw_data_is_refused(path, tmp_path):
    write(tmp_path / "dsta", recipe="dsta", raw_digest=read_manifest(path)["digest"])
    assert len(open_derived(tmp_path, "dsta")) == 3
    replace_store(write(tmp_path / "new", seed=1), path)
    with pytest.raises(InputError, match="other raw data"):
        open_derived(tmp_path, "dsta")
