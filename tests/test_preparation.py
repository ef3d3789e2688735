"""Preparation from end to end with a reader of a few lines: complete or not there, whatever happens on the way."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from datamodules import preparation
from datamodules.errors import InputError
from datamodules.normalise import RECIPES
from datamodules.preparation import prepare
from datamodules.readers import MalformedFile, OneClipAFile, RawSample
from datamodules.readers.ntu_rgbd import NTUReader
from datamodules.store import SkeletonStore, open_derived, read_manifest
from datamodules.topology import NTU25, SkeletonTopology

PREPARING = """
import sys
from pathlib import Path
sys.path.insert(0, "..")
import test_preparation
def run(raw, out, log):
    test_preparation.run(raw, out, reader=test_preparation.SeedReader(log), recipes=["dsta"])
"""
GOLDEN_RAW = Path(__file__).parent / "golden" / "ntu" / "raw"


@dataclass(frozen=True)
class SeedReader(OneClipAFile):
    """`NAME.seed` holds seed, frames and bodies of a random clip, or the name of an accident."""

    topology: ClassVar[SkeletonTopology] = NTU25
    pattern: ClassVar[str] = "*.seed"
    log: Path | None = None

    def files(self, raw: Path) -> list[Path]:
        if not raw.is_dir():
            raise InputError(f"{raw}: expected a folder, found none")
        return sorted(raw.rglob(self.pattern), reverse=True)

    def read(self, path: Path) -> RawSample:
        if self.log:
            with self.log.open("a") as file:
                file.write(f"{path.stem}\n")
        words = path.read_text().split()
        if words[0] == "broken":
            raise MalformedFile(path, 3, "is broken")
        if words[0] == "unreadable":
            raise OSError(5, "Input/output error")
        if words[0] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        seed, frames, bodies = map(int, words[:3])
        joints = np.random.default_rng(seed).normal(size=(frames, bodies, 25, 3)).astype(np.float32)
        joints *= {"empty": 0, "nan": np.nan}.get(words[-1], 1)
        name = "another" if words[-1] == "misnamed" else path.stem
        return RawSample(name, joints, np.tile(np.arange(bodies), (frames, 1)), label=seed % 3, performer=seed)


def write_raw(folder, count=10, **accidents):
    folder.mkdir(exist_ok=True)
    for seed in range(count):
        (folder / f"clip{seed:02}.seed").write_text(f"{seed} {3 + seed % 4} {1 + seed % 2}")
    for name, text in accidents.items():
        (folder / f"{name}.seed").write_text(text)
    return folder


@pytest.fixture
def raw(tmp_path):
    return write_raw(tmp_path / "files")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(preparation, "FILES_PER_SHARD", 3)
    monkeypatch.setattr(preparation, "CLIPS_PER_SHARD", 4)


def run(raw, out, recipes=("agcn", "dsta"), reader=None, workers=1, **options):
    return prepare(reader or SeedReader(), raw, out, recipes, name="toy", workers=workers, **options)


def contents(out):
    """Bytes of every file of a prepared folder, besides the notes of verification."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and path.name != "verified.json")
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def test_stores_hold_what_the_reader_and_the_recipes_say(raw, tmp_path, capsys):
    summary = run(raw, tmp_path / "out")
    store = SkeletonStore(tmp_path / "out" / "raw")
    assert store.index.names.tolist() == [f"clip{row:02}" for row in range(10)] and len(store) == summary["clips"] == 10
    assert store.index.performers.tolist() == list(range(10)) and (store.index.cameras == -1).all()
    for row in range(10):
        sample = SeedReader().read(raw / f"clip{row:02}.seed")
        assert np.array_equal(store.clip(row), sample.joints) and np.array_equal(store.body_ids(row), sample.body_ids)
        for recipe in ("agcn", "dsta"):
            derived = open_derived(tmp_path / "out", recipe)
            assert np.array_equal(derived.clip(row), RECIPES[recipe](sample.joints, sample.body_ids, NTU25))
            assert derived.index.labels[row] == sample.label and derived.index.frames[row] == len(sample.joints)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["agcn", "dsta", "raw"]
    lines = capsys.readouterr().out.splitlines()
    assert "reading raw files: 10/10" in lines and lines[-1].startswith("toy: 10 clips in") and len(lines) > 3


