"""docs/adding_a_dataset.md, followed to the letter in a copy of the checkout: as many files, and the set trains."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from datamodules.miniature import kinematics, scenes
from datamodules.miniature.actions import CLAP, KICK, WAVE

ROOT = Path(__file__).parents[1]
DOC = ROOT / "docs" / "adding_a_dataset.md"
BLOCK = re.compile(r"^## \d\.[^`]*`([^`]+)`(?: in `([^`]+)`)?\n\n```\w+\n(.*?)^```", re.M | re.S)
PARTS = ("conf", "datamodules", "lightning_modules", "tracking", "federated", "prepare.py", "train.py")
RUN = """
import sys
import prepare, train
sys.argv = ["prepare.py", "data=toy", "raw=files", "workers=1", "paths.root=outputs"]
prepare.main()
sys.argv = ["train.py", "experiment=toy/sds_cl_xsub", "scale=mini", "raw=files", "paths.root=outputs",
            "method.encoder.num_frames=8", "method.encoder.layers=[[8,8,4,2]]", "batch_size=4",
            "trainer.max_epochs=1", "trainer.accelerator=cpu", "knn_every=1"]
train.main()
"""


@pytest.fixture
def checkout(tmp_path):
    """A copy of the code in which the page's blocks have been put where it says."""
    for name in PARTS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    new, edited = [], []
    for first, second, content in BLOCK.findall(DOC.read_text()):
        path = tmp_path / (second or first)
        if second:
            text = path.read_text()
            assert text.count(f"\n{first} = {{\n") == 1
            path.write_text(text.replace(f"\n{first} = {{\n", f"\n{first} = {{\n{content}"))
            edited.append(second)
        else:
            assert not path.exists()
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
            new.append(first)
    assert (len(new), len(edited)) == (3, 1), "three new files and one entry"
    return tmp_path


def write_clips(folder: Path) -> None:
    folder.mkdir()
    for number, action in enumerate((CLAP, KICK, WAVE), start=1):
        for performer in (1, 2, 3):
            rng = np.random.default_rng((number, performer))
            timing = kinematics.Timing.draw(rng, action, 20)
            joints = kinematics.perform(rng, scenes.cast(0, performer), action, timing, left_handed=False)
            np.savetxt(folder / f"a{number:02}_p{performer:02}_c1.csv", joints.reshape(20, -1), "%.4f", ",")
    (folder / "a01_p01_c2.csv").write_text("0.1,0.2\n")


def test_the_page_adds_a_data_set(checkout):
    write_clips(checkout / "files")
    environment = {"PATH": "", "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-P", "-c", RUN]
    done = subprocess.run(line, cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "toy: 9 clips in" in done.stdout and "1 rejected" in done.stdout
    assert "toy_xsub: 6 training and 3 test clips, unverified" in done.stdout
    assert "sds_cl on toy: epoch 1/1" in done.stdout and "test/knn1" in done.stdout
    assert (
        '"line": 1,\n   "reason": "expected 75 numbers"'
        in next((checkout / "outputs" / "stores").glob("toy-*/raw/manifest.json")).read_text()
    )


def test_without_a_miniature_the_raw_folder_is_asked_for(checkout):
    line = [sys.executable, "prepare.py", "data=toy", "paths.root=outputs"]
    environment = {"PATH": "", "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: expected raw=folder of Toy set, found none")
    assert not (checkout / "outputs").exists()
