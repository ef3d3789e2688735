"""The prepared skeleton data that a configuration means."""

from omegaconf import DictConfig

from datamodules.errors import InputError
from datamodules.skeleton import Labelled, SkeletonDataModule
from datamodules.store import store_folder


def make_data(config: DictConfig, **options) -> SkeletonDataModule:
    """The prepared data of `config`; raises InputError with the command that prepares it.

    options: arguments of SkeletonDataModule that differ from those for training.
    """
    folder = store_folder(config.paths.stores, config.data.name, config.raw)
    if not (folder / config.data.recipe).is_dir():
        command = f"python prepare.py data={config.data.name} raw={config.raw}"
        raise InputError(f"expected prepared data in {folder / config.data.recipe}, found none: run {command}")
    labelled = Labelled(**config.labelled) if config.labelled else None
    chosen = {
        "batch_size": config.batch_size,
        "seed": config.seed,
        "max_bodies": config.data.max_bodies,
        "labelled": labelled,
        "tested": labelled is not None,
        **config.loader,
    }
    data = SkeletonDataModule(folder, config.data.recipe, config.data.split, **(chosen | options))
    longest = int(data.store.index.frames.max())
    if longest > config.data.longest:  # before training: frames are drawn from this many
        raise InputError(
            f"expected clips of at most {config.data.longest} frames, found one of {longest} in {folder}: "
            f"set data.longest={longest}"
        )
    return data