def test_real_format_through_real_reader(tmp_path):
    raw = shutil.copytree(GOLDEN_RAW, tmp_path / "files")
    (raw / "S001C001P001R001A003.skeleton").symlink_to("nothing")
    (raw / "S001C001P001R001A004.skeleton").mkdir()
    (raw / "S001C001P001R001A005.skeleton").write_text("1000000000\n")
    summary = prepare(NTUReader(), raw, tmp_path / "out", ["agcn", "dsta"], name="ntu60", workers=1)
    assert (summary["clips"], summary["rejected"]) == (7, 3)
    with np.load(GOLDEN_RAW.parent / "expected.npz") as golden:
        store = open_derived(tmp_path / "out", "dsta")
        for row, name in enumerate(golden["names"]):
            clip, expected = store.clip(row), golden[f"dsta/normalised/{name}"].transpose(1, 3, 2, 0)
            assert np.abs(clip - expected[:, : clip.shape[1]]).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.skipif("SKELFED_REALDATA" not in os.environ, reason="SKELFED_REALDATA names no folder")
def test_genuine_recordings_prepare_without_a_rejection(tmp_path):
    folder = Path(os.environ["SKELFED_REALDATA"]) / "ntu-rgbd"
    summary = prepare(NTUReader(), folder, tmp_path, ["agcn", "dsta"], name="ntu60", workers=1, strict=True)
    assert (summary["clips"], summary["rejected"]) == (5, 0)


def test_workers_change_no_byte(raw, tmp_path):
    write_raw(raw, bad="broken")
    for workers, out in ((1, tmp_path / "one"), (2, tmp_path / "two")):
        run(raw, out, recipes=["dsta"], workers=workers)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_digest_does_not_know_paths_and_times(raw, tmp_path):
    other = shutil.copytree(raw, tmp_path / "moved")
    for path in other.iterdir():
        os.utime(path, (1, 1))
    digests = [run(folder, tmp_path / f"out-{folder.name}")["digest"] for folder in (raw, other)]
    assert digests[0] == digests[1]
    (other / "clip04.seed").write_text("44 4 1")
    assert run(other, tmp_path / "out-moved")["digest"] != digests[0]


def test_rejected_files_are_recorded_and_counted(raw, tmp_path, capsys):
    write_raw(raw, a="broken", m="5 4 1 empty", n="5 4 1 nan", z="5 4 1 misnamed")
    summary = run(raw, tmp_path / "out", exclude=frozenset(("clip03", "clip07", "absent")))
    assert (summary["clips"], summary["rejected"], summary["excluded"]) == (8, 4, 2)
    manifest = read_manifest(tmp_path / "out" / "raw")
    assert manifest["counts"] == {"clips": 8, "frames": 31, "bodies": 11, "rejected": 4, "excluded": 2}
    assert [(entry["file"], entry["line"]) for entry in manifest["rejected"]] == [
        ("a.seed", 3),
        ("m.seed", None),
        ("n.seed", None),
        ("z.seed", None),
    ]
    reasons = [entry["reason"] for entry in manifest["rejected"]]
    assert reasons[:2] == ["is broken", "no body in any frame"] and "finite" in reasons[2] and "another" in reasons[3]
    assert "clip03" not in SkeletonStore(tmp_path / "out" / "raw").index.names
    assert manifest["tool"].startswith("skelfed ")
    last = capsys.readouterr().out.splitlines()[-1]
    assert "4 rejected" in last and "2 left out by the missing list" in last


class ManyReader(SeedReader):
    """Every line of a file is a clip; the file `list` names which of them train."""

    def companions(self, raw: Path) -> list[Path]:
        return [raw / "list"]

    def clips(self, path: Path):
        if path.read_text() == "broken":
            raise MalformedFile(path, 3, "is broken")
        listed = (path.parent / "list").read_text().split()
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            name = f"{path.stem}.{number:03}"
            if line == "bad":
                yield MalformedFile(path.parent / "list", number, "is bad", clip=name)
                continue
            seed, frames, factor = map(int, line.split())
            joints = factor * np.random.default_rng(seed).normal(size=(frames, 1, 25, 3)).astype(np.float32)
            side = 1 if path.stem in listed else 2
            yield RawSample(name, joints, np.zeros((frames, 1), dtype=np.int64), label=seed % 3, listed=side)


