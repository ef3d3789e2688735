"""What the medical question sets share: a row of question, answer and image, and whether the answer is from a list."""

from pathlib import Path

from datamodules.image_text.readers.lists import Row, one_of, text_of, within
from datamodules.image_text.sample import Sample
from datamodules.readers import MalformedFile

KINDS = ("OPEN", "CLOSED")


def question(row: Row, number: int, path: Path, images: Path, id_name: str, group: str) -> tuple[Sample, str]:
    """Sample and image name of a row. group: name of the field to group by. Raises MalformedFile."""
    where = (path, None, f"item {number}: ")
    kind = text_of(row, "answer_type", where).upper()  # some rows of VQA-RAD say "CLOSED "
    closed = one_of(kind, KINDS, "answer_type", where) == 1
    asked, answer, name = (text_of(row, field, where) for field in ("question", "answer", "image_name"))
    for field, value in (("question", asked), ("answer", answer), ("image_name", name)):
        if not value:
            raise MalformedFile(path, None, f"item {number}: expected text under {field!r}, found none")
    identity, grouped = text_of(row, id_name, where), str(row.get(group, ""))
    return Sample(identity, within(images, name), asked, answer, None, grouped, closed), name
