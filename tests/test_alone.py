"""Two processes in one folder: one works, the other waits and uses what it made; none ever sees half of it."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_chain import SMALL, prepared

from datamodules.alone import alone_in
from datamodules.errors import InputError
from datamodules.image_text.readers.hateful_memes import HatefulMemes

__all__ = ["prepared"]  # the fixture
ROOT = Path(__file__).parents[1]
# Each writes twenty files slowly, then looks again and again whether all of them are there.
SLOW = """
import sys, time
from pathlib import Path
from datamodules.miniature.folder import fill
target, log, start = map(Path, sys.argv[1:])
def files():
    with log.open("a") as file:
        file.write("wrote\\n")
    for number in range(20):
        time.sleep(0.01)
        yield f"{number}.txt", b"x" * number
print("ready", flush=True)
while not start.exists():
    time.sleep(0.001)
fill(target, {"seed": 1}, [], files)
for _ in range(200):
    assert [len((target / f"{number}.txt").read_bytes()) for number in range(20)] == list(range(20))
    time.sleep(0.001)
"""
MEMES = """
import sys
from pathlib import Path
from datamodules.image_text.readers.hateful_memes import HatefulMemes
from datamodules.image_text.reading import read_corpus
from datamodules.miniature.memes import write_memes
from functools import partial
write = partial(write_memes, train=80, dev=8, test=40)
print(len(read_corpus(HatefulMemes(), write, Path(sys.argv[1]), "hateful_memes", "miniature").train))
"""


def two(script: str, *arguments: Path) -> list[subprocess.Popen]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]


def test_the_second_process_waits_for_the_first_and_uses_its_folder(tmp_path):
    target, log, start = tmp_path / "memes", tmp_path / "log", tmp_path / "start"
    both = two(SLOW, target, log, start)
    assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
    start.touch()
    assert sorted("waiting" in process.communicate(timeout=60)[0] for process in both) == [False, True]
    assert [process.returncode for process in both] == [0, 0]
    assert log.read_text().split() == ["wrote"]
    assert {path.name for path in tmp_path.iterdir()} == {"memes", "log", "start"}


def test_a_folder_made_for_the_lock_is_gone_after_the_last(tmp_path):
    lock = tmp_path / "run.lock"
    hold = "import sys, time\nfrom pathlib import Path\nfrom datamodules.alone import alone_in\n"
    hold += "with alone_in(Path(sys.argv[1])):\n    print('in', flush=True)\n    sys.stdin.read()\n"
    options = {"cwd": ROOT, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    first = subprocess.Popen([sys.executable, "-c", hold, str(lock)], **options)
    assert first.stdout.readline() == "in\n"
    second = subprocess.Popen([sys.executable, "-c", hold, str(lock)], **options)
    assert "waiting" in second.stdout.readline()
    first.communicate(timeout=60)
    assert second.stdout.readline() == "in\n" and lock.exists()
    second.communicate(timeout=60)
    assert list(tmp_path.iterdir()) == [] and [first.returncode, second.returncode] == [0, 0]


def test_a_killed_writer_blocks_nobody_and_its_rest_is_cleared_away(tmp_path):
    target, log, start = tmp_path / "memes", tmp_path / "log", tmp_path / "start"
    start.touch()
    killed, other = two(SLOW, target, log, start)
    while not (tmp_path / ".memes.writing" / "3.txt").exists():
        time.sleep(0.001)
    killed.kill()
    other.kill()
    assert not target.exists()
    killed.wait(), other.wait()
    assert subprocess.run([sys.executable, "-c", SLOW, target, log, start], cwd=ROOT, check=False).returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"memes", "log", "start"}


def test_two_readers_of_a_corpus_that_is_not_there_yet_both_get_all_of_it(tmp_path):
    both = two(MEMES, tmp_path)
    assert [process.communicate(timeout=60)[0].splitlines()[-1] for process in both] == ["80", "80"]
    assert len(HatefulMemes().read(tmp_path / "hateful_memes-miniature" / "raw_files").train) == 80


def test_who_does_not_wait_is_told(tmp_path):
    told = pytest.raises(InputError, match="run: another process is at work here: launch this again")
    with alone_in(tmp_path / "run"), told, alone_in(tmp_path / "run", wait=False):
        pass
    with alone_in(tmp_path / "run", wait=False):
        assert (tmp_path / "run").is_dir()
    assert not (tmp_path / "run").exists()


def test_a_forked_process_that_outlives_its_parent_holds_nothing(tmp_path):
    """As a loader's workers do for some seconds after a kill."""
    script = """
import os, sys, time
from pathlib import Path
from datamodules.alone import alone_in
with alone_in(Path(sys.argv[1])):
    if not os.fork():  # told by the child: what it does on being forked is done then
        print(os.getpid(), flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    with pytest.raises(InputError), alone_in(tmp_path, wait=False):
        pass
    parent.kill()
    parent.wait()
    os.kill(child, 0)
    with alone_in(tmp_path, wait=False):
        pass
    os.kill(child, signal.SIGKILL)


def test_where_folders_cannot_be_locked_that_is_said(tmp_path, monkeypatch, capsys):
    def no_locks(handle, how):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with alone_in(tmp_path):
        pass
    assert f"{tmp_path} cannot be locked (Bad file descriptor): see to it" in capsys.readouterr().out


@pytest.mark.slow
def test_two_launches_of_one_training_are_one_after_the_other(prepared, tmp_path):
    """The second waits while the first is at work, resumes when that is killed; a third finds the result."""
    root, raw, _ = prepared
    small = [override.removeprefix("+") for override in SMALL]
    line = [sys.executable, "train.py", *small, f"raw={raw}", f"paths.root={root}", "trainer.max_epochs=4"]
    line += [f"paths.{kind}={tmp_path}/{kind}" for kind in ("runs", "records")]

    def launch(**environment: str) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(line, cwd=ROOT, env=os.environ | environment, **pipes)

    first = launch()
    limit = time.monotonic() + 120
    while not (checkpoints := list(tmp_path.glob("runs/*/last.ckpt"))):
        assert first.poll() is None and time.monotonic() < limit
        time.sleep(0.002)
    first.send_signal(signal.SIGSTOP)
    before = checkpoints[0].read_bytes()
    second = launch()
    told = []
    while "waiting" not in (told[-1] if told else ""):
        told.append(second.stdout.readline())
        assert told[-1], second.stderr.read()
    together = launch(WORLD_SIZE="2", RANK="0")
    assert "at work here: launch this again" in together.communicate(timeout=120)[1] and together.returncode == 2
    assert checkpoints[0].read_bytes() == before and not list(tmp_path.glob("records/*"))
    first.kill()
    assert "trained: " in second.communicate(timeout=300)[0] and second.returncode == 0
    first.wait()
    assert len(list(tmp_path.glob("records/*.json"))) == 1
    third = launch()
    assert "found: " in third.communicate(timeout=120)[0]
    versions = list(checkpoints[0].parent.glob("metrics/version_*"))
    assert len(versions) == 2, "one of the killed launch, one of that which went on; none of the others"