def write_many(folder):
    folder.mkdir()
    (folder / "list").write_text("a c")
    for name, text in {"a": "1 4 1\n2 3 1", "b": "3 5 1\nbad\n4 3 0\n5 3 1", "c": "broken", "d": "6 2 1"}.items():
        (folder / f"{name}.seed").write_text(text)
    return folder


def test_files_of_many_clips(tmp_path):
    raw = write_many(tmp_path / "files")
    summary = run(raw, tmp_path / "out", ["dsta"], ManyReader())
    store = open_derived(tmp_path / "out", "dsta")
    assert store.index.names.tolist() == ["a.001", "a.002", "b.001", "b.004", "d.001"]
    assert store.index.listed.tolist() == [1, 1, 2, 2, 2] and store.index.frames.tolist() == [4, 3, 5, 3, 2]
    expected = np.random.default_rng(5).normal(size=(3, 1, 25, 3)).astype(np.float32)
    assert np.array_equal(SkeletonStore(tmp_path / "out" / "raw").clip(3), expected)
    manifest = read_manifest(tmp_path / "out" / "raw")
    assert [tuple(entry.values()) for entry in manifest["rejected"]] == [
        ("b.002", "list", 2, "is bad"),
        ("b.003", "b.seed", None, "no body in any frame"),
        ("c", "c.seed", 3, "is broken"),
    ]
    assert (summary["clips"], summary["rejected"]) == (5, 3)
    run(raw, tmp_path / "two", ["dsta"], ManyReader(), workers=2)
    assert contents(tmp_path / "two") == contents(tmp_path / "out")


def test_a_changed_companion_is_prepared_again(tmp_path):
    raw, out = write_many(tmp_path / "files"), tmp_path / "out"
    first = run(raw, out, ["dsta"], ManyReader())
    assert run(raw, out, ["dsta"], ManyReader())["already"]
    (raw / "list").write_text("a b c d")
    again = run(raw, out, ["dsta"], ManyReader())
    assert not again["already"] and again["digest"] != first["digest"]
    assert (open_derived(out, "dsta").index.listed == 1).all()


def test_a_reader_that_mixes_up_its_clips_is_found_out(tmp_path):
    class Backwards(ManyReader):
        def clips(self, path):
            return iter(list(super().clips(path))[::-1])

    with pytest.raises(ValueError, match="ascending"):
        run(write_many(tmp_path / "files"), tmp_path / "out", ["dsta"], Backwards())


def test_stores_of_sets_without_lists_do_not_know_of_them(raw, tmp_path):
    run(raw, tmp_path / "out", ["dsta"])
    with np.load(tmp_path / "out" / "raw" / "index.npz") as arrays:
        assert "listed" not in arrays
    assert (open_derived(tmp_path / "out", "dsta").index.listed == -1).all()


