"""Which clips train and which test, and whose labels may be used: pure functions of a store's index."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from datamodules.errors import InputError

# Performers whose clips train in the cross-subject protocols (Shahroudy et al. 2016; Liu et al. 2020). NTU-120 brought
# performers 41 to 106; those of NTU-60 kept their side.
NTU60_PERFORMERS = frozenset((1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38))
NTU120_PERFORMERS = NTU60_PERFORMERS | {
    45, 46, 47, 49, 50, 52, 53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84, 85, 86, 89, 91, 92, 93, 94, 95,
    97, 98, 100, 103,
}  # fmt: skip


@dataclass(frozen=True)
class Protocol:
    """One way to divide a data set.

    column: what decides, an attribute of the index; train, test: its values on either side.
    clips: official numbers of training and test clips, None where no official source is known.
    per_class: labelled clips of a class by percentage of labels.
    """

    column: str
    train: frozenset[int]
    test: frozenset[int]
    clips: tuple[int, int] | None = None
    per_class: dict[float, int] = field(default_factory=dict)


def _others(last: int, train: frozenset[int]) -> frozenset[int]:
    return frozenset(range(1, last + 1)) - train


EVEN_SETUPS = frozenset(range(2, 33, 2))
# Labelled clips of a class: 33 for 5 % is in the group's code, the others are the field's usual table.
PROTOCOLS = {
    "ntu60_xsub": Protocol(
        "performers",
        NTU60_PERFORMERS,
        _others(40, NTU60_PERFORMERS),
        (40_091, 16_487),
        {1: 7, 5: 33, 10: 66, 20: 132, 40: 264},
    ),
    "ntu60_xview": Protocol(
        "cameras", frozenset((2, 3)), frozenset((1,)), (37_646, 18_932), {1: 7, 5: 31, 10: 62, 20: 124, 40: 248}
    ),
    "ntu120_xsub": Protocol("performers", NTU120_PERFORMERS, _others(106, NTU120_PERFORMERS), (63_026, 50_919)),
    "ntu120_xset": Protocol("setups", EVEN_SETUPS, _others(32, EVEN_SETUPS), (54_468, 59_477)),
    # Column `listed`: a digit for the list by subject, one for the list by view, 1 train, 2 test.
    "pku1_xsub": Protocol("listed", frozenset((11, 12)), frozenset((21, 22))),
    "pku1_xview": Protocol("listed", frozenset((11, 21)), frozenset((12, 22))),
    "pku2_xsub": Protocol("listed", frozenset((11, 12)), frozenset((21, 22))),
    "pku2_xview": Protocol("listed", frozenset((11, 21)), frozenset((12, 22))),
    "kinetics_official": Protocol("listed", frozenset((1,)), frozenset((2,))),
    "ucla_views": Protocol("cameras", frozenset((1, 2)), frozenset((3,)), (1_020, 464), {5: 5, 15: 15, 30: 30, 40: 40}),
}


def _find(name: str) -> Protocol:
    if name not in PROTOCOLS:
        raise InputError(f"expected a protocol of {', '.join(PROTOCOLS)}, found {name!r}: choose one of these")
    return PROTOCOLS[name]


def split(index, name: str) -> dict[str, np.ndarray]:
    """Rows of `index` on either side of protocol `name`, as ascending int64 arrays under "train" and "test".

    index: anything with the store's arrays `names`, `performers`, `cameras`, `setups` and `listed`.
    Raises InputError for an unknown protocol, and for clips that it puts on neither side.
    """
    protocol = _find(name)
    values = np.asarray(getattr(index, protocol.column))
    train, test = (np.isin(values, sorted(side)) for side in (protocol.train, protocol.test))
    strangers = np.flatnonzero(~(train | test))
    if len(strangers):
        example = f"{len(strangers)} clips of others, first {index.names[strangers[0]]} of {values[strangers[0]]}"
        raise InputError(
            f"{name} expects {protocol.column} {min(protocol.train | protocol.test)} to "
            f"{max(protocol.train | protocol.test)}, found {example}: choose a protocol of this data set"
        )
    return {"train": np.flatnonzero(train), "test": np.flatnonzero(test)}


def names_of(dataset: str) -> list[str]:
    """The protocols of a data set: those called `<data set>_...`."""
    return [name for name in PROTOCOLS if name.startswith(f"{dataset}_")]


def verdict(index, name: str) -> str:
    """One line: how many clips the split has on either side, and whether these are the official numbers."""
    found = tuple(map(len, split(index, name).values()))
    official = _find(name).clips
    if official is None:
        judgement = "unverified: no official numbers are known"
    elif found == official:
        judgement = "the official numbers"
    else:
        judgement = f"not the whole set, which has {official[0]} and {official[1]}"
    return f"{name}: {found[0]} training and {found[1]} test clips, {judgement}"


def per_class_count(name: str, fraction: float, labels: np.ndarray) -> int:
    """Labelled clips of each class when `fraction` of the training labels may be used.

    labels: those of the training side. The published count where the table of protocol `name` has the fraction and at
    least half of the official training clips are there; otherwise (a fraction without a published count, a miniature, a
    subset) that fraction of the smallest class, rounded, at least one clip.
    Raises InputError for an unknown protocol, a fraction outside (0, 1] or no labels.
    """
    protocol = _find(name)
    if not 0 < fraction <= 1 or len(labels) == 0:
        raise InputError(
            f"expected a fraction above 0 and up to 1 of some training labels, "
            f"found {fraction} of {len(labels)}: give such a fraction"
        )
    percentage = round(100 * fraction, 6)
    if percentage in protocol.per_class and protocol.clips and 2 * len(labels) >= protocol.clips[0]:
        return protocol.per_class[percentage]
    smallest = np.unique(labels, return_counts=True)[1].min()
    return max(1, round(fraction * int(smallest)))


def label_list(names: np.ndarray, labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Positions, ascending int64, of `per_class` clips of each class, drawn by `seed` from the sorted names.

    names, labels: of the training clips, one for each. So the clips drawn do not depend on the order in the store.
    Raises InputError if a class has fewer clips.
    """
    labels = np.asarray(labels)
    classes, counts = np.unique(labels, return_counts=True)
    if not 0 < per_class <= counts.min():
        smallest = f"the smallest class, {classes[counts.argmin()]}, has {counts.min()}"
        raise InputError(f"expected {per_class} labelled clips of each class, but {smallest}: ask for 1 up to that")
    by_name = np.argsort(names, kind="stable")
    drawn = by_name[np.random.default_rng(seed).permutation(len(by_name))]
    by_class = drawn[np.argsort(labels[drawn], kind="stable")]
    firsts = np.cumsum(counts) - counts
    return np.sort(by_class[(firsts[:, None] + np.arange(per_class)).ravel()])


@cache
def missing(name: str) -> frozenset[str]:
    """Names on the official list of samples with missing or incomplete skeletons, "ntu60" (302) or "ntu120" (535)."""
    folder = Path(__file__).parent / "missing"
    lists = {path.stem: path for path in sorted(folder.glob("*.txt"))}
    if name not in lists:
        raise InputError(f"expected a missing list of {', '.join(lists)}, found {name!r}: choose one of these")
    return frozenset(lists[name].read_text().split())
