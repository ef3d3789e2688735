"""CrisisMMD v2.0: tweets of seven disasters with their images, tab-separated, quotation marks as they stand.

As published (FedMLLM): the split `task_humanitarian_text_img_{train,dev,test}.tsv`, eight classes, the label that of
the image, URLs removed from the tweet. `CrisisEvents` reads the annotations event by event instead and tests on events
that training never saw.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from datamodules.errors import InputError
from datamodules.image_text.readers.assembly import Draft, Identity, assemble
from datamodules.image_text.readers.lists import folder_with, one_of, table, text_of, within
from datamodules.image_text.sample import Corpus, Sample
from datamodules.readers.files import candidates

# The order of the options is ours.
HUMANITARIAN = (
    "affected_individuals",
    "infrastructure_and_utility_damage",
    "injured_or_dead_people",
    "missing_or_found_people",
    "not_humanitarian",
    "other_relevant_information",
    "rescue_volunteering_or_donation_effort",
    "vehicle_damage",
)
TASKS = {"humanitarian": HUMANITARIAN, "informative": ("not_informative", "informative")}
SIDES = ("train", "dev", "test")
LISTS = ("crisismmd_datasplit_all", "CrisisMMD_v2.0/crisismmd_datasplit_all")
INNER = ("CrisisMMD_v2.0",)
ANNOTATIONS = "annotations"
EVENT_FILE = "_final_data.tsv"
URL = re.compile(r"https?:\S*")


def tidy(tweet: str) -> str:
    """A tweet without URLs, its blanks single."""
    return " ".join(URL.sub(" ", tweet).split())


@dataclass(frozen=True)
class Columns:
    """Under which names a kind of table has what a sample needs."""

    id: str
    text: str
    label: str
    image: str

    def samples(self, path: Path, images: Path, options: tuple[str, ...], event: str, side: str, draft: Draft) -> None:
        """Adds the rows of a table to a draft; event: the column of the event's name, or the name itself."""
        columns = (self.id, self.text, self.label, self.image)
        for number, row in table(path, columns):
            where = (path, number, "")
            label = one_of(row[self.label], options, self.label, where)
            name, text = text_of(row, self.image, where), tidy(text_of(row, self.text, where))
            group = row.get(event, event)
            sample = Sample(row[self.id], within(images, name), text or None, options[label], label, group)
            draft.add(side, sample, name)


SPLIT = Columns("image_id", "tweet_text", "label_image", "image")
ANNOTATED = Columns("image_id", "tweet_text", "image_human", "image_path")


def image_root(raw: Path) -> Path:
    """The folder that holds data_image/: `raw` or its folder CrisisMMD_v2.0."""
    inner = [raw / name for name in INNER]
    return next((folder for folder in inner if (folder / "data_image").is_dir()), raw)


@dataclass(frozen=True)
class CrisisMMD:
    """The published split. task: one of TASKS. missing_images: `readers.assembly.assemble`."""

    task: str = "humanitarian"
    missing_images: str = "reject"

    def read(self, raw: Path, cache: Path | None = None) -> Corpus:
        """Train, test and, as a further set, dev. Raises InputError."""
        raw, options = Path(raw), TASKS.get(self.task)
        if options is None:
            raise InputError(f"CrisisMMD: expected a task of {', '.join(TASKS)}, found {self.task!r}")
        names = {side: f"task_{self.task}_text_img_{side}.tsv" for side in SIDES}
        lists, draft = folder_with(raw, list(names.values()), LISTS, "CrisisMMD"), Draft()
        for side, name in names.items():
            SPLIT.samples(lists / name, image_root(raw), options, "event_name", side, draft)
        identity = Identity("crisis_mmd", "CrisisMMD", "classification", options)
        return assemble(identity, raw, draft, self.missing_images, cache, train="train", test="test")


@dataclass(frozen=True)
class CrisisEvents:
    """The annotations of whole events, humanitarian task. held_out: events to test on."""

    held_out: tuple[str, ...]
    missing_images: str = "reject"

    def read(self, raw: Path, cache: Path | None = None) -> Corpus:
        """Train: every event but those held out, which are the test. Raises InputError."""
        raw, draft = Path(raw), Draft()
        folders = [raw / ANNOTATIONS, *(raw / name / ANNOTATIONS for name in INNER)]
        folder = next(filter(Path.is_dir, folders), raw)
        paths = {path.name.removesuffix(EVENT_FILE): path for path in candidates(folder, f"*{EVENT_FILE}", "events")}
        if unknown := set(self.held_out) - set(paths):
            raise InputError(f"CrisisMMD: expected events of {', '.join(paths)} to hold out, found {min(unknown)!r}")
        for event, path in paths.items():
            side = "test" if event in self.held_out else "train"
            ANNOTATED.samples(path, image_root(raw), HUMANITARIAN, event, side, draft)
        identity = Identity("crisis_events", "CrisisMMD by event", "classification", HUMANITARIAN)
        return assemble(identity, raw, draft, self.missing_images, cache, train="train", test="test")
