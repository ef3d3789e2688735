"""Raw files -> stores: `python prepare.py data=ntu60 raw=DIR`; without `raw` the miniature is written first.

Image-text sets need no store: `python prepare.py corpus=hateful_memes raw=DIR` reads and checks one.
"""

from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from datamodules import protocols
from datamodules.errors import InputError
from datamodules.image_text import reading
from datamodules.image_text.sample import Corpus
from datamodules.miniature import skeletons
from datamodules.miniature.folder import is_miniature
from datamodules.preparation import prepare
from datamodules.store import MINIATURE, SkeletonStore, store_folder
from tracking.build import build, factory
from tracking.doors import door

factory(skeletons.write_ntu)
factory(skeletons.write_ntu120)
factory(skeletons.write_kinetics)
factory(skeletons.write_pku)
factory(skeletons.write_ucla)
for writer in reading.WRITERS:
    factory(writer)


@door("prepare", expected=(InputError,), conf=Path(__file__).parent / "conf")
def main(config: DictConfig) -> dict:
    """Prepare `config.data`, or check `config.corpus`, from `config.raw`; returns counts and what was rejected."""
    if config.get("corpus"):
        return check_corpus(config)
    data = config.data
    folder = store_folder(config.paths.stores, data.name, config.raw)
    raw = Path(config.raw).expanduser()
    if config.raw in MINIATURE:
        if data.miniature is None:
            raise InputError(
                f"expected raw=folder of {data.title}, found none, and it has no miniature: give the folder"
            )
        raw = folder / "raw_files"
        build(data.miniature, folder=raw)
        print(f"{data.name}: miniature, not {data.title}: made-up clips in its file format")
    summary = prepare(
        reader=build(data.reader),
        raw=raw,
        out=folder,
        recipes=list(data.recipes),
        exclude=protocols.missing(data.exclude) if data.exclude else frozenset(),
        name=data.name,
        miniature=is_miniature(raw),
        workers=config.workers,
        strict=config.strict,
    )
    index = SkeletonStore(folder / data.recipes[0]).index
    for split in protocols.names_of(data.name):
        print(protocols.verdict(index, split))
    return summary | {"rejected": summary.pop("rejected")}  # last, because that is the line to look at


def read_corpus(config: DictConfig) -> Corpus:
    """The image-text set `config.corpus` of the folder `config.raw`, or of its miniature, which is written first."""
    chosen = config.corpus
    miniature = partial(build, chosen.miniature) if chosen.get("miniature") else None
    return reading.read_corpus(build(chosen.reader), miniature, config.paths.stores, chosen.name, config.raw)


def check_corpus(config: DictConfig) -> dict:
    """Reads a corpus and says in one line what it holds and what was rejected."""
    corpus = read_corpus(config)
    print(reading.told(corpus))
    if config.strict and corpus.rejected:
        raise InputError(f"{corpus.title}: strict=true and {reading.rejections(corpus)}: complete the folder")
    facts = {"task": corpus.task, "miniature": corpus.miniature, "fingerprint": corpus.fingerprint}
    return {"corpus": corpus.name, **facts, "counts": reading.counts_of(corpus), "rejected": len(corpus.rejected)}


if __name__ == "__main__":
    main()
