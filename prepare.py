"""Raw files -> stores: `python prepare.py data=ntu60 raw=DIR`; without `raw` the miniature is written first."""

from pathlib import Path

from omegaconf import DictConfig

from datamodules import protocols
from datamodules.errors import InputError
from datamodules.miniature import skeletons
from datamodules.miniature.folder import is_miniature
from datamodules.preparation import prepare
from datamodules.store import MINIATURE, SkeletonStore, store_folder
from tracking.build import build, factory
from tracking.doors import door

factory(skeletons.write_ntu)
factory(skeletons.write_ntu120)
factory(skeletons.write_ucla)


@door("prepare", expected=(InputError,), conf=Path(__file__).parent / "conf")
def main(config: DictConfig) -> dict:
    """Prepare `config.data` from `config.raw`; returns counts, the store's folder and what was rejected."""
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


if __name__ == "__main__":
    main()
