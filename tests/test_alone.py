"""Two processes that write the same miniature at once: one writes, the other waits and uses it; none ever sees half."""

import subprocess
import sys
import time
from pathlib import Path

from datamodules.image_text.readers.hateful_memes import HatefulMemes

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
