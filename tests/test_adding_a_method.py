"""docs/adding_a_method.md followed to the letter in a copy of the checkout: its files, no others, and its commands."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_modules.two_streams import TwoStreamModule

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adding_a_method.md").read_text()
COPIED = ("conf", "datamodules", "lightning_modules", "federated", "tracking", "tests")
# The page's commands, on fewer and shorter clips than the miniature's, and for fewer epochs.
SMALL = [
    "scale=mini",
    "method.view.frames=12",
    "method.encoder.width=4",
    "method.encoder.out_channels=16",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "batch_size=12",
    "knn_every=1",
]
RUN = """
import sys
from pathlib import Path
from hydra import compose, initialize_config_dir

import eval as evaluation
import federate, prepare, train
from datamodules.miniature import skeletons

assert Path(train.__file__).parent == Path.cwd(), train.__file__
skeletons.write_ntu(Path("raw"), performers=(1, 3), replications=1, frames=(12, 20))

def settings(door, *overrides):
    with initialize_config_dir(str(Path("conf").resolve()), version_base="1.3"):
        return compose(door, ["paths.root=out", "raw=raw", *overrides])

method, small = sys.argv[1], sys.argv[2:]
prepare.main.run(settings("prepare", "data=ntu60", "workers=1"))
trained = train.main.run(settings("train", method, *small))
assert "train/forth" in trained and trained["epoch"] == 1, trained
rows = evaluation.main.run(settings("eval", method, *small, "protocol=knn"))
assert set(rows) == {"trained", "random initialisation", "coordinates"}, rows
assert all(0 <= value <= 100 for value in rows.values()), rows
federate.main.run(settings("federate", method, *small, "federated.rounds=1"))
"""


def documented() -> dict[str, str]:
    """The files of the page by path: a line with the path alone, then its block."""
    return dict(re.findall(r"^`([\w/.]+)`\n\n```\w+\n(.*?)```$", PAGE, flags=re.M | re.S))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of what a checkout holds, with the page's files."""
    copy = tmp_path_factory.mktemp("checkout")
    leave = shutil.ignore_patterns("__pycache__", "golden", "browser")
    for name in COPIED:
        shutil.copytree(ROOT / name, copy / name, ignore=leave)
    for door in [*ROOT.glob("*.py"), ROOT / "pyproject.toml"]:
        shutil.copy(door, copy)
    for path, content in documented().items():
        assert not (copy / path).exists() and (copy / path).parent.is_dir(), f"{path} is a new file in a known folder"
        (copy / path).write_text(content)
    return copy


def run(checkout: Path, *line: str) -> None:
    """In the copy, whose modules win over the installed ones."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *line], cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


def test_the_page_holds_the_number_of_files_that_it_names():
    files = documented()
    number = {"Five": 5, "Six": 6, "Seven": 7}[re.search(r"^(\w+) files, none of them", PAGE, flags=re.M)[1]]
    assert len(files) == number
    assert PAGE.count("```python") + PAGE.count("```yaml") == number, "every block is one of the files"
    headings = re.findall(r"^## ([\d, ]+)\. ", PAGE, flags=re.M)
    assert [int(n) for heading in headings for n in heading.split(", ")] == list(range(1, number + 1))


def test_every_file_and_name_it_mentions_exists():
    new = documented().keys()
    for path in re.findall(r"`([\w/]+\.(?:py|yaml|md))`", PAGE):
        assert path in new or (ROOT / path).is_file(), path
    for path in re.findall(r"`([\w/]+/)`", PAGE):
        assert (ROOT / path).is_dir(), path
    assert TwoStreamModule.gathered


def test_the_method_of_the_page_is_trained_evaluated_and_federated(checkout):
    run(checkout, "-c", RUN, "experiment=ntu60/sim_siam_xsub", *SMALL)


@pytest.mark.slow
def test_the_test_of_the_page_and_those_of_all_presets_pass(checkout):
    tests = ["tests/test_sim_siam.py", "tests/test_presets.py"]
    run(checkout, "-m", "pytest", "-q", "-k", "sim_siam or small_sizes", *tests)
