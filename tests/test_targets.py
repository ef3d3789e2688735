"""The published numbers that ship: of the sets that are here, of nobody who published none, where the report looks."""

from pathlib import Path

import pytest
import yaml

from datamodules.protocols import PROTOCOLS
from tracking.report import KINDS, Published

CONF = Path(__file__).parents[1] / "conf"
# Of the skeleton sets; the image-text sets have theirs.
SKELETONS = ("ntu60", "ntu120", "pku1", "pku2", "kinetics", "ucla")
# They publish no number that could be read.
NOBODYS = {"sds_cl", "psp", "psp_ce", "a2mc", "a2mc_released"}
UNKNOWN_SPLIT = "split not recorded"


def shipped(name: str) -> Published:
    return Published.of(yaml.safe_load((CONF / "targets" / f"{name}.yaml").read_text()))


@pytest.mark.parametrize("name", SKELETONS)
def test_targets_are_of_this_data_set_and_its_splits(name):
    published = shipped(name)
    data = CONF / "data" / f"{name}.yaml"
    if data.exists():
        assert published.data == yaml.safe_load(data.read_text())["data"]["title"], "else nothing would be compared"
    splits = {split for split in PROTOCOLS if split.startswith(name)}
    assert {split for entry in published.numbers for split in entry["values"]} <= splits | {UNKNOWN_SPLIT}
    if data.exists():
        assert splits <= published.titles.keys()
    assert {entry["kind"] for entry in published.numbers} <= KINDS.keys() | {"transfer"}


@pytest.mark.parametrize("name", SKELETONS)
def test_no_number_is_attributed_to_who_published_none(name):
    published = shipped(name)
    methods = {"sds_cl", "psp", "psp_ce", "a2mc", "a2mc_released", "scd_net", "skeleton_clr", "aim_clr"}
    assert not NOBODYS & {entry["method"] for entry in published.numbers}
    for title in (published.titles[method].split()[0] for method in ("sds_cl", "psp", "a2mc")):
        assert not [entry for entry in published.numbers if entry["method"].startswith(title)]
    assert methods <= published.titles.keys(), "each of our methods is printed by its name"
    assert methods - {"psp_ce"} == set(published.unknown) | methods & {e["method"] for e in published.numbers}


def test_numbers_as_their_sources_print_them():
    """A few of each table, by hand."""
    expected = [
        ("ntu60", "aim_clr", "", "linear", "100 % of the labels", "ntu60_xsub", 74.34),
        ("ntu60", "aim_clr", "", "linear", "100 % of the labels, motion stream", "ntu60_xview", 71.83),
        ("ntu60", "aim_clr", "3 streams", "linear", "100 % of the labels", "ntu60_xview", 84.02),
        ("ntu60", "scd_net", "", "knn", "", "ntu60_xsub", 76.16),
        ("ntu60", "DiMoP", "", "semi", "10 % of the labels", "ntu60_xview", 92.3),
        ("ntu120", "scd_net", "", "linear", "100 % of the labels", "ntu120_xset", 80.1),
        ("ntu120", "DMMG", "2 streams", "linear", "100 % of the labels", "ntu120_xset", 72.4),
        ("ntu120", "MAMP", "", "finetune", "100 % of the labels", "ntu120_xsub", 89.8),
        ("pku1", "scd_net", "", "linear", "100 % of the labels", "pku1_xsub", 91.9),
        ("pku1", "aim_clr", "", "linear", "100 % of the labels, bone stream", "pku1_xsub", 82.03),
        ("pku2", "aim_clr", "", "linear", "100 % of the labels", "pku2_xsub", 38.5),
        ("pku2", "TranCLR", "", "transfer", "source data set not recorded", UNKNOWN_SPLIT, 65.6),
    ]
    fields = ("method", "variant", "kind", "setting")
    for name, *wanted, split, value in expected:
        (entry,) = [e for e in shipped(name).numbers if [e[field] for field in fields] == wanted]
        assert entry["values"][split] == value
