"""Every image-text preset: composes, writes its miniature, is read, and can be shared out in every scenario."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import prepare
from datamodules.errors import InputError
from datamodules.image_text.module import ImageTextDataModule, columns
from datamodules.image_text.reading import verdict
from datamodules.image_text.sample import Corpus, Sample
from datamodules.miniature.folder import MARK
from datamodules.miniature.memes import write_memes
from datamodules.partition import IID
from tracking.build import build

CONF = Path(__file__).parents[1] / "conf"
SMALL = {
    "hateful_memes": ["train=24", "dev=4", "test=8"],
    "crisis_mmd": ["train=48", "dev=8", "test=8"],
    "medical": ["images=8", "test_images=2", "slake_images=2", "cards=12"],
    "easy_vqa": ["images=4", "test_images=2"],
}
NO_MINIATURE = {"crisis_events"}
CORPORA = sorted(path.stem for path in CONF.glob("corpus/*.yaml"))
SCENARIOS = sorted(path.stem for path in CONF.glob("modality/*.yaml"))


def composed(root: Path, corpus: str, *overrides: str):
    small = [f"corpus.miniature.{size}" for size in SMALL.get(corpus, [])]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("prepare", [f"corpus={corpus}", "raw=miniature", f"paths.root={root}", *small, *overrides])


def test_every_corpus_is_tested():
    assert set(CORPORA) == set(SMALL) | NO_MINIATURE


@pytest.mark.parametrize("corpus", SMALL)
def test_a_corpus_is_read_and_told_in_one_line(corpus, tmp_path, capsys):
    summary = prepare.main.run(composed(tmp_path, corpus))
    banner, line = capsys.readouterr().out.splitlines()
    assert "miniature, not " in banner
    assert line.startswith(f"{corpus}: ") and f"{summary['counts']['train']} train" in line and "rejected" in line
    assert summary["miniature"] and summary["counts"]["test"] > 0
    again = prepare.main.run(composed(tmp_path, corpus))
    assert again == summary


def test_strict_is_an_error_where_something_was_rejected(tmp_path):
    with pytest.raises(InputError, match="strict=true and 2 rejected .first img/.*: is missing"):
        prepare.main.run(composed(tmp_path, "hateful_memes", "strict=true"))
    assert prepare.main.run(composed(tmp_path, "medical", "strict=true"))["rejected"] == 0


def test_a_corpus_without_miniature_asks_for_its_folder(tmp_path):
    with pytest.raises(InputError, match="expected raw=folder"):
        prepare.main.run(composed(tmp_path, "crisis_events"))


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("corpus", SMALL)
def test_every_corpus_in_every_scenario(corpus, scenario, tmp_path_factory):
    root = tmp_path_factory.getbasetemp() / "corpora"
    config = composed(root, corpus, f"+modality={scenario}", f"+prompt={corpus}/base")
    paired = corpus == "medical"
    data = ImageTextDataModule(
        prepare.read_corpus(config),
        build(config.prompt),
        IID(8, within="pictured" if paired else None),
        build(config.modality),
        encode=lambda prompts, images, answers: None,
        batch_size=4,
        seed=1,
        paired=paired,
    )
    told = data.manifest()
    assert json.loads(json.dumps(told)) == told and data.clients == 8
    assert told["scenario"]["kind"] == type(data.scenario).__name__
    if paired:  # nothing is stripped: what is held is whole
        assert all(shown["neither"] == 0 for shown in told["shown"])


@pytest.mark.parametrize(
    ("partition", "corpus", "clients"),
    [
        ("by_event", "crisis_mmd", 7),
        ("by_subject", "easy_vqa", 4),
        ("iid", "hateful_memes", 4),
        ("pooled", "medical", 1),
    ],
)
def test_a_published_setting_under_another_partition(partition, corpus, clients, tmp_path):
    setting = "open" if corpus == "easy_vqa" else "hybrid_60"
    overrides = [f"experiment=fedmllm/{corpus}_{setting}", f"federated/partition={partition}", "seed=1"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("federate", overrides)
    rule = build(config.federated.partition)
    corpus_read = prepare.read_corpus(composed(tmp_path, corpus))
    pieces = rule.split(columns(corpus_read.train))
    assert len(pieces) == clients and sum(map(len, pieces)) == len(corpus_read.train)


@pytest.mark.slow  # draws some thousand pictures
@pytest.mark.parametrize("setting", ["easy_vqa_all", "easy_vqa_open", "crisis_mmd_alpha_05", "hateful_memes_alpha_05"])
def test_the_miniature_at_its_own_size_can_be_shared_out_as_published(setting, tmp_path_factory):
    root = tmp_path_factory.getbasetemp() / "whole"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("federate", [f"experiment=fedmllm/{setting}", "raw=miniature", f"paths.root={root}"])
    pieces = build(config.federated.partition).split(columns(prepare.read_corpus(config).train))
    assert len(pieces) == 10 and min(map(len, pieces)) > 0


def test_an_incomplete_set_is_no_whole_one_and_told_so(tmp_path, capsys):
    write_memes(tmp_path / "raw", train=24, dev=4, test=8)
    (tmp_path / "raw" / MARK).unlink()
    prepare.main.run(composed(tmp_path, "hateful_memes", f"raw={tmp_path / 'raw'}"))
    (line,) = capsys.readouterr().out.splitlines()
    assert "24 train, 8 test, 4 dev_seen, 2 rejected (first img/" in line
    assert line.endswith("; not the whole set, which has 8500 train and 1000 test")


@pytest.mark.parametrize(
    ("official", "said"),
    [((2, 1), "; the official numbers"), ((2, 2), "; not the whole set, which has 2 train and 2 test"),
     (None, "; unverified: no official numbers are known")],
)  # fmt: skip
def test_the_verdict_is_on_training_and_test_samples(official, said):
    sample = Sample("1", None, "x", "no", 0)
    corpus = Corpus("x", "X", "classification", ("no", "yes"), [sample] * 2, [sample], "f", False, official=official)
    assert verdict(corpus) == said and verdict(replace(corpus, miniature=True)) == ""
