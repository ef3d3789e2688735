"""What every reader does with its rows: look at the images, leave out what cannot be used, take the fingerprint."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from datamodules.errors import InputError
from datamodules.image_text.images import Look, look_at
from datamodules.image_text.sample import Corpus, Sample
from datamodules.miniature.folder import is_miniature

MISSING_IMAGES = ("reject", "text_only")


@dataclass
class Draft:
    """A set as its lists describe it, before an image was looked at.

    sides: samples by side. rejected: (file or id, reason) of rows refused already.
    """

    sides: dict[str, list[Sample]] = field(default_factory=dict)
    rejected: list[tuple[str, str]] = field(default_factory=list)

    def add(self, side: str, sample: Sample, image_name: str = "") -> None:
        """A sample of `side`; one whose image is None although it has a name has left the raw folder: refused."""
        kept = self.sides.setdefault(side, [])
        if image_name and sample.image is None:
            self.rejected.append((sample.id, f"its image {image_name[:80]!r} lies outside the raw folder"))
        else:
            kept.append(sample)


@dataclass(frozen=True)
class Identity:
    """What a corpus is called and asks; the fields are those of `Corpus`."""

    name: str
    title: str
    task: str
    options: tuple[str, ...] = ()


def check_missing_images(missing_images: str) -> None:
    """Raises InputError for a word that is none of MISSING_IMAGES."""
    if missing_images not in MISSING_IMAGES:
        raise InputError(f"expected missing_images of {', '.join(MISSING_IMAGES)}, found {missing_images!r}")


def assemble(
    identity: Identity,
    raw: Path,
    draft: Draft,
    missing_images: str,
    cache: Path | None,
    train: str = "",
    test: str = "",
    official: tuple[int, int] | None = None,
) -> Corpus:
    """The corpus of a draft: its sides `train` and `test` ("": it has none) and the others as further test sets.

    missing_images: "reject" leaves a sample with a missing or undecodable image out, "text_only" keeps it without the
    image; either way it is listed in `rejected`. Ids are distinct within a side: one that comes again gets a number.
    official: as in `Corpus`.
    A list without a row is a side that this place does not hold. Raises InputError where `train` or `test` has rows but
    no sample left, and where neither has a row.
    """
    check_missing_images(missing_images)
    paths = [sample.image for side in draft.sides.values() for sample in side if sample.image is not None]
    looks = look_at(paths, raw, cache)
    rejected = list(draft.rejected)
    kept = ", its text is kept" if missing_images == "text_only" else ""
    rejected += [(_name(path, raw), f"{look.reason}{kept}") for path, look in looks.items() if look.reason]
    sides = {name: _distinct(_usable(side, looks, missing_images)) for name, side in draft.sides.items()}
    asked = [name for name in (train, test) if name]
    held = [name for name in asked if draft.sides.get(name) or draft.rejected]
    for name in held or asked:
        if not sides.get(name):
            reasons = f"{len(rejected)} rejected, first {': '.join(rejected[0])}" if rejected else "no row at all"
            texts = any(sample.text for sample in draft.sides.get(name, ())) and missing_images == "reject"
            do = "complete it" + (" or take the texts alone, corpus.reader.missing_images=text_only" if texts else "")
            raise InputError(f"{identity.title}: expected {name} samples in {raw}, found none ({reasons}); {do}")
    return Corpus(
        **vars(identity),
        train=sides.get(train, []),
        test=sides.get(test, []),
        further={name: side for name, side in sides.items() if name not in (train, test)},
        rejected=rejected,
        miniature=is_miniature(raw),
        fingerprint=fingerprint(identity, sides, looks),
        official=official,
    )


def _usable(samples: Sequence[Sample], looks: Mapping[Path, Look], missing_images: str) -> list[Sample]:
    broken = {path for path, look in looks.items() if look.reason}
    if missing_images == "text_only":
        return [replace(sample, image=None) if sample.image in broken else sample for sample in samples]
    return [sample for sample in samples if sample.image not in broken]


def _distinct(samples: Sequence[Sample]) -> list[Sample]:
    """Answers are told apart by id."""
    times: dict[str, int] = {}
    kept = []
    for sample in samples:
        times[sample.id] = times.get(sample.id, 0) + 1
        kept.append(sample if times[sample.id] == 1 else replace(sample, id=f"{sample.id}#{times[sample.id]}"))
    return kept


def fingerprint(identity: Identity, sides: Mapping[str, Sequence[Sample]], looks: Mapping[Path, Look]) -> str:
    """SHA-256 over name, options and, side by side in order, all that a sample holds, its image by its digest."""
    digest = hashlib.sha256(json.dumps(vars(identity)).encode())
    for name in sorted(sides):
        digest.update(name.encode())
        for sample in sides[name]:
            image = looks[sample.image].digest if sample.image is not None else None
            digest.update(json.dumps(list((vars(sample) | {"image": image}).values())).encode())
    return digest.hexdigest()


def _name(path: Path, raw: Path) -> str:
    return path.relative_to(raw).as_posix()
