"""What `make reproduce-...` would run: doors, presets and keys that exist, and every protocol of the full table."""

import re
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

ROOT = Path(__file__).parents[1]
SKELETONS = ["reproduce-ntu60", "reproduce-ntu120", "reproduce-pku", "reproduce-kinetics", "reproduce-ucla"]
TARGETS = [*SKELETONS, "reproduce-fedmllm"]
# What a door is called by, perhaps with variables in front; a make without .venv says how it installs one, too.
CALL = re.compile(r"(?:\w+=\S+ )*\.venv/bin/python (?P<door>\w+)\.py (?P<rest>.*)")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@cache
def jobs(target: str, *settings: str) -> list[tuple[str, list[str]]]:
    """(door, overrides) of each command of a target."""
    told = subprocess.run(["make", "-n", target, *settings], cwd=ROOT, capture_output=True, text=True, check=True)
    calls = filter(None, map(CALL.fullmatch, told.stdout.splitlines()))
    return [(call["door"], [word for word in shlex.split(call["rest"]) if word != "-m"]) for call in calls]


@pytest.mark.parametrize("target", TARGETS)
def test_every_command_composes_at_both_ends_of_its_sweeps(target):
    found = jobs(target, "full=true", "NTU60_RAW=/raw", "PKU2_RAW=/pku")
    assert (found[0][0], found[-1][0]) == ("prepare", "report")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for door, overrides in found:
            for end in (0, -1):
                compose(door, [f"{key}={value.split(',')[end]}" for key, value in (o.split("=", 1) for o in overrides)])


def values(found: list[tuple[str, list[str]]], key: str) -> set[str]:
    """Every value of a key in all commands."""
    words = [word for _, overrides in found for word in overrides if word.startswith(f"{key}=")]
    return {value for word in words for value in word.split("=", 1)[1].split(",")}


def test_the_table_of_ntu_60_holds_every_method_and_the_full_one_every_protocol():
    short, full = jobs("reproduce-ntu60"), jobs("reproduce-ntu60", "full=true")
    methods = {"sds_cl", "scd_net", "a2mc", "psp", "psp_ce"}
    assert values(short, "experiment") == {f"ntu60/{method}_xsub" for method in methods}
    assert values(full, "experiment") == {
        f"ntu60/{method}_{split}" for method in methods | {"a2mc_released"} for split in ("xsub", "xview")
    }
    assert values(short, "protocol") >= {"knn", "linear", "semi", "supervised"}
    assert values(full, "protocol") >= {"knn", "linear", "semi", "supervised", "finetune"}
    assert values(short, "protocol.fraction") == {"0.1"} and values(short, "labelled.fraction") == {"0.1", "1.0"}
    assert values(full, "protocol.fraction") == {"0.01", "0.05", "0.1", "0.2", "0.4"}
    assert values(full, "fuse") == {"three_streams"} and values(full, "stream") == {"motion", "bone"}
    assert values(full, "data@target") == {"pku2"}


@pytest.mark.parametrize("raw", ["", "/raw"])
def test_the_memes_are_read_before_any_row_and_every_row_reads_the_same(raw):
    short, full = (jobs("reproduce-fedmllm", f"HATEFUL_MEMES_RAW={raw}", *more) for more in ([], ["full=true"]))
    rows = ["zero_shot", "local", "centralised", "fedavg", "fedavgm", "fedadam", "fedyogi", "prompt", "adaptive"]
    for found, settings, further in (short, 4, []), (full, 12, ["fedadagrad", "fedprox", "one_shot"]):
        assert [door for door, _ in found] == ["prepare", "federate", "federate", "report"]
        assert found[0][1] == ["corpus=hateful_memes", *([f"raw={raw}"] if raw else [])]
        assert len(values(found, "experiment")) == settings and values(found, "row") == {*rows, *further}
        assert values(found, "scale") == {"published" if raw else "mini"}
        trained = [overrides for door, overrides in found if door == "federate"]
        assert all((f"raw={raw}" in overrides) == bool(raw) for overrides in trained)


def test_the_miniature_that_is_read_is_the_one_that_is_trained_on():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        read = compose("prepare", ["corpus=hateful_memes"])
        trained = compose("federate", ["experiment=fedmllm/hateful_memes_alpha_05", "scale=mini"])
    assert read.corpus == trained.corpus


def test_a_real_set_is_not_transferred_to_a_miniature():
    words = ["make", "-o", ".venv/.installed", "reproduce-ntu60", "full=true", "NTU60_RAW=/raw", "PKU2_RAW="]
    told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 2 and "prepare" not in told.stdout  # inside another make it tells folders
    assert "expected PKU2_RAW=folder beside NTU60_RAW, found none" in told.stderr
