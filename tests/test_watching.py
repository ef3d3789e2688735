"""What a run shows while it runs: vitals and clips, for the loggers, changing nothing."""

import csv
from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import toys_a2mc
from PIL import Image
from pytorch_lightning.loggers import CSVLogger
from toy_report import confusion, points
from toys import ToyMethod, toy_data, write_toy_stores

from datamodules.topology import NTU25
from lightning_modules.callbacks.clip_views import ClipViews, views_of
from lightning_modules.callbacks.vitals import Vitals
from lightning_modules.fitting import fit
from tracking import pictures

CPU = {"accelerator": "cpu", "max_epochs": 2}


class Videos(CSVLogger):
    """A logger that shows videos, as W&B's does."""

    def __init__(self, folder):
        super().__init__(folder)
        self.videos = []

    def log_video(self, key, videos, step, **facts):
        self.videos.append((key, videos, step, facts))


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return write_toy_stores(tmp_path_factory.mktemp("stores"))


def train(stores, folder, logger, *hooks):
    torch.manual_seed(5)
    module = ToyMethod()
    history = fit(module, toy_data(stores), folder, CPU, 3, "toy", [logger], hooks)
    return module, history


class Norms(pl.Callback):
    def __init__(self):
        self.norms = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.norms.append(torch.cat([p.grad.flatten() for p in module.parameters()]).norm().item())


def test_vitals_reach_the_loggers_and_not_the_record(stores, tmp_path):
    norms, logger = Norms(), CSVLogger(tmp_path)
    _, history = train(stores, tmp_path, logger, Vitals(), norms)
    assert not {"train/lr", "train/clips_per_second"} & history.last().keys()
    logger.save()
    with open(logger.log_dir + "/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["train/lr"]]
    assert [float(row["train/lr"]) for row in rows] == pytest.approx([0.1, 0.1]) and len(norms.norms) == 8
    means = [np.mean(norms.norms[:4]), np.mean(norms.norms[4:])]
    assert [float(row["train/gradient_norm"]) for row in rows] == pytest.approx(means, rel=1e-5)
    assert all(float(row["train/clips_per_second"]) > 0 for row in rows)
    assert [int(row["step"]) for row in rows] == [3, 7]


def test_clips_go_to_loggers_that_show_videos_and_change_nothing(stores, tmp_path):
    drawn = []
    hook = ClipViews(1, lambda views, path: drawn.append((views, path)), tmp_path / "clips")
    videos = Videos(tmp_path / "a")
    watched, _ = train(stores, tmp_path / "a", videos, hook)
    plain, _ = train(stores, tmp_path / "b", CSVLogger(tmp_path / "b"))
    assert all(
        torch.equal(a, b) for a, b in zip(watched.state_dict().values(), plain.state_dict().values(), strict=True)
    )
    assert [(key, step) for key, _, step, _ in videos.videos] == [
        ("clips/0", 3),
        ("clips/1", 3),
        ("clips/0", 7),
        ("clips/1", 7),
    ]
    assert [[str(path)] for _, path in drawn] == [paths for _, paths, _, _ in videos.videos]
    assert drawn[0][0]["clip"].shape[0] == 3


def test_a_logger_without_videos_is_left_alone(stores, tmp_path):
    train(stores, tmp_path, CSVLogger(tmp_path), ClipViews(1, lambda *_: pytest.fail("nobody looks"), tmp_path))


def test_views_are_the_clip_what_augmentation_makes_of_it_and_what_the_attack_makes():
    module = toys_a2mc.full(toys_a2mc.a2mc()).train()
    batch = toys_a2mc.clips(2)
    views = views_of(module, batch)
    assert list(views) == [
        "clip",
        "augmented: query",
        "augmented: key",
        "attacked: 1 step of 0.001",
        "attacked: 2 steps of 0.001",
    ]
    assert module.training and all(view.shape == (2, 3, 16, 25, 2) for view in views.values())
    assert 0 < (views["attacked: 1 step of 0.001"] - views["clip"]).abs().max() <= 0.0011


def test_a_gif_has_a_panel_a_view_and_moves(tmp_path):
    source = np.random.default_rng(0)
    view = source.normal(size=(3, 7, 25, 2))
    view[..., 1] = 0
    path = tmp_path / "deep" / "clip.gif"
    pictures.clips({"clip": view, "attacked": view[:, :4]}, path, NTU25.bones, 2, 1)
    picture = Image.open(path)
    assert picture.size == (2 * pictures.PANEL, pictures.PANEL + pictures.TITLE) and picture.n_frames == 7
    first = np.asarray(picture.convert("RGB")).copy()
    picture.seek(3)
    assert (first != np.asarray(picture.convert("RGB"))).mean() > 0.01
    flat = pictures._flat(view, 2, 1)
    assert flat.shape == (7, 1, 25, 2) and np.abs(flat).max() == pytest.approx(1)
    assert (np.diff(flat[0, 0, :, 1]) * np.diff(view[2, 0, :, 0]) <= 0).all(), "upwards is towards smaller rows"


@pytest.mark.parametrize("draw", [partial(pictures.confusion, confusion()), partial(pictures.points, points())])
def test_pictures_hold_something(draw):
    pixels = np.asarray(draw().convert("RGB"))
    assert pixels.shape[0] > 300 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10