def test_strict_writes_nothing(raw, tmp_path):
    write_raw(raw, a="broken", b="broken")
    with pytest.raises(InputError, match=r"found 2 rejected, the first a\.seed: is broken"):
        run(raw, tmp_path / "out", strict=True)
    assert not (tmp_path / "out").exists()
    run(raw, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(InputError, match="2 rejected"):
        run(raw, tmp_path / "out", strict=True)
    assert contents(tmp_path / "out") == before


def test_a_second_run_returns_at_once(raw, tmp_path, capsys):
    reader = SeedReader(tmp_path / "log")
    run(raw, tmp_path / "out", reader=reader)
    before = contents(tmp_path / "out")
    reader.log.unlink()
    assert run(raw, tmp_path / "out", reader=reader)["already"] and "already prepared" in capsys.readouterr().out
    assert contents(tmp_path / "out") == before and not reader.log.exists()


@pytest.mark.parametrize("change", ["added", "rewritten", "touched", "removed", "missing list"])
def test_a_changed_raw_folder_is_prepared_again(raw, tmp_path, change):
    before, exclude = run(raw, tmp_path / "out")["digest"], frozenset()
    file = raw / "clip03.seed"
    if change == "added":
        write_raw(raw, new="77 3 1")
    elif change == "rewritten":
        file.write_text(file.read_text().replace("3", "8"))
    elif change == "touched":
        os.utime(file, (1, 1))
    elif change == "removed":
        file.unlink()
    else:
        exclude = frozenset(("clip03",))
    summary = run(raw, tmp_path / "out", exclude=exclude)
    assert not summary["already"] and (summary["digest"] == before) == (change == "touched")
    assert len(open_derived(tmp_path / "out", "dsta")) == summary["clips"]


def test_another_recipe_reads_no_raw_file_again(raw, tmp_path):
    reader = SeedReader(log=tmp_path / "log")
    run(raw, tmp_path / "out", recipes=["dsta"], reader=reader)
    reads = reader.log.read_text()
    assert not run(raw, tmp_path / "out", recipes=["dsta", "agcn"], reader=reader)["already"]
    assert reader.log.read_text() == reads and len(open_derived(tmp_path / "out", "agcn")) == 10


@pytest.mark.parametrize("store", ["raw", "dsta"])
@pytest.mark.parametrize("file", ["joints.npy", "index.npz", "manifest.json"])
def test_a_damaged_store_is_prepared_again(raw, tmp_path, store, file):
    run(raw, tmp_path / "out")
    before, broken = contents(tmp_path / "out"), tmp_path / "out" / store / file
    broken.write_bytes(broken.read_bytes()[:-2])
    with pytest.raises(InputError):
        SkeletonStore(tmp_path / "out" / store)
    assert not run(raw, tmp_path / "out")["already"]
    assert contents(tmp_path / "out") == before


def test_bad_input_does_not_cost_the_good_store(raw, tmp_path):
    run(raw, tmp_path / "out")
    before = contents(tmp_path / "out")
    for file in raw.iterdir():
        file.write_text("broken")
    with pytest.raises(InputError, match="10 rejected, the first clip00"):
        run(raw, tmp_path / "out")
    (raw / "clip05.seed").write_text("unreadable")
    with pytest.raises(InputError, match="Input/output error"):
        run(raw, tmp_path / "out")
    shutil.rmtree(raw)
    with pytest.raises(InputError, match="expected a folder"):
        run(raw, tmp_path / "out")
    now = {name: data for name, data in contents(tmp_path / "out").items() if not name.startswith(".partial")}
    assert now == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"recipes": ["dsta", "dts"]}, "found 'dts'"),
        ({"exclude": frozenset(f"clip{row:02}" for row in range(10))}, "besides the missing list"),
    ],
)
def test_wrong_settings_write_nothing(raw, tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        run(raw, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_clip_of_two_files_is_refused(raw, tmp_path):
    shutil.copytree(raw, raw / "copy")
    with pytest.raises(InputError, match="each clip once"):
        run(raw, tmp_path / "out")


def test_what_is_no_store_of_this_data_is_not_replaced(raw, tmp_path):
    user_data = write_raw(tmp_path / "raw")
    with pytest.raises(InputError, match="found something else: prepare elsewhere"):
        run(user_data, tmp_path)
    assert len(list(user_data.iterdir())) == 10
    run(raw, tmp_path / "out")
    with pytest.raises(InputError, match="miniature"):
        run(raw, tmp_path / "out", miniature=True)


def test_of_two_at_once_the_second_waits_and_finds_what_the_first_made(raw, tmp_path):
    reader, out = SeedReader(tmp_path / "log"), tmp_path / "out"
    out.mkdir()
    folder = os.open(out, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    command = [
        sys.executable,
        "-c",
        f"{PREPARING}run(Path({str(raw)!r}), Path({str(out)!r}), Path({str(reader.log)!r}))",
    ]
    both = [subprocess.Popen(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.stdout.readline() for process in both]
    assert all("another process is at work" in line for line in told)
    assert not reader.log.exists()
    os.close(folder)
    assert sorted("already prepared" in process.communicate(timeout=60)[0] for process in both) == [False, True]
    assert [process.returncode for process in both] == [0, 0]
    assert len(reader.log.read_text().split()) == 10
    assert len(SkeletonStore(out / "dsta")) == 10


def in_a_child(action):
    """Run `action` in a fork of this process; returns the signal that ended it, 0 if none did."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            action()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def killed_at(step, action):
    """`action`, killed at its step-th renaming, removal or durable write; False when it has no so many steps."""

    def doomed():
        steps = 0

        def counted(function):
            def wrapper(*args, **kwargs):
                nonlocal steps
                steps += 1
                if steps == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return wrapper

        Path.rename, Path.replace = counted(Path.rename), counted(Path.replace)
        shutil.rmtree, os.fsync = counted(shutil.rmtree), counted(os.fsync)
        action()

    ended = in_a_child(doomed)
    assert ended in (0, signal.SIGKILL)
    return ended != 0


@pytest.mark.parametrize("older", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_killed_at_any_step_it_goes_on_and_gives_the_same_bytes(tmp_path, older, monkeypatch):
    """A first run, or one that replaces an older store: what has a store's name is whole at every moment."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # slow, and of no use against a kill
    raw, out, old, expected = (tmp_path / name for name in ("files", "out", "old", "expected"))
    run(write_raw(raw, 4), old, recipes=["dsta"])
    write_raw(raw, 0, new="77 3 1")
    run(raw, expected, recipes=["dsta"])
    for step in range(1, 100):
        shutil.rmtree(out, ignore_errors=True)
        if older:
            shutil.copytree(old, out)
        if not killed_at(step, lambda: run(raw, out, recipes=["dsta"])):
            break
        if older:
            with pytest.raises(InputError, match="prepare elsewhere"):
                run(raw, out, recipes=["dsta"], miniature=True)
            SkeletonStore(out / "dsta")  # the older or the new one
        for name in ("raw", "dsta"):
            if (out / name).exists():
                SkeletonStore(out / name)
        run(raw, out, recipes=["dsta"])
        assert contents(out) == contents(expected), step
    assert 20 < step < 99


@pytest.fixture
def killed(raw, tmp_path):
    """Output of a run that was killed at clip06, and then the folder as it would have looked without the killer."""
    file, out = raw / "clip06.seed", tmp_path / "out"
    text, times = file.read_text(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    file.write_text("kill".ljust(len(text)))
    os.utime(file, ns=times)
    assert in_a_child(lambda: run(raw, out, reader=SeedReader(tmp_path / "log"))) == signal.SIGKILL
    file.write_text(text)
    os.utime(file, ns=times)
    (tmp_path / "log").unlink()
    return out


def test_a_killed_run_reads_only_what_it_has_not(raw, killed, tmp_path):
    reader = SeedReader(tmp_path / "log")
    run(raw, tmp_path / "expected", reader=reader)
    reader.log.unlink()
    run(raw, killed, reader=reader)
    assert reader.log.read_text().split() == [f"clip{row:02}" for row in (6, 7, 8, 9)]
    assert contents(killed) == contents(tmp_path / "expected")


def test_a_torn_shard_is_made_again(raw, killed, tmp_path):
    reader, shard = SeedReader(tmp_path / "log"), killed / ".partial" / "raw-pieces" / "00001.npz"
    shard.write_bytes(shard.read_bytes()[:-30])
    shard = shard.with_name("00000.npz")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    run(raw, killed, reader=reader)
    assert len(reader.log.read_text().split()) == 10
    run(raw, tmp_path / "expected", reader=reader)
    assert contents(killed) == contents(tmp_path / "expected")


def test_what_a_killed_run_left_of_other_files_is_not_used(raw, killed, tmp_path):
    (raw / "clip01.seed").write_text("71 5 1")
    reader = SeedReader(tmp_path / "log")
    run(raw, killed, reader=reader)
    run(raw, tmp_path / "expected", reader=reader)
    assert contents(killed) == contents(tmp_path / "expected")


def test_a_killed_worker_is_told_in_one_line(raw, tmp_path):
    write_raw(raw, clip06="kill")
    with pytest.raises(InputError, match="found one killed"):
        run(raw, tmp_path / "out", workers=2)
    assert (tmp_path / "out" / ".partial").is_dir()


def test_memory_does_not_grow_with_the_data(tmp_path):
    raw = write_raw(tmp_path / "files", 0, **{f"clip{row:02}": f"{row} 400 2" for row in range(40)})
    tracemalloc.start()
    run(raw, tmp_path / "out", recipes=["dsta"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6 < (tmp_path / "out" / "raw" / "joints.npy").stat().st_size / 2
